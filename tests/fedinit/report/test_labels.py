"""What methods are called: what is special to each, as one types it, no longer than can be read, in full beside it;
what most have is said once."""

from __future__ import annotations

import csv
import random
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
    assert labels[0] == "lora_fair reinit=local lam=0.01" and len(set(labels)) == 4


def test_what_most_methods_have_is_in_no_label_and_said_once(tmp_path, capsys):
    cases: dict[str, dict] = {
        name: {"strategy": {"name": name}, "adapter__ranks": None} for name in ("fedit", "flora", "rolora")
    }
    cases |= {"dora": {"adapter": {"kind": "dora", "rank": 16}}, "mixed": {"adapter__ranks": [2, 4]}}
    cases |= {"fast": {"client__lr": 0.1, "adapter__ranks": None}}
    found = made(tmp_path, cases)
    assert [method.label for method in found] == [
        "fedit", "flora", "rolora", "lora_fair adapter=dora rank=16", "lora_fair ranks=[2,4]", "lora_fair lr=0.1"
    ]  # fmt: skip
    usual = "adapter=lora rank=8 ranks=null lr=0.04"
    assert {method.usual for method in found} == {usual}
    assert cli.main(["compare", *(str(tmp_path / name) for name in cases)]) == 0
    table = results(found)
    page = render([run for method in found for run in method.runs])
    for text in (capsys.readouterr().out, markdown(table).replace("\\", ""), latex(table), page.partition("<nav")[0]):
        assert text.count(f" name says nothing else: {usual}") == 1
    assert render(found[0].runs).count("says nothing else") == 0, "the control: one method has nothing in common"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0.04, 0.1), ["lora_fair", "lora_fair lr=0.1"]),  # conf/client/sgd.yaml has 0.04
        ((0.1, 0.04), ["lora_fair lr=0.1", "lora_fair"]),
        ((0.2, 0.1), ["lora_fair lr=0.2", "lora_fair lr=0.1"]),
    ],
)
def test_of_values_that_as_many_have_the_default_is_not_said(values, labels, tmp_path):
    cases = {str(i): {"client__lr": lr} for i, lr in enumerate(values)}
    assert [method.label for method in made(tmp_path, cases)] == labels


def test_of_an_option_of_a_choice_the_choices_own_default_is_not_said(tmp_path):
    """conf/client/adamw.yaml has betas of [0.9, 0.999]; the client of a run of which nothing is said has none."""
    adamw = {"optimizer": "adamw", "lr": 0.001}
    cases = {"a": {"client": {**adamw, "betas": [0.9, 0.999]}}, "b": {"client": {**adamw, "betas": [0.8, 0.9]}}}
    assert [m.label for m in made(tmp_path / "two", cases)] == ["lora_fair", "lora_fair betas=[0.8,0.9]"]
    found = made(tmp_path / "three", {**cases, "sgd": {}})
    assert [m.label for m in found] == ["lora_fair", "lora_fair betas=[0.8,0.9]", "lora_fair lr=0.04 client=sgd"]
    assert found[0].usual == "betas=[0.9,0.999] lr=0.001 client=adamw"


def test_what_not_all_of_a_choice_say_is_said_by_who_has_it(tmp_path):
    """As of an older run, whose configuration had no such key yet: nothing is known of its value."""
    cases = {name: {"client__clip_norm": 10.0, "client__lr": lr} for name, lr in (("a", 0.04), ("b", 0.1))}
    labels = [method.label for method in made(tmp_path, {**cases, "old": {}})]
    assert labels == ["lora_fair clip_norm=10.0", "lora_fair clip_norm=10.0 lr=0.1", "lora_fair"]


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        ({"a": {}, "b": {"server_device": "cpu"}}, ["", "server_device=cpu"]),
        ({"a": {"start_participation": 0.5}, "b": {}, "c": {"start_participation": 0.25}},
         ["start_participation=0.5", "", "start_participation=0.25"]),
        ({"a": {}, "b": {"privacy": {"name": "clients", "epsilon": 8.0}}}, ["", "privacy=clients"]),
        ({"a": {"engine__threads": 4}, "b": {"engine__threads": 2}}, ["threads=4", "threads=2"]),
    ],
)  # fmt: skip
def test_what_not_all_runs_say_at_all_is_said_too(cases, said, tmp_path):
    """A key of a later version, or that stands as it did before there was a choice."""
    labels = [method.label for method in made(tmp_path, cases)]
    assert [label.removeprefix("lora_fair").strip() for label in labels] == said


