"""Views of the adapter: what is restricted and put back is where it was. Exact, but for sums of products (1e-12)."""

from __future__ import annotations

import pytest
import torch

from fedinit.adapters.core import CoreFactors
from fedinit.factors import Factors
from fedinit.views import LeadingRank, Slots, View, Whole


def adapter(seed: int = 0, core: bool = False) -> dict[str, Factors]:
    """Layers of rank 8 and 4, with cores of blocks of two where wanted."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, rank in (("one", 8), ("two", 4)):
        A, B, R = (torch.randn(*s, generator=draw).double() for s in [(rank, 12), (7, rank), (rank // 2, 2, 2)])
        made[name] = CoreFactors(A, B, R) if core else Factors(A, B)
    return made


def slots_of(part: str) -> Slots:
    return Slots(part, {"one": torch.tensor([0, 3]), "two": torch.tensor([], dtype=torch.long)})


def same(left: dict[str, Factors], right: dict[str, Factors]) -> bool:
    return all(torch.equal(f.parts[p], right[n].parts[p]) for n, f in left.items() for p in f.parts)


@pytest.mark.parametrize("view", [Whole(), *map(slots_of, "ABR")], ids=["whole", "A", "B", "R"])
def test_what_was_not_changed_is_put_back_as_it_was(view: View) -> None:
    layers = adapter(core=getattr(view, "part", "") == "R")
    assert same(view.embed(view.restrict(layers), layers), layers)


@pytest.mark.parametrize("part", ["A", "B", "R"])
def test_only_the_seen_slots_are_changed(part: str) -> None:
    """And the negative control: the other view's slots are not where this one's are."""
    whole, other, view = adapter(core=part == "R"), adapter(1, core=part == "R"), slots_of(part)
    mixed = view.embed(view.restrict(other), whole)
    assert same(view.restrict(view.embed(view.restrict(other), other)), view.restrict(other))
    assert torch.equal(getattr(view.restrict(mixed)["one"], part), getattr(view.restrict(other)["one"], part))
    rest = view.others(whole)
    assert torch.equal(getattr(rest.restrict(mixed)["one"], part), getattr(rest.restrict(whole)["one"], part))
    assert not same(mixed, whole) and not same(mixed, other) and same({"two": mixed["two"]}, {"two": whole["two"]})


@pytest.mark.parametrize("part", ["A", "B", "R"])
def test_a_part_and_its_rest_sum_to_the_whole(part: str) -> None:
    layers, view = adapter(core=part == "R"), slots_of(part)
    mine, rest = view.restrict(layers), view.others(layers).restrict(layers)
    for name, f in layers.items():
        torch.testing.assert_close(mine[name].dense() + rest[name].dense(), f.dense(), rtol=1e-12, atol=1e-12)
    assert mine["one"].dense().norm() > 1 and mine["two"].rank == 0


@pytest.mark.parametrize("core", [False, True])
def test_leading_rank_keeps_its_product(core: bool) -> None:
    """⌈8·3/4⌉ = 6 and ⌈4·3/4⌉ = 3 components; a core is cut by whole blocks, so half of it: 4 and 2."""
    layers, view = adapter(core=core), LeadingRank(2 if core else 3, 4)
    part = view.restrict(layers)
    assert [f.rank for f in part.values()] == ([4, 2] if core else [6, 3])
    back = view.embed(part, layers)
    for name, f in back.items():
        assert f.rank == layers[name].rank
        torch.testing.assert_close(f.dense(), part[name].dense(), rtol=1e-12, atol=1e-12)
    assert same(view.restrict(back), part)
    assert not same(back, layers)  # what it does not see is zero, not the whole's
    assert same(LeadingRank(4, 4).embed(LeadingRank(4, 4).restrict(layers), layers), layers)
