"""The contract of an aggregation method: pure values in, pure values out.

Letters, here and in every method file: K clients take part in a round; client i returns A_i (r, k) and B_i (d, r)
for each adapted layer and n_i examples; p_i are the weights, Σ p_i = 1; Ā = Σ p_i A_i, B̄ = Σ p_i B_i; the ideal
update is ΔW = Σ p_i B_i A_i, unscaled. Where clients train a core R_i, B_i stands for B R_i in all of this.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedinit.adapters.core import CoreFactors
from fedinit.adapters.kinds import KINDS, PRODUCT_KINDS
from fedinit.config.checks import at_least
from fedinit.factors import Factors, mean, norm, refuse_misfit, stack
from fedinit.threads import server_pool
from strategies.bias import measure_bias, summarise
from strategies.means import at_rank_of

UNCONVERGED = "unconverged"  # the diagnostic that counts a round's layers which did not converge; absent where all did

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """What one client returned.

    client: its partition id. examples: how many it trained on, n_i.
    layers: its factors, A_i (r, k) and B_i (d, r), those that it did not train among them, as the server sent them.
    head: its classifier, by name.
    """

    client: int
    examples: int
    layers: Mapping[str, Factors]
    head: Mapping[str, Tensor]


@dataclass(frozen=True)
class Aggregate:
    """What the server made of a round.

    layers: the global factors, by layer.
    residual: factors whose products are to be merged into the frozen weights; empty for most methods.
    head: the mean of the clients' heads.
    diagnostics: {name: number} for the metrics.
    by_layer: {layer: the same of it alone}; no part of a server's state.
    """

    layers: Mapping[str, Factors]
    residual: Mapping[str, Factors] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    by_layer: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """What a round's clients returned of one layer.

    clients: their factors, in their order. frame: what the round started from, where that `is_start`, or else the first
    client's.
    """

    clients: Sequence[Factors]
    frame: Factors
    is_start: bool

    @property
    def products(self) -> Sequence[Factors]:
        """The clients' products, which a rule works on; made when asked for, so that those of all layers are not held
        at once."""
        return self.frame.as_products(self.clients)

    @property
    def start(self) -> Factors | None:
        """The product that the round started from; None where it is not known."""
        return self.frame.as_product() if self.is_start else None


Solver = Callable[[], tuple[Factors, bool]]


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
    kinds: ClassVar[tuple[str, ...]] = PRODUCT_KINDS
    # Factors that clients train and keep to themselves; the server never sees them.
    personal: ClassVar[frozenset[str]] = frozenset()
    # Whether components of the start may be dropped for their size, however little was learned.
    cuts: ClassVar[bool] = False
    # Why a server optimiser must leave the global factors as they are; "": it may move them.
    unmoved: ClassVar[str] = ""
    # The re-initialisers that go with the method, the one of its paper first, and why others do not.
    reinits: ClassVar[tuple[str, ...]] = (
        "average", "local", "local_on_global", "fresh", "svd", "orthonormal", "pissa", "gauge",
    )  # fmt: skip
    why: ClassVar[str] = ""
    # The starts that the method goes with; empty: any that has what it trains.
    inits: ClassVar[tuple[str, ...]] = ()
    # Why the rule is no function of `sums` in the rounds in which these are none; "": it is one in all.
    no_sum: ClassVar[str] = ""

    weighting: Literal["examples", "uniform", "norm"] = "examples"
    diagnostics: bool = True

    def trainable(self, round: int) -> frozenset[str]:
        """Which of "A", "B" and "R" the clients train in this round, and send unless they are `personal`. The head is
        always trained and sent."""
        return frozenset({"A", "B"})

    @abstractmethod
    def sums(self, round: int) -> tuple[str, ...]:
        """Of what the rule takes sums over clients, Σ p_i ·, in this round: all that it must know of their adapters, so
        that a secure summation is enough, or noise on the sums.

        "A", "B", "R": of that factor, as it is sent. "BA": of the products, a d×k matrix; the rule is then one of
        ΔW. "B(AĀᵀ)": of these d×r matrices, in a second phase when Ā is known; "(B̄ᵀB)A": the same, r×k. Of factors that
        are stacked, or left for the base, the product is a function of the sums. With weighting=norm clients send their
        norms first. Of VeRA's vectors b is B and dᵀ is A; DoRA's magnitudes and the head are plain sums always.
        """

    @property
    def two_phase(self) -> bool:
        """Whether clients are asked a second time in a round, for what "B(AĀᵀ)" sums, given the means of their factors,
        which is what `aggregate` makes then. The server may know sums alone, so that no bias is measured."""
        return False

    def complete_layer(self, average: Factors, image: Tensor) -> tuple[Factors, bool]:
        """A layer's global factors, as `solve` has them, of a method in two phases.

        average: the means Ā (r, k) and B̄ (d, r). image: Σ p_i B_i(A_iĀᵀ), (d, r), in float64.
        """
        return average, True

    def complete(self, means: Aggregate, images: Mapping[str, Tensor], round: int) -> Aggregate:
        """The aggregate of a round from those of its first phase and {layer: sum} of its second."""
        corrected = server_pool().map(lambda name: self.complete_layer(means.layers[name], images[name]), means.layers)
        layers = dict(zip(means.layers, corrected, strict=True))
        diagnostics = dict(means.diagnostics) | self._missed({name: met for name, (_, met) in layers.items()}, round)
        return replace(means, layers={name: factors for name, (factors, _) in layers.items()}, diagnostics=diagnostics)

    def _missed(self, met: Mapping[str, bool], round: int) -> dict[str, float]:
        """The diagnostic of the layers that did not converge in a round, which is logged. met: {layer: whether it
        did}."""
        missed = [name for name, converged in met.items() if not converged]
        if not missed:
            return {}
        some = ", ".join(missed[:3]) + (", …" if len(missed) > 3 else "")
        _log.warning("round %d: %s, in %d of %d layers: %s", round, self.shortfall(), len(missed), len(met), some)
        return {UNCONVERGED: len(missed)}

    def objection(self, kind: str) -> str:
        """Why this method does not go with a kind of adapters; empty where it does."""
        return "" if kind in self.kinds else KINDS[kind].why

    def check(self, rank: int) -> None:
        """Raise InputError for a global rank this method cannot have. Any will do, unless a method says otherwise."""
        at_least("adapter.rank", rank, 1)

    def adopt(self, drawn: Factors) -> Factors:
        """An initialiser's factors of a layer as this method trains them; the product stays as it is."""
        return drawn.absorb() if isinstance(drawn, CoreFactors) and not self.cores else drawn

    def aggregate(
        self,
        updates: Sequence[Update],
        round: int,
        previous: Aggregate | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> Aggregate:
        """The global factors, residual and head from this round's updates.

        round: the first is 1. previous: what the clients started from, for methods that look at it; None: not known.
        weights: {client: p_i}, Σ = 1; None: those of `weights`.

        Sums run in float64 in client order, layers side by side on the cores; the result has the dtype of
        `previous`, or else of the updates.
        Raises ValueError for no updates, a client that appears twice, weights that are not positive, or layers that do
        not match; RunFailed for a `merge` that gives no factors of its layer.
        """
        updates = sorted(updates, key=lambda u: u.client)
        _check(updates)
        rule = self.in_round(round)
        shares = self.weights(updates) if weights is None else [weights[u.client] for u in updates]

        def posed(name: str) -> Layer:
            factors = [self.adopt(u.layers[name]) for u in updates]
            if not self.mixed_ranks and len({f.rank for f in factors}) > 1:
                raise ValueError(f"layer {name}: clients have ranks {sorted({f.rank for f in factors})}; expected one")
            start = None if previous is None else previous.layers.get(name)
            return Layer(factors, factors[0] if start is None else start, start is not None)

        names = list(updates[0].layers)
        posed_layers = [posed(name) for name in names]
        solvers = rule.solvers(posed_layers, shares)

        def finished(name: str, layer: Layer, solver: Solver) -> tuple[Factors, Factors | None, dict[str, float]]:
            product, converged = solver()
            product = refuse_misfit(product, layer.products[0].shape, f"{type(rule).__name__} makes of {name}")
            return rule._finished(layer, shares, product.to(torch.float64), converged, round)

        by_layer = dict(zip(names, server_pool().map(finished, names, posed_layers, solvers), strict=True))
        layers = {name: merged for name, (merged, _, _) in by_layer.items()}
        residual = {name: left_out for name, (_, left_out, _) in by_layer.items() if left_out is not None}
        measured = {name: figures for name, (_, _, figures) in by_layer.items() if "bias2" in figures}
        diagnostics = summarise(list(measured.values()))
        diagnostics |= self._missed(
            {name: UNCONVERGED not in figures for name, (_, _, figures) in by_layer.items()}, round
        )
        like = updates[0].head if previous is None or not previous.head else previous.head
        head = {k: mean([u.head[k] for u in updates], shares).to(v.dtype) for k, v in like.items()}
        return Aggregate(
            layers=layers,
            residual=residual,
            head=head,
            diagnostics=diagnostics,
            by_layer={name: summarise([figures]) for name, figures in measured.items()},
        )

    def _finished(
        self, layer: Layer, weights: Sequence[float], product: Factors, converged: bool, round: int
    ) -> tuple[Factors, Factors | None, dict[str, float]]:
        """A layer's global factors, what goes into the base, and the figures of the diagnostics, from what `solve` made
        of it."""
        frame, products = layer.frame, layer.products
        if (start := layer.start) is not None:
            product = at_rank_of(start, product)
        rest = self.left_out(products, weights, product)
        # What nobody trains is not averaged either: the mean of equal values may be rounded.
        merged = frame.from_product(product, layer.clients if self.trainable(round) else (), weights)
        left_out = None if rest is None else frame.lift(rest)
        measured = {}
        if self.diagnostics and not self.two_phase:
            total = merged if left_out is None else stack([merged, left_out], [1.0, 1.0])
            measured = measure_bias(self.averaged(products, product), weights, total, frame)
        if not converged:
            measured[UNCONVERGED] = 1.0
        dtype = frame.A.dtype
        return merged.to(dtype), None if left_out is None else left_out.to(dtype), measured

    def in_round(self, round: int) -> Aggregator:
        """The rule of a round, from which its layers are made: this one, unless rounds differ."""
        return self

    @abstractmethod
    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        """The global factors of one layer, in float64.

        products: the clients' factors (r_i, k) and (d, r_i), in client order. weights: p_i, in the same order.
        start: the global factors that this round's clients started from, or None where they are not known. Its rank is
        the layer's; where the round's clients reach a lower one, the result is filled up to it (`at_rank_of`).
        """

    def solve(
        self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None
    ) -> tuple[Factors, bool]:
        """`merge`, and whether what a method looks for by steps was met; the layers where it was not are counted in the
        diagnostics and logged, with the method's `shortfall`."""
        return self.merge(products, weights, start), True

    def solvers(self, layers: Sequence[Layer], weights: Sequence[float]) -> list[Solver]:
        """What gives `solve` of each layer of a round, in their order; called on the cores side by side, so that what a
        rule makes of all clients is not there of all layers at once. A rule may solve layers together here."""
        return [lambda layer=layer: self.solve(layer.products, weights, layer.start) for layer in layers]

    def shortfall(self) -> str:
        """What is said of a round in which `solve` did not meet what it looks for, layers and their number apart."""
        return ""

    def left_out(self, products: Sequence[Factors], weights: Sequence[float], merged: Factors) -> Factors | None:
        """What of the ideal update goes into the base instead of the `merged` factors; None for most methods."""
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
