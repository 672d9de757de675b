"""The contract of a kind of adapters, which every kind is held to: in a bank, folded, as a product, and by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedinit.adapters.contract import Frozen, Kind
from fedinit.adapters.core import BLOCK_SCALES, CoreFactors
from fedinit.adapters.dora import DoRAFactors
from fedinit.adapters.kinds import KINDS, kind_of, of_parts, trained_as
from fedinit.adapters.vera import VeRAFactors
from fedinit.factors import PARTS, Factors, leading

D, K, SCALE = 7, 5, 1.7
RANKS = (4, 2, 4)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(name: str, rank: int, seed: int) -> Factors:
    """One client's factors of a kind, in float64."""
    if name == "vera":
        return VeRAFactors(normal(0, 4, K), normal(1, D, 4), b=normal(seed, D), d=normal(seed + 9, 4))
    A, B = normal(seed, rank, K), normal(seed + 1, D, rank)
    if name == "core":
        return CoreFactors(A, B, normal(seed + 2, rank, rank))
    if name == "blocks":
        return CoreFactors(A, B, normal(seed + 2, rank // 2, 2, 2))
    return DoRAFactors(A, B, m=normal(seed + 3, D).abs()) if name == "dora" else Factors(A, B)


def bank_of(name: str) -> tuple[Kind, list[Factors], dict[str, Tensor], frozenset[str]]:
    """A kind, its clients, and their leaves in a bank that trains all there is."""
    clients = [drawn(name, rank, 10 * i) for i, rank in enumerate(RANKS)]
    trainable = frozenset(clients[0].parts) | ({BLOCK_SCALES} if name == "blocks" else set())
    kind, _ = trained_as(clients, trainable)
    return kind, clients, kind.stack(clients, 0, trainable), trainable


NAMES = ("lora", "core", "blocks", "dora", "vera")
every = pytest.mark.parametrize("name", NAMES)


@every
def test_a_bank_gives_each_client_its_own_back(name: str) -> None:
    kind, clients, leaves, _ = bank_of(name)
    for i, mine in enumerate(clients):
        back = leading(kind.client(leaves, i), mine.rank)
        assert type(back) is type(mine)
        assert all(torch.equal(value, mine.parts[part]) for part, value in back.parts.items())


@every
def test_the_forward_pass_is_that_of_the_folded_weight(name: str) -> None:
    """For the first two of three clients, each over its own rows; and not for another client's weight."""
    kind, clients, leaves, _ = bank_of(name)
    frozen, x = Frozen(normal(5, D, K), normal(6, D)), normal(7, 2, 3, K)
    y = kind.forward(x, None, frozen, leaves, SCALE)
    for i in range(2):
        own, other = (x[i] @ f.fold(frozen.weight, SCALE).T + frozen.bias for f in (clients[i], clients[i + 1]))
        torch.testing.assert_close(y[i], own, rtol=1e-10, atol=1e-12)
        assert (y[i] - other).norm() > 1e-2 * own.norm()


@every
def test_a_client_owns_the_numbers_it_came_with(name: str) -> None:
    kind, clients, leaves, trainable = bank_of(name)
    for mine in clients:
        counts = {part: kind.parameter_count(part, mine.rank, leaves) for part in trainable - {BLOCK_SCALES}}
        if name == "vera":  # A and B are no client's own
            counts = {part: counts[part] for part in "bd"}
        assert counts == {part: mine.parts[part].numel() for part in counts}
    if name == "blocks":
        assert [kind.parameter_count(BLOCK_SCALES, f.rank, leaves) for f in clients] == [2, 1, 2]


@every
def test_products_and_back(name: str) -> None:
    """The product that a method gets is the layer's update once lifted, and gives the factors back, bit for bit."""
    mine = drawn(name, 4, 3)
    product = mine.as_product()
    back = mine.from_product(product)
    assert type(back) is type(mine) and all(torch.equal(v, mine.parts[part]) for part, v in back.parts.items())
    torch.testing.assert_close(mine.lift(product).dense(), mine.absorb().dense(), rtol=1e-10, atol=1e-12)
    assert type(mine.absorb()) is Factors


@every
def test_names(name: str) -> None:
    """Factors come back from their parts by name, whatever the order; each name is one of those on the wire."""
    mine = drawn(name, 4, 3)
    back = of_parts(dict(reversed(mine.parts.items())))
    assert type(back) is type(mine) and list(back.parts) == [part for part in PARTS if part in mine.parts]
    assert kind_of(mine).product is type(mine)
    assert kind_of(mine).files.keys() <= mine.parts.keys()


@every
def test_a_blank_has_the_shapes_of_its_kind_at_the_rank_of_another(name: str) -> None:
    mine, lower = drawn(name, 4, 3), drawn(name, 2, 4)
    blank = mine.blank(lower)
    assert type(blank) is type(mine) and blank.rank == lower.rank and not blank.dense().any()
    assert {part: v.shape for part, v in blank.parts.items()} == {part: v.shape for part, v in lower.parts.items()}


def test_what_does_not_learn_is_absorbed() -> None:
    for name in ("core", "blocks", "vera"):
        kind, (plain,) = trained_as([drawn(name, 4, 0)], frozenset({"A", "B"}))
        assert kind is KINDS["lora"] and type(plain) is Factors
    assert trained_as([drawn("dora", 4, 0)], frozenset())[0] is KINDS["dora"]  # its magnitudes count all the same


def test_tensors_that_make_no_factors_together_are_refused() -> None:
    mine = drawn("vera", 4, 0)
    with pytest.raises(ValueError, match="no kind of adapters has the tensors A, B, b, m together"):
        of_parts({"A": mine.A, "B": mine.B, "b": mine.b, "m": mine.b})
    with pytest.raises(ValueError, match="magnitudes do not fit B"):
        DoRAFactors(mine.A, mine.B, m=torch.ones(D + 1))
