"""Files of a run that is done which are not what it wrote: told when the run is shown, and written anew where they can
be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fedinit
import run_sim
from tests.support.small import WORDS

SHORT = (*WORDS, "rounds=2", "client.max_steps=1", "engine.lanes=1")
TABLES = ("metrics.csv", "clients.csv", "metrics.jsonl")
SHOWN = "this run is done; resume=never runs it again"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return fedinit.run(*SHORT, f"output_dir={tmp_path_factory.mktemp('whole')}").folder


@pytest.fixture
def done(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / whole.parent.name / whole.name))


@pytest.fixture(params=["words", "folder"])
def again(request, done, tmp_path, capsys):
    """The run's own words, or its folder, once more: what is printed."""
    words = [*SHORT, f"output_dir={tmp_path}"] if request.param == "words" else [f"resume={done}"]

    def run() -> str:
        capsys.readouterr()
        assert run_sim.main(words) == 0
        said = capsys.readouterr()
        assert not said.err
        return said.out

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_as_it_was_written_is_shown_without_a_line(done, whole, again):
    told = again().splitlines()
    assert told[0] == SHOWN and not any(str(done) in line for line in told[1:-1]) and files(done) == files(whole)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_gone_comes_back(name, done, whole, again):
    (done / name).unlink()
    assert f"{done}/{name} was not there; it is written anew\n" in (told := again()) and SHOWN in told
    assert files(done) == files(whole) and name not in again()


@pytest.mark.parametrize("name", TABLES)
def test_an_edited_table_is_put_aside_and_comes_back(name, done, whole, again):
    edited = (whole / name).read_bytes().replace(b"2", b"3") + b"\xff"
    (done / name).write_bytes(edited)
    told = f"{done}/{name} was not this run's; it is written anew, and the other one is {name}.edited.1\n"
    assert told in again()
    assert files(done) == files(whole) | {f"{name}.edited.1": edited} and name not in again()


def test_an_average_that_was_edited_is_not_compared(done, again):
    (done / "metrics.csv").write_text("round,accuracy\n1,100.0\n2,100.0\n")
    again()
    assert max(fedinit.load(done).metrics["accuracy"][1:]) < 100


@pytest.mark.parametrize("lost", ["all", "last"])
def test_without_a_checkpoint_of_its_end_a_table_that_is_gone_is_a_line(lost, done, again):
    shutil.rmtree(done / "checkpoints" / ("" if lost == "all" else "round-000002"))
    assert str(done) not in again().partition(SHOWN)[2].rpartition("run folder")[0], "the control"
    table = (done / "clients.csv").read_bytes()
    (done / "metrics.csv").unlink()
    why = "is not there, nor a checkpoint of the run's end that has it; resume=never with the run's own words runs it"
    assert f"{done}/metrics.csv: {why} again\n" in again()
    assert not (done / "metrics.csv").exists() and (done / "clients.csv").read_bytes() == table
