"""What clients made in rounds lies in files of their own: read when they are asked, written when it changed, kept as
long as a checkpoint has it, and never taken for what it is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedinit import wire
from fedinit.config.privacy import NoPrivacy
from fedinit.errors import InputError, RunFailed
from fedinit.state.checkpoint import Checkpoints
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

    def restore(self) -> int:
        """Go on from the last whole checkpoint; its round."""
        assert self.keeper is not None
        loaded = restoring._whole(self.keeper, {"clients": self.grid})
        self.passed_over = loaded.passed_over
        if loaded.states:
            self.grid.restore(loaded.states["clients"])
        return loaded.round

    def states(self) -> list[dict[str, bytes]]:
        states = [self.grid.contexts[node].state for node in self.grid.get_node_ids()]
        return [{key: wire.to_bytes(RecordDict({key: record})) for key, record in state.items()} for state in states]


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
    """Of 300 clients with 4 kB each, a round of two writes two files, and 40 bytes of every other client."""
    run = Run(tmp_path, 300)
    run.ask(1, range(300))
    run.save(1)
    at = {path: path.stat().st_mtime_ns for path in (tmp_path / "clients").iterdir()}
    run.train(2, [3, 200])
    assert sum(path not in at for path in (tmp_path / "clients").iterdir()) == 2
    assert all(path.stat().st_mtime_ns == when for path, when in at.items())
    assert (
        sum(t.numel() * t.itemsize for name, t in run.grid.snapshot().tensors.items() if "files/" in name) == 300 * 40
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
            LocalGrid(training, CLIENTS, checkpoints=tmp_path).check(loaded.states["clients"])
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


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_a_damaged_file_is_a_damaged_checkpoint(harm, tmp_path):
    expected = Run(tmp_path / "whole").train(1, [0, 1])
    run = Run(tmp_path).train(1, [0, 1]).train(2, [1])
    (newest,) = set(of(tmp_path, 1)) - {tmp_path / "clients" / path.name for path in of(tmp_path / "whole", 1)}
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.unlink() if harm == "gone" else newest.write_bytes(data if harm == "flipped" else data[:-1])
    with pytest.raises(RunFailed, match=r"client 1: clients/1-.*goes on from the last checkpoint that is whole"):
        run.grid.contexts[FIRST_NODE_ID + 1]
    again = Run(tmp_path)
    assert again.restore() == 1 and [name for name, _ in again.passed_over] == ["round-000002"]
    assert newest.name in again.passed_over[0][1]
    assert again.states() == expected.states()
    again.train(2, [1])
    assert Run(tmp_path).restore() == 2


def test_where_all_are_damaged_nothing_is_gone_on_from(tmp_path):
    Run(tmp_path).train(1, [0]).train(2, [1])
    for path in of(tmp_path, 0):
        path.unlink()
    again = Run(tmp_path)
    assert again.restore() == 0 and len(again.passed_over) == 2
    with pytest.raises(RunFailed, match="is damaged .clients/0-"):
        restoring.restored(
            Checkpoints(tmp_path, {}), {"clients": again.grid}, Audience([]), SimpleNamespace(name="clients")
        )
    assert restoring.restored(Checkpoints(tmp_path, {}), {"clients": again.grid}, Audience([]), NoPrivacy()) is None


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


def test_a_link_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "clients").symlink_to(tmp_path)
    run = Run(tmp_path / "run")
    run.ask(1, [0])
    with pytest.raises(InputError, match="symbolic link"):
        run.grid.snapshot()


def test_a_client_that_is_looked_at_does_not_stay_in_memory(tmp_path):
    run = Run(tmp_path).train(1, [0, 1])
    with run.grid.contexts.lent(FIRST_NODE_ID) as context:
        assert "own@1" in context.state
    assert "own@1" not in run.grid.contexts.there(FIRST_NODE_ID).state
    run.ask(2, [1])
    with run.grid.contexts.lent(FIRST_NODE_ID + 1) as context:
        assert "own@2" in context.state
    assert "own@2" in run.grid.contexts.there(FIRST_NODE_ID + 1).state
