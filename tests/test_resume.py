"""A run that stops and is started again by the same command ends as if it had never stopped."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from rich.console import Console

import fedinit
import run_sim
from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.commands.run import configurations
from fedinit.config import arguments
from fedinit.config.schema import Config
from fedinit.data.digits import Digits
from fedinit.errors import InputError, RunFailed
from fedinit.runs import code, made_of
from fedinit.runs.code import code_now
from fedinit.runs.folder import RunFolder
from fedinit.runs.observer import Observer
from fedinit.state.checkpoint import FACTS, TENSORS, Checkpoints, State
from fedinit.state.manifest import FORMAT, MANIFEST, canonical, sha256
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import WORDS, slow, small_config


class Crash(BaseException):
    """The process is gone: nothing catches it."""


@pytest.fixture
def simulate(monkeypatch):
    """`run_sim.simulate`, with one Site for all runs of a test, which compute the same."""
    sites: dict[str, Site] = {}

    def site_of(config: Config, console: Console) -> Site:
        key = json.dumps(config.computed(), sort_keys=True)
        if key not in sites:
            sites[key] = Site(config)
        return sites[key]

    monkeypatch.setattr(run_sim, "Site", site_of)
    return lambda config: run_sim.simulate(config, Console())


def small(root: Path, *words: str) -> Config:
    return small_config("rounds=4", "client.max_steps=2", f"output_dir={root}", *words)


def dying(monkeypatch, round: int):
    """A patch that ends the process after the round's rows were written and before its checkpoint was."""
    write = RunFolder.round_done

    def write_and_die(self, numbers):
        write(self, numbers)
        if numbers.round == round:
            raise Crash

    monkeypatch.setattr(RunFolder, "round_done", write_and_die)


def crash(monkeypatch, simulate, config: Config, round: int) -> None:
    with monkeypatch.context() as patch, pytest.raises(Crash):
        dying(patch, round)
        simulate(config)


def only(root: Path) -> Path:
    (folder,) = (root / "digits").iterdir()
    return folder


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    """The table without its column of wall-clock seconds, which no two runs share."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(open(folder / table))]


def summary(folder: Path) -> dict:
    whole = json.loads((folder / "summary.json").read_text())
    for figures in (whole, whole["head_alone"] or {}, whole["start"]):
        figures.pop("seconds", None)
    return {key: value for key, value in whole.items() if key != "folder"}


def ledger(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    assert summary(one) == summary(other)
    assert rows(one, "metrics.csv") == rows(other, "metrics.csv")
    assert (one / "clients.csv").read_bytes() == (other / "clients.csv").read_bytes()


def test_a_run_of_other_code_is_told_so(tmp_path, monkeypatch, capsys):
    """Where it goes on, where it is shown, in the ledger and on the page; of the same code nothing is said."""
    words = [*WORDS, f"output_dir={tmp_path}", "rounds=4", "client.max_steps=1", "report=full"]
    with monkeypatch.context() as patch, pytest.raises(Crash):
        dying(patch, 3)
        run_sim.main(words)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        dying(patch, 4)
        run_sim.main(words)
    assert "other code" not in capsys.readouterr().out
    edited = {**code_now(), "strategies": "0123456789abcdef"}
    with monkeypatch.context() as patch:
        for module in (code, made_of, run_sim):
            patch.setattr(module, "code_now", lambda: edited)
        assert run_sim.main(words) == 0
        folder = only(tmp_path)
        said = "was begun by other code than is here now (strategies)"
        assert f"{folder}: {said}; resume=never begins it anew" in capsys.readouterr().out.replace("\n", " ")
        assert [event["code"] for event in ledger(folder) if event["kind"] == "engine"] == [*2 * [code_now()], edited]
        page = (folder / "report.html").read_text()
        assert re.search(
            f"strategies {code_now()['strategies']}; .*, strategies 0123456789abcdef .from round 4 on", page
        )
        assert run_sim.main(words) == 0 and f"it {said}" in capsys.readouterr().out
        assert run_sim.main([*words, "-q"]) == 0
        out, err = capsys.readouterr()
        assert (out.count("\n"), err.count("\n")) == (1, 1) and said in err
        with pytest.warns(UserWarning, match=re.escape(f"{folder}: {said}; resume=never")):
            fedinit.run(*words)
        assert run_sim.main([*words, "resume=never"]) == 0 and "other code" not in capsys.readouterr().out
    assert run_sim.main(words) == 0 and said in capsys.readouterr().out, "and the other way round"
    monkeypatch.setattr(run_sim, "edited_since", lambda: ["strategies"])
    with pytest.warns(UserWarning) as told:
        fedinit.run(*words)
    assert str(told[0].message).startswith("strategies: edited since it was imported, and the run is computed as it")


def test_the_ledger_and_the_report_have_every_engine_that_a_run_had(tmp_path, monkeypatch, capsys):
    """config.yaml is the last one's, and `auto` in it says nothing of what that came to."""
    words = [*WORDS, f"output_dir={tmp_path}", "rounds=4", "client.max_steps=1", "report=full"]
    with monkeypatch.context() as patch, pytest.raises(Crash):
        dying(patch, 3)
        run_sim.main([*words, "engine=inline"])
    assert run_sim.main([*words, "engine=threads", "engine.lanes=2"]) == 0
    folder, one, two = only(tmp_path), "1 lane on CPU, fp32", "2 lanes on CPU, fp32"
    now = dict(code_now())
    assert [event for event in ledger(folder) if event["kind"] in ("engine", "resumed")] == [
        {"kind": "engine", "round": 0, "engine": "inline", "detail": one, "code": now},
        {"kind": "engine", "round": 2, "engine": "threads", "detail": two, "code": now},
        {"kind": "resumed", "round": 2},
    ]
    page = (folder / "report.html").read_text()
    assert f"inline: {one}; threads: {two} (from round 3 on)" in page
    assert f"auto: threads: {two}" in page


