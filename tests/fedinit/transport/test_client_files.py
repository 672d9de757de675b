"""What clients made in rounds lies in files of their own: read when they are asked, written when it changed, kept as
long as a checkpoint has it, and never taken for what it is not."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedinit import wire
from fedinit.errors import InputError, RunFailed
from fedinit.state.checkpoint import Checkpoints, State
from fedinit.transport import local
from fedinit.transport.local import FIRST_NODE_ID, LocalGrid
from strategies.server import restoring
from strategies.server.audience import Audience

CLIENTS = 6


def training(deliveries):
    """Every client holds a frozen A of all, remembers its round, and makes a B of its own of what it had; asked to
    evaluate, it changes nothing."""
    replies = []
    for message, context in deliveries:
        if message.metadata.message_type == "train":
            round, client = wire.value(wire.config(message), "round", int), context.node_config["partition-id"]
            had = [key for key in context.state if key.startswith("own@")]
            before = sum(float(wire.decode(context.state[key])["layer/B"].sum()) for key in had)
            for key in had:
                del context.state[key]
            context.state["held"] = wire.encode({"layer/A": torch.arange(12.0).reshape(3, 4)})
            context.state[f"own@{round}"] = wire.encode({"layer/B": torch.full((4, 3), before + round + client)})
            context.state["base-key"] = ConfigRecord({"key": str(client)})
        replies.append(Message(RecordDict(), reply_to=message))
    return replies


class Run:
    """A grid and its checkpoints, as `federate` has them."""

    def __init__(self, place: Path | None, clients: int = CLIENTS) -> None:
        self.grid = LocalGrid(training, clients, checkpoints=place)
        self.keeper = None if place is None else Checkpoints(place, {})

    def ask(self, round: int, clients: Sequence[int], kind: str = "train") -> None:
        content = RecordDict({wire.CONFIG: ConfigRecord({"round": round})})
        nodes = [FIRST_NODE_ID + client for client in clients]
        list(self.grid.send_and_receive([self.grid.create_message(content, kind, node, "1") for node in nodes]))

    def save(self, round: int) -> None:
        assert self.keeper is not None
        self.grid.saved(round, self.keeper.save(round, {"clients": self.grid.snapshot()}))

    def train(self, round: int, clients: Sequence[int]) -> Run:
        self.ask(round, clients)
        self.save(round)
        return self

    def restore(self, privacy: str = "none") -> int:
        """Go on from the last whole checkpoint; its round, 0 for none. `told` has what the ledger says."""
        assert self.keeper is not None
        self.told, audience = [], Audience([])
        audience.event = lambda kind, facts: self.told.append((kind, *facts.values()))
        parts, round = {"clients": self.grid}, self.keeper.load().round
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(restoring.ServerState, "restored", staticmethod(lambda state: "the server's"))
            patch.setattr(self.keeper, "load", with_server(self.keeper.load))
            state = restoring.restored(self.keeper, parts, audience, SimpleNamespace(name=privacy))
        rounds = [facts[0] for kind, *facts in self.told if kind == "resumed"]
        assert (state is None) == (not rounds) and round >= (rounds or [0])[0]
        return rounds[0] if rounds else 0

    def states(self) -> list[dict[str, bytes]]:
        states = [self.grid.contexts[node].state for node in self.grid.get_node_ids()]
        return [{key: wire.to_bytes(RecordDict({key: record})) for key, record in state.items()} for state in states]


def with_server(load):
    """Checkpoints as a server's, which these have none of."""

    def loaded(*given, **named):
        found = load(*given, **named)
        return dataclasses.replace(found, states=found.states and {"server": State(), **found.states})

    return loaded


def files(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "clients").iterdir())


def of(place: Path, client: int) -> list[Path]:
    return sorted((place / "clients").glob(f"{client}-*"))


def test_what_clients_made_is_in_memory_only_while_they_are_asked(tmp_path):
    run, plain = Run(tmp_path), Run(None)
    run.ask(1, range(CLIENTS))
    plain.ask(1, range(CLIENTS))
    assert "own@1" in run.grid.contexts.there(FIRST_NODE_ID).state
    snapshot = run.grid.snapshot()
    assert not any("own@" in name for name in [*snapshot.tensors, *snapshot.facts])
    for node in run.grid.get_node_ids():
        assert [*run.grid.contexts.there(node).state] == ["held", "base-key"] and run.grid.contexts.holds(node)
    assert len(files(tmp_path)) == CLIENTS
    assert run.states() == plain.states()  # read again, and so in memory
    assert "own@1" in run.grid.contexts.there(FIRST_NODE_ID).state


