"""The words before a command's own."""

from __future__ import annotations

import pytest

from fedinit import cli
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
