"""The words before a command's own."""

from __future__ import annotations

import sys

import pytest

import run_sim
from fedinit import cli
from fedinit.errors import GOES_ON
from tests.support.recorded_runs import config, write_run


@pytest.fixture
def run(tmp_path) -> str:
    return str(write_run(tmp_path / "a", config(), recorded=False))


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_is_taken_before_the_command_as_behind_it(option, run, capsys):
    for words in ([option, "compare", run], ["compare", option, run], ["compare", run, option]):
        assert cli.main(words) == 0
        assert capsys.readouterr().out == ""
    assert cli.main(["compare", run]) == 0 and capsys.readouterr().out  # the control


@pytest.mark.parametrize("option", ["-v", "--verbose"])
def test_verbose_is_too(option, capsys):
    for words in ([option, "compare", "absent"], ["compare", "absent", option]):
        assert cli.main(words) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err and "absent: no such folder" in err


@pytest.mark.parametrize("words", [["data", "check"], ["deploy", "status"], ["run"], ["watch"]])
def test_of_every_command(words, capsys):
    assert cli.main(["-q", *words, "--help"]) == 0
    assert words[-1] in capsys.readouterr().out
    assert cli.main(["-q", "run", "strategy=fedot"]) == 2
    assert capsys.readouterr().err.startswith("error: strategy=fedot")


def test_alone_it_is_one_line(capsys):
    assert cli.main(["-q"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: -q: goes with a command; there are run, ") and err.count("\n") == 1
    assert cli.main(["-v", "--version"]) == 0 and capsys.readouterr().out.startswith("fedinit ")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory\nmore"),
        ImportError("libx.so: failed to map segment from shared object"),
        SystemError("<built-in function compile> returned NULL without setting an exception"),
    ],
)
def test_too_little_memory_is_one_line(error, monkeypatch, capsys, tmp_path):
    def without_room(*_):
        raise error

    monkeypatch.setattr(run_sim, "simulate", without_room)
    assert cli.main(["run", "name=a", f"output_dir={tmp_path}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run failed: too little memory (") and line.endswith("nothing is kept")
    monkeypatch.setattr("fedinit.commands.watch.main", without_room)
    assert cli.main(["watch", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("failed: too little memory (")
    monkeypatch.setitem(sys.modules, "fedinit.runs.kept", None)  # for which there is no room either
    assert cli.main(["run", "name=a", f"output_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err.endswith(f"{GOES_ON}\n")
    error = type(error)("something else")  # the control: what nobody foresaw
    if not isinstance(error, MemoryError):
        with pytest.raises(type(error), match="something else"):
            cli.main(["run", "name=a", f"output_dir={tmp_path}"])