def test_labels_are_distinct_and_of_no_order(tmp_path):
    """Of configurations drawn from few values, with keys that some choices have and some runs lack."""
    draw = random.Random(0)
    clients = [{"optimizer": "sgd"}, {"optimizer": "adamw", "betas": [0.9, 0.999]}, {"optimizer": "adamw", "betas": 1}]
    for trial in range(12):
        drawn = [
            {
                "strategy": draw.choice([{"name": "fedit"}, {"name": "lora_fair", "lam": draw.choice([0.01, 0.1])}]),
                "adapter": {
                    "kind": draw.choice(["lora", "dora"]),
                    **draw.choice([{}, {"ranks": None}, {"ranks": [2]}]),
                },
                "client": {**draw.choice(clients), "lr": draw.choice([0.04, 0.001, 0.1])},
                "engine": {"name": "threads", "precision": draw.choice(["fp32", "bf16"])},
                **draw.choice([{}, {"attack": {"name": "scaling", "factor": draw.choice([2, 3])}}]),
            }
            for _ in range(7)
        ]
        cases = {f"{trial}/{i}": case for i, case in enumerate(drawn) if case not in drawn[:i]}
        made(tmp_path, cases)
        said = []
        for _ in range(4):
            order = draw.sample(sorted(cases), len(cases))
            found = methods(find([tmp_path / name for name in order]))
            for labels in ([method.label for method in found], [whole(method.label) for method in found]):
                assert len(set(labels)) == len(labels) == len(cases)
            said.append(({m.first.folder: (m.label, whole(m.label)) for m in found}, found[0].usual))
        assert all(each == said[0] for each in said)


def test_methods_that_nothing_tells_apart_have_their_folders(tmp_path):
    """Their backbones' files differ, whose places are no part of a configuration. Two folders have one name."""
    for name in ("a/run", "b/run", "c/other"):
        folder = write_run(tmp_path / name, config(rounds=1), layers=1)
        (folder / "made_of.json").write_text(f'{{"checkpoint": "{name[0] * 64}"}}')
    for order in (("a/run", "b/run", "c/other"), ("c/other", "b/run", "a/run")):
        found = {method.first.folder: whole(method.label) for method in methods(find([tmp_path / n for n in order]))}
        both = {tmp_path / name: f"lora_fair ({tmp_path / name})" for name in ("a/run", "b/run")}
        assert found == {**both, tmp_path / "c/other": "lora_fair (other)"}


def test_how_a_run_was_computed_is_said_where_nothing_else_tells_two_apart(tmp_path):
    one, other = ({"engine": {"name": "threads", "precision": precision}} for precision in ("fp32", "bf16"))
    cases = {"a": one, "b": {**other, "client__lr": 0.1}}
    assert [m.label for m in made(tmp_path / "unlike", cases)] == ["lora_fair", "lora_fair lr=0.1"]
    labels = [m.label for m in made(tmp_path / "like", {"a": one, "b": other, "c": {**one, "client__lr": 0.1}})]
    assert labels == ["lora_fair precision=fp32", "lora_fair precision=bf16", "lora_fair lr=0.1"]


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
    assert labels[:2] == [["lora_fair", "max_steps=null"], ["lora_fair"]] and "max_steps=2" in found[0].usual.split()
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
    again = methods(find([tmp_path / name for name in "ba"]))
    assert [method.label for method in again] == labels[::-1], "whatever the order"


def test_another_model_tells_nothing_of_those_that_have_not_its_keys(tmp_path):
    vit = {"name": "vit_tiny_patch16_224", "kwargs": {"depth": 4, "num_heads": 3}}
    mixer = {"name": "MlpMixer", "kwargs": {"num_blocks": 4}}
    cases = {name: {"strategy": {"name": name}, "model": vit} for name in ("fedit", "flora", "rolora")}
    cases |= {"mixer": {"strategy": {"name": "lora_fair"}, "model": mixer}}
    labels = [method.label for method in made(tmp_path, cases)]
    assert labels[:3] == ["fedit", "flora", "rolora"] and labels[3].startswith("lora_fair model.name=MlpMixer")
    deeper = {"deep": {"strategy": {"name": "fedit"}, "model": {**vit, "kwargs": {"depth": 12, "num_heads": 3}}}}
    assert [m.label for m in made(tmp_path / "more", cases | deeper)][-1] == "fedit depth=12", "the control"
