"""Imports run one way, the mathematics knows no framework (docs/architecture.md), and test modules stand alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from fedinit.data.published_sets import SETS
from tests.support.source import nodes

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedinit", "strategies", "clients")
FRAMEWORKS = {"flwr", "hydra", "omegaconf", "wandb", "rich"}
# The conduct of a run and the apps are where Flower comes in; everything else is a method or a value.
FOLDERS = ("adapters", "diagnostics", "heads", "initializers", "models", "statistics", "transforms")
PLAIN = ["strategies/methods", *(f"fedinit/{name}" for name in FOLDERS)]
PLAIN_FILES = ["strategies/aggregator.py", "strategies/reinit.py", "strategies/server_opt.py"]
PLAIN_FILES += ["clients/task.py", "fedinit/views.py"]
PLAIN_FILES += ["fedinit/factors.py", "fedinit/seeding.py", "fedinit/state/digest.py"]


def imports(path: Path) -> set[str]:
    """Top-level names of the packages a file imports, wherever in the file."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    ("folder", "banned"),
    [
        ("fedinit", {"strategies", "clients", "run_sim"}),
        ("strategies", {"clients", "run_sim"}),
        ("clients", {"strategies", "run_sim"}),
    ],
)
def test_packages_import_one_way(folder, banned):
    assert files(folder)
    for path in files(folder):
        assert not imports(path) & banned, path.name


def test_methods_and_algebra_import_no_framework():
    checked = [*(ROOT / name for name in PLAIN_FILES), *(path for name in PLAIN for path in files(name))]
    assert len(checked) > 60
    for path in checked:
        assert not imports(path) & FRAMEWORKS, path.name


def test_the_check_sees_an_import():
    """The negative control: the folder that may import Flower does, and is seen to."""
    assert any("flwr" in imports(path) for path in files("strategies/server"))


def graph() -> dict[str, set[str]]:
    """{module: the project's modules that it imports}, those for types alone and those inside functions too."""
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for f in PACKAGES for p in files(f)}
    names = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    return {name: {found for found in named(nodes(path)) if found in names} for name, path in names.items()}


def named(source: Iterable[ast.AST]) -> set[str]:
    """The modules that a source may mean by its imports: `from a import b` is of a, and of a.b if that is a module."""
    found = set()
    for node in source:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def circles(imported: dict[str, set[str]]) -> list[str]:
    """The modules that come back to themselves by way of others."""

    def reached(module: str) -> set[str]:
        seen, ahead = set(), [module]
        while ahead:
            fresh = imported[ahead.pop()] - seen
            seen |= fresh
            ahead += fresh
        return seen

    return sorted(module for module in imported if module in reached(module))


def test_no_circle_of_imports():
    assert circles(graph()) == []


def test_a_circle_for_types_alone_is_seen():
    """The negative control."""
    ours = "from __future__ import annotations\nif TYPE_CHECKING:\n    from pack.theirs import Task\n"
    imported = {
        "pack.ours": named(ast.walk(ast.parse(ours))) & {"pack.theirs"},
        "pack.theirs": {"pack.ours"},
        "pack.alone": {"pack.ours"},
    }
    assert circles(imported) == ["pack.ours", "pack.theirs"]


