"""Every command of README.md, CONTRIBUTING.md and docs/ is one that its program takes, and those that need no more than
what is bundled run (`pytest -m slow tests/test_documentation.py`)."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
import torch

from clients.engine.hardware import resolved
from fedinit.cli import ANYWHERE
from fedinit.commands import COMMANDS
from fedinit.commands.run import configurations
from fedinit.config import arguments
from fedinit.config.compose import compose_config
from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.runs import folder as run_folder
from strategies.server.compatibility import check_method
from tests.support.documented import ROOT, Command, blocks, commands, pages, split

PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
MARKS = {mark.partition(":")[0] for mark in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
# What is not the project's, and why nothing of it can be wrong here.
PLAIN = {
    "cp": "copies what the commands before it made",
    "scp": "the same, to another machine",
    "chown": "of the system's administration",
    "useradd": "of the system's administration",
    "systemctl": "of the system's administration; the units are tested in tests/fedinit/deploy",
    "sha256sum": "reads a file of the reader's",
    "rm": "removes what was copied",
    "tail": "shows the end of a command's output",
    "source": "reads what the command before it printed",
    "eval": "the same",
    "export": "a variable for another program, which is tested in tests/test_flwr_run.py",
    "cd": "into what was cloned",
    "git": "clone of a public repository",
}
BESIDE = {"pre-commit"}  # packages that a reader may install and the project does not need


def all_commands() -> list[Command]:
    return [command for page in pages() for command in commands(page)]


def run_configurations(words: list[str]) -> list[Config]:
    """What run_sim.py makes of the words, judged as at its start; of a sweep's seeds one stands for all."""
    if {"-h", "--help"} & set(words):
        return []
    said = arguments.read([re.sub(r"^seed=.*", "seed=0", word) for word in words])
    configs = [] if said.shows else [swept.config for swept in configurations(said)]
    for config in configs:
        check_method(config)
    return configs


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    try:
        return parser.parse_args(words)
    except SystemExit as left:
        if left.code:
            raise InputError(f"{parser.prog} does not take {' '.join(words)}") from left
        return argparse.Namespace()


def judge_fedinit(words: list[str]) -> None:
    before = [word for word in words[:1] if word in ANYWHERE]  # which may stand before the command too
    name, *rest = words[len(before) :] + before
    if name == "--version":
        return
    if name == "run":
        run_configurations(rest)
        return
    parser = importlib.import_module(COMMANDS[name].module).parser(name)
    if name == "deploy":
        options, rest = parser.parse_known_args(rest)
        assert not rest or options.command in ("init", "app", "up"), "the folder says what is run"
        check_method(compose_config(["evaluation=clients", *rest]), under_flower=True)
        return
    options = parse(parser, rest)
    given = getattr(options, "data", None) or []
    if given and all("=" in word for word in given):
        compose_config(given)


def judge_python(words: list[str]) -> None:
    if words[0] == "run_sim.py":
        run_configurations(words[1:])
    elif words[0].startswith("scripts/"):
        source = (ROOT / words[0]).read_text(encoding="utf-8")
        assert len(words) == 1 or "argparse" in source, f"{words[0]} takes no words"
    elif words[:2] == ["-m", "benchmarks.client_start"]:
        check_method(compose_config(["evaluation=clients", *words[2:]]))
    elif words[0] == "-m" and words[1].startswith("benchmarks."):
        name = words[1] + ".__main__" * (ROOT / words[1].replace(".", "/")).is_dir()
        parse(importlib.import_module(name).parser(), words[2:])
    elif words[0] == "-m" and words[1].startswith("tests."):
        assert (ROOT / f"{words[1].replace('.', '/')}.py").is_file(), words[1]
    elif "-c" in words:
        compile(words[words.index("-c") + 1], "documented", "exec")
    else:
        assert words[:2] == ["-m", "venv"], f"python {words[0]}: no class of commands here"


def judge_pip(words: list[str]) -> None:
    assert words[0] == "install"
    rest = iter(words[1:])
    for word in rest:
        if word == "-c":
            assert (ROOT / next(rest)).is_file()
        elif word != "-e":
            match = re.fullmatch(r"(\.|fedinit)(?:\[([\w,]+)\])?", word)
            assert match or word in BESIDE, f"{word}: neither this project nor a package that is known here"
            missing = set((match[2] or "").split(",")) - {"", *EXTRAS} if match else set()
            assert not missing, f"pyproject.toml has no extra {missing}"


def judge_pytest(words: list[str]) -> None:
    rest, paths, names = iter(words), [], []
    for word in rest:
        if word == "-m":
            assert set(re.findall(r"\w+", next(rest))) - {"not", "and", "or"} <= MARKS
        elif word == "-k":
            names = re.findall(r"\w+", next(rest))
        elif word == "-n":
            assert next(rest).isdigit()
        elif not word.startswith("-") and word != "PATH":
            paths.append(ROOT / word)
    assert all(path.exists() for path in paths), f"no such file among {words}"
    text = "".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
    assert all(name in text for name in set(names) - {"not", "and", "or"}), f"-k finds nothing: {words}"


def judge_flwr(words: list[str]) -> None:
    import typer
    from flwr.cli.app import app

    command = typer.main.get_command(app)
    while words and words[0] in (known := getattr(command, "commands", {})):
        command, words = known[words[0]], words[1:]
    command.make_context("flwr", list(words))


def judge_ci(words: list[str]) -> None:
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert " ".join(words) in lines, f"{' '.join(words)}: not what .ci/run does"