@pytest.mark.parametrize(
    "words",
    [
        "strategy=lora_fair reinit=local_on_global participation=0.67",
        "strategy=fedsa_lora evaluation=clients participation=0.67",
        "strategy=fedit client=sgd_sai client.gsnr_scope=global_once participation=0.67",
        *slow(
            "strategy=flora adapter.ranks=[2,4] participation=0.67",
            "strategy=fedit server_opt=adam evaluation.every=4 evaluation.head_alone=true",
            "strategy=lora_fair evaluation.head_alone=true",
            "strategy=fedex_lora participation=0.34",
            "strategy=flora init=eva",
            "strategy=flora init=pissa participation=0.67",
            "strategy=flora init=lora_ga head=ridge init.examples=32",
            "strategy=frlora init=pissa evaluation=clients evaluation.every=3",
            "strategy=rolora adapter.dropout=0.1 client=adamw",
            "strategy=ffa_lora client=sgd_sai client.gsnr_scope=global_once participation=0.67",
            "strategy=fedit privacy=clients privacy.clip_quantile=0.5",
        ),
    ],
)
def test_a_continued_run_ends_as_an_uninterrupted_one(words, tmp_path, monkeypatch, capsys, simulate):
    """Personal factors, base offsets, held factors, moments, ranks and byte counts: all are where they were. The second
    crash is one of a run that was continued already."""
    whole = small(tmp_path / "a", *words.split())
    parted = dataclasses.replace(whole, output_dir=str(tmp_path / "b"))
    simulate(whole)
    crash(monkeypatch, simulate, parted, 2)
    crash(monkeypatch, simulate, parted, 3)
    assert not (only(tmp_path / "b") / "DONE.json").exists()
    capsys.readouterr()
    simulate(parted)
    assert "goes on after round 2" in capsys.readouterr().out
    uninterrupted, continued = only(tmp_path / "a"), only(tmp_path / "b")
    assert_same_run(continued, uninterrupted)
    assert [line for line in ledger(continued) if line["kind"] == "resumed"] == [
        {"kind": "resumed", "round": 1},
        {"kind": "resumed", "round": 2},
    ]
    names = [path.name for path in sorted((continued / "checkpoints").glob("round-*"))]
    assert names == ["round-000002", "round-000003", "round-000004"]
    simulate(parted)
    assert "this run is done" in capsys.readouterr().out


