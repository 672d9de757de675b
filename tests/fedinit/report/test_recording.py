"""What a run writes for its report: the figures are those of the run, and nothing of it changes or stops the run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run_sim
from fedinit import wire
from fedinit.config.schema import Config
from fedinit.data.shares import Partition
from fedinit.diagnostics.regime import effective_rank
from fedinit.factors import Factors
from fedinit.report.recording.holdings import record_holdings, strip
from fedinit.report.recording.recorder import COLUMNS, Recorder, singular_values
from fedinit.runs.observer import Roster, RoundReport
from fedinit.state.checkpoint import State
from fedinit.state.manifest import last_facts
from tests.support.small import WORDS, small_config

ROSTER = Roster(examples={0: 3}, class_names=["a"], domain_names=["x"])


def report(round: int, **changes) -> RoundReport:
    figures = {"bias": 0.1, "correctable": 0.2, "cosine": 0.99, "norm_ratio": 0.98}
    values = {"by_layer": {"one": figures, "two": figures}, "phases": {"clients": 1.0, "server": 0.25}, **changes}
    return RoundReport(round, 1.5, 0.3, None, 10, 20, (), **values)


def begun(run: Path, warn: Callable[[str], None], rounds: int = 5) -> Recorder:
    recorder = Recorder(run, warn)
    recorder.started(rounds, ROSTER)
    recorder.round_zero_done(RoundReport(0, 0.1, None, None, 0, 0, ()))
    return recorder


def gone_on(run: Path, warn: Callable[[str], None], round: int, state: State | None = None) -> Recorder:
    """state: of the checkpoint; None: it has none of a recorder, as where report=none was given before."""
    recorder = Recorder(run, warn)
    if state is not None:
        recorder.restore(state)
    recorder.started(5, ROSTER)
    recorder.resumed(round)
    return recorder


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict[str, Path]:
    """The same run with each choice of report=."""
    folders = {}
    for choice in ("full", "none"):
        root = tmp_path_factory.mktemp(choice)
        assert run_sim.main([*WORDS, f"output_dir={root}", f"report={choice}", "evaluation.every=1"]) == 0
        (folders[choice],) = (root / "digits").iterdir()
    return folders


def test_a_run_has_its_report_and_is_the_same_without(done):
    full, none = done["full"], done["none"]
    assert {p.name for p in full.iterdir()} - {p.name for p in none.iterdir()} == {"report.html", "record"}
    assert full.name == none.name, "what is reported is no part of what a run is"
    assert json.loads((full / "DONE.json").read_text()) == json.loads((none / "DONE.json").read_text())
    page = (full / "report.html").read_text()
    assert "lora_fair on digits" in page and page.count("data:image/jpeg") == 3 and "Not recorded" in page


def test_the_figures_by_layer_are_those_that_the_rounds_are_made_of(done):
    """Over layers, ‖C‖² and ‖ΔW‖² add up: the round's bias lies between the least and the largest of its layers."""
    record = done["full"] / "record"
    of_layers, rounds = rows(record / "layers.csv"), rows(done["full"] / "metrics.csv")
    for of_round in rounds:
        biases = [float(row["bias"]) for row in of_layers if row["round"] == of_round["round"]]
        assert len(biases) == 4 and min(biases) < float(of_round["bias"]) < max(biases)
    spectra = rows(record / "spectra.csv")
    assert {row["round"] for row in spectra} == {"1", "2"} and len(spectra) == 8
    for row in spectra:
        values = torch.tensor([float(v) for v in row["singular_values"].split()])
        assert float(row["effective_rank"]) == pytest.approx(effective_rank(values), rel=1e-3)
    timing = rows(record / "timing.csv")
    for row, of_round in zip(timing, rounds, strict=True):
        spent = sum(float(row[phase]) for phase in ("clients", "server", "evaluation"))
        assert spent == pytest.approx(float(of_round["seconds"]), abs=0.05) and int(row["memory"]) > 10**7


def test_who_holds_what_is_the_partition(done):
    record = done["full"] / "record"
    partition = json.loads((record / "partition.json").read_text())
    held = {int(row["client"]): int(row["examples"]) for row in rows(done["full"] / "clients.csv")}
    assert {c["client"]: sum(c["train"]) for c in partition["clients"]} == held
    assert [c["domain"] for c in partition["clients"]] == ["plain", "inverted", "thick"]
    assert partition["test_by_domain"] == {"plain": 364, "inverted": 364, "thick": 364}
    assert {p.name for p in (record / "samples").iterdir()} == {"0.jpg", "1.jpg", "2.jpg"}


def test_no_images_leaves_them_out(tmp_path, tiny_data):
    train = torch.arange(20)
    record_holdings(tmp_path, tiny_data, [Partition(0, -1, train, train[:0])], 0, images=False)
    assert [p.name for p in (tmp_path / "record").iterdir()] == ["partition.json"]
    (client,) = json.loads((tmp_path / "record" / "partition.json").read_text())["clients"]
    assert client["domain"] is None and sum(client["train"]) == 20 and sum(client["test"]) == 0


@pytest.mark.parametrize(("shape", "size"), [((3, 1, 16, 16), (48, 16)), ((2, 3, 96, 192), (96, 24))])
def test_a_strip_is_images_side_by_side(shape, size):
    images = torch.full(shape, 200, dtype=torch.uint8)
    images[0] = 20
    picture = Image.open(io.BytesIO(strip(images)))
    assert picture.size == size and picture.mode == ("L" if shape[1] == 1 else "RGB")
    pixels = np.asarray(picture.convert("L"))
    assert pixels[:, :4].mean() < 40 and pixels[:, -4:].mean() > 180


