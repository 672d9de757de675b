"""Nothing that only POSIX systems have is needed to import the product, or to run it; text files are UTF-8."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import clients
import fedinit
import run_sim
import strategies
from fedinit import stopping
from fedinit.deploy import local
from fedinit.errors import InputError
from tests.support.small import WORDS, small_config
from tests.support.source import nodes

POSIX_ONLY = ("fcntl", "resource", "termios", "pwd", "grp")
OS_ONLY = ("fork", "killpg", "setsid", "set_blocking", "sched_getaffinity", "sync")
SIGNALS_ONLY = ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGQUIT", "pthread_kill", "setitimer")
PACKAGES = (fedinit, clients, strategies)
ROOT = Path(__file__).resolve().parents[1]


def test_every_module_is_imported_without_what_only_posix_has(monkeypatch):
    """Anew, with the libraries as they are."""
    found = [m.name for p in PACKAGES for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")] + ["run_sim"]
    names = {p.__name__ for p in PACKAGES} | {"run_sim"}
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        monkeypatch.delitem(sys.modules, name)
    for name in POSIX_ONLY:
        monkeypatch.setitem(sys.modules, name, None)
    for module, absent in ((os, OS_ONLY), (signal, SIGNALS_ONLY)):
        for name in absent:
            monkeypatch.delattr(module, name, raising=False)
    try:
        for name in found:
            importlib.import_module(name)
        assert len(found) > 150
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]


def test_a_run_without_what_only_posix_has(tmp_path, monkeypatch, capsys):
    """And with domains that are not ASCII, in the tables of its folder."""
    for module, absent in ((os, OS_ONLY), (signal, SIGNALS_ONLY)):
        for name in absent:
            monkeypatch.delattr(module, name, raising=False)
    monkeypatch.setattr("fedinit.state.disk.WINDOWS", True)
    monkeypatch.setattr("fedinit.runs.lock.WINDOWS", True)
    words = [*WORDS, "rounds=1", "client.max_steps=1", f"output_dir={tmp_path}/ü"]
    assert run_sim.main(words) == 0 and "run folder: " in capsys.readouterr().out
    assert run_sim.main([*words, "resume=never"]) == 0
    assert len(list((tmp_path / "ü" / "digits").iterdir())) == 2


def test_the_operators_tools_know_of_windows(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    assert stopping.signals_to_stop() == [signal.SIGTERM, signal.SIGINT]
    monkeypatch.setattr(local, "WINDOWS", True)
    with pytest.raises(InputError, match="which Windows has not; use WSL"):
        local.run_locally(small_config(), 1, False, None, print)


def without_encoding(source: Iterable[ast.AST]) -> list[int]:
    """The lines where a text file is read or written in whatever encoding the machine prefers."""
    lines = []
    for call in (node for node in source if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        opens = isinstance(call.func, ast.Name) and name == "open"
        modes = [argument.value for argument in call.args[1:2] if isinstance(argument, ast.Constant)]
        of_path = isinstance(call.func, ast.Attribute)  # fedinit.opening's own says the encoding itself
        text = (of_path and name in ("read_text", "write_text")) or (
            opens and not any("b" in str(mode) for mode in modes)
        )
        if text and not any(keyword.arg == "encoding" for keyword in call.keywords):
            lines.append(call.lineno)
    return lines


def test_text_files_are_utf8_wherever_they_are_read():
    sources = [*ROOT.glob("*.py"), *(path for p in PACKAGES for path in Path(p.__path__[0]).rglob("*.py"))]
    assert {path.name: lines for path in sources if (lines := without_encoding(nodes(path)))} == {}
    control = ast.parse("open(p)\np.read_text()\nopen(p, 'rb')\nopen(p, 'a')\nImage.open(p)")
    assert without_encoding(ast.walk(control)) == [1, 2, 4]