def test_a_restart_before_the_first_round_and_after_the_last(tmp_path, monkeypatch, simulate):
    """A checkpoint of round 0, so that round 0 is not done twice; and one of the last round, which lacks only the
    summary. A run that never came to a checkpoint leaves nothing to move aside."""
    whole = small(tmp_path / "a", "rounds=2")
    parted = dataclasses.replace(whole, output_dir=str(tmp_path / "b"))
    simulate(whole)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(RunFolder, "started", lambda *_: (_ for _ in ()).throw(Crash))
        simulate(parted)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Cohort, "answers", lambda _, tasks: (_ for _ in ()).throw(Crash) if tasks else [])
        simulate(parted)
    assert [p.name for p in (only(tmp_path / "b") / "checkpoints").iterdir()] == ["round-000000"]
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("fedinit.runs.reporting.export", lambda *_: (_ for _ in ()).throw(Crash))
        simulate(parted)
    simulate(parted)
    assert_same_run(only(tmp_path / "b"), only(tmp_path / "a"))
    assert [line["round"] for line in ledger(only(tmp_path / "b")) if line["kind"] == "resumed"] == [0, 2]


def test_never_and_a_folder_by_name(tmp_path, monkeypatch, simulate, capsys):
    config = small(tmp_path, "rounds=2")
    crash(monkeypatch, simulate, config, 2)
    folder = only(tmp_path)
    simulate(dataclasses.replace(config, resume="never"))
    aside = folder.with_name(folder.name + ".1")
    assert (folder / "DONE.json").exists() and not (aside / "DONE.json").exists()
    # The unfinished one goes on where it is, by its name; the folder's own configuration need not be repeated.
    monkeypatch.chdir(tmp_path)
    assert run_sim.main([f"resume=digits/{aside.name}"]) == 0
    assert_same_run(aside, folder)
    capsys.readouterr()
    assert run_sim.main([f"resume={aside}"]) == 0 and "this run is done" in capsys.readouterr().out


def begun(tmp_path, monkeypatch, simulate, *words: str) -> tuple[Config, Path]:
    """A run that crashed in its third round, and its folder."""
    config = small(tmp_path / "out", *words)
    crash(monkeypatch, simulate, config, 3)
    return config, only(tmp_path / "out")


def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path, monkeypatch, simulate):
    config, folder = begun(tmp_path, monkeypatch, simulate)
    newest, before = (folder / "checkpoints" / f"round-00000{r}" for r in (2, 1))
    with open(newest / TENSORS, "r+b") as file:
        file.truncate(4096)
    os.remove(before / MANIFEST)
    (folder / "checkpoints" / ".tmp-round-000003").mkdir()  # of a save that was cut short
    (folder / "ledger.jsonl").open("a").write('{"kind": "ref')  # and of a line
    simulate(config)
    damaged = [json.loads(x) for x in (folder / "ledger.jsonl").read_text().splitlines() if "damaged" in x]
    assert [d["checkpoint"] for d in damaged] == ["round-000002", "round-000001"]
    assert damaged[0]["detail"].startswith(f"{TENSORS} has 4096 bytes") and MANIFEST in damaged[1]["detail"]
    assert not list((folder / "checkpoints").glob(".tmp*"))
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
    simulate(whole)
    assert_same_run(folder, only(tmp_path / "whole"))


