"""A run's folder in which something is not as it was written: one line, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fedinit
import run_sim
from clients.site import Site
from fedinit.config.compose import compose_config
from fedinit.runs.folder import Located, RunFolder
from fedinit.runs.lock import FolderLock
from fedinit.runs.made_of import MadeOf
from fedinit.runs.observer import Roster
from fedinit.runs.summary import summary_of
from fedinit.state import disk
from tests.support.small import WORDS

SHORT = (*WORDS, "rounds=1", "client.max_steps=1", "evaluation=none")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that is done, which nobody changes."""
    return fedinit.run(*SHORT, f"output_dir={tmp_path_factory.mktemp('whole')}").folder


@pytest.fixture
def again(done, tmp_path, capsys):
    """The same words once more: what is printed; `done` is then as a run is that is done."""

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert run_sim.main([*SHORT, f"output_dir={tmp_path}", *words]) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return captured.out + captured.err

    return run


def unsealed(folder: Path) -> None:
    """Done, as of before DONE.json had the adapter's sha256."""
    summary = json.loads((folder / "summary.json").read_text())
    disk.replace_json(folder / "DONE.json", {key: summary[key] for key in ("final_hash", "rounds")})


def unfinished(folder: Path) -> Path:
    (folder / "DONE.json").unlink()
    return folder


# -- the same command, twice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", ["auto", "named"])
def test_a_run_that_another_process_ended_meanwhile_is_shown_and_stays(resume, done, again, monkeypatch):
    """The first ends while the second still reads its data."""
    late = unfinished(done)
    before = {p: p.read_bytes() for p in late.rglob("*") if p.is_file()}

    class Slow(Site):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            unsealed(late)

    monkeypatch.setattr(run_sim, "Site", Slow)
    told = again(*([f"resume={late}"] if resume == "named" else []))
    assert "this run is done" in told and f"run folder: {late}" in told
    assert [p.name for p in late.parent.iterdir()] == [late.name]
    assert {p: p.read_bytes() for p in late.rglob("*") if p.is_file() and p.name != "DONE.json"} == before


def test_a_run_is_refused_while_another_process_is_at_it_and_never_begins_anew(done, again):
    lock = FolderLock(done)
    assert "another process is at this run" in again("resume=never", code=2)
    lock.release()
    again("resume=never")
    assert {p.name for p in done.parent.iterdir()} == {done.name, f"{done.name}.1"}


# -- summary.json and the tables -------------------------------------------------------------------------------------

WRONG = ["", "[]", "3", "null", '"text"', "{}", '{"score": []}', "[" * 10**5, '{"score": "accuracy"', "\x00\x01"]


@pytest.mark.parametrize("text", WRONG)
def test_a_summary_of_another_shape_is_written_anew_and_kept_aside(text, done, again, whole):
    right = (done / "summary.json").read_text()
    (done / "summary.json").write_text(text)
    with pytest.raises(fedinit.InputError) as refused:
        _ = fedinit.load(done).summary
    why = f"its summary.json is not what a run writes; fedinit run resume={done} writes it anew"
    assert str(refused.value) == f"{done}: {why}"
    told = again()
    assert (
        f"{done}/summary.json was not this run's; it is written anew, and the other one is summary.json.edited.1"
        in told
    )
    assert (done / "summary.json.edited.1").read_text() == text
    assert json.loads((done / "summary.json").read_text())["final_hash"] == json.loads(right)["final_hash"]
    assert [p.name for p in done.parent.iterdir()] == [done.name] and fedinit.load(whole).summary


@pytest.mark.parametrize(
    "key", ["strategy", "rounds", "score", "accuracy_by_domain", "head_alone", "final_hash", "adapter"]
)
def test_a_summary_with_a_value_of_another_type_is_none(key, done):
    values = json.loads((done / "summary.json").read_text())
    assert summary_of(done) == values
    for wrong in ([1], {"a": "b"}, True):
        (done / "summary.json").write_text(json.dumps({**values, key: wrong}))
        assert summary_of(done) is None
    alone = {"accuracy": 1.0, "accuracy_by_domain": {"elsewhere": "1.0"}}
    for changed in ({"head_alone": alone}, {"bytes_up": 10**400}):  # no float holds it, so nothing could show it
        (done / "summary.json").write_text(json.dumps(values | changed))
        assert summary_of(done) is None


