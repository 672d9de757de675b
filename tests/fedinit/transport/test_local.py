"""What clients of one process hold: equal bytes once, before and after a checkpoint, and each client its own."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedinit import wire
from fedinit.state.checkpoint import Checkpoints
from fedinit.transport.local import FIRST_NODE_ID, LocalGrid

CLIENTS = 6
ODD = 4  # the client that holds another A than the others


def keeping(deliveries):
    """Every client keeps a frozen A, a copy of its own, and a B that no other has."""
    replies = []
    for message, context in deliveries:
        client = int(context.node_config["partition-id"])
        a = torch.arange(12.0).reshape(3, 4) + (client == ODD)
        context.state["held"] = wire.encode({"layer/A": a})
        context.state["own@1"] = wire.encode({"layer/B": torch.full((4, 3), float(client))})
        context.state["base-key"] = ConfigRecord({"key": str(client)})
        replies.append(Message(RecordDict(), reply_to=message))
    return replies


def ask(grid: LocalGrid, nodes: Sequence[int]) -> None:
    list(grid.send_and_receive([grid.create_message(RecordDict(), "train", node, "1") for node in nodes]))


def asked() -> LocalGrid:
    grid = LocalGrid(keeping, CLIENTS)
    ask(grid, grid.get_node_ids())
    return grid


def data(grid: LocalGrid, client: int, record: str, name: str) -> bytes:
    return wire.record(grid.contexts[FIRST_NODE_ID + client].state, record, ArrayRecord)[name].data


def assert_held_once(grid: LocalGrid) -> None:
    """One A for all but the odd client, by identity; every B its client's."""
    shared = data(grid, 0, "held", "layer/A")
    assert [data(grid, c, "held", "layer/A") is shared for c in range(CLIENTS)] == [c != ODD for c in range(CLIENTS)]
    assert data(grid, ODD, "held", "layer/A") != shared
    assert len({data(grid, c, "own@1", "layer/B") for c in range(CLIENTS)}) == CLIENTS


def test_equal_arrays_of_several_clients_are_held_once():
    assert_held_once(asked())


def test_clients_of_different_rounds_hold_one_array_and_the_others_are_not_looked_at():
    """What a round costs is by those that it asks, however many there are."""
    grid = LocalGrid(keeping, CLIENTS)
    for node in grid.get_node_ids():  # one a round
        others = {n: dict(context.state) for n, context in grid.contexts.items() if n != node}
        ask(grid, [node])
        for n, records in others.items():
            assert all(grid.contexts[n].state[key] is record for key, record in records.items())
    assert_held_once(grid)


def test_what_nobody_holds_any_more_is_forgotten():
    shared, content = wire.Shared(), RecordDict({"held": wire.encode({"layer/A": torch.ones(3)})})
    shared.put(content)
    assert len(shared._arrays) == 1
    content.clear()
    gc.collect()
    assert len(shared._arrays) == 0


def test_a_checkpoint_writes_and_brings_back_what_several_hold_once(tmp_path):
    grid, store = asked(), Checkpoints(tmp_path, {})
    snapshot = grid.snapshot()
    held = [name for name in snapshot.tensors if name.endswith("/held/layer/A")]
    assert len(held) == 2 and len([name for name in snapshot.tensors if name.endswith("/layer/B")]) == CLIENTS
    holders = [snapshot.tensors[f"holders/{name.partition('/')[0]}"].tolist() for name in held]
    assert holders == [[c for c in range(CLIENTS) if c != ODD], [ODD]]
    store.save(1, {"clients": snapshot})

    again = LocalGrid(keeping, CLIENTS)
    again.restore(store.load().states["clients"])
    assert_held_once(again)
    for node, context in grid.contexts.items():
        assert wire.to_bytes(again.contexts[node].state) == wire.to_bytes(context.state)
        assert list(again.contexts[node].state) == list(context.state)


def test_a_client_that_changes_what_it_holds_changes_no_other():
    grid = asked()
    before = [wire.to_bytes(context.state) for context in grid.contexts.values()]
    state = grid.contexts[FIRST_NODE_ID].state
    state["held"] = wire.encode({"layer/A": torch.zeros(3, 4)})
    after = [wire.to_bytes(context.state) for context in grid.contexts.values()]
    assert after[0] != before[0] and after[1:] == before[1:]


def test_restoring_forgets_what_the_snapshot_does_not_have():
    grid = asked()
    empty = LocalGrid(keeping, CLIENTS)
    grid.restore(empty.snapshot())
    assert not any(context.state for context in grid.contexts.values())


def test_a_client_that_nobody_asks_has_no_context():
    """Of many thousands, what is made and kept is of those that were asked, through a checkpoint as well."""
    grid, again = (LocalGrid(keeping, 50_000) for _ in range(2))
    asked = [FIRST_NODE_ID + client for client in (7, 40_000)]
    ask(grid, asked)
    again.restore(grid.snapshot())
    for one in (grid, again):
        assert [node for node in one.get_node_ids() if one.contexts.there(node)] == asked
        assert len(one.contexts) == len(one.get_nodes()) == 50_000
    context = grid.contexts[FIRST_NODE_ID + 49_999]
    assert context.node_config == {"partition-id": 49_999, "num-partitions": 50_000} and not context.state
    assert wire.to_bytes(again.contexts[asked[1]].state) == wire.to_bytes(grid.contexts[asked[1]].state)