def test_a_checkpoint_costs_what_its_round_asked(tmp_path):
    """Of 300 clients, a round of two writes two files, and 48 bytes of every other client."""
    run = Run(tmp_path, 300)
    run.ask(1, range(300))
    run.save(1)
    at = {path: path.stat().st_mtime_ns for path in (tmp_path / "clients").iterdir()}
    run.train(2, [3, 200])
    assert sum(path not in at for path in (tmp_path / "clients").iterdir()) == 2
    assert all(path.stat().st_mtime_ns == when for path, when in at.items())
    assert (
        sum(t.numel() * t.itemsize for name, t in run.grid.snapshot().tensors.items() if "files/" in name) == 300 * 48
    )


def test_a_restored_run_goes_on_from_the_same_states(tmp_path):
    whole, run = Run(None), Run(tmp_path)
    for round, clients in ((1, [0, 1, 2]), (2, [1, 4]), (3, [2, 4])):
        whole.ask(round, clients)
        run.train(round, clients)
        again = Run(tmp_path)
        assert again.restore() == round
        assert not any(
            c.state for c in map(again.grid.contexts.there, again.grid.get_node_ids()) if c and "own@" in c.state
        )
        assert again.states() == whole.states()
        run = again
    whole.ask(4, [1, 2, 5])
    run.ask(4, [1, 2, 5])
    assert run.states() == whole.states()
    run.ask(5, [1])
    assert run.states() != whole.states()  # what this can tell apart


def test_a_client_that_is_only_asked_something_is_not_written_again(tmp_path):
    run = Run(tmp_path).train(1, range(CLIENTS))
    at = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "clients").iterdir()}
    run.ask(1, range(CLIENTS), "evaluate")
    run.save(1)
    now = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "clients").iterdir()}
    assert now == at


def test_files_are_there_as_long_as_a_checkpoint_has_them(tmp_path):
    run = Run(tmp_path)
    for round in range(1, 8):
        run.train(round, [0])
        assert len(of(tmp_path, 0)) == min(round, 3)
        for back in range(min(round, 3)):
            loaded = Checkpoints(tmp_path, {}).load(last=round - back)
            assert not LocalGrid(training, CLIENTS, checkpoints=tmp_path).check(loaded.states["clients"])
    run.train(8, [1])
    run.train(9, [1])
    run.train(10, [1])
    assert len(of(tmp_path, 0)) == 1 and len(of(tmp_path, 1)) == 3


