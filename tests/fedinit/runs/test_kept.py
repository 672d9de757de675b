"""What a run that was stopped leaves is what is said of it."""

from __future__ import annotations

import signal

import pytest

import run_sim
from fedinit.errors import GOES_ON
from fedinit.runs.kept import IS_DONE, NOTHING
from fedinit.stopping import Stopped
from tests.support.small import WORDS

SHORT = (*WORDS, "rounds=2", "client.max_steps=1", "engine.lanes=1", "report=none")


def stop(*_, **__):
    raise Stopped(signal.SIGINT)


@pytest.mark.parametrize("words", [(), ("-m", "-j", "1", "seed=0,1"), ("resume=never",)])
def test_before_a_checkpoint_nothing_is(words, tmp_path, monkeypatch, capsys):
    place = f"output_dir={tmp_path}"
    monkeypatch.setattr(run_sim, "Site", stop)
    assert run_sim.main([*SHORT, *words, place]) == 130
    assert capsys.readouterr().err == f"stopped; {NOTHING}\n"
    monkeypatch.undo()
    assert run_sim.main([*SHORT, "rounds=3", place]) == 0  # another's checkpoint is not this run's
    monkeypatch.setattr(run_sim, "Site", stop)
    assert run_sim.main([*SHORT, *words, place]) == 130
    assert capsys.readouterr().err == f"stopped; {NOTHING}\n"


def test_behind_one_it_is(tmp_path, monkeypatch, capsys):
    place = f"output_dir={tmp_path}"
    monkeypatch.setattr("fedinit.runs.reporting.OpenRun.finish", stop)
    for words in ((), ("-m", "-j", "1", "seed=0,1")):
        assert run_sim.main([*SHORT, *words, place]) == 130
        assert capsys.readouterr().err == f"stopped; {GOES_ON}\n"
    assert run_sim.main([*SHORT, "resume=never", place]) == 130
    assert "without resume=never the same command goes on" in capsys.readouterr().err
    (folder,) = (path for path in (tmp_path / "digits").iterdir() if path.name.endswith("-s0"))
    assert run_sim.main([f"resume={folder}"]) == 130
    assert capsys.readouterr().err == f"stopped; {GOES_ON}\n"


def test_a_full_disk_says_it_too(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_sim, "Site", full)
    for words, kept in (((), NOTHING), (("preview=true",), "a preview keeps nothing")):
        assert run_sim.main([*SHORT, *words, f"output_dir={tmp_path}"]) == 1
        assert capsys.readouterr().err == f"run failed: No space left on device; {kept}\n"


def test_a_run_whose_bank_is_auto_is_known_by_its_checkpoints(tmp_path, monkeypatch, capsys):
    """As every run is unless told otherwise: the checkpoint has the number that it came to."""
    words = [word for word in SHORT if not word.startswith(("engine.clients_per_bank", "engine.precision"))]
    assert len(words) < len(SHORT)
    monkeypatch.setattr("fedinit.runs.reporting.OpenRun.finish", stop)
    for more in ((), ("engine.clients_per_bank=2",)):
        assert run_sim.main([*words, *more, f"output_dir={tmp_path / str(len(more))}"]) == 130
        assert capsys.readouterr().err == f"stopped; {GOES_ON}\n"


@pytest.mark.parametrize("at", ["report_of_run", "print_summary"])
def test_a_run_that_is_done_is_said_to_be_and_its_report_is_written_by_the_same_command(
    at, tmp_path, monkeypatch, capsys
):
    words = [*SHORT[:-1], "report=full", f"output_dir={tmp_path}"]
    monkeypatch.setattr(f"fedinit.runs.reporting.{at}", stop)
    assert run_sim.main(words) == 130
    assert capsys.readouterr().err == f"stopped; {IS_DONE}\n"
    (done,) = tmp_path.rglob("DONE.json")
    assert {".ended.json", "report.html"}.isdisjoint(path.name for path in done.parent.iterdir())
    monkeypatch.undo()
    assert run_sim.main(words) == 0 and (done.parent / "report.html").is_file()
    written = (done.parent / "report.html").stat().st_mtime_ns
    assert run_sim.main(words) == 0 and (done.parent / "report.html").stat().st_mtime_ns == written


def test_a_folder_that_is_being_opened_is_left_unlocked(tmp_path, monkeypatch):
    for at in ("fedinit.runs.folder.write_config", "fedinit.runs.reporting.create_tracker"):
        monkeypatch.setattr(at, stop)
        assert run_sim.main([*SHORT, f"output_dir={tmp_path}"]) == 130
        monkeypatch.undo()
        assert not [*tmp_path.rglob(".lock")]
