"""What is equal is written once, and comes back as one; what only looks equal does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fedinit.state.checkpoint import FACTS, TENSORS, Checkpoints, State

CLIENTS = 48


def stored(folder: Path) -> list[str]:
    """The names of the tensors that the file of round 1 has."""
    with safe_open(folder / "round-000001" / TENSORS, "pt") as file:
        return list(file.keys())


def frozen() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {f"layer{i}/A": torch.randn(4, 24, generator=draw) for i in range(3)}


def test_equal_tensors_are_written_once_and_come_back_as_one(tmp_path):
    """48 clients that keep three factors: three tensors on the disk, whichever part has them, where it was 147."""
    kept = {f"{c}/{name}": value for c in range(CLIENTS) for name, value in frozen().items()}
    states = {"server": State(frozen()), "clients": State(kept, {"n": CLIENTS})}
    store = Checkpoints(tmp_path, {})
    store.save(1, states)
    assert stored(tmp_path) == [f"server/layer{i}/A" for i in range(3)]

    loaded = store.load().states
    assert [list(loaded[part].tensors) for part in states] == [list(states[part].tensors) for part in states]
    for part, state in states.items():
        for name, value in state.tensors.items():
            assert torch.equal(loaded[part].tensors[name], value)
    assert len({id(value) for state in loaded.values() for value in state.tensors.values()}) == 3


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([0.0, 1.0, 2.0, 3.0000002]),
        torch.tensor([-0.0, 1.0, 2.0, 3.0]),
        torch.tensor([[0.0, 1.0, 2.0, 3.0]]),
        torch.tensor([0.0, 1.0, 2.0, 3.0]).view(torch.int32),
        torch.tensor([0.0, 1.0, 2.0, 3.0]).double(),
    ],
    ids=["last bit", "sign of zero", "shape", "type", "width"],
)
def test_what_differs_in_anything_stays_apart(other, tmp_path):
    store = Checkpoints(tmp_path, {})
    first = torch.tensor([0.0, 1.0, 2.0, 3.0])
    store.save(1, {"clients": State({"0/A": first, "1/A": other})})
    assert len(stored(tmp_path)) == 2
    back = store.load().states["clients"].tensors
    for name, value in {"0/A": first, "1/A": other}.items():
        assert back[name].dtype == value.dtype and back[name].shape == value.shape
        assert back[name].numpy().tobytes() == value.numpy().tobytes()


def test_nan_and_views_are_compared_by_their_bytes(tmp_path):
    """NaN is not equal to itself as a number; a view has the values that are read, not those of its storage."""
    store, grid = Checkpoints(tmp_path, {}), torch.arange(6.0).reshape(2, 3)
    nan = torch.full((2,), torch.nan)
    store.save(1, {"x": State({"nan": nan, "again": nan.clone(), "view": grid.T, "whole": grid.T.contiguous()})})
    assert sorted(stored(tmp_path)) == ["x/nan", "x/view"]
    assert torch.equal(store.load().states["x"].tensors["whole"], grid.T)


@pytest.mark.parametrize("file", [TENSORS, FACTS])
def test_one_bit_of_what_is_shared_is_damage(file, tmp_path):
    """One flipped bit is in every client's factors now: it is found, and the round before is used."""
    store = Checkpoints(tmp_path, {})
    for round in (1, 2):
        store.save(round, {"clients": State({f"{c}/A": torch.ones(5) * round for c in range(3)})})
    path = tmp_path / "round-000002" / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    loaded = store.load()
    assert loaded.round == 1 and [name for name, _ in loaded.passed_over] == ["round-000002"]
    assert torch.equal(loaded.states["clients"].tensors["2/A"], torch.ones(5))


def test_the_first_name_is_the_one_it_is_stored_under(tmp_path):
    store = Checkpoints(tmp_path, {})
    store.save(1, {"clients": State({"0/A": torch.ones(2), "1/A": torch.ones(2), "2/A": torch.zeros(2)})})
    facts = json.loads((tmp_path / "round-000001" / FACTS).read_text())
    names = {"0/A": "clients/0/A", "1/A": "clients/0/A", "2/A": "clients/2/A"}
    assert facts["parts"]["clients"]["tensors"] == names
