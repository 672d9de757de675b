"""scripts/same_results.py: what it sees and what it leaves out, and that its configurations cover every choice."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from scripts import same_results_side
from scripts.same_results import Case, compare, completed, main, read_cases, renamed, report, results_of, verdict

CONF = Path(__file__).resolve().parent.parent / "conf"


def written(
    folder: Path, *, hash: str = "ab", seconds: float = 1.0, loss: str = "0.1", entry: float = 1.0, line: int = 3
):
    """The result that is read from a run's folder with these figures in it."""
    (folder / "adapter").mkdir(parents=True)
    summary = {
        "final_hash": hash,
        "seconds": seconds,
        "folder": str(folder),
        "start": {"seconds": seconds, "clients": 3},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text(f"round,seconds,train_loss\n1,{seconds},{loss}\n")
    event = {"kind": "refused", "detail": f"{folder}: TooFew: 3 examples (measure, line {line})"}
    (folder / "ledger.jsonl").write_text(json.dumps(event) + "\n")
    save_file({"A": torch.tensor([1.0, entry])}, folder / "adapter" / "adapter_model.safetensors")
    return same_results_side.left_in(folder)


def test_clock_times_and_places_are_left_out(tmp_path):
    """The folder's name, seconds wherever they are, and the line of the code that a client's error came from."""
    one, other = written(tmp_path / "a"), written(tmp_path / "b", seconds=2.0, line=4)
    assert one != other and compare(one, other) == []
    assert verdict(one, other) == ("same", "")


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"hash": "ac"}, "summary.final_hash: ab -> ac"),
        ({"loss": "0.10000000000000002"}, "metrics.csv.0.train_loss: 0.1 -> 0.10000000000000002"),
        ({"entry": 1.0000001}, "adapter_model.safetensors.A: torch.float32 2 "),
    ],
)
def test_a_changed_figure_is_seen(changed, what, tmp_path):
    one, other = written(tmp_path / "a"), written(tmp_path / "b", **changed)
    (line,) = compare(one, other)
    assert line.startswith(what)
    assert verdict(one, other) == ("differ", line)


def test_what_is_absent_on_one_side_is_seen(tmp_path):
    one = written(tmp_path / "a")
    other = copy.deepcopy(one)
    other["ledger"].append({"kind": "warning"})
    del other["adapter_model.safetensors"]
    assert sorted(line.partition(":")[0] for line in compare(one, other)) == [
        "adapter_model.safetensors.A",
        "ledger.1.kind",
    ]


def test_counts_and_failures(tmp_path):
    good, bad, worse = written(tmp_path / "a"), {"error": "exit code 1: no"}, {"error": "exit code 1: other"}
    old = {"same": good, "alike": bad, "one": good, "unlike": bad}
    lines, same = report(old, {"same": good, "alike": bad, "one": bad, "unlike": worse})
    assert lines == [
        "alike: fails on both sides: exit code 1: no",
        "one: error: none -> exit code 1: no",
        "unlike: error: exit code 1: no -> exit code 1: other",
        "4 configurations: 1 same, 2 differ, 1 failed",
    ]
    assert not same and report({"x": good}, {"x": good})[1] and not report({}, {})[1]


def test_new_names_are_tried_where_the_old_are_refused():
    names = {"client.gsnr_scope": "client.scope", "init=old": "init=new", "gone": ""}
    words = ["client.gsnr_scope=per_round", "init=old", "init.old=1", "gone=3"]
    assert renamed(words, names) == ("client.scope=per_round", "init=new", "init.old=1")
    tried = []

    def refusing(words):
        tried.append(words[0])
        print("error: no")
        return 2

    case = {"name": "x", "how": "run", "words": ["a=1"], "otherwise": ["b=1"]}
    assert same_results_side.result(refusing, case) == {"error": "exit code 2: error: no"}
    assert tried == ["a=1", "b=1"]


def test_a_revision_is_computed_once(tmp_path, monkeypatch):
    asked = []

    def computed(checkout, cases, side):
        asked.append([case.name for case in cases])
        return {case.name: {"error": "no"} if case.name == "bad" else {"x": case.words[0]} for case in cases}

    monkeypatch.setattr("scripts.same_results.computed", computed)
    monkeypatch.setattr("scripts.same_results.commit_of", lambda side: "0" * 40)
    monkeypatch.setattr("scripts.same_results.subprocess.run", lambda *_, **__: None)
    monkeypatch.setattr("scripts.same_results.git", lambda *_: b"")
    cases = [Case("good", ["a=1"]), Case("bad", ["a=1"])]
    first = results_of("main", cases, tmp_path)
    assert results_of("main", cases, tmp_path) == first
    assert results_of("main", [Case("good", ["a=2"])], tmp_path) == {"good": {"x": "a=2"}}  # other words, other result
    assert asked == [["good", "bad"], ["bad"], ["good"]]


def test_words_that_a_case_sets_itself_are_not_added():
    table = {"common": "logger=none", "unless": {"rounds": "rounds=2", "data": "data.domains=[a]", "init": "init.x=1"}}
    assert completed(["rounds=3", "data.classes=2"], table) == ("logger=none", "init.x=1", "rounds=3", "data.classes=2")
    assert completed(["experiment=e"], table) == ("logger=none", "rounds=2", "init.x=1", "experiment=e")


@pytest.mark.parametrize(
    "group",
    ["adapter", "client", "diagnostics", "evaluation", "head", "init", "partition", "reinit", "server_opt", "strategy"],
)
def test_every_choice_is_run(group):
    config = yaml.safe_load((CONF / "config.yaml").read_text())
    defaults = {f"{group}={choice[group]}" for choice in config["defaults"] if group in choice}
    run = {word for case in read_cases() for word in case.words} | defaults
    choices = {f"{group}={path.stem}" for path in (CONF / group).glob("*.yaml")}
    assert choices and choices <= run


@pytest.mark.parametrize("named", ["no-such-revision", "conf"])
def test_what_is_no_checkout_and_no_revision_is_refused(named, capsys):
    with pytest.raises(SystemExit) as ended:
        main([named])
    assert ended.value.code == 2 and "neither a checkout nor a revision" in capsys.readouterr().err