def test_a_run_whose_checkpoints_are_all_damaged_begins_again(tmp_path, monkeypatch, simulate):
    config, folder = begun(tmp_path, monkeypatch, simulate, "rounds=3")
    for path in (folder / "checkpoints").rglob(FACTS):
        path.write_bytes(b"{}")
    simulate(config)
    kinds = [line["kind"] for line in ledger(folder)]
    assert kinds == ["engine", "engine", *["checkpoint_damaged"] * 3, "begun_anew"]
    assert len([*(folder / "checkpoints").glob("round-*.damaged")]) == 3
    simulate(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    assert_same_run(folder, only(tmp_path / "whole"))


def test_a_stopped_run_goes_on_under_another_engine_by_folder_and_engine(tmp_path, monkeypatch, simulate):
    """With what all engines read as the run has it, banks above all; of a word that is no engine Hydra tells."""
    config, folder = begun(tmp_path, monkeypatch, simulate)

    def read(*words: str) -> Config:
        (single,) = configurations(arguments.read([f"resume={folder}", *words]))
        return single.config

    assert config.engine.name == "threads" and config.engine.clients_per_bank == 3
    for words, name, lanes in ((("engine=inline",), "inline", 1), (("engine=threads", "engine.lanes=1"), "threads", 1)):
        other = read(*words)
        assert (other.engine.name, other.engine.lanes) == (name, lanes)
        assert other.computed() == config.computed() and other.resume == str(folder)
    assert read("engine=ray", "engine.actors=2").engine.actors == 2
    with pytest.raises(InputError, match="engine=thread: no such choice"):
        read("engine=thread")
    told = read("logger=wandb", "logger.project=p", "report=none")
    assert (told.logger.name, told.logger.project, told.computed()) == ("wandb", "p", config.computed())
    assert told.engine == config.engine
    with pytest.raises(InputError, match="logger=wand: "):
        read("logger=wand")


def test_a_run_whose_layers_are_alike_is_written_from_its_last_checkpoint(tmp_path, monkeypatch, simulate):
    """Of a head alone every B is zero: equal tensors are one in what a checkpoint gives back."""
    config = small(tmp_path / "out", "strategy=head_alone", "evaluation.head_alone=false")
    with monkeypatch.context() as patch, pytest.raises(Crash):

        def die(*_, **__):
            raise Crash

        patch.setattr("fedinit.runs.reporting.OpenRun.finish", die)
        simulate(config)
    folder = only(tmp_path / "out")
    assert not (folder / "adapter").exists()
    simulate(config)
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
    simulate(whole)
    assert summary(folder)["final_hash"] == summary(only(tmp_path / "whole"))["final_hash"]
    assert (folder / "adapter").exists()


# -- refusals ------------------------------------------------------------------------------------------------------


def refused(simulate, config: Config) -> str:
    with pytest.raises(InputError) as caught:
        simulate(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_continued_is_refused_in_one_line_and_loses_nothing(tmp_path, monkeypatch, simulate):
    config, folder = begun(tmp_path, monkeypatch, simulate)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    by_name = dataclasses.replace(config, resume=str(folder))
    other = dataclasses.replace(by_name, client=dataclasses.replace(config.client, lr=0.5), seed=3)
    line = refused(simulate, other)
    said = "seed is 0 there and 3 here, client.lr is 0.04 there and 0.5 here; resume="
    assert f"belongs to another configuration; {said}" in line
    assert f"; resume={folder} alone goes on with it, or beside words of how it is run" in line
    assert line.endswith("any other word needs all of the run's own")
    assert "client.lr is 0.04 there and 0.5 here" in refused(simulate, dataclasses.replace(other, seed=0))

    link = tmp_path / "link"
    link.symlink_to(folder)
    assert "is a symbolic link" in refused(simulate, dataclasses.replace(config, resume=str(link)))
    absent = dataclasses.replace(config, resume=str(tmp_path / "absent"))
    assert "no such folder" in refused(simulate, absent)
    above = refused(simulate, dataclasses.replace(config, resume=str(folder.parents[1])))
    assert f"it has no config.yaml; runs below it: {folder}; give the folder of a run" in above

    running = RunFolder(config)
    assert "another process is at this run" in refused(simulate, config)
    running.close()
    # Also where only the checkpoint itself is of another configuration, or is a link.
    store = Checkpoints(folder / "checkpoints", {"rounds": 9})
    with pytest.raises(InputError, match="rounds is 4 there and 9 here"):
        store.load()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before

    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(folder / "config.yaml", empty)
    assert "no checkpoint in it" in refused(simulate, dataclasses.replace(config, resume=str(empty)))
    newest = folder / "checkpoints" / "round-000002"
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link" in refused(simulate, config)


@pytest.mark.parametrize("shape", ["ours", "another", "later"])
def test_another_format_is_not_taken_for_damage(shape, tmp_path):
    """With the manifest of this format, or with one that only has its format where every one has it: refused, and no
    earlier round is used instead."""
    store = Checkpoints(tmp_path, {})
    for round in (1, 2):
        store.save(round, {"x": State({"t": torch.ones(2)}, {"n": round})})
    path = tmp_path / "round-000002" / MANIFEST
    if shape == "another":
        made = {"format": FORMAT + 1, "entries": []}
    elif shape == "later":
        made = {"format": FORMAT + 1, "content": ["something"], "sha256": None}
    else:
        content = json.loads(path.read_text())["content"] | {"format": FORMAT + 1}
        made = {"format": FORMAT + 1, "content": content, "sha256": sha256(canonical(content))}
    path.write_text(json.dumps(made))
    with pytest.raises(InputError, match="written by a newer fedinit") as caught:
        store.load()
    assert "\n" not in str(caught.value)
    path.write_text(json.dumps({**made, "format": FORMAT}))
    if shape == "ours":  # what a bit on the disk may become is damage, and the round before is used
        path.write_text(path.read_text().replace(f'"format": {FORMAT + 1}', f'"format": {FORMAT}'))
    assert store.load().round == 1


def test_an_older_format_is_refused_with_the_way_out(tmp_path):
    store = Checkpoints(tmp_path, {})
    store.save(1, {"x": State()})
    path = tmp_path / "round-000001" / MANIFEST
    content = json.loads(path.read_text())["content"] | {"format": FORMAT - 1}
    path.write_text(json.dumps({"content": content, "sha256": sha256(canonical(content))}))
    with pytest.raises(InputError, match="written by an older fedinit .*resume=never begins anew"):
        store.load()


def test_the_reference_runs_checkpoints_are_no_link(tmp_path, monkeypatch, simulate):
    config, folder = begun(tmp_path, monkeypatch, simulate, "evaluation.head_alone=true")
    place = folder / "checkpoints" / "head_alone"
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert "head_alone: is a symbolic link" in refused(simulate, config)


# -- the clients' side ---------------------------------------------------------------------------------------------


class Events(Observer):
    def __init__(self):
        self.seen = []

    def event(self, kind, facts):
        self.seen.append((kind, facts.get("client")))


@pytest.mark.parametrize("strategy", [*slow("ffa_lora"), "flora", "fedsa_lora"])
def test_a_server_that_comes_back_to_clients_that_forgot_sends_all_again(strategy, tmp_path):
    """In a deployment the clients' states are theirs: a server that goes on asks each what it still holds, instead of
    counting on what it sent. Nothing is refused; what only the client had is said to be lost."""
    config = small_config(f"strategy={strategy}", "rounds=3", "evaluation=clients")
    site = Site(config)

    class Stop(Observer):
        def round_done(self, numbers):
            if numbers.round == 2:
                raise Crash

    with pytest.raises(Crash):
        federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[Stop()], checkpoints=tmp_path)
    events = Events()
    anew = LocalGrid(Cohort(site), 3)
    outcome = federate(config, anew, site.backbone, observers=[events], checkpoints=tmp_path)
    lost = [("client_state_lost", c) for c in range(3)] if strategy == "fedsa_lora" else []
    assert sorted(events.seen) == sorted([("resumed", None), *lost])
    if strategy != "fedsa_lora":
        whole = federate(config, LocalGrid(Cohort(site), 3), site.backbone)
        assert outcome.final_hash == whole.final_hash and outcome.score == whole.score
        assert outcome.bytes_down > whole.bytes_down  # what was held had to be sent again


def test_clients_with_other_classes_are_refused(tmp_path, monkeypatch):
    config = small_config("rounds=1")
    site = Site(config)
    federate(config, LocalGrid(Cohort(site), 3), site.backbone, checkpoints=tmp_path)
    other = Site(small_config("rounds=1", "data.classes=9"))
    with pytest.raises(RunFailed, match="client 0 has other classes than the run"):
        federate(config, LocalGrid(Cohort(other), 3), site.backbone, checkpoints=tmp_path)
    monkeypatch.setattr(Digits, "known_classes", None)  # as of a folder, whose classes its owners know
    with pytest.raises(RunFailed, match="begun with other classes"):
        federate(config, LocalGrid(Cohort(other), 3), site.backbone, checkpoints=tmp_path)


def test_records_survive_a_checkpoint(tmp_path):
    """Every kind of record and value that Flower allows, with order, dtype and exact floats."""
    arrays = {"b/B": torch.randn(2, 3), "a/A": torch.arange(4), "empty": torch.zeros(0, 5, dtype=torch.float64)}
    content = RecordDict(
        {
            "held": wire.encode(arrays),
            "numbers": MetricRecord({"x": 0.1, "n": 3, "list": [1.5, float("inf")]}),
            "settings": ConfigRecord({"word": "é", "yes": True, "raw": b"\x00\xff", "words": ["a", "b"], "one": 1.0}),
        }
    )
    store = Checkpoints(tmp_path, {})
    store.save(0, {"c": wire.to_state(content)})
    back = wire.from_state(store.load().states["c"])
    assert list(back) == list(content) and list(back["held"]) == list(arrays)
    for name, tensor in wire.decode(back["held"]).items():
        assert torch.equal(tensor, arrays[name]) and tensor.dtype == arrays[name].dtype
    for key in ("numbers", "settings"):
        assert dict(back[key]) == dict(content[key])
        assert [type(v) for v in back[key].values()] == [type(v) for v in content[key].values()]
