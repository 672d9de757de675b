"""What methods are called: what tells them apart, as one types it, no longer than can be read, in full beside it."""

from __future__ import annotations

import csv
from html import escape
from pathlib import Path

import pytest

from fedinit import cli
from fedinit.report.formats import csv_text, latex, markdown
from fedinit.report.markup import whole
from fedinit.report.page import render
from fedinit.report.runs.finding import find
from fedinit.report.runs.labels import WIDTH, cut
from fedinit.report.runs.methods import Method, methods
from fedinit.report.runs.results import results
from tests.support.recorded_runs import config, write_run

UNLIKE = {
    "sgd": {"client": {"optimizer": "sgd", "lr": 0.04, "batch_size": 32, "max_steps": None}},
    "adamw": {"client": {"optimizer": "adamw", "lr": 0.001, "beta1": 0.9, "batch_size": 16, "max_steps": 4}},
    "faster": {"client": {"optimizer": "adamw", "lr": 0.001, "beta1": 0.8, "batch_size": 16, "max_steps": 4}},
    "local": {"reinit__name": "local", "strategy__lam": 0.1, "adapter": {"kind": "dora", "rank": 16}},
}


def made(root: Path, cases: dict) -> list[Method]:
    for name, changes in cases.items():
        write_run(root / name, config(rounds=1, **changes), layers=1)
    return methods(find([root / name for name in cases]))


def test_a_label_is_what_tells_methods_apart(tmp_path):
    cases = {"a": {"reinit__name": "local"}, "b": {}, "c": {"strategy__lam": 0.1}, "d": {"client__lr": 0.1}}
    labels = [method.label for method in made(tmp_path, cases)]
    assert labels[0] == "lora_fair lr=0.04 reinit=local lam=0.01" and len(set(labels)) == 4


def test_how_a_run_was_computed_is_said_where_nothing_else_tells_two_apart(tmp_path):
    one, other = ({"engine": {"name": "threads", "precision": precision}} for precision in ("fp32", "bf16"))
    cases = {"a": one, "b": {**other, "client__lr": 0.1}}
    assert [m.label for m in made(tmp_path / "unlike", cases)] == ["lora_fair lr=0.04", "lora_fair lr=0.1"]
    labels = [m.label for m in made(tmp_path / "like", {"a": one, "b": other, "c": {**one, "client__lr": 0.1}})]
    assert labels == ["lora_fair lr=0.04 precision=fp32", "lora_fair lr=0.04 precision=bf16", "lora_fair lr=0.1"]


def test_a_key_is_said_in_full_where_its_end_is_not_its_own(tmp_path):
    cases = {"a": {}, "b": {"client__lr": 0.1}, "c": {"server_opt": {"name": "adam", "lr": 1.0}}}
    labels = [method.label for method in made(tmp_path, cases)]
    assert "client.lr=0.1" in labels[1].split()
    cases = {"d": {"server_opt": {"name": "adam", "init": 1}}, "e": {"server_opt": {"name": "adam", "init": 2}}}
    assert [m.label for m in made(tmp_path, cases)] == [f"lora_fair server_opt.init={i}" for i in (1, 2)]


def test_options_of_one_choice_tell_its_methods_apart(tmp_path):
    """beta1 is none of sgd's, so it is not compared with it, but two of adamw are told apart by it."""
    labels = [whole(method.label) for method in made(tmp_path, UNLIKE)]
    assert "beta1=0.9" in labels[1] and "beta1=0.8" in labels[2] and not any("(" in label for label in labels)
    assert "beta1" not in labels[0] + labels[3] and len(set(labels)) == 4


def test_a_label_is_written_as_one_types_it(tmp_path):
    bundled = {"model__checkpoint": "embedded:glyph_mixer.safetensors", "model__name": "MlpMixer"}
    cases = {"a": {"client__max_steps": None}, "b": {"client__max_steps": 2}, "c": {"client__max_steps": 2, **bundled}}
    found = made(tmp_path, {name: {"model__checkpoint": None, **values} for name, values in cases.items()})
    labels = [whole(method.label).split() for method in found]
    assert [next(word for word in label if "max_steps" in word) for label in labels] == [
        "max_steps=null", "max_steps=2", "max_steps=2"
    ]  # fmt: skip
    assert labels[2].count("model=glyph_mixer") == 1 and not any("MlpMixer" in word for word in labels[2])


@pytest.mark.parametrize("width", [12, 35, 40])
def test_a_cut_keeps_both_ends(width):
    long = "lora_fair " + "x" * 80 + " seed=last"
    assert len(cut(long, width)) <= width and cut(long, width)[:4] == "lora" and cut(long, width).endswith("last")
    assert "…" in cut(long, width) and cut("short", width) == "short"


def test_a_cut_label_is_one_of_its_own_with_the_whole_beside_it(tmp_path, capsys):
    shown = made(tmp_path, UNLIKE)
    labels = [method.label for method in shown]
    assert max(map(len, labels)) <= WIDTH and len(set(labels)) == 4
    found = results(shown)
    full = [whole(label) for label in labels]
    assert found.cut == {label: all_ for label, all_ in zip(labels, full, strict=True) if label != all_} != {}
    assert {row["method"] for row in csv.DictReader(csv_text(found).splitlines())} >= set(full)
    assert cli.main(["compare", *(str(tmp_path / name) for name in UNLIKE)]) == 0
    texts = [capsys.readouterr().out, markdown(found).replace("\\", ""), latex(found)]
    page = render([run for method in shown for run in method.runs])
    for label, all_ in found.cut.items():
        assert all(f"{label} is {all_}" in text for text in texts)
        assert (
            f'<span title="{escape(all_)}">{escape(label)}</span></th>' in page and f"<dd>{escape(all_)}</dd>" in page
        )


def test_labels_that_are_the_same_when_cut_are_numbered(tmp_path):
    middle = "m" * 60
    cases = {name: {"client__a": f"{middle}{i}{middle}"} for i, name in enumerate("ab")}
    labels = [method.label for method in made(tmp_path, cases)]
    assert [label[-4:] for label in labels] == [" (1)", " (2)"] and all(len(label) <= WIDTH for label in labels)
