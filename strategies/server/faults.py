"""What can be wrong with the parts of a reply: a code and a detail each, None where nothing is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedinit import wire
from fedinit.errors import RunFailed
from fedinit.factors import Factors, norm
from fedinit.message_limit import Formats
from fedinit.norms import first_not_finite
from fedinit.said import said
from fedinit.scores import MAX_EXAMPLES
from fedinit.tensor_array import handed_of
from strategies.server.bounds import Bounds
from strategies.server.replies import Asked

# What a client says of its training, each a whole or a real number in an interval. A loss and a distance are not
# negative, and what float32 can hold stays finite in sums over clients and examples.
LARGEST = torch.finfo(torch.float32).max
KEPT, LEAVES = 4, 4096  # numbers that an optimiser keeps: of each that a client was sent, and beside them
METRICS: Mapping[str, tuple[type, float, float]] = {
    "loss": (float, 0, LARGEST),
    "steps": (int, 1, MAX_EXAMPLES),
    "optimizer-state": (int, 0, MAX_EXAMPLES),
    "drift-factors": (float, 0, LARGEST),
    "drift-product": (float, 0, LARGEST),
    "epsilon": (float, 0, LARGEST),
}


def fault_of_format(values: Mapping[str, Array] | Mapping[str, Tensor], formats: Formats) -> tuple[str, str] | None:
    """(code, detail) of the first thing that is wrong with named arrays, by what they declare, or with tensors."""
    if values.keys() != formats.keys():
        odd = sorted(values.keys() ^ formats.keys())
        return "names", f"{odd[0]} is {'unexpected' if odd[0] in values else 'missing'}"
    for name, value in values.items():
        shape, dtype = formats[name]
        if tuple(value.shape) != shape:  # equal, since a broadcastable shape would be summed without a word
            return "shape", f"{name} is {tuple(value.shape)}, expected {shape}"
        if value.dtype != dtype and value.dtype != str(dtype).removeprefix("torch."):  # an Array's is a text
            return "dtype", f"{name} is {value.dtype}, expected {dtype}"
    return None


def fault_of_declared(arrays: ArrayRecord, bounds: Bounds) -> tuple[str, str] | None:
    """`fault_of_format` of what an update declares; of tensors of this process once for all of the same format."""
    handed = handed_of(arrays)
    if handed is not None and handed.format in bounds.fitting:
        return None
    odd = fault_of_format(arrays, bounds.formats)
    if odd is None and handed is not None:
        bounds.fitting.add(handed.format)
    return odd


def fault_of_sums(
    tensors: Mapping[str, Tensor], sent: Mapping[str, Tensor], formats: Formats, metrics: Mapping[str, Any]
) -> tuple[str, str] | None:
    """(code, detail) of what no sum over clients can be made of, which is all that is judged where the gate is off.

    A tensor that did not come is the one that was `sent`, and a number that did not is none.
    """
    values = {**{name: sent[name] for name in formats if name in sent}, **tensors}
    known = {name: (shape, getattr(values.get(name), "dtype", dtype)) for name, (shape, dtype) in formats.items()}
    if odd := fault_of_format(values, known):  # of any dtype
        return odd
    for name, value in tensors.items():
        if value.dtype == torch.bool or value.is_complex():
            return "dtype", f"{name} is {value.dtype}, expected real numbers"
    for key in ("num-examples", *METRICS):
        value, whole = metrics.get(key, 0.0), key not in METRICS or METRICS[key][0] is int
        if type(value) not in (int, float) or (whole and not math.isfinite(value)):
            return "metrics", f"{key} is {value!r}, expected a number"
    if not 0 < metrics["num-examples"] <= MAX_EXAMPLES:
        return "weight", f"num-examples is {metrics['num-examples']}, expected more than 0, and {MAX_EXAMPLES} at most"
    for name, value in tensors.items():  # whose squares float64 does not hold
        if value.dtype == torch.float64 and value.numel() and float(value.abs().max()) > torch.finfo(torch.float32).max:
            return "values", f"{name} has numbers that float32 does not hold"
    return fault_of_values(tensors)


def refuse_unsummable(
    asked: Asked,
    tensors: Mapping[str, Tensor],
    sent: Mapping[str, Tensor],
    formats: Formats,
    metrics: Mapping[str, Any],
) -> None:
    """Raise RunFailed for an update, of a client that was asked for it, that no sum can be made of: where the gate is
    off, which would have refused it alone."""
    if odd := fault_of_sums(tensors, sent, formats, metrics):
        who = f"round {asked.round}: client {asked.client}'s update cannot be summed"
        raise RunFailed(f"{who} ({said(': '.join(odd))}); gate.enabled=true refuses it alone, and before it "
                        "whatever it may have come from")  # fmt: skip


def fault_of_values(tensors: Mapping[str, Tensor], sizes: Mapping[str, float] | None = None) -> tuple[str, str] | None:
    """(code, detail) of NaN or infinity. sizes: the tensors' norms, where they are known."""
    odd = first_not_finite(tensors, sizes)
    return None if odd is None else ("not_finite", f"{odd} holds NaN or infinity")


