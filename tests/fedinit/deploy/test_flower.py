"""How a run that failed is told, by the log that Flower keeps of it; Flower's own program is not started."""

from __future__ import annotations

import ast
import importlib
import io
import json
import logging
import subprocess
from pathlib import Path

import pytest
from flwr.supercore.logger import ConsoleHandler

import fedinit
from clients.statistics import TooFew
from fedinit import cli
from fedinit.deploy.flower import TOLD, Server, reason
from fedinit.errors import FolderBusy, InputError, RunFailed
from tests.support.small import WORDS

ROOT = Path(fedinit.__file__).resolve().parent.parent
EXIT = """Exit Code: 201

An unhandled exception occurred in the ServerApp.

For more information, visit: <https://flower.ai/docs/framework/1.41/en/ref-exit-codes/201.html>
"""


def log_of(error: BaseException, after: str = EXIT) -> str:
    """What Flower keeps of a ServerApp that ends so: its own handler, with its colours."""
    text = io.StringIO("")
    handler = ConsoleHandler(stream=text)
    try:
        try:
            raise ValueError("fedinit.errors.RunFailed: what came before")
        except ValueError as before:
            raise error from before
    except BaseException as raised:  # noqa: BLE001 (whatever it is)
        for message, info in (
            ("ServerApp raised an exception", (type(raised), raised, raised.__traceback__)),
            (after, None),
        ):
            handler.handle(logging.LogRecord("flwr", logging.ERROR, __file__, 1, message, None, info))
    assert "\x1b[91mERROR" in text.getvalue() and "Traceback" in text.getvalue()
    return "lora_fair: waits for clients\n" + text.getvalue()


@pytest.fixture()
def ended(tmp_path, monkeypatch, capsys):
    """`fedinit deploy run` of a run that ended with this status and log: exit code and what it said of it."""
    assert cli.main(["deploy", "init", str(tmp_path / "f"), "--insecure", *WORDS]) == 0

    def run(status: str, log: str) -> tuple[int, list[str]]:
        answers = {"run": {"run-id": "17"}, "list": {"runs": [{"status": status}]}}

        def flwr(self, *words):
            said = log if words[0] == "log" else json.dumps({"success": True, **answers[words[0]]})
            return subprocess.CompletedProcess(words, 0, stdout=said, stderr="")

        monkeypatch.setattr(Server, "_flwr", flwr)
        capsys.readouterr()
        code = cli.main(["deploy", "run", str(tmp_path / "f")])
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    "error",
    [
        RunFailed("1 of 2 clients were there after 25 s; start the rest"),
        InputError("rounds: a colon: in it"),
        FolderBusy(Path("outputs")),
        TooFew("too few"),
    ],
)
def test_a_run_that_fails_by_an_own_error_is_told_in_one_line(ended, error):
    assert ended("finished:failed", log_of(error)) == (1, [f"failed: run 17: {error}"])


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("finished:failed", ZeroDivisionError("division by zero")),
        ("finished:failed", OSError(28, "No space left on device")),
        ("finished:stopped", RunFailed("it was over before")),
    ],
)
def test_of_any_other_end_the_end_of_the_log_is_shown_without_colours(ended, status, error):
    code, lines = ended(status, log_of(error))
    assert code == 1 and lines[0] == f"failed: run 17 is {status}:" and len(lines) == 16
    assert f"  {type(error).__name__}: {error}" in "\n".join(lines).replace("fedinit.errors.", "")
    assert "  ERROR :     Exit Code: 201" in lines
    assert not [line for line in lines if "\x1b" in line or "\ufffd" in line or "[91m" in line]


def test_a_run_that_printed_nothing_says_so(ended):
    assert ended("finished:failed", "") == (1, ["failed: run 17 is finished:failed:", "  (it printed nothing)"])


def test_an_error_that_is_not_the_end_of_the_log_is_no_reason():
    error = RunFailed("of a round before")
    assert reason(log_of(error)) == str(error)
    assert reason(log_of(error) + "a line\n" * 20) is None
    assert reason(log_of(error) + log_of(ZeroDivisionError("x"))) is None
    assert reason("fedinit.errors.RunFailed: said by a client\n") is None


def test_every_error_that_is_told_in_a_line_is_known():
    """TOLD is names, since reading a log imports nothing; a new subclass is to be added to it."""
    bases: dict[str, tuple[str, list[str]]] = {}
    for package in ("fedinit", "strategies", "clients"):
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    named = [
                        base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases
                    ]
                    bases[f"{module}.{node.name}"] = (node.name, named)
    own = {"InputError", "RunFailed"}
    while more := {name for name, named in bases.values() if own & {*named}} - own:
        own |= more
    found = [path.rpartition(".") for path, (name, _) in bases.items() if name in own]
    classes = {f"{module}.{name}": getattr(importlib.import_module(module), name) for module, _, name in found}
    assert {path for path, each in classes.items() if issubclass(each, (InputError, RunFailed))} == TOLD
