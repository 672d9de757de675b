"""fedinit run: what run_sim.py does, and how much is said."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import run_sim
from fedinit import cli
from fedinit.commands import COMMANDS
from fedinit.commands.run import OPTIONS
from fedinit.config import arguments
from tests.support.small import WORDS

ROOT = Path(__file__).resolve().parents[3]
SHORT = (*WORDS, "rounds=1", "client.max_steps=1", "engine.lanes=1")
HEAVY = ("torch", "flwr", "timm", "numpy", "scipy", "sklearn", "matplotlib", "pandas", "wandb")


def python(code: str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "function", "words", "light"),
    [
        ("fedinit.cli", "main", ["--help"], ("hydra", "rich")),
        ("fedinit.cli", "main", ["runn"], ("hydra",)),
        pytest.param("fedinit.cli", "main", ["export", "--help"], ("hydra",), marks=pytest.mark.slow),
        ("fedinit.cli", "main", ["deploy", "init", "--help"], ("hydra",)),
        ("fedinit.cli", "main", ["run", "--help"], ("hydra",)),
        ("fedinit.commands.run", "command", ["stratgy=fedit"], ()),
        pytest.param("fedinit.commands.run", "command", ["client.momentun=0"], (), marks=pytest.mark.slow),
        pytest.param("fedinit.commands.run", "command", ["strategy=fedt"], (), marks=pytest.mark.slow),
        ("fedinit.commands.run", "command", ["rounds=0"], ()),
        pytest.param("fedinit.commands.run", "command", ["--bad"], (), marks=pytest.mark.slow),
        ("fedinit.commands.run", "command", ["--cfg", "job"], ()),
    ],
)
def test_help_and_wrong_words_are_answered_without_what_takes_seconds_to_import(module, function, words, light):
    code = f"""
import sys
from {module} import {function} as command
code = command(sys.argv[1:])
print("imported:", *sorted({{{", ".join(map(repr, (*HEAVY, *light)))}}} & set(sys.modules)), "code:", code)
"""
    done = python(code, *words)
    code = 0 if "--help" in words or "--cfg" in words else 2
    assert done.stdout.splitlines()[-1] == f"imported: code: {code}", done.stderr
    assert done.stderr.count("\n") == (code == 2)


NEEDED = "wandb", "matplotlib", "torch._dynamo"


@pytest.mark.slow
def test_a_run_imports_neither_wandb_nor_what_draws_the_report_nor_what_compiles_or_goes_over_a_network():
    """Before its first step; the control: those that are installed can be had, and what fedinit depends on is."""
    names = *NEEDED, "sklearn", "pandas", "fastapi", "sqlalchemy"
    told = python(f"import sys, run_sim; print({set(names)} & set(sys.modules))")
    assert told.stdout == "set()\n"
    there = [name for name in names if name in NEEDED or importlib.util.find_spec(name) is not None]
    assert python(f"import {', '.join(there)}").returncode == 0
    # And they are there for whoever asks for them afterwards.
    assert python("import fedinit.models, wandb; print(wandb.__version__[:1])").stdout == "0\n"
    asked = "import torch; from torch._dynamo.utils import is_compile_supported; import torchvision.ops"
    code = f"{asked}; print(is_compile_supported('cpu'), torch.compiler.disable(len)('ab'))"
    assert python(f"import fedinit.models; {code}").stdout == python(code).stdout == "True 2\n"


def test_the_words_are_run_sims_and_so_is_the_folder(tmp_path, capsys):
    assert cli.main(["run", *SHORT, f"output_dir={tmp_path}"]) == 0
    first = capsys.readouterr().out
    assert run_sim.main([*SHORT, f"output_dir={tmp_path}"]) == 0
    again = capsys.readouterr().out
    folder = next(line for line in first.splitlines() if line.startswith("run folder: "))
    assert folder in again and "this run is done" in again
    assert cli.main(["run", "rounds=0"]) == 2
    assert capsys.readouterr().err == "error: rounds=0: expected 1 or more; a run has one round or more\n"


def test_quiet_says_the_folder_alone_and_verbose_a_line_a_client(tmp_path, capsys):
    for times in range(2):  # the second shows a run that is done
        assert cli.main(["run", "--quiet", *SHORT, f"output_dir={tmp_path}"]) == 0
        (folder,) = (tmp_path / "digits").iterdir()
        assert capsys.readouterr() == (f"{folder}\n", ""), times
    assert run_sim.main([*SHORT, "-v", "seed=3", f"output_dir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert [n for n in range(3) if re.search(rf"round 1, client {n}: \d+ images, 1 step, loss \d", printed)] == [
        0,
        1,
        2,
    ]
    assert re.search(r"round 1, accuracy, %: plain \d+\.\d, inverted ", printed)
    assert run_sim.main([*SHORT, "seed=4", f"output_dir={tmp_path}"]) == 0
    assert "client 0:" not in capsys.readouterr().out, "the control"
    assert run_sim.main(["-q", "-v"]) == 2
    assert capsys.readouterr().err == "error: --quiet --verbose: one of them at a time\n"


@pytest.mark.slow
def test_quiet_says_a_folder_a_run_of_a_sweep(tmp_path, capsys):
    assert run_sim.main(["-m", "-q", *SHORT, "seed=1,2", f"output_dir={tmp_path}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_verbose_shows_where_an_error_arose_and_quiet_keeps_errors(tmp_path, capsys):
    for words in (["run", "rounds=0"], ["report", str(tmp_path)]):
        assert cli.main([*words, "--quiet"]) == 2
        alone = capsys.readouterr().err
        assert alone.startswith("error: ") and alone.count("\n") == 1
        assert cli.main([*words, "--verbose"]) == 2
        traced = capsys.readouterr().err
        assert traced.startswith("Traceback") and traced.endswith(alone)


def test_colours_go_where_they_are_not_wanted(tmp_path, capsys, monkeypatch):
    colours = re.compile(r"\x1b\[[0-9;]*[39]\dm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    words = ["run", *SHORT, f"output_dir={tmp_path}", "evaluation=none", "quorum=1.0"]
    for unwanted in (False, True):
        if unwanted:
            monkeypatch.setenv("NO_COLOR", "1")
        assert cli.main([*words, f"seed={int(unwanted)}"]) == 0
        assert bool(colours.search(capsys.readouterr().out)) != unwanted


def test_every_option_that_is_completed_is_one(capsys):
    known = {name for action in arguments._parser()._actions for name in action.option_strings}
    assert set(OPTIONS) <= known and {"--quiet", "--verbose"} <= known


def test_every_command_has_help_of_its_own_and_stands_in_the_list(capsys):
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in listed and command.summary in listed
        assert cli.main([name, "--help"]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"usage: fedinit {name}") and "--verbose" in printed
    assert cli.main(["--version"]) == 0 and re.match(r"fedinit \d", capsys.readouterr().out)


def test_the_documentation_names_every_command_and_exit_code():
    text = (ROOT / "docs" / "commands.md").read_text()
    assert all(f"`fedinit {name}" in text for name in COMMANDS)
    assert all(f"| {code} |" in text or f"| {code}, " in text for code in (0, 1, 2, 130))