# What reads pickles, or other bytes that are code, of the libraries that are installed; and of torch what its parts do.
PICKLERS = {"pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PICKLERS |= {"jsonpickle", "pandas", "torch.package", "torch.serialization", "torch.load", "ray.cloudpickle"}
READS = {"read_pickle", "unsafe_load", "full_load", "load_state_dict_from_url", "PackageImporter", "cloudpickle"}
PARTS = {"hub", "jit", "serialization"}


def unpickling(source: Iterable[ast.AST]) -> list[str]:
    """What a source may unpickle by: an import, or a name, of what does nothing else, `torch.load` unless with
    weights_only=True, and numpy's `allow_pickle` unless as False."""
    found, source = [], list(source)
    imports = [alias for node in source if isinstance(node, ast.Import) for alias in node.names]
    torches = {"torch", *(alias.asname for alias in imports if alias.name == "torch" and alias.asname)}
    for name in named(source):
        parts = name.split(".")
        found += [name for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in PICKLERS]
    called = {node.func: node for node in source if isinstance(node, ast.Call)}
    for node in source:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in PICKLERS:
            found.append(node.value)  # imported by its name
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and _constant(node) is not False:
            found.append("allow_pickle")
        elif isinstance(node, ast.Attribute) and node.attr in READS:
            found.append(node.attr)
        elif isinstance(node, ast.Attribute) and node.attr == "load":
            if getattr(node.value, "attr", "") in PARTS:
                found.append("torch's load of code")
            elif getattr(node.value, "id", "") in torches:
                words = called[node].keywords if node in called else []
                safe = any(word.arg == "weights_only" and _constant(word) is True for word in words)
                found += [] if safe else ["torch.load"]
    return found


def _constant(keyword: ast.keyword) -> object:
    return keyword.value.value if isinstance(keyword.value, ast.Constant) else None


def test_no_pickles_are_read():
    """Weights and states are safetensors and JSON, and arrays what numpy reads without pickles."""
    checked = [ROOT / "run_sim.py", *(path for folder in PACKAGES for path in files(folder))]
    assert len(checked) > 200
    for path in checked:
        assert not unpickling(nodes(path)), (path.relative_to(ROOT), unpickling(nodes(path)))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "from pickle import Unpickler as U",
        "def f():\n    import dill",
        "import cloudpickle",
        "from ray import cloudpickle",
        "from joblib import load",
        "import shelve",
        "import marshal",
        "importlib.import_module('pickle')",
        "__import__('dill')",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=trusted)",
        "read = torch.load",
        "import torch as t\nt.load(file)",
        "from torch import load",
        "from torch.serialization import load",
        "torch.jit.load(file)",
        "torch.hub.load('a', 'b')",
        "torch.package.PackageImporter(file)",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=trusted)",
        "np.lib.format.read_array(file, allow_pickle=True)",
        "frame.read_pickle(file)",
        "yaml.unsafe_load(text)",
    ],
)
def test_the_check_sees_what_unpickles(text):
    """The negative control."""
    assert unpickling(ast.walk(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(file, weights_only=True)",
        "torch.hub.get_dir()",
        "np.load(file, allow_pickle=False)",
        "json.load(file)",
        "import torch.nn",
    ],
)
def test_the_check_sees_nothing_where_nothing_is_unpickled(text):
    assert not unpickling(ast.walk(ast.parse(text)))


def test_of_the_published_sets_cifar_alone_is_pickled():
    """Which torchvision opens once its md5 is the published one (tests/fedinit/data/test_sources.py)."""
    import torchvision.datasets

    folder = Path(torchvision.datasets.__file__).parent
    pickled = set()
    for kind in {"CIFAR10", *(kind for kind, _ in SETS.values())}:
        path = folder / f"{getattr(torchvision.datasets, kind).__module__.rpartition('.')[2]}.py"
        if unpickling(nodes(path)):
            pickled.add(path.stem)
    assert pickled == {"cifar"}


# One, by its lines: most files are not parsed.
MAY_IMPORT = re.compile(r"^\s*(?:from|import)\b.*(?:test_|\()", re.MULTILINE)


def modules_of_tests(source: str) -> list[str]:
    """What this source imports of test modules, `test_*`, by full name, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(source)) if MAY_IMPORT.search(source) else ():
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module or ''}.{alias.name}" for alias in node.names]
    return [name for name in names if any(part.startswith("test_") for part in name.split("."))]


def test_no_test_module_imports_another():
    """What two of them need is in tests/support/ or tests/faults/."""
    modules = files("tests")
    assert len(modules) > 50
    for path in modules:
        assert not modules_of_tests(path.read_text(encoding="utf-8")), path.relative_to(ROOT)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("from tests.fedinit.test_factors import product", "tests.fedinit.test_factors.product"),
        ("from tests.fedinit import oracles, test_factors", "tests.fedinit.test_factors"),
        ("def f():\n    import tests.test_resume", "tests.test_resume"),
        ("from .test_resume import run", "test_resume.run"),
        ("from . import test_resume", ".test_resume"),
        ("if x:\n    from tests import (\n        conftest,\n        test_resume,\n    )", "tests.test_resume"),
    ],
)
def test_the_check_sees_a_test_module(text, seen):
    """The negative control; a module of tests/support is none."""
    assert modules_of_tests(text) == [seen]
    innocent = "from tests.support.small import WORDS\nimport torch.testing"
    assert not modules_of_tests(innocent)


def test_files_and_functions_stay_small():
    """Half of the files under 90 lines, none over 350; functions of 60 lines and eight arguments at most, constructors
    apart."""
    lines, wrong = [], []
    for path in [
        ROOT / "run_sim.py",
        *(p for name in ("fedinit", "strategies", "clients") for p in (ROOT / name).rglob("*.py")),
    ]:
        lines.append(len(path.read_text(encoding="utf-8").splitlines()))
        for node in nodes(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "__init__":
                named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([argument for argument in named if argument.arg not in ("self", "cls", "ctx")])
                if (node.end_lineno or 0) - node.lineno >= 60 or count > 8:
                    wrong.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not wrong and max(lines) <= 350 and sorted(lines)[len(lines) // 2] < 90, (wrong, max(lines))
