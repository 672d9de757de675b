"""Rich or lazy: how far training moved from its start, and of which rank its update is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedinit.factors import Factors, difference, distance
from fedinit.spectra import matrix_spectrum, spectrum


def parameter_change(start: Mapping[str, Factors], end: Mapping[str, Factors]) -> float | None:
    """‖θ − θ0‖/‖θ0‖ of all factors together; None for a start of zero. A change of gauge counts, since it is a change
    of the parameters.

    start, end: {layer: factors}, θ0 and θ; where their ranks differ, the lower one has components of zero.
    """
    parts = [t for f in start.values() for t in f.parts.values()]
    size = sum(float(t.double().square().sum()) for t in parts) ** 0.5
    ranks = {name: max(f.rank, end[name].rank) for name, f in start.items()}
    before, after = ({n: f.at_rank(ranks[n]) for n, f in layers.items()} for layers in (start, end))
    return distance(after, before) / size if size > 0 else None


def update_spectrum(start: Factors, end: Factors, moved: Tensor | None = None) -> Tensor:
    """(q,) singular values of the update BA − B0A0 in float64, not multiplied by s; those at the factors' rounding are
    zero.

    start, end: B0A0 and BA.
    moved: (d, k), by which the base offset changed, added to the update; None: it did not.
    """
    end, start = end.absorb().to(torch.float64), start.absorb().to(torch.float64)
    change = difference(end, start)
    update = spectrum(change) if moved is None else matrix_spectrum(change.dense() + moved.double())
    rounding = 1e-12 * float(end.A.norm() * end.B.norm() + start.A.norm() * start.B.norm())
    return update.S * (update.S > rounding)


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of σ/Σσ (Roy and Vetterli 2007): r equal singular values have r; 0 for no update."""
    if not values.sum() > 0:
        return 0.0
    share = values / values.sum()
    return float(torch.exp(torch.special.entr(share).sum()))


def stable_rank(values: Tensor) -> float:
    """‖·‖_F²/‖·‖₂²: at most the rank, and little moved by small singular values; 0 for no update."""
    return float(values.square().sum() / values.max().square()) if values.sum() > 0 else 0.0


def weight_change(spectra: Sequence[Tensor], weights: Sequence[Tensor], scale: float) -> float | None:
    """s·‖update‖/‖W0‖ over all layers; None where the frozen weights are zero."""
    moved = sum(float(values.square().sum()) for values in spectra) ** 0.5
    size = sum(float(weight.double().square().sum()) for weight in weights) ** 0.5
    return scale * moved / size if size > 0 else None