def test_what_a_stopped_run_left_goes_with_the_checkpoints(tmp_path):
    run = Run(tmp_path).train(1, range(CLIENTS)).train(2, [0])
    run.ask(3, [0, 1])
    run.grid.snapshot()  # written, and then the process ends
    (tmp_path / "clients" / "0-0123456789abcdef.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "clients" / "notes.txt").write_text("somebody's")
    again = Run(tmp_path)
    assert again.restore() == 2
    for round in (3, 4, 5):
        again.train(round, [5])
    assert {name.partition("-")[0] for name in files(tmp_path)} == {*map(str, range(CLIENTS)), "notes.txt"}
    assert [len(of(tmp_path, client)) for client in range(CLIENTS)] == [1, 1, 1, 1, 1, 3]


def harmed(path: Path, harm: str) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm == "swollen":
        with path.open("wb") as file:
            file.truncate(2**40)  # of holes
    elif harm != "gone":
        path.write_bytes(data if harm == "flipped" else data[:-1])


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone", "folder", "swollen"])
def test_a_damaged_file_is_a_damaged_checkpoint(harm, tmp_path):
    """And what is gone on from is to the last byte what an earlier one left; of the later one nothing is deleted."""
    expected, whole = Run(tmp_path / "whole").train(1, [0, 1]), Run(None)
    run = Run(tmp_path).train(1, [0, 1]).train(2, [1])
    (newest,) = {*of(tmp_path, 1)} - {tmp_path / "clients" / path.name for path in of(tmp_path / "whole", 1)}
    harmed(newest, harm)
    with pytest.raises(RunFailed, match="client 1: clients/1-.*the same command goes on"):
        run.grid.contexts[FIRST_NODE_ID + 1]
    again = Run(tmp_path)
    assert again.restore() == 1 and again.told[0][:2] == ("checkpoint_damaged", "round-000002")
    assert newest.name in again.told[0][2] and [kind for kind, *_ in again.told] == ["checkpoint_damaged", "resumed"]
    assert (tmp_path / "round-000002.damaged").is_dir() and not (tmp_path / "round-000002").exists()
    assert again.states() == expected.states()
    whole.ask(1, [0, 1])
    for round in (2, 3, 4):
        again.train(round, [1])
        whole.ask(round, [1])
    assert again.states() == whole.states() and Run(tmp_path).restore() == 4
    assert (newest.with_name(newest.name + ".odd").is_dir()) == (harm == "folder")


@pytest.mark.parametrize("harm", ["flipped", "gone"])
def test_what_every_checkpoint_needs_is_lost_alone(harm, tmp_path):
    """The file of a client that was not asked lately is in all of them: it costs that client's factors and no round."""
    run = Run(tmp_path).train(1, [0, 1])
    for round in (2, 3, 4):
        run.train(round, [1])
    (file,) = of(tmp_path, 0)
    harmed(file, harm)
    for privacy in ("none", "examples"):
        again = Run(tmp_path)
        assert again.restore(privacy) == 4
        assert [kind for kind, *_ in again.told] == ["resumed", "client_file_damaged"] and again.told[1][1] == 0
    there = again.grid.contexts
    assert "own@4" in there[FIRST_NODE_ID + 1].state and [*there[FIRST_NODE_ID].state] == ["held", "base-key"]
    again.train(5, [0])
    assert Run(tmp_path).restore() == 5 and "own@5" in again.grid.contexts[FIRST_NODE_ID].state


def test_of_two_damages_the_one_that_an_earlier_checkpoint_has_not_costs_nothing(tmp_path):
    run = Run(tmp_path).train(1, [0, 1]).train(2, [1]).train(3, [1])
    harmed(of(tmp_path, 0)[0], "flipped")  # of all
    harmed(max(of(tmp_path, 1), key=lambda path: path.stat().st_mtime_ns), "flipped")  # of round 3 alone
    again = Run(tmp_path)
    assert again.restore() == 2 and [line[:2] for line in again.told] == [
        ("checkpoint_damaged", "round-000003"), ("resumed", 2), ("client_file_damaged", 0)
    ]  # fmt: skip
    assert "own@2" in again.grid.contexts[FIRST_NODE_ID + 1].state and run


def test_a_swollen_file_of_a_checkpoint_is_not_read(tmp_path):
    Run(tmp_path).train(1, [0]).train(2, [0])
    for name in ("state.json", "state.safetensors", "manifest.json"):
        shutil.copytree(tmp_path, tmp_path.with_name(name))
        with (tmp_path.with_name(name) / "round-000002" / name).open("r+b") as file:
            file.truncate(2**42)
        again = Run(tmp_path.with_name(name))
        assert again.restore() == 1 and again.told[0][:2] == ("checkpoint_damaged", "round-000002")


def test_one_of_two_damages_falls_back_as_far_as_it_has_to(tmp_path):
    run = Run(tmp_path).train(1, [0, 1, 2])
    for round in (2, 3, 4):
        run.train(round, [round % 3])
    harmed(max(of(tmp_path, 1), key=lambda path: path.stat().st_mtime_ns), "cut")  # of round 4 alone
    again = Run(tmp_path)
    assert again.restore() == 3 and [kind for kind, *_ in again.told] == ["checkpoint_damaged", "resumed"]


def test_where_no_checkpoint_is_whole_nothing_is_deleted(tmp_path):
    Run(tmp_path).train(1, [0]).train(2, [1])
    there = {path.name: path.read_bytes() for path in (tmp_path / "clients").iterdir()}
    for round in (1, 2):
        (tmp_path / f"round-00000{round}" / "state.json").unlink()
    with pytest.raises(RunFailed, match="as is every checkpoint there"):
        Run(tmp_path).restore("clients")
    again = Run(tmp_path)
    assert again.restore() == 0 and [kind for kind, *_ in again.told] == ["checkpoint_damaged"] * 2 + ["begun_anew"]
    again.train(1, [0]).train(2, [0]).train(3, [0])
    assert {path.name: path.read_bytes() for path in (tmp_path / "clients.damaged").iterdir()} == there
    assert {path.name for path in tmp_path.glob("*.damaged")} == {
        "clients.damaged", "round-000001.damaged", "round-000002.damaged"
    }  # fmt: skip
    assert Run(tmp_path).restore() == 3


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ETIMEDOUT, errno.EMFILE])
def test_what_cannot_be_read_now_ends_the_start_and_costs_nothing(number, tmp_path, monkeypatch):
    Run(tmp_path).train(1, [0, 1]).train(2, [1])
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    def failing(path):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as within:
        within.setattr("fedinit.transport.client_files.verified", lambda path, facts: failing(path))
        with pytest.raises(OSError, match=os.strerror(number)):
            Run(tmp_path).restore()
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before and Run(tmp_path).restore() == 2


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    run, plain = Run(tmp_path).train(1, [0, 1]), Run(None)
    plain.ask(1, [0, 1])
    plain.ask(2, [0, 1])
    run.ask(2, [0, 1])

    def full(path, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as within:
        within.setattr("fedinit.transport.client_files.disk.replace", full)
        with pytest.raises(OSError, match="No space"):
            run.grid.snapshot()
    assert Run(tmp_path).restore() == 1
    run.save(2)
    assert run.states() == plain.states() and Run(tmp_path).restore() == 2


@pytest.mark.parametrize("thing", ["link", "file"])
def test_what_is_no_folder_in_its_place_is_refused(thing, tmp_path):
    (tmp_path / "run").mkdir()
    place = tmp_path / "run" / "clients"
    place.symlink_to(tmp_path) if thing == "link" else place.write_text("")
    run = Run(tmp_path / "run")
    run.ask(1, [0])
    with pytest.raises(InputError, match="symbolic link" if thing == "link" else "is no folder"):
        run.grid.snapshot()


@pytest.mark.parametrize("what", ["folder", "file", "a file in the folder's place"])
def test_what_is_odd_is_refused_before_anything_is_gone_on_from(what, tmp_path):
    Run(tmp_path).train(1, [0])
    path = of(tmp_path, 0)[0] if what == "file" else tmp_path / "clients"
    path.rename(tmp_path / "elsewhere")
    path.write_text("") if "place" in what else path.symlink_to(tmp_path / "elsewhere")
    run = Run(tmp_path)
    with pytest.raises(InputError, match="put the folder back" if "place" in what else "symbolic link"):
        run.restore()
    assert not run.told
    path.unlink()
    (tmp_path / "elsewhere").rename(path)
    assert Run(tmp_path).restore() == 1


def test_a_client_that_is_looked_at_does_not_stay_in_memory(tmp_path):
    run = Run(tmp_path).train(1, [0, 1])
    with run.grid.contexts.lent(FIRST_NODE_ID) as context:
        assert "own@1" in context.state
    assert "own@1" not in run.grid.contexts.there(FIRST_NODE_ID).state
    run.ask(2, [1])
    with run.grid.contexts.lent(FIRST_NODE_ID + 1) as context:
        assert "own@2" in context.state
    assert "own@2" in run.grid.contexts.there(FIRST_NODE_ID + 1).state


@pytest.mark.parametrize("prompt", [False, True])
def test_of_all_who_are_asked_something_a_portion_is_in_memory(prompt, tmp_path, monkeypatch):
    """As at the start of a run that goes on, where everybody says who he is."""
    Run(tmp_path).train(1, range(CLIENTS))
    monkeypatch.setattr(local, "PORTION", 2)
    run, most = Run(tmp_path), []

    class Counting:
        def __call__(self, deliveries):
            there = filter(None, map(run.grid.contexts.there, run.grid.get_node_ids()))
            most.append(sum("own@1" in context.state for context in there))
            return training(deliveries)

        def one_by_one(self, deliveries):
            yield from self(deliveries)

    assert run.restore() == 1
    run.grid._handler = Counting()
    messages = [
        run.grid.create_message(RecordDict({wire.CONFIG: ConfigRecord({"round": 2})}), "evaluate", node, "1")
        for node in run.grid.get_node_ids()
    ]
    replies = list(run.grid.one_by_one(messages) if prompt else run.grid.send_and_receive(messages))
    assert [reply.metadata.src_node_id for reply in replies] == run.grid.get_node_ids() and most == [2, 2, 2]
    run.ask(2, range(CLIENTS))  # banks are made of all
    assert most[3:] == [CLIENTS]
