"""Slots: the pieces of a trained factor that a client may choose, train and send alone.

A slot is a row of A, a column of B, or a block of a block-diagonal core R; in each case a product of its own, and the
whole product is the sum of its slots'. So a client that trains some of them sits on the others as on a frozen weight,
and what it makes is exact in any sum of products.

On the wire the chosen slots of a layer are one smaller tensor under the factor's name, and their places, int32 and
rising, under "<layer>/slots". A layer without a chosen slot is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fedinit.adapters.core import CoreFactors
from fedinit.factors import Factors

AXIS = {"A": 0, "B": 1, "R": 0}  # of a factor, along which its slots lie
PLACES = "slots"

Chosen = Mapping[str, Tensor]  # {layer: places, rising, int64}


def part_of(trainable: Collection[str]) -> str:
    """The one factor, of those that are trained, of which a client may choose slots."""
    (part,) = set(AXIS).intersection(trainable)
    return part


def count(product: Factors, part: str) -> int:
    """How many slots a factor has."""
    return product.parts[part].shape[AXIS[part]]


def take(product: Factors, part: str, places: Tensor) -> Factors:
    """The product of these slots alone."""
    if not isinstance(product, CoreFactors):
        return Factors(product.A[places], product.B[:, places])
    width = product.R.shape[-1]
    rows = (places[:, None] * width + torch.arange(width)).flatten()
    return CoreFactors(product.A[rows], product.B[:, rows], product.R[places])


def others(product: Factors, part: str, places: Tensor) -> Tensor:
    """The places that are not among these."""
    free = torch.ones(count(product, part), dtype=torch.bool)
    free[places] = False
    return free.nonzero().flatten()


def fill(product: Factors, part: str, places: Tensor, values: Tensor) -> Factors:
    """The product with `values` at these slots of the factor."""
    whole = product.parts[part].clone().index_copy_(AXIS[part], places, values)
    return dataclasses.replace(product, **{part: whole})


def norms(product: Factors, part: str) -> Tensor:
    """(slots,) the Frobenius norm of each slot's own product, in float64."""
    whole = product.to(torch.float64)
    if not isinstance(whole, CoreFactors):
        return whole.B.norm(dim=0) * whole.A.norm(dim=1)
    heads, width = whole.R.shape[:2]
    left = whole.B.unflatten(1, (heads, width)).transpose(0, 1) @ whole.R  # (h, d, r/h)
    right = whole.A.unflatten(0, (heads, width))  # (h, r/h, k)
    return ((left.mT @ left) * (right @ right.mT)).sum((1, 2)).clamp(min=0).sqrt()


def leading(scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """The places of the `budget` largest scores of all layers together; of equals, the first in the layers' order."""
    best = torch.sort(torch.cat(list(scores.values())), descending=True, stable=True).indices[:budget].sort().values
    made, low = {}, 0
    for name, own in scores.items():
        made[name] = best[(best >= low) & (best < low + len(own))] - low
        low += len(own)
    return made


def pack(tensors: Mapping[str, Tensor], part: str, chosen: Chosen) -> dict[str, Tensor]:
    """Named tensors with each layer's factor cut to its chosen slots."""
    made = dict(tensors)
    for layer, places in chosen.items():
        whole = made.pop(f"{layer}/{part}")
        if len(places):
            made[f"{layer}/{part}"] = whole.index_select(AXIS[part], places)
            made[f"{layer}/{PLACES}"] = places.to(torch.int32)
    return made


def unpack(
    tensors: Mapping[str, Tensor], start: Mapping[str, Tensor], part: str, budget: int
) -> tuple[dict[str, Tensor], str]:
    """(whole factors, ""): the inverse of `pack`, completed by the start that both sides know; or (…, the fault)."""
    made, spent = dict(tensors), 0
    for name, whole in start.items():
        layer, _, own = name.rpartition("/")
        if own != part:
            continue
        values, places = made.pop(name, None), made.pop(f"{layer}/{PLACES}", None)
        if values is None and places is None:
            made[name] = whole
            continue
        if values is None or places is None:
            return made, f"{layer}: slots and their places belong together"
        axis, size = AXIS[part], whole.shape[AXIS[part]]
        rising = places.dtype == torch.int32 and places.ndim == 1 and bool((places.diff() > 0).all())
        if not rising or not len(places) or places[0] < 0 or places[-1] >= size:
            return made, f"{layer}: places are not rising whole numbers below {size}"
        expected = list(whole.shape)
        expected[axis] = len(places)
        if list(values.shape) != expected or values.dtype != whole.dtype:
            return made, f"{name} is {values.dtype} {tuple(values.shape)}, expected {whole.dtype} {tuple(expected)}"
        spent += len(places)
        made[name] = whole.clone().index_copy_(axis, places.long(), values)
    return made, f"{spent} slots, more than the {budget} allowed" if spent > budget else ""
