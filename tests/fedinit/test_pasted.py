"""Advice is taken back by a shell, and by Hydra behind it, as it was meant."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fedinit import cli
from fedinit.config.words import parse
from fedinit.pasted import pasted, resuming
from tests.support.recorded_runs import config, write_run

NAMES = ["outputs/digits/a-s0", "my run é/x", "a,b's", 'q"uo', "a\\b,", "$x{1}", "[a]", "a=b", "(x)", "a\\'b", "x,\\"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_taken_back(name):
    program, command, word = shlex.split(resuming(name))
    override = parse(word)
    assert (program, command) == ("fedinit", "run") and not override.is_sweep_override()
    assert (override.key_or_group, override.value()) == ("resume", name)
    assert shlex.split(pasted(name)) == [name]


UNSEEN = ["a\nb", "\x1b[31mred", "tab\tx", "it's\n\\", "\n$(touch x)`y`", "é\r1", os.fsdecode(b"no utf-8 \xff")]


@pytest.mark.skipif(shutil.which("bash") is None, reason="$'…' is read by bash, zsh and ksh")
@pytest.mark.parametrize("name", UNSEEN)
def test_signs_that_nobody_sees_are_taken_back_too(name):
    hint = f"{resuming(name)} {pasted(name)}"
    assert hint.isprintable()
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {hint}"], capture_output=True, check=True).stdout
    program, command, word, path = map(os.fsdecode, said.split(b"\0")[:-1])
    assert (program, command, path) == ("fedinit", "run", name)
    assert parse(word).value() == name


def test_a_plain_one_stays_plain_and_none_is_an_option():
    assert resuming("outputs/a-s0", "data.root=PLACE") == "fedinit run resume=outputs/a-s0 data.root=PLACE"
    assert pasted("outputs/a") == "outputs/a" and pasted("-x") == "./-x"


def test_commands_say_it_so(tmp_path, capsys):
    folder = write_run(tmp_path / "my run é", config(), reached=2, recorded=False)
    assert cli.main(["watch", str(folder)]) == 1
    assert capsys.readouterr().out.endswith(f"fedinit run 'resume={folder}' goes on with it\n")


def test_nobody_puts_a_folder_into_a_command_by_itself():
    """`resuming` alone knows how; in the text of others the command has words and no values."""
    for file in Path(cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) and file.name != "pasted.py":
                texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
                assert not any(str(text).endswith("fedinit run resume=") for text in texts), file
