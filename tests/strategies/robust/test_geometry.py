"""Inner products of what clients changed: those of the dense d×k matrices, whatever the factors' gauge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fedinit.adapters.core import CoreFactors
from fedinit.adapters.dora import DoRAFactors
from fedinit.adapters.vera import VeRAFactors
from fedinit.factors import Factors, leading
from strategies.aggregator import Update
from strategies.robust import ROBUST, create_robust
from strategies.robust.contract import Changes
from strategies.robust.geometry import gram_of, product_gram

D, K, R, CLIENTS, SCALE = 11, 7, 3, 5, 2.0
FROZEN = torch.Generator().manual_seed(7)
A0, B0 = (torch.randn(shape, generator=FROZEN, dtype=torch.float64) for shape in ((R, K), (D, R)))


def drawn(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64)


# {kind: a client's factors from a generator}; what a kind freezes is A0 and B0.
KINDS: dict[str, Callable[[torch.Generator], Factors]] = {
    "lora": lambda g: Factors(drawn(g, R, K), drawn(g, D, R)),
    "frozen_A": lambda g: Factors(A0, drawn(g, D, R)),
    "frozen_B": lambda g: Factors(drawn(g, R, K), B0),
    "core": lambda g: CoreFactors(A0, B0, drawn(g, R, R)),
    "dora": lambda g: DoRAFactors(drawn(g, R, K), drawn(g, D, R), m=drawn(g, D)),
    "vera": lambda g: VeRAFactors(A0, B0, b=drawn(g, D), d=drawn(g, R)),
}


def federation(kind: str, ranks: Sequence[int] = (R,) * CLIENTS, seed: int = 0) -> tuple[list[Update], Update]:
    """The clients' updates of two layers and a head, and what they started from, as an update."""
    draw = torch.Generator().manual_seed(seed)

    def one(client: int, rank: int) -> Update:
        layers = {name: leading(KINDS[kind](draw), rank) for name in ("one", "two")}
        return Update(client, 10, layers, {"weight": drawn(draw, 4, D), "bias": drawn(draw, 4)})

    start = one(-1, R)
    return [one(i, rank) for i, rank in enumerate(ranks)], start


def dense(updates: Sequence[Update], start: Update) -> np.ndarray:
    """The Gram matrix of the two blocks, each in its own median length, from d×k matrices in numpy."""

    def adapters(update: Update) -> np.ndarray:
        parts = []
        for name, factors in update.layers.items():
            begun = leading(start.layers[name], factors.rank)
            parts.append(SCALE * (factors.dense() - begun.dense()).numpy().ravel())
            if "m" in factors.parts:
                parts.append((factors.parts["m"] - begun.parts["m"]).numpy())
        return np.concatenate(parts)

    def head(update: Update) -> np.ndarray:
        return np.concatenate([(update.head[key] - start.head[key]).numpy().ravel() for key in start.head])

    total = np.zeros((len(updates), len(updates)))
    for block in (adapters, head):
        changes = np.stack([block(update) for update in updates])
        total += changes @ changes.T / np.sort((changes**2).sum(1))[(len(updates) - 1) // 2]
    return total


def gram(updates: Sequence[Update], start: Update) -> Tensor:
    return gram_of(updates, start.layers, start.head, SCALE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_inner_products_are_those_of_the_dense_changes(kind):
    updates, start = federation(kind)
    # Both sides are sums of a few hundred float64 products of size one.
    np.testing.assert_allclose(gram(updates, start).numpy(), dense(updates, start), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["lora", "core", "dora"])
def test_a_client_of_a_lower_rank_started_from_the_leading_components(kind):
    updates, start = federation(kind, ranks=(3, 1, 2, 3, 1))
    np.testing.assert_allclose(gram(updates, start).numpy(), dense(updates, start), rtol=1e-10, atol=1e-10)
    same = dataclasses.replace(start, layers={name: leading(f, 1) for name, f in start.layers.items()})
    assert gram([same, *updates], start)[0].abs().max() < 1e-10  # it changed nothing


def test_no_square_of_the_clients_ranks_where_a_factor_is_common(monkeypatch):
    """What all share is multiplied once: the same numbers, and no (ΣR, ΣR) matrix."""
    products = [KINDS["frozen_A"](torch.Generator().manual_seed(i)) for i in range(4)]
    expected = torch.tensor([[float((p.dense() * q.dense()).sum()) for q in products] for p in products])
    cat = pytest.MonkeyPatch()
    with cat.context() as patch:
        patch.setattr(torch, "cat", lambda *args, **kwargs: pytest.fail("stacked"))
        torch.testing.assert_close(product_gram(products), expected.double(), rtol=1e-6, atol=1e-6)


def regauged(update: Update, turns: dict[str, Tensor]) -> Update:
    """(B R, R⁻¹A) of every layer."""
    layers = {n: Factors(torch.linalg.solve(turns[n], f.A), f.B @ turns[n]) for n, f in update.layers.items()}
    return dataclasses.replace(update, layers=layers)


def turned(updates: Sequence[Update], seed: int = 3) -> list[Update]:
    draw = torch.Generator().manual_seed(seed)
    return [
        regauged(u, {n: torch.eye(R, dtype=torch.float64) + 0.4 * drawn(draw, R, R) for n in u.layers}) for u in updates
    ]


RULES = [(name, {"root": 1} if name == "trust" else {}) for name in ROBUST if name != "none"]


@pytest.mark.parametrize(("name", "options"), RULES, ids=[name for name, _ in RULES])
def test_another_gauge_changes_no_weight(name, options):
    updates, start = federation("lora")
    rule = create_robust(name, options)
    assert rule is not None
    before, after = (
        rule.weigh(Changes(range(CLIENTS), [0.2] * CLIENTS, gram(us, start))) for us in (updates, turned(updates))
    )
    assert before.std() > 1e-3  # the clients differ, and so do their weights
    torch.testing.assert_close(before, after, rtol=1e-8, atol=1e-10)


def test_a_median_of_coordinates_depends_on_the_gauge():
    """The control: products are what they were, and the median of their factors' coordinates is another model."""
    updates, _ = federation("lora")

    def median(updates: Sequence[Update]) -> Tensor:
        layers = [u.layers["one"] for u in updates]
        A, B = (torch.stack([getattr(f, part) for f in layers]).median(0).values for part in "AB")
        return B @ A

    before, after = median(updates), median(turned(updates))
    assert (before - after).norm() > 0.1 * before.norm()


def test_neither_the_adapters_nor_the_head_hide_the_other():
    """A head a thousand times as large in all clients changes no angle and no ratio of lengths."""
    updates, start = federation("lora")
    larger = [dataclasses.replace(u, head={k: 1e3 * v for k, v in u.head.items()}) for u in (*updates, start)]
    torch.testing.assert_close(gram(larger[:-1], larger[-1]), gram(updates, start), rtol=1e-9, atol=1e-9)


def test_a_block_in_which_nobody_moves_counts_for_nothing():
    """As the adapters of strategy=head_alone, or a model without a head."""
    updates, start = federation("lora")
    still = [dataclasses.replace(u, layers=start.layers) for u in updates]
    bare = [dataclasses.replace(u, layers={}, head=u.head) for u in updates]
    nothing = dataclasses.replace(start, layers={})
    torch.testing.assert_close(gram(still, start), gram(bare, nothing), rtol=1e-12, atol=1e-12)
