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
    """The one factor among the trained parts of which a client may choose slots: "A", "B" or "R". Raises ValueError
    unless there is exactly one."""
    (part,) = set(AXIS).intersection(trainable)
    return part


def count(product: Factors, part: str) -> int:
    """How many slots the factor `part` has."""
    return product.parts[part].shape[AXIS[part]]


def take(product: Factors, part: str, places: Tensor) -> Factors:
    """The product of these slots alone; of a core, the blocks and the rows and columns around them.

    places: (n,) int64, rising. Raises ValueError where slots are no products of their own.
    """
    if type(product) is Factors and part in "AB":
        return Factors(product.A[places], product.B[:, places])
    if not isinstance(product, CoreFactors) or part != "R" or product.R.ndim != 3:
        raise ValueError(f"the slots of {part} of {type(product).__name__} are no products whose sum is the whole")
    width = product.R.shape[-1]
    rows = (places[:, None] * width + torch.arange(width)).flatten()
    return CoreFactors(product.A[rows], product.B[:, rows], product.R[places])


def others(product: Factors, part: str, places: Tensor) -> Tensor:
    """(m,) int64, rising: the places that are not among `places`."""
    free = torch.ones(count(product, part), dtype=torch.bool)
    free[places] = False
    return free.nonzero().flatten()


def fill(product: Factors, part: str, places: Tensor, values: Tensor) -> Factors:
    """The product with `values` at these slots of the factor `part`; the given product is not changed.

    places: (n,) int64.
    values: the factor's tensor cut to these slots.
    """
    tensor = product.parts[part].clone().index_copy_(AXIS[part], places, values)
    return dataclasses.replace(product, **{part: tensor})


def norms(product: Factors, part: str) -> Tensor:
    """(slots,) the Frobenius norm of each slot's own product, in float64."""
    exact = product.to(torch.float64)
    if not isinstance(exact, CoreFactors):
        return exact.B.norm(dim=0) * exact.A.norm(dim=1)
    heads, width = exact.R.shape[:2]
    left = exact.B.unflatten(1, (heads, width)).transpose(0, 1) @ exact.R  # (h, d, r/h)
    right = exact.A.unflatten(0, (heads, width))  # (h, r/h, k)
    return ((left.mT @ left) * (right @ right.mT)).sum((1, 2)).clamp(min=0).sqrt()


def leading(scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """{layer: places}, rising, of the `budget` largest scores of all layers together; of equals, the first of every
    layer before the second of any, so that where nothing has weight yet no layer is without.

    scores: {layer: (slots,)}.
    """
    values = torch.cat(list(scores.values()))
    by_place = torch.cat([torch.arange(len(of_layer)) for of_layer in scores.values()]).argsort(stable=True)
    best = by_place[values[by_place].argsort(descending=True, stable=True)[:budget]].sort().values
    places, low = {}, 0
    for name, layer_scores in scores.items():
        places[name] = best[(best >= low) & (best < low + len(layer_scores))] - low
        low += len(layer_scores)
    return places


def pack(tensors: Mapping[str, Tensor], part: str, chosen: Chosen) -> dict[str, Tensor]:
    """{wire name: tensor}, with each layer's factor `part` cut to its chosen slots and their places beside it."""
    packed = dict(tensors)
    for layer, places in chosen.items():
        factor = packed.pop(f"{layer}/{part}")
        if len(places):
            packed[f"{layer}/{part}"] = factor.index_select(AXIS[part], places)
            packed[f"{layer}/{PLACES}"] = places.to(torch.int32)
    return packed


def unpack(
    tensors: Mapping[str, Tensor], start: Mapping[str, Tensor], part: str, budget: int
) -> tuple[dict[str, Tensor], str]:
    """The inverse of `pack`: ({wire name: tensor} with whole factors, ""), or (as far as it came, the fault).

    tensors: of a reply, not yet validated.
    start: what the client started from, which fills the slots that were not chosen.
    part: the factor.
    budget: how many slots may come back, over all layers.
    """
    unpacked, spent = dict(tensors), 0
    for name, full in start.items():
        layer, _, factor = name.rpartition("/")
        if factor != part:
            continue
        values, places = unpacked.pop(name, None), unpacked.pop(f"{layer}/{PLACES}", None)
        if values is None and places is None:
            unpacked[name] = full
            continue
        if values is None or places is None:
            return unpacked, f"{layer}: slots and their places belong together"
        axis, size = AXIS[part], full.shape[AXIS[part]]
        rising = places.dtype == torch.int32 and places.ndim == 1 and bool((places.diff() > 0).all())
        if not rising or not len(places) or places[0] < 0 or places[-1] >= size:
            return unpacked, f"{layer}: places are not rising whole numbers below {size}"
        expected = list(full.shape)
        expected[axis] = len(places)
        if list(values.shape) != expected or values.dtype != full.dtype:
            return unpacked, f"{name} is {values.dtype} {tuple(values.shape)}, expected {full.dtype} {tuple(expected)}"
        spent += len(places)
        unpacked[name] = full.clone().index_copy_(axis, places.long(), values)
    return unpacked, f"{spent} slots, more than the {budget} allowed" if spent > budget else ""
