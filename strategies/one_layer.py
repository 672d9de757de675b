"""A method's rule on one layer's plain tensors: ``fedinit.aggregate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from fedinit.adapters.kinds import of_parts
from fedinit.errors import InputError, RunFailed
from fedinit.factors import Factors
from fedinit.norms import first_not_finite
from strategies import create_aggregator
from strategies.aggregator import Aggregate, Update

LAYER = "W"
ArrayLike = Tensor | np.ndarray | Sequence[Any]


class Aggregated(NamedTuple):
    """What the server makes of a layer.

    A, B: (r, k) and (d, r), the global factors.
    residual: (A′, B′), whose product goes into the frozen weight instead of the factors; None for most methods.
    """

    A: Tensor
    B: Tensor
    residual: tuple[Tensor, Tensor] | None

    @property
    def delta(self) -> Tensor:
        """(d, k): all that is added to the frozen weight, B A + B′ A′, without the scale α/r."""
        rest = 0.0 if self.residual is None else self.residual[1] @ self.residual[0]
        return self.B @ self.A + rest


def aggregate(
    method: str,
    A: Sequence[ArrayLike],
    B: Sequence[ArrayLike],
    weights: Sequence[float] | None = None,
    *,
    R: Sequence[ArrayLike] | None = None,
    start: tuple[ArrayLike, ArrayLike] | None = None,
    round: int = 1,
    **options: Any,
) -> Aggregated:
    """One layer's factors of all clients to the global ones, ``A, B, residual = aggregate("lora_fair", [A1, A2],
    [B1, B2], [3, 1], lam=0.01)``.

    method, options: as `strategy=` names them.
    A, B: of each client, (r, k) and (d, r), in float; of one rank unless the method mixes ranks.
    weights: numbers of training examples, of which the shares count; None: all the same.
    R: the cores (r, r) of the methods that train one, which the returned B has in it.
    start: the factors A, B that the clients started from, for methods that look at them.
    round: the first is 1.

    Sums run in float64 in the order given; what is returned has the dtype of A. Raises InputError, one line, for an
    unknown method or option, and for tensors that are no clients' factors of one layer; RunFailed for a method that
    makes no factors of them, or such that are not finite.
    """
    aggregator = create_aggregator(method, **{"diagnostics": False, **options})
    if type(round) is not int or round < 1:
        raise InputError(f"round={round!r}: expected a whole number, 1 for the first")
    given = {"A": A, "B": B, **({} if weights is None else {"weights": weights}), **({} if R is None else {"R": R})}
    for name, values in given.items():
        if not hasattr(values, "__len__"):
            raise InputError(f"{name}={values!r}: expected a list, one entry a client")
    counts = {name: len(values) for name, values in given.items()}
    if len(set(counts.values())) > 1 or not counts["A"]:
        counted = ", ".join(f"{count} in {name}" for name, count in counts.items())
        raise InputError(f"aggregate: expected one or more clients, and one entry a client in each; got {counted}")
    cores = [None] * len(A) if R is None else R
    shares = [_share(i, weight) for i, weight in enumerate([1.0] * len(A) if weights is None else weights)]
    clients = [_factors(f"[{i}]", a, b, core) for i, (a, b, core) in enumerate(zip(A, B, cores, strict=True))]
    aggregator.check(max(factors.rank for factors in clients))
    before = None if start is None else Aggregate(layers={LAYER: _start(start, clients[0])})
    if aggregator.two_phase:
        raise InputError(
            f"{method}: phases=2 takes a second answer of the clients; their factors are here, use phases=1"
        )
    # A share may be a fraction; a run's are numbers of examples.
    updates = [
        Update(client=i, examples=cast(int, share), layers={LAYER: factors}, head={})
        for i, (share, factors) in enumerate(zip(shares, clients, strict=True))
    ]
    try:
        aggregated = aggregator.aggregate(updates, round, before)
    except ValueError as error:
        raise InputError(f"{method}: {str(error).removeprefix(f'{method}: ')}") from error
    _refuse_not_finite(aggregated, method)
    merged, rest = aggregated.layers[LAYER].absorb(), aggregated.residual.get(LAYER)
    return Aggregated(merged.A, merged.B, None if rest is None else (rest.A, rest.absorb().B))


def _refuse_not_finite(aggregated: Aggregate, method: str) -> None:
    for what, layers in (("", aggregated.layers), (" of the residual", aggregated.residual)):
        if layers and (name := first_not_finite(layers[LAYER].parts)):
            raise RunFailed(f"{method}: {name}{what} holds NaN or infinity, though what was given is finite")


def _share(i: int, weight: Any) -> float:
    try:
        share = float(weight)
    except (TypeError, ValueError):
        share = float("nan")
    if not 0 < share < float("inf"):
        raise InputError(f"weights[{i}]={weight!r}: expected a finite number above zero")
    return share


def _start(start: tuple[ArrayLike, ArrayLike], client: Factors) -> Factors:
    """The factors that the clients started from. Raises InputError where they are of another layer."""
    if not isinstance(start, (tuple, list)) or len(start) != 2:
        raise InputError(f"start={start!r}: expected the pair (A, B)")
    factors = _factors(" of start", *start, None)
    if factors.shape != client.shape:
        raise InputError(f"start: a map from {factors.shape[1]} to {factors.shape[0]}, the clients' are from "
                         f"{client.shape[1]} to {client.shape[0]}")  # fmt: skip
    return factors


def _factors(which: str, A: ArrayLike, B: ArrayLike, R: ArrayLike | None) -> Factors:
    """The factors of a client, or of the start, on the CPU."""
    given = {"A": A, "B": B} if R is None else {"A": A, "B": B, "R": R}
    parts = {}
    for name, value in given.items():
        try:
            tensor = torch.as_tensor(value).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{name}{which}: no tensor ({' '.join(str(error).split())})") from error
        if tensor.is_complex():
            raise InputError(f"{name}{which}: is complex, expected real numbers")
        tensor = tensor if tensor.is_floating_point() else tensor.float()
        if tensor.ndim != 2 and name != "R":
            shape = "(r, k)" if name == "A" else "(d, r)"
            raise InputError(f"{name}{which}: has shape {tuple(tensor.shape)}, expected {shape}")
        if not tensor.numel():
            raise InputError(f"{name}{which}: has shape {tuple(tensor.shape)}, which holds nothing")
        if not tensor.isfinite().all():
            raise InputError(f"{name}{which}: holds NaN or infinity")
        # A run's factors are float32; the squares of what it cannot hold leave float64 as well.
        size, limits = float(tensor.abs().max()), torch.finfo(torch.float32)
        if size > limits.max or 0 < size < limits.tiny:
            raise InputError(
                f"{name}{which}: its largest number is {size:.2g}, expected one that float32 holds, "
                f"{limits.tiny:.2g} to {limits.max:.2g}"
            )
        parts[name] = tensor
    try:
        return of_parts(parts)
    except ValueError as error:
        raise InputError(f"A{which} and B{which}: {error}; expected (r, k) and (d, r)") from error