@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", "3", '{"format": 4}', '{"content": 3, "sha256": 3}', "[" * 10**5, ""]
)
def test_a_manifest_of_another_shape_is_damage_and_the_checkpoint_before_is_used(text, done, again):
    for manifest in sorted(unfinished(done).glob("checkpoints/round-*/manifest.json"))[-1:]:
        manifest.write_text(text)
    assert "checkpoint damaged: checkpoint round-000001" in again()
    assert fedinit.load(done).done and [p.name for p in done.parent.iterdir()] == [done.name]


@pytest.mark.parametrize("content", [b"round,client\n1\n", b"\xff\xfe\n1\n", b"round\nmany\n"])
def test_a_table_of_another_shape_is_one_line(content, done, again):
    (done / "metrics.csv").write_bytes(content)
    with pytest.raises(fedinit.InputError) as refused:
        _ = fedinit.load(done).metrics
    assert str(refused.value).startswith(f"{done}/metrics.csv: not what a run writes (") and "\n" not in str(
        refused.value
    )
    again("resume=never")  # which looks into the table before it moves the folder aside
    assert (done.with_name(f"{done.name}.1") / "metrics.csv").read_bytes() == content


@pytest.mark.parametrize("name", ["classes.json", "adapter_model.safetensors", "head.safetensors"])
def test_an_adapter_of_another_shape_is_one_line(name, done):
    unsealed(done)
    for content in (b"[]", b"", b"\xff"):
        (done / "adapter" / name).write_bytes(content)
        run = fedinit.load(done)
        with pytest.raises(fedinit.InputError, match="not what a run writes") as refused:
            _ = run.class_names if name == "classes.json" else run.model()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ['{"classes": 3}', '{"classes": "abc"}', '{"classes": [1, 2]}', '{"classes": null}', "{}"]
)
def test_class_names_of_another_shape_are_told_without_pythons_words(text, done):
    unsealed(done)
    (done / "adapter" / "classes.json").write_text(text)
    with pytest.raises(fedinit.InputError) as refused:
        _ = fedinit.load(done).class_names
    remedy = f"put back what the run wrote, or remove DONE.json, and fedinit run resume={done} writes it anew"
    why = f'not what a run writes, {{"classes": [a name, …]}}; it was changed since; {remedy}'
    assert str(refused.value) == f"{done}/adapter/classes.json: {why}"


def test_more_or_fewer_class_names_than_the_head_has_outputs_are_refused(done):
    unsealed(done)
    names = list(fedinit.load(done).class_names)
    for some in (names[:-1], [*names, "another"], []):
        disk.replace_json(done / "adapter" / "classes.json", {"classes": some})
        with pytest.raises(fedinit.InputError, match=f"names {len(some)} class.*, and the head has {len(names)} out"):
            fedinit.load(done).model()