def test_a_run_that_goes_on_keeps_the_rows_of_its_checkpoint(tmp_path):
    first = begun(tmp_path, pytest.fail)
    for round in (1, 2, 3):
        first.round_done(report(round))
    with open(tmp_path / "record" / "timing.csv", "a") as file:
        file.write("4,1.")  # a crash cut this line short
    second = gone_on(tmp_path, pytest.fail, 2)
    second.round_done(report(3))
    for name, of_round in (("timing.csv", 1), ("layers.csv", 2)):
        assert [row["round"] for row in rows(tmp_path / "record" / name)] == sorted([*"123"] * of_round)
    begun(tmp_path, pytest.fail)
    assert (tmp_path / "record" / "timing.csv").read_text() == ",".join(COLUMNS["timing.csv"]) + "\n"


@pytest.mark.parametrize("name", ["timing.csv", "layers.csv"])
@pytest.mark.parametrize("damage", ["gone", "cut", "no table"])
def test_rows_that_are_gone_when_a_run_goes_on_are_a_line(damage, name, tmp_path):
    first = begun(tmp_path, pytest.fail)
    for round in (1, 2):
        first.round_done(report(round))
    kept, file = first.snapshot(), tmp_path / "record" / name
    first.round_done(report(3))
    gone_on(tmp_path, pytest.fail, 2, kept)  # the control: what came after the checkpoint is no loss
    text = file.read_text()
    of_round = text.count("\n") // 2
    if damage == "gone":
        file.unlink()
    else:  # cut in the last row's last cell
        file.write_bytes(b"\xff\x00" if damage == "no table" else text[:-2].encode())
    left = 2 * of_round - 1 if damage == "cut" else 0
    said: list[str] = []
    again = gone_on(tmp_path, said.append, 2, kept)
    aside = f"this run's; it is written anew, and the other one is {name}.edited.1"
    what = "there; it is written anew" if damage == "gone" else aside
    has = f"of its {2 * of_round} rows up to round 2, {left} could be read"
    assert said == [f"{file} was not {what}; {has}"] and len(rows(file)) == left
    again.round_done(report(3))
    assert [row["round"] for row in rows(file)][left:] == ["3"] * of_round
    gone_on(tmp_path, pytest.fail, 3, again.snapshot())


def test_a_table_that_is_lost_or_edited_while_its_run_goes_on_comes_back(tmp_path):
    said: list[str] = []
    recorder = begun(tmp_path, said.append)
    timing, layers = (tmp_path / "record" / name for name in ("timing.csv", "layers.csv"))
    recorder.round_done(report(1))
    timing.unlink()
    layers.write_text("mine")
    recorder.round_done(report(2))
    assert [row["round"] for row in rows(timing)] == ["1", "2"] and len(said) == 2
    assert [row["round"] for row in rows(layers)] == ["1", "1", "2", "2"]
    assert layers.with_name("layers.csv.edited.1").read_text() == "mine"
    timing.unlink()
    recorder.finished({})
    assert [row["round"] for row in rows(timing)] == ["1", "2"] and len(said) == 3


def test_a_checkpoint_has_the_numbers_of_the_rows(tmp_path):
    words = [*WORDS, "client.max_steps=1", "report=full", f"output_dir={tmp_path}"]
    assert run_sim.main(words) == 0
    (folder,) = (tmp_path / "digits").iterdir()
    assert last_facts(folder / "checkpoints", "record") == {"timing.csv": 2, "layers.csv": 8, "spectra.csv": 8}


def test_what_was_merged_into_the_base_is_part_of_the_spectrum():
    draw = torch.Generator().manual_seed(0)
    factors = Factors(torch.randn(2, 5, generator=draw), torch.randn(4, 2, generator=draw))
    offset = torch.randn(4, 5, generator=draw)
    for merged in (None, offset):
        dense = factors.B @ factors.A + (0 if merged is None else merged)
        expected = torch.linalg.svdvals(dense.double())
        found = singular_values(factors, merged)
        torch.testing.assert_close(found, expected[: len(found)], rtol=1e-5, atol=1e-6)


def test_with_a_base_offset_spectra_are_measured_at_the_end_alone(tmp_path):
    layers = {"one": Factors(torch.ones(1, 3), torch.ones(2, 1))}
    tensors = {**wire.to_tensors(layers, {}), "offset/one": torch.eye(2, 3)}
    recorder = begun(tmp_path, pytest.fail, 3)
    for round in (0, 1, 3):
        recorder.model(round, tensors)
    assert [row["round"] for row in rows(tmp_path / "record" / "spectra.csv")] == ["3"]


def test_a_failure_is_one_warning_and_no_more(tmp_path):
    (tmp_path / "record").write_text("in the way")
    said: list[str] = []
    recorder = begun(tmp_path, said.append)
    recorder.round_done(report(1))
    recorder.model(1, {"nonsense": torch.zeros(1)})
    assert len(said) == 1 and said[0].startswith("warning: ") and "no more is recorded" in said[0]


def test_a_report_that_fails_does_not_fail_the_run(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr("fedinit.report.page.render", broken)
    monkeypatch.setattr("fedinit.runs.reporting.record_holdings", broken)
    words = ("rounds=1", "client.max_steps=1", "report=full")
    assert run_sim.main([*WORDS, *words, f"output_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "report.html was not written: no fonts" in out and "who holds what is not recorded" in out
    assert list(tmp_path.rglob("DONE.json")) and not list(tmp_path.rglob("report.html"))


def test_what_a_report_is_made_of_is_no_part_of_a_runs_identity():
    full, none = (small_config(f"report={choice}") for choice in ("full", "none"))
    assert isinstance(full, Config) and full.identity() == none.identity()
