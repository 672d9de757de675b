"""A run that goes on is the same run at wandb, and one that is stopped has ended there with all that was logged."""

from __future__ import annotations

import pkgutil
import signal
import sys
import types

import pytest
from rich.console import Console

import run_sim
from fedinit.config.groups import groups
from fedinit.config.schema import LOGGERS, LoggerConfig
from fedinit.errors import InputError
from fedinit.runs.folder import RunFolder
from fedinit.runs.tracker import Tracker
from fedinit.stopping import Stopped
from tests.support.small import WORDS, small_config


@pytest.fixture
def service(monkeypatch):
    """wandb, which notes what it is told: (id, resume), (step), exit code."""
    told: list[object] = []

    def init(*, id, resume, **_):
        told.append((id, resume))
        return types.SimpleNamespace(
            log=lambda values, step: told.append(step),
            finish=lambda exit_code=0: told.append(("finish", exit_code)),
            summary={},
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=lambda **_: None))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    return told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_ends_there_and_goes_on_there(number, service, tmp_path, monkeypatch):
    words = [*WORDS, f"output_dir={tmp_path}", "client.max_steps=1", "evaluation=none", "logger=wandb"]
    told = RunFolder.round_done

    def stops(folder, report):
        if report.round == 2:
            raise Stopped(number)
        told(folder, report)

    monkeypatch.setattr(RunFolder, "round_done", stops)
    assert run_sim.main(words) == 128 + number
    (identity, resume), *rest = service
    assert resume == "allow" and rest == [1, ("finish", 128 + number)]
    service.clear()
    monkeypatch.setattr(RunFolder, "round_done", told)
    assert run_sim.main(words) == 0 and service == [(identity, "allow"), 2, ("finish", 0)]
    # A run that is begun anew is another one.
    service.clear()
    assert run_sim.main([*words, "resume=never"]) == 0 and service[0] != (identity, "allow")


def test_a_failed_run_ends_there(service, tmp_path, monkeypatch):
    monkeypatch.setattr(run_sim, "federate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_sim.simulate(small_config(f"output_dir={tmp_path}", "logger=wandb"), Console(quiet=True))
    assert service[1:] == [("finish", 1)]


def test_every_choice_has_its_tracker():
    assert {"auto", "none", *LOGGERS} == set(groups()["logger"])
    assert all(issubclass(pkgutil.resolve_name(place), Tracker) for place in LOGGERS.values())


def test_a_logger_that_is_none_is_refused_by_name():
    with pytest.raises(InputError, match=r"logger=wand: no such choice \(did you mean 'wandb'\?\)"):
        LoggerConfig(name="wand", project="p", entity=None)
