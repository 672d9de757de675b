"""Which models of a run are exported, and where each is."""

from __future__ import annotations

import json
import os
import signal

import pytest

import fedinit
from fedinit.exports.writing import export
from fedinit.stopping import Stopped
from tests.support.small import WORDS

SHORT = (*WORDS, "client.max_steps=2")


def test_what_clients_have_in_common_is_written_once(tmp_path):
    """Two of six trained; the control is each of the others by its number, which is another's to the byte."""
    words = ("rounds=1", "partition.clients=6", "participation=0.34", "evaluation=clients", "strategy=fedsa_lora")
    run = fedinit.run(*SHORT, *words, f"output_dir={tmp_path / 'runs'}")
    (first,), (second,), rest = run.clients_by_model
    export(run, "merged", tmp_path / "all")
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names == {f"client-{first}", f"client-{second}", "client-untrained"} and len(rest) == 4
    said = (tmp_path / "all" / "client-untrained" / "README.md").read_text()
    assert "this is the model of all clients of whom no update counted." in said
    weights = []
    for client in (rest[-1], first):
        export(run, "merged", tmp_path / str(client), client)
        weights.append((tmp_path / str(client) / "model.safetensors").read_bytes())
    assert weights[0] == (tmp_path / "all" / "client-untrained" / "model.safetensors").read_bytes() != weights[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Runs that differ in their seed."""
    place = tmp_path_factory.mktemp("two")
    return [
        fedinit.run(*SHORT, "rounds=1", "evaluation=none", f"seed={seed}", f"output_dir={place}") for seed in (0, 1)
    ]


def stopped_at(monkeypatch, count: int) -> None:
    """A signal comes instead of the count-th file's name, after that of config.json."""
    calls = []

    def replace(source, target, ordinary=os.replace):
        calls.append(target)
        if len(calls) == count:
            raise Stopped(signal.SIGTERM)
        ordinary(source, target)

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("before", [False, True])
def test_of_two_runs_no_export_is_made_that_passes_for_one(before, count, two, tmp_path, monkeypatch):
    """A signal between the files: what is there says that it is unfinished, and the same command ends it."""
    one, other = two
    place = tmp_path / "export"
    if before:
        export(one, "merged", place)
    (whole,) = export(other, "merged", tmp_path / "whole")
    stopped_at(monkeypatch, count)
    with pytest.raises(Stopped):
        export(other, "merged", place)
    monkeypatch.undo()
    there = {path.name for path in place.iterdir()} - {"config.json", "config.json.tmp"}
    assert len(there) == (len(whole.files) - 1 if before and count == 1 else max(count - 2, 0)), "of one run alone"
    if before and count == 1:  # nothing of it was there yet
        assert json.loads((place / "config.json").read_text())["fedinit"]["final_hash"] == one.summary["final_hash"]
    elif (place / "config.json").exists():
        assert json.loads((place / "config.json").read_text())["fedinit"] == {"format": "merged", "unfinished": True}
    export(other, "merged", place)
    assert {p.name: p.read_bytes() for p in place.iterdir()} == {
        name: (whole.folder / name).read_bytes() for name in whole.files
    }


def test_what_a_killed_export_leaves_is_no_other_folder(two, tmp_path):
    run, _ = two
    place = tmp_path / "export"
    (place / ".partial-x").mkdir(parents=True)
    (place / ".partial-x" / "model.safetensors").write_text("half")
    (whole,) = export(run, "merged", place)
    assert {p.name for p in place.iterdir()} == {*whole.files}
