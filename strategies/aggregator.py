"""The contract of an aggregation method: pure values in, pure values out.

Letters, here and in every method file: K clients take part in a round; client i returns A_i (r, k) and B_i (d, r)
for each adapted layer and n_i examples; p_i are the weights, Σ p_i = 1; Ā = Σ p_i A_i, B̄ = Σ p_i B_i; the ideal
update is ΔW = Σ p_i B_i A_i, unscaled. Where clients train a core R_i, B_i stands for B R_i in all of this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedinit.adapters.kinds import KINDS
from fedinit.config.checks import at_least
from fedinit.factors import Factors, inner, norm, pad, stack
from fedinit.threads import server_pool
from strategies import vera


@dataclass(frozen=True)
class Update:
    """What one client returned: whole factors (the server fills in what the client did not train), its head, and
    its number of examples."""

    client: int
    examples: int
    layers: Mapping[str, Factors]
    head: Mapping[str, Tensor]


@dataclass(frozen=True)
class Aggregate:
    """What the server made of a round.

    layers: the global factors. residual: factors to be merged into the frozen weight; empty for most methods.
    diagnostics: named numbers for the metrics.
    """

    layers: Mapping[str, Factors]
    residual: Mapping[str, Factors] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Aggregator(ABC):
    """An aggregation method. Its fields are its options, with the same names in conf/strategy/<name>.yaml.

    weighting: p_i ∝ n_i (``examples``), p_i = 1/K (``uniform``) or p_i ∝ ‖B_iA_i‖_F over all layers (``norm``), for
    factors and heads alike.
    diagnostics: also measure the round's aggregation bias, at O(R²(d + k)) a layer for R = Σ r_i.

    Laws: the result does not depend on the order of the updates, bit for bit; rescaling all n_i changes nothing beyond
    rounding; K = 1 gives that client's product back, residual included, unless the method `cuts`, or `personal` factors
    hide the product.
    """

    # Whether clients may have ranks of their own.
    mixed_ranks: ClassVar[bool] = False
    # Whether clients train a core R between A and B; the others get an initialiser's core absorbed into B.
    cores: ClassVar[bool] = False
    # The kinds of adapters the method goes with (fedinit/adapters/kinds.py).
    kinds: ClassVar[tuple[str, ...]] = ("lora", "dora")
    # Factors that clients train and keep to themselves; the server never sees them.
    personal: ClassVar[frozenset[str]] = frozenset()
    # Whether components of the start may be dropped for their size, however little was learned.
    cuts: ClassVar[bool] = False
    # Why a server optimiser must leave the global factors as they are; "": it may move them.
    unmoved: ClassVar[str] = ""
    # The re-initialisers that go with the method, the one of its paper first, and why others do not.
    reinits: ClassVar[tuple[str, ...]] = ("average", "local", "fresh", "svd", "orthonormal", "pissa", "gauge")
    why: ClassVar[str] = ""

    weighting: Literal["examples", "uniform", "norm"] = "examples"
    diagnostics: bool = True

    def trainable(self, round: int) -> frozenset[str]:
        """Which of "A", "B" and "R" the clients train in this round, and send unless they are `personal`. The head is
        always trained and sent."""
        return frozenset({"A", "B"})

    def objection(self, kind: str) -> str:
        """Why this method does not go with a kind of adapters; empty where it does."""
        return "" if kind in self.kinds else KINDS[kind].why

    def check(self, rank: int) -> None:
        """Raise InputError for a global rank this method cannot have. Any will do, unless a method says otherwise."""
        at_least("adapter.rank", rank, 1)

    def adopt(self, drawn: Factors) -> Factors:
        """An initialiser's factors of a layer as this method trains them; the product stays as it is."""
        return drawn if self.cores or drawn.R is None else drawn.absorb()

    def aggregate(self, updates: Sequence[Update], round: int, previous: Aggregate | None = None) -> Aggregate:
        """The global state from this round's updates; `previous` is what their clients started from.

        Sums run in float64 in client order, layers side by side on the cores; the result has the dtype of the updates.
        Raises ValueError for no updates, a client that appears twice, weights that are not positive, or layers that do
        not match.
        """
        updates = sorted(updates, key=lambda u: u.client)
        _check(updates)
        weights = self.weights(updates)

        def one(name: str) -> tuple[Factors, Factors | None, dict[str, float]]:
            products = [self.adopt(u.layers[name]) for u in updates]
            if not self.mixed_ranks and len({p.rank for p in products}) > 1:
                raise ValueError(f"layer {name}: clients have ranks {sorted({p.rank for p in products})}; expected one")
            start = None if previous is None else previous.layers.get(name)
            make = self._layer if products[0].b is None else self._layer_of_vectors
            merged, left_out, measured = make(products, weights, start)
            if products[0].m is not None:
                # Not the mean where nobody trains: equal values have one that may be rounded.
                own = [p.m for p in products]
                merged = replace(merged, m=mean(own, weights) if self.trainable(round) else own[0].double())
            dtype = products[0].A.dtype
            return merged.to(dtype), None if left_out is None else left_out.to(dtype), measured

        made = dict(zip(updates[0].layers, server_pool().map(one, updates[0].layers), strict=True))
        layers = {name: merged for name, (merged, _, _) in made.items()}
        residual = {name: left_out for name, (_, left_out, _) in made.items() if left_out is not None}
        measured = [facts for _, _, facts in made.values() if facts]
        head = {k: mean([u.head[k] for u in updates], weights).to(v.dtype) for k, v in updates[0].head.items()}
        return Aggregate(layers=layers, residual=residual, head=head, diagnostics=_summarise(measured))

    def _layer(
        self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None
    ) -> tuple[Factors, Factors | None, dict[str, float]]:
        """What a layer's global factors are, what goes into the base, and the figures of the diagnostics."""
        merged = self.merge(products, weights, start)
        if start is not None:
            merged = at_rank_of(start, merged)
        left_out = self.left_out(products, weights, merged)
        whole = merged if left_out is None else stack([merged, left_out], [1.0, 1.0])
        measured = measure_bias(self.averaged(products, merged), weights, whole) if self.diagnostics else {}
        return merged, left_out, measured

    def _layer_of_vectors(
        self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None
    ) -> tuple[Factors, Factors | None, dict[str, float]]:
        """The same for VeRA (strategies/vera.py)."""
        frozen, pairs = vera.frame(products, start), [vera.pair(p) for p in products]
        made = self.merge_pairs(pairs, weights, None if start is None else vera.pair(start), frozen)
        rest = self.left_out(pairs, weights, made)
        merged, left_out = vera.dressed(frozen, made), None if rest is None else vera.lifted(frozen, rest)
        measured = {}
        if self.diagnostics:
            average = mean_factors(pairs, weights)
            missed = centred(pairs, weights, average)
            whole = merged if left_out is None else stack([merged, left_out], [1.0, 1.0])
            correctable2 = vera.correctable2(frozen, average, missed)
            measured = _figures(vera.lifted(frozen, average), vera.lifted(frozen, missed), correctable2, whole)
        return merged, left_out, measured

    def merge_pairs(
        self, pairs: Sequence[Factors], weights: Sequence[float], start: Factors | None, frozen: Factors
    ) -> Factors:
        """`merge` of VeRA's vectors as products of rank one; frozen: the layer's A and B, in float64."""
        return self.merge(pairs, weights, start)

    @abstractmethod
    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        """One layer: the clients' factors, in client order, to global factors in float64.

        `start`: the global factors that this round's clients started from, or None where they are not known. Its rank
        is the layer's; where the round's clients reach a lower one, the result is filled up to it (`at_rank_of`).
        """

    def left_out(self, products: Sequence[Factors], weights: Sequence[float], merged: Factors) -> Factors | None:
        """What of the ideal update goes into the base instead of the factors; None for most methods."""
        return None

    def averaged(self, products: Sequence[Factors], merged: Factors) -> Sequence[Factors]:
        """The clients' products in two factors each, as plain averaging would take them: the diagnostics' reference."""
        return products

    def weights(self, updates: Sequence[Update]) -> list[float]:
        """p_i, in the order of the updates."""
        shares = [float(u.examples) for u in updates]
        if self.weighting == "norm":
            shares = [sum(norm(f.to(torch.float64)) ** 2 for f in u.layers.values()) ** 0.5 for u in updates]
        if self.weighting == "uniform" or not any(shares):
            shares = [1.0] * len(updates)
        return [share / sum(shares) for share in shares]


def mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w_i x_i in float64, summed in the given order."""
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for value, weight in zip(tensors, weights, strict=True):
        total.add_(value, alpha=weight)
    return total


def mean_factors(products: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """(Ā, B̄) in float64, with lower ranks padded with zeros."""
    products = at_one_rank(products)
    return Factors(mean([p.A for p in products], weights), mean([p.B for p in products], weights))


def at_one_rank(products: Sequence[Factors]) -> list[Factors]:
    """All products at the highest rank among them, padded with zeros."""
    rank = max(p.rank for p in products)
    return [pad(p, rank) for p in products]


def at_rank_of(start: Factors, merged: Factors) -> Factors:
    """The same product at the rank of the start at least, in float64.

    Where all clients of a round have lower ranks, nobody returns the last components. They have no weight then, but
    keep the start's row of A over a zero column of B, or its column of B where that row is zero: of two zeros neither
    would ever get a gradient, and the layer would have lost its rank for good.
    """
    low = merged.rank
    if low >= start.rank:
        return merged
    A, B = start.A[low:].double(), start.B[:, low:].double()
    return Factors(torch.cat([merged.A, A]), torch.cat([merged.B, B.masked_fill(A.any(dim=1), 0)], dim=1))


def centred(products: Sequence[Factors], weights: Sequence[float], average: Factors) -> Factors:
    """C = ΔW − B̄Ā as Σ p_i (B_i − B̄)(A_i − Ā), of rank K·r, in float64; lower ranks are padded with zeros.

    Formed from centred factors, so that a small bias does not drown in the rounding of two large terms.
    """
    whole = [p.to(torch.float64) for p in at_one_rank(products)]
    return stack([Factors(p.A - average.A, p.B - average.B) for p in whole], weights)


def measure_bias(products: Sequence[Factors], weights: Sequence[float], merged: Factors) -> dict[str, float]:
    """How far plain factor averaging is from the ideal update in one layer, and how far `merged` is.

    All squared where a norm is summed over layers later:
    ideal2 = ‖ΔW‖²; bias2 = ‖C‖², C = ΔW − B̄Ā = Σ p_i (B_i − B̄)(A_i − Ā), formed from centred factors so that a
    small bias does not drown in rounding; correctable2 = ‖C P_A‖², the part inside the row space of Ā, which a change
    of B can repair; merged2 = ‖merged‖²; dot = ⟨ΔW, merged⟩. Only ‖C‖² costs O(R²(d + k)); what holds ΔW is had
    from ΔW = C + B̄Ā.
    """
    average = mean_factors(products, weights)
    bias = centred(products, weights, average)
    basis = torch.linalg.svd(average.A, full_matrices=False)
    kept = basis.Vh[basis.S > basis.S[0] * 1e-12] if basis.S[0] > 0 else basis.Vh[:0]  # rows span rowspace(Ā)
    correctable = bias.B @ (bias.A @ kept.T)  # (d, r): C Vᵀ, whose norm is ‖C P_A‖
    return _figures(average, bias, float(correctable.square().sum()), merged)


def _figures(average: Factors, bias: Factors, correctable2: float, merged: Factors) -> dict[str, float]:
    bias2 = norm(bias) ** 2
    return {
        "ideal2": max(bias2 + 2 * inner(bias, average) + norm(average) ** 2, 0.0),
        "bias2": bias2,
        "correctable2": correctable2,
        "merged2": norm(merged) ** 2,
        "dot": inner(bias, merged) + inner(average, merged),
    }


def _summarise(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over all layers together, as if they were one block-diagonal matrix."""
    if not measured:
        return {}
    total = {key: sum(m[key] for m in measured) for key in measured[0]}
    ideal, merged = total["ideal2"] ** 0.5, total["merged2"] ** 0.5
    return {
        "bias": (total["bias2"] ** 0.5 / ideal) if ideal else 0.0,
        "correctable": total["correctable2"] / total["bias2"] if total["bias2"] else 0.0,
        "cosine": total["dot"] / (ideal * merged) if ideal and merged else 0.0,
        "norm_ratio": merged / ideal if ideal else 0.0,
    }


def _check(updates: Sequence[Update]) -> None:
    if not updates:
        raise ValueError("no updates to aggregate")
    first = updates[0]
    for left, right in zip(updates, updates[1:], strict=False):
        if left.client == right.client:
            raise ValueError(f"client {left.client} has two updates")
    for update in updates:
        if not update.examples > 0:
            raise ValueError(f"client {update.client} has {update.examples} examples; expected one or more")
        if set(update.layers) != set(first.layers) or set(update.head) != set(first.head):
            raise ValueError(f"client {update.client} has other layers than client {first.client}")
        for name, value in update.head.items():
            if value.shape != first.head[name].shape:
                raise ValueError(
                    f"client {update.client}, head {name}: shape {tuple(value.shape)}, "
                    f"expected {tuple(first.head[name].shape)}"
                )
        for name, factors in update.layers.items():
            if factors.shape != first.layers[name].shape:
                raise ValueError(
                    f"client {update.client}, layer {name}: a {factors.shape} product, "
                    f"expected {first.layers[name].shape}"
                )