def test_a_table_that_is_lost_or_edited_while_its_run_goes_on_has_all_rows_at_its_end(tmp_path, monkeypatch, capsys):
    """Also in the checkpoint of its end, by which a run that is done is mended."""
    names, told, done = ("metrics.csv", "clients.csv", "metrics.jsonl", "made_of.json"), RunFolder.round_done, []

    def damaged(folder: RunFolder, report) -> None:
        told(folder, report)
        if report.round in (2, 3):  # of three: the last one's is found at the end
            done.append({name: (folder.path / name).read_bytes() for name in names})
            (folder.path / "metrics.csv").unlink()
            (folder.path / "clients.csv").write_bytes(b"mine")
            (folder.path / "metrics.jsonl").write_bytes(done[-1]["metrics.jsonl"] + b"mine\n")
            (folder.path / "made_of.json").write_bytes(b"{}")

    words = [*SHORT, "rounds=3", f"output_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "round_done", damaged)
        assert run_sim.main(words) == 0
    (path,) = (tmp_path / "digits").iterdir()
    said = capsys.readouterr().out
    now = {name: (path / name).read_bytes() for name in names}
    assert now == done[1] | {"made_of.json": done[0]["made_of.json"]}, "this one is only looked at at the end"
    assert done[-1]["clients.csv"].count(b"\n") == 10 and done[-1]["metrics.csv"].startswith(b"round,")
    for name, times in (("metrics.csv", 2), ("clients.csv", 2), ("metrics.jsonl", 2), ("made_of.json", 1)):
        assert said.count(f"{path}/{name} was not ") == times
    assert (path / "clients.csv.edited.2").read_bytes() == b"mine"
    assert (path / "metrics.jsonl.edited.1").read_bytes() == done[0]["metrics.jsonl"] + b"mine\n"
    assert run_sim.main(words) == 0
    assert "was not" not in capsys.readouterr().out


# -- config.yaml -----------------------------------------------------------------------------------------------------


def test_an_edited_configuration_is_put_aside_when_its_run_goes_on(done, again):
    right = (done / "config.yaml").read_text()
    edited = right.replace("lr: 0.04", "lr: 0.5")
    (unfinished(done) / "config.yaml").write_text(edited)
    told = again()
    assert (
        f"{done}/config.yaml was not this run's; it is written anew, and the other one is config.yaml.edited.1" in told
    )
    assert "lr: 0.04" in (done / "config.yaml").read_text() and (done / "config.yaml.edited.1").read_text() == edited
    assert fedinit.load(done).done
    (done / "config.yaml").write_text(edited)  # and when it is shown
    assert "config.yaml.edited.2" in again() and "lr: 0.04" in (done / "config.yaml").read_text()
    assert "config.yaml" not in again()


@pytest.mark.parametrize("finished", [True, False])
def test_an_edited_configuration_is_refused_where_it_is_all_there_is(finished, done, capsys):
    text = (done / "config.yaml").read_text()
    (done / "config.yaml").write_text(text.replace("lr: 0.04", "lr: 0.5"))
    if not finished:
        unfinished(done)
    why = (
        "its config.yaml says client.lr=0.5, and the run computed with client.lr=0.04; write that, or give the run's "
        "own words"
    )
    capsys.readouterr()
    assert run_sim.main([f"resume={done}"]) == 2
    assert capsys.readouterr().err == f"error: resume={done}: {why}, which do\n"
    with pytest.raises(fedinit.InputError) as refused:
        fedinit.load(done)
    assert str(refused.value) == f"{done}: {why}, which do"
    # What the result is no function of may be edited.
    (done / "config.yaml").write_text(text.replace("name: none\n  project", "name: auto\n  project"))
    assert fedinit.load(done).config.logger.name == "auto"


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "just words", "3", "a: [", "client: 3\n", "{}", "? [a]\n: b\n", "1: 2\n"]
)
def test_a_configuration_of_another_shape_is_one_line_and_mended_by_the_runs_words(text, done, again, capsys):
    (unfinished(done) / "config.yaml").write_text(text)
    capsys.readouterr()
    assert run_sim.main([f"resume={done}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(fedinit.InputError) as refused:
        fedinit.load(done)
    assert "\n" not in str(refused.value)
    assert "config.yaml.edited.1" in again()
    assert fedinit.load(done).done and (done / "config.yaml.edited.1").read_text() == text


def test_a_name_with_a_lines_end_in_it_outlives_a_restart(tmp_path):
    """The header of metrics.csv has the names of folders, whatever is in them."""
    written = compose_config([*SHORT, "resume=auto", f"output_dir={tmp_path}"])
    roster = Roster(examples={0: 1}, class_names=("x",), domain_names=("a\rb", "c\r\nd", "e\n1,f"))
    state = None
    for _ in range(2):
        folder = RunFolder(written, Located(tmp_path / "run", MadeOf()))
        if state is not None:
            folder.restore(state)
        folder.started(1, roster)
        kept = folder.snapshot()
        assert [path.name for path in tmp_path.iterdir()] == ["run"], "a header alone is no round, and nothing is lost"
        assert state is None or state.facts == kept.facts
        assert kept.facts["metrics.csv"].encode() == (folder.path / "metrics.csv").read_bytes()
        state = kept
        folder.close()
