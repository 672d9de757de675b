"""EVA: A from the leading directions of each layer's inputs, B = 0; ranks follow where the variance is.

Paischer et al., 2024, arXiv 2410.07170. The rows of A are the top eigenvectors of the pooled second moment of the
inputs, so the first step can use what varies in them; the model stays as it was. Needs no labels and no head.
With ρ > 1 ranks are dealt anew: of all layers' components, each layer offering its leading ρ·r, those with the largest
share of explained variance are kept, as many as there were before. Layers with the same input tie, and the first in the
model's order goes first. Every layer keeps one component, where the paper may take all of a layer's.

Layers that are too wide for their exact moment are sketched twice: with a seeded basis over a part of the images, and
over all of them with the basis that the first sketch found, a step of subspace iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from fedinit.config.checks import at_least, refuse_unread, within
from fedinit.factors import Factors
from fedinit.initializers.initializer import InitContext
from fedinit.initializers.measured import Measured, Moments, complete, moments, stand_in
from fedinit.seeding import torch_generator
from fedinit.state.start import StartState
from fedinit.statistics import Request, Statistics
from fedinit.statistics.nystrom import test_matrix

EXACT_UP_TO = 256  # inputs of a layer up to which `auto` sends the exact moment: 132 kB


@dataclass(frozen=True, kw_only=True)
class EVA(Measured):
    """The start from the directions in which a layer's inputs vary.

    rho: ρ ≥ 1, how many times its rank a layer may be dealt; 1 leaves every layer its rank.
    centred: take directions of the variance, not of the raw second moment.
    whiten: ``peft`` divides a row of A by √σ with σ the singular value of the pooled inputs, ``std`` by the standard
        deviation along it, ``none`` leaves it at length one.
    sketch: ``exact`` sends the k×k moment, ``nystrom`` sends k×width sketches, ``auto`` the moment up to 256 inputs.
    width: columns of a sketch; None: max(4r, ρr) + 8.
    pilot: the share of the images that the first sketch is made of; 0 leaves that sketch out, and the only one has the
        seeded basis.
    """

    rho: float = 2.0
    centred: bool = True
    whiten: Literal["none", "peft", "std"] = "none"
    sketch: Literal["auto", "exact", "nystrom"] = "auto"
    width: int | None = None
    pilot: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        within("init.rho", self.rho, 1, float("inf"), open_high=True)
        within("init.pilot", self.pilot, 0, 1)
        if self.width is not None:
            at_least("init.width", self.width, 1)
        if self.sketch == "exact":
            refuse_unread("init", self, ("width", "pilot"), "with init.sketch=exact, but with nystrom")

    def check(self, rank: int) -> None:
        super().check(rank)
        if self.width is not None:
            at_least("init.width", self.width, int(self.rho * rank + 0.5), "a sketch must hold the ρ·r directions")

    def plan(self, context: InitContext) -> Request:
        kinds = self._kinds(context)
        sketched = {name: kind for name, kind in kinds.items() if kind == "nystrom"}
        if self.pilot and sketched:
            return self.of_inputs(context, sketched, share=self.pilot, width=self._width(context), pilot=True)
        return self.of_inputs(context, kinds, width=self._width(context))

    def _width(self, context: InitContext) -> int:
        return self.width or int(max(4, self.rho) * context.rank + 0.5) + 8

    def _kinds(self, context: InitContext) -> dict[str, str]:
        return {name: self._kind(k) for name, (_, k) in context.targets.items()}

    def _kind(self, k: int) -> str:
        if self.sketch == "auto":
            return "gram" if k <= EXACT_UP_TO else "nystrom"
        return "gram" if self.sketch == "exact" else "nystrom"

    def step(self, context: InitContext, asked: Request, statistics: Statistics) -> Request | StartState:
        measured = {name: moments(asked, statistics, name, self.centred) for name in asked.layers}
        if asked.options.get("pilot"):
            bases = {f"{name}/basis": basis_from(directions, context.seed) for name, directions in measured.items()}
            return self.of_inputs(context, self._kinds(context), tensors=bases, width=self._width(context))
        directions = {name: measured[context.groups.get(name, name)] for name in context.targets}
        living = [name for name in context.targets if directions[name].alive]
        ranks = dict.fromkeys(context.targets, context.rank)
        ranks |= redistribute({n: directions[n] for n in living}, {n: ranks[n] for n in living}, self._caps(context))
        layers, completed = {}, {}
        for name, (d, _) in context.targets.items():
            if name not in living:
                layers[name] = stand_in(context, name, ranks[name], self.scale)
                continue
            alive = min(directions[name].alive, ranks[name])
            if alive < ranks[name]:
                completed[name] = ranks[name] - alive
            A = complete(directions[name].vectors[:alive], ranks[name], torch_generator(context.seed, "init", name))
            if self.whiten != "none":
                A[:alive] /= self._size(directions[name], alive)[:, None]
            layers[name] = Factors((A * self.scale).float().contiguous(), torch.zeros(d, ranks[name]))
        notes = {
            "ranks": ranks if len(set(ranks.values())) > 1 else {},
            "explained": {n: float(directions[n].values[: ranks[n]].sum() / directions[n].total) for n in living},
            "completed": completed,
            "replaced": {n: "its input does not vary: kaiming" for n in context.targets if n not in living},
        }
        return StartState(layers=layers, notes={key: value for key, value in notes.items() if value})

    def _caps(self, context: InitContext) -> dict[str, int]:
        return {n: min(int(self.rho * context.rank + 0.5), *shape) for n, shape in context.targets.items()}

    def _size(self, directions: Moments, count: int) -> torch.Tensor:
        values = directions.values[:count]
        return values**0.25 if self.whiten == "peft" else (values / directions.count).sqrt()


def basis_from(directions: Moments, seed: int) -> torch.Tensor:
    """(k, l) orthonormal columns in float32: the directions of a sketch of l columns, and seeded ones in place of those
    without weight."""
    width, k = directions.vectors.shape
    known = directions.vectors[directions.values > 0].T
    return torch.linalg.qr(torch.cat([known, test_matrix(seed, k, width)], 1)).Q[:, :width].float().contiguous()


def redistribute(layers: Mapping[str, Moments], ranks: Mapping[str, int], caps: Mapping[str, int]) -> dict[str, int]:
    """{layer: rank}, with the sum of `ranks`: one a layer, and the rest to the components with the largest share of
    their layer's variance. Shares fall within a layer, so the components that it keeps are its leading ones.

    layers: {layer: the directions of its inputs}.
    ranks: {layer: rank} to be dealt anew.
    caps: {layer: the rank it gets at most}.
    """
    dealt = {name: 1 for name in ranks}
    offers = [
        (-float(measured.values[i]) / measured.total if i < len(measured.values) else 0.0, place, i, name)
        for place, (name, measured) in enumerate(layers.items())
        for i in range(1, caps[name])
    ]
    for *_, name in sorted(offers)[: sum(ranks.values()) - len(ranks)]:
        dealt[name] += 1
    return dealt
