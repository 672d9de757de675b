"""Imports run one way, and the mathematics knows no framework (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = {"flwr", "hydra", "omegaconf", "wandb", "rich"}


def imports(path: Path) -> set[str]:
    """Top-level names of the packages a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
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


# The conduct of a run and the apps are where Flower comes in; everything else is a method or a value.
FOLDERS = ("adapters", "diagnostics", "heads", "initializers", "models", "statistics", "transforms")
PLAIN = ["strategies/methods", *(f"fedinit/{name}" for name in FOLDERS)]
PLAIN_FILES = ["strategies/aggregator.py", "strategies/reinit.py", "strategies/server_opt.py"]
PLAIN_FILES += ["clients/task.py", "fedinit/views.py"]
PLAIN_FILES += ["fedinit/factors.py", "fedinit/seeding.py", "fedinit/state/digest.py"]


def test_methods_and_algebra_import_no_framework():
    checked = [*(ROOT / name for name in PLAIN_FILES), *(path for name in PLAIN for path in files(name))]
    assert len(checked) > 60
    for path in checked:
        assert not imports(path) & FRAMEWORKS, path.name


def test_the_check_sees_an_import():
    """The negative control: the folder that may import Flower does, and is seen to."""
    assert any("flwr" in imports(path) for path in files("strategies/server"))


def test_no_pickles_are_read():
    """Weights and states are safetensors and JSON; torch.load and pickle.load appear nowhere."""
    for folder in ("fedinit", "strategies", "clients"):
        for path in files(folder):
            text = path.read_text()
            assert "torch.load(" not in text and "pickle.load" not in text, path.name
