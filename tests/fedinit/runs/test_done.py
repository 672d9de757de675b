"""A DONE.json that no run writes: said by whoever reads it, and written anew when the run is gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import fedinit
import run_sim
from fedinit import cli
from fedinit.runs.done import done_of, wrong
from tests.support.small import WORDS, slow_unless

SHORT = (*WORDS, "rounds=1", "client.max_steps=1", "engine.lanes=1")
BROKEN = {
    "": "is empty",
    "{\n": "is no JSON",
    "[" * 10**5: "is no JSON",
    "3": "holds no keys and values",
    "{}": "has no final_hash and rounds",
    '{"final_hash": 3, "rounds": 1}': "has no final_hash and rounds",
    '{"final_hash": "a", "rounds": true}': "has no final_hash and rounds",
    '{"final_hash": "a", "rounds": 1, "adaptr": {}}': "has a key that no run writes, 'adaptr'",
    '{"final_hash": "a", "rounds": 1, "adapter": 3}': "has no sha256 of files as its adapter",
    '{"final_hash": "a", "rounds": 1, "adapter": {"a": 1}}': "has no sha256 of files as its adapter",
    '{"final_hash": "a", "rounds": 1}': "has another final_hash than summary.json",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return fedinit.run(*SHORT, "report=full", f"output_dir={tmp_path_factory.mktemp('whole')}").folder


TELLING = ("", "{\n", "{}", '{"final_hash": "a", "rounds": 1}')


@pytest.mark.parametrize("text", slow_unless(lambda text: text in TELLING, zip(BROKEN)), ids=range(len(BROKEN)))
def test_it_is_said_and_written_anew(text, done, whole, capsys):
    """By the folder; the remedy that is said is what is done."""
    (done / "DONE.json").write_text(text)
    assert wrong(done) == BROKEN[text] and done_of(done) is None and not fedinit.load(done).done
    remedy = f"not what a run writes; fedinit run resume={done} writes it anew"
    assert cli.main(["predict", str(done), "a.png"]) == 2
    assert capsys.readouterr().err == f"error: {done}: its DONE.json {BROKEN[text]}, {remedy}\n"
    for command in ("report", "compare"):
        assert cli.main([command, str(done)]) == 0
        out = capsys.readouterr().out
        assert f"{done}: its DONE.json {BROKEN[text]}, not what a run writes, so that it counts as not done" in out
        assert f"fedinit run resume={done} writes it anew" in out
    assert "counts as not done" in (done / "report.html").read_text()
    assert run_sim.main([f"resume={done}", "report=none"]) == 0
    assert f"{done}/DONE.json was not this run's; it is written anew, and the other" in capsys.readouterr().out
    assert (done / "DONE.json").read_bytes() == (whole / "DONE.json").read_bytes()
    assert (done / "DONE.json.edited.1").read_text() == text and fedinit.load(done).model()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("start_participation=0.1", "belongs to another configuration; "),  # and no word of the defaults' own start
        ("evaluation.participation=0.1", "give all of the run's own, or none"),
        ("rounds=none", "give all of the run's own, or none"),
    ],
)
def test_a_word_that_does_not_go_with_the_defaults_is_told_of_the_folder(word, said, done, capsys):
    capsys.readouterr()
    assert run_sim.main([f"resume={done}", word]) == 2
    line = capsys.readouterr().err
    assert said in line and f"resume={done}" in line and line.count("\n") == 1
    assert run_sim.main(["resume=auto", word]) == 2  # the control: as it is told of any other run
    assert "resume=" not in capsys.readouterr().err


def test_the_configuration_that_is_shown_of_a_folder_is_its_runs(done, capsys):
    capsys.readouterr()
    assert run_sim.main([f"resume={done}", "--cfg", "job"]) == 0
    assert capsys.readouterr().out == (done / "config.yaml").read_text().replace("resume: auto", f"resume: {done}")
    for key, words, value in (
        ("rounds", [], "1"),
        ("rounds", ["rounds=3"], "3"),  # the control: with words of its own it is those
        ("logger.name", ["logger=none", "logger.name=wandb"], "wandb"),  # as without a folder
        ("logger.name", ["logger=tensorboard"], "tensorboard"),
    ):
        assert run_sim.main([f"resume={done}", *words, "--cfg", "job", "-p", key]) == 0
        assert capsys.readouterr().out == f"{value}\n"
    assert run_sim.main([f"resume={done}", "--cfg", "job", "-p", "nothing"]) == 2
    assert capsys.readouterr().err == "error: --package nothing: no such key in the configuration\n"


def test_the_runs_own_words_write_it_anew_too(done, whole, tmp_path):
    (done / "DONE.json").write_text("{")
    assert run_sim.main([*SHORT, f"output_dir={tmp_path}"]) == 0
    assert (done / "DONE.json").read_bytes() == (whole / "DONE.json").read_bytes()
    assert [path.name for path in done.parent.iterdir()] == [done.name]


def test_without_a_checkpoint_nothing_is_promised_that_cannot_be(done, capsys):
    shutil.rmtree(done / "checkpoints")
    (done / "DONE.json").write_text("{")
    assert cli.main(["predict", str(done), "a.png"]) == 2
    said = capsys.readouterr().err
    assert "resume=never with the run's own words runs it again" in said and "writes it anew" not in said
    assert run_sim.main([f"resume={done}"]) == 2
    assert "there is no checkpoint in it to go on from" in capsys.readouterr().err


def test_a_summary_that_is_gone_is_said_to_be(done, capsys):
    (done / "summary.json").unlink()
    assert cli.main(["export", str(done), "--format", "merged"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {done}: its summary.json is not there; fedinit run resume={done} writes it anew\n"
    assert run_sim.main([f"resume={done}", "report=none"]) == 0 and fedinit.load(done).done


def test_what_a_run_writes_is_whole(done):
    kept = done_of(done)
    assert wrong(done) == "" and kept is not None and set(kept) == {"final_hash", "rounds", "adapter"}
    (done / "DONE.json").write_text(json.dumps({key: kept[key] for key in ("final_hash", "rounds")}))
    assert wrong(done) == "" and fedinit.load(done).model(), "a run of before the adapter's sha256 were kept"


def test_edited_settings_are_said_where_runs_are_shown(done, capsys):
    file, right = done / "config.yaml", (done / "config.yaml").read_text()
    for command in ("report", "compare"):
        assert cli.main([command, str(done)]) == 0
        assert "was edited" not in capsys.readouterr().out
    assert "was edited" not in (done / "report.html").read_text()
    file.write_text(right.replace("seed: 0", "seed: 7"))
    for command in ("report", "compare"):
        assert cli.main([command, str(done)]) == 0
        told = f"{done}: its config.yaml was edited, it says seed=7, and the run computed with 0; write that in it, or"
        assert told in capsys.readouterr().out
    page = (done / "report.html").read_text()
    assert f"{done.name}: its config.yaml was edited, it says seed=7, and the run computed with 0." in page
    file.write_text(right.replace("lr: 0.04", "lr: 4e-02"))  # the same number, which plain YAML takes for a text
    assert cli.main(["compare", str(done)]) == 0 and "was edited" not in capsys.readouterr().out