def fault_of_norms(sizes: Mapping[str, float], bounds: Bounds) -> tuple[str, str] | None:
    """(code, detail) of the first tensor whose norm no update may have. sizes: {name: ‖X‖} of what came back."""
    for name, size in sizes.items():
        low, high = bounds.sizes[name]
        if not low <= size <= high:  # NaN, of a norm that overflowed, is in no interval
            code, start = "head_norm" if name.startswith(wire.HEAD) else "factor_norm", bounds.starts[name]
            return code, f"{name} has norm {size:.3g}, expected {low:.3g} to {high:.3g} (it started at {start:.3g})"
    return None


def fault_of_products(
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, float],
    sent: Mapping[str, Tensor],
    bounds: Bounds,
    ratio: float,
) -> tuple[str, str] | None:
    """(code, detail) of the first layer whose product has a norm that no update's may have. tensors: of the whole
    update. sizes: {name: ‖X‖} of what came back. sent: the start. ratio: the gate's, of the two norms."""
    for name, (high, parts) in bounds.products.items():
        # ‖B A‖ ≤ ‖B‖ ‖A‖, which is nearly always enough and costs no matrix product.
        most = 1.0
        for key in parts:
            most *= sizes[key] if key in sizes else bounds.starts[key]
        if most <= high:
            continue
        size = norm(_of_layer(tensors, name))
        if not size <= high and not size <= ratio * norm(_of_layer(sent, name)):
            return "product_norm", f"{name} has a product of norm {size:.3g}, expected {high:.3g} or less"
    return None


def _of_layer(tensors: Mapping[str, Tensor], layer: str) -> Factors:
    of_layer = {name: value for name, value in tensors.items() if name.rpartition("/")[0] == layer}
    return wire.from_tensors(of_layer)[0][layer]


def fault_of_distance(
    tensors: Mapping[str, Tensor], known: Mapping[str, Tensor], clip: float | None
) -> tuple[str, str] | None:
    """(code, detail) of tensors that are farther than `clip` from the known ones, all together. None: nobody clips."""
    if clip is None:
        return None
    squares = [float((value.double() - known[name].double()).square().sum()) for name, value in tensors.items()]
    if (distance := sum(squares) ** 0.5) <= clip * (1 + 1e-9):  # NaN is not; a client clips to less than it by rounding
        return None
    return "clip", f"it is {distance:.4g} from what was sent, expected {clip:.4g} or less (privacy.clip)"


def fault_of_metrics(metrics: Mapping[str, Any], private: bool) -> tuple[str, str] | None:
    known = {key: rule for key, rule in METRICS.items() if key != ("loss" if private else "epsilon")}
    for key, (kind, low, high) in known.items():
        value = metrics.get(key)
        if value is None or type(value) is not kind or not low <= value <= high:  # NaN is in no interval
            what = "a whole" if kind is int else "a"
            return "metrics", f"{key} is {value!r}, expected {what} number from {low} to {high:.3g}"
    if odd := sorted(metrics.keys() - known.keys() - {"num-examples", "round"}):
        return "metrics", f"{odd[0]} is no number that is asked for"
    return None


def fault_of_work(metrics: Mapping[str, Any], steps: int | None, sent: int) -> tuple[str, str] | None:
    """(code, detail) of more work than a client of the run has: steps, and numbers that its optimiser kept. steps: of a
    round at most; None: not known. sent: how many numbers it was sent."""
    for key, most in (("steps", steps), ("optimizer-state", KEPT * sent + LEAVES)):
        if most is not None and metrics[key] > most:
            return "metrics", f"{key} is {metrics[key]}, expected {most} or fewer"
    return None


def fault_of_counts(examples: object, round: object, expected: int) -> tuple[str, str] | None:
    if type(examples) is not int or not 1 <= examples <= MAX_EXAMPLES:
        return "weight", f"num-examples is {examples!r}, expected a whole number of 1 or more"
    return fault_of_round(round, expected)


def fault_of_claim(examples: int, registered: int | None) -> tuple[str, str] | None:
    if registered is not None and examples != registered:
        return "weight", f"num-examples is {examples}, of a client that registered with {registered}"
    return None


def fault_of_training(examples: int, untrainable: Callable[[int], str]) -> tuple[str, str] | None:
    """untrainable: why a client with so many cannot have trained; empty where it can."""
    why = untrainable(examples)
    return ("weight", f"of {examples} images no update can be: {why}") if why else None


def fault_of_round(round: object, expected: int) -> tuple[str, str] | None:
    if type(round) is not int or round != expected:
        return "round", f"the reply is for round {round!r}, this is round {expected}"
    return None