def judge(command: Command) -> None:
    """Raise where the command is not one that its program takes."""
    words = list(command.words)
    while words and re.match(r"[A-Za-z_]\w*=", words[0]):
        words = words[1:]  # a variable
    if not words or words[0] in PLAIN:
        return
    name, rest = Path(words[0]).name, words[1:]
    if name in ("ruff", "pyright", "mkdocs"):
        judge_ci(words)
    elif name == "pre-commit":
        assert (ROOT / ".pre-commit-config.yaml").is_file()
    else:
        kinds = {"fedinit": judge_fedinit, "pip": judge_pip, "pytest": judge_pytest, "flwr": judge_flwr}
        kinds |= {"python": judge_python, "python3": judge_python}
        assert name in kinds, f"{name}: a program of no kind that is known here"
        kinds[name](rest)


def wrong(documented: list[Command]) -> list[str]:
    """What is the matter with each that is not right, with its page and line."""
    told = []
    for command in documented:
        try:
            judge(command)
        except Exception as error:  # whatever a parser raises, it is told with its place
            told.append(f"{command.place}: {command.text}: {type(error).__name__}: {error}")
    return told


@pytest.mark.slow
def test_every_command_is_one_that_its_program_takes():
    documented = all_commands()
    assert len(documented) > 80 and {"README.md", "docs/use.md"} <= {c.place.partition(":")[0] for c in documented}
    told = wrong(documented)
    assert not told, "\n".join(["", *told])


@pytest.mark.parametrize(
    "text",
    [
        "python run_sim.py strategy=fedot",
        "python run_sim.py -m strategy=fedit,flora seed=0 round=3",
        "python run_sim.py adapter=vera strategy=flora",
        "fedinit exprot RUN --format timm",
        "fedinit export RUN --format tim",
        "fedinit evaluate RUN --data data=csv data.rot=list.csv",
        "fedinit deploy up rouns=2",
        "folder=$(fedinit run --quite) && fedinit report x",
        "python -m benchmarks.pacs methods --data PACS",
        "python -m benchmarks.none",
        'pip install -e ".[tests]"',
        "pytest -m slwo",
        "pytest tests/test_none.py",
        'pytest tests/test_deployment.py -k "not campain"',
        "flwr run digits --steam",
        "conda install fedinit",
        "mkdocs serve --strict",
    ],
)
def test_the_control_a_wrong_command_is_seen(text):
    assert wrong(list(split(text, "page:1")))


def patterns(command: Command) -> str:
    """What of the line zsh would take for names of files, and end where there are none: [, (, * or ? without quotes."""
    bare = re.sub(r"'[^']*'|\\.|\$\([^()]*\)", "", command.text)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", bare)
    return "".join(re.findall(r"[\[(*?]", re.sub(r"(?:^|\s)#.*", "", bare)))


def test_what_a_shell_would_take_for_a_pattern_stands_in_quotes():
    told = [f"{command.place}: {command.text}" for command in all_commands() if patterns(command)]
    assert not told, "\n".join(["", *told])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("fedinit run adapter.ranks=[2,4]", "["),
        ("fedinit run -m strategy=glob(fed*) seed=0", "(*"),
        ("fedinit run adapter.targets=mlp.fc? # all", "?"),
        ('pip install -e .[docs] && echo "[x]"', "["),
        ("fedinit run \"adapter.ranks=[2,4]\" 'seed=range(0,3)'  # a list [x]", ""),
        ("folder=$(fedinit run --quiet) && fedinit report $folder", ""),
    ],
)
def test_the_control_a_bare_pattern_is_seen(text, found):
    assert [patterns(command) for command in split(text, "page:1")][:1] == [found]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the runs have other banks, so other names")
def test_the_folders_of_runs_that_pages_name_are_those_that_the_commands_leave():
    left = {str(run_folder.place(resolved(compose_config(words)))) for words in ([], ["experiment=quick"])}
    pattern = r"outputs/(?:digits|quick)/[0-9a-f]{10}-s0"
    named = {(page.name, name) for page in pages() for name in re.findall(pattern, page.read_text(encoding="utf-8"))}
    assert {name for _, name in named} == left, f"{sorted(named)}; the runs' own: {sorted(left)}"


def test_python_blocks_compile_and_what_they_import_is_there():
    seen = 0
    for block in (block for page in pages() for block in blocks(page) if block.kind == "python"):
        compile(block.text, block.place, "exec")
        if "examples.md" in block.place:  # whole files, which tests/test_examples.py runs
            continue
        for line in re.findall(r"^\s*((?:import|from) .+?)(?:  #.*)?$", block.text, re.MULTILINE):
            exec(line, {})
        seen += 1
    assert seen >= 5


def bundled(command: Command) -> bool:
    """Whether it is a federation on this machine that needs no file and no network."""
    words = [word for word in command.words if not re.match(r"[A-Z_]+=", word)]
    if words[:2] not in (["python", "run_sim.py"], ["fedinit", "run"]):
        return False
    configs = run_configurations(words[2:])
    if any(c.resume not in ("auto", "never") for c in configs):
        return False  # it goes on with a run that is there
    return bool(configs) and not any(getattr(c.data, "root", None) or c.data.name == "hub" for c in configs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=" ".join(words))
        for words in dict.fromkeys(c.words for c in all_commands() if c.words[0] in ("python", "fedinit"))
    ],
)
def test_what_needs_no_data_runs(words, tmp_path):
    """One round of it: `rounds=1` is put after the words, and a folder for the outputs."""
    if not bundled(Command("", words, "")):
        pytest.skip("no run, or one on data that are not bundled")
    program = {"python": [sys.executable], "fedinit": [sys.executable, "-m", "fedinit"]}[words[0]]
    more = ["rounds=1", "logger=none", f"output_dir={tmp_path}"]
    done = subprocess.run(
        [*program, *words[1:], *more],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preview=true" in words or [*tmp_path.rglob("summary.json")]
