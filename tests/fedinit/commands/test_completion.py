"""fedinit completion: what TAB offers, and that a real bash offers it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedinit import cli
from fedinit.commands import COMMANDS
from fedinit.commands.completion import complete
from fedinit.config.groups import groups

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fedinit pre", ["predict"]),
        ("fedinit -q pre", ["predict"]),
        ("fedinit -v export --format o", ["onnx"]),
        ("fedinit run stra", ["strategy="]),
        ("fedinit run -m strategy=lora_", ["strategy=lora_a2", "strategy=lora_fair"]),
        ("fedinit run client=adamw client.b", ["client.batch_size=", "client.betas="]),
        ("fedinit run client.b", ["client.batch_size="]),
        ("fedinit run client=nonsense client.b", []),
        ("fedinit run --mul", ["--multirun"]),
        ("fedinit export --format ", ["merged", "onnx", "peft", "timm"]),
        ("fedinit export --format o", ["onnx"]),
        ("fedinit deploy in", ["init"]),
        ("fedinit deploy up data=dig", ["data=digits"]),
        ("fedinit deploy init --ho", ["--host"]),
        ("fedinit deploy status strat", []),
        ("fedinit predict some/fol", []),
        ("fedinit nonsense ", []),
        ("fedinit run 'open", []),
    ],
)
def test_what_could_stand_there(line, expected):
    assert complete(line) == expected


def test_a_new_word_is_any_command_or_any_group():
    assert set(complete("fedinit ")) == {*COMMANDS, "--help", "--version"}
    assert {f"{name}=" for name in groups()} | {"rounds=", "seed="} <= set(complete("fedinit run "))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_takes_it(tmp_path):
    """bash has split the word at its =, so what it is given is what stands behind."""
    script = f"""
fedinit() {{ "{sys.executable}" -m fedinit "$@"; }}
eval "$(fedinit completion bash)"
ask() {{ COMP_LINE="$1"; COMP_POINT=${{#1}}; _fedinit 2>/dev/null; echo "${{COMPREPLY[*]}}"; }}
COMP_WORDBREAKS=' =:'
ask "fedinit pre"; ask "fedinit run strategy=lora_"
COMP_WORDBREAKS=' :'
ask "fedinit run strategy=lora_"
"""
    told = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.splitlines() == ["predict", "lora_a2 lora_fair", "strategy=lora_a2 strategy=lora_fair"], (
        told.stderr
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_takes_it(program):
    script = 'fedinit completion fish | source; complete -C "fedinit run strategy=lora_"; complete -C "fedinit pred"'
    told = subprocess.run(["fish", "-c", script], cwd=ROOT, env=program, capture_output=True, text=True)
    assert told.stdout.split()[:3] == ["strategy=lora_a2", "strategy=lora_fair", "predict"], told.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_it(program):
    """Typed at a terminal, which zsh completes at alone."""
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execvpe("zsh", ["zsh", "-f", "-i"], program | {"TERM": "dumb"})

    def typed(keys: str, until: str) -> str:
        os.write(terminal, keys.encode())
        told, end = "", time.monotonic() + 60
        while until not in told and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                told += os.read(terminal, 4096).decode(errors="replace")
        return told

    try:
        typed('autoload -Uz compinit && compinit -u -D; eval "$(fedinit completion zsh)"; print BE""GUN\n', "BEGUN\r\n")
        assert "fedrot_lora" in typed("fedinit run strategy=fedrot\t", "fedrot_lora")
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(child, 0)


@pytest.fixture
def program(tmp_path) -> dict[str, str]:
    """The environment in which `fedinit` is this checkout's."""
    script = tmp_path / "fedinit"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedinit "$@"\n')
    script.chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def test_no_shell_or_another_is_one_line(capsys):
    for words, expected in (([], "which shell? bash, zsh or fish"), (["tcsh"], "invalid choice: 'tcsh'")):
        assert cli.main(["completion", *words]) == 2
        said = capsys.readouterr().err
        assert expected in said and said.count("\n") == 1
    for shell in ("bash", "zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        assert "fedinit completion --line" in capsys.readouterr().out
