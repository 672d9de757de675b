"""EVA: A from the leading directions of each layer's inputs, B = 0; ranks follow where the variance is.

Paischer et al., 2024, arXiv 2410.07170. The rows of A are the top eigenvectors of the pooled second moment of the
inputs, so the first step can use what varies in them; the model stays as it was. Needs no labels and no head.
With ρ > 1 ranks are dealt anew: of all layers' components, each layer offering its leading ρ·r, those with the largest
share of explained variance are kept, as many as there were before. Layers with the same input tie, and the first in the
model's order goes first. Every layer keeps one component, where the paper may take all of a layer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from fedinit.config import at_least, within
from fedinit.factors import Factors
from fedinit.initializers.initializer import Setting, StartState
from fedinit.initializers.measured import Measured, Moments, complete, moments, stand_in
from fedinit.seeding import torch_generator
from fedinit.statistics import Request, Statistics

EXACT_UP_TO = 256  # inputs of a layer up to which `auto` sends the exact moment: 132 kB


@dataclass(frozen=True, kw_only=True)
class EVA(Measured):
    """rho: ρ ≥ 1; 1 leaves every layer its rank. centred: directions of the variance, not of the raw second moment.
    whiten: ``peft`` divides a row of A by √σ with σ the singular value of the pooled inputs, ``std`` by the standard
    deviation along it. sketch: ``exact`` sends the k×k moment, ``nystrom`` a seeded k×width sketch, ``auto`` the former
    up to 256 inputs. width: of the sketch; None is max(3r, ρr + 8)."""

    rho: float = 2.0
    centred: bool = True
    whiten: Literal["none", "peft", "std"] = "none"
    sketch: Literal["auto", "exact", "nystrom"] = "auto"
    width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        within("init.rho", self.rho, 1, float("inf"), open_high=True)
        if self.width is not None:
            at_least("init.width", self.width, 1)

    def check(self, rank: int) -> None:
        super().check(rank)
        if self.width is not None:
            at_least("init.width", self.width, int(self.rho * rank + 0.5), "a sketch must hold the ρ·r directions")

    def plan(self, setting: Setting) -> Request:
        kinds = {name: self._kind(k) for name, (_, k) in setting.targets.items()}
        width = self.width or max(3 * setting.rank, int(self.rho * setting.rank + 0.5) + 8)
        return self.of_inputs(setting, kinds, width=width)

    def _kind(self, k: int) -> str:
        if self.sketch == "auto":
            return "gram" if k <= EXACT_UP_TO else "nystrom"
        return "gram" if self.sketch == "exact" else "nystrom"

    def step(self, setting: Setting, asked: Request, found: Statistics) -> StartState:
        measured = {
            name: moments(found.of(name), setting.targets[name][1], self.centred, setting.seed) for name in asked.layers
        }
        own = {name: measured[setting.groups.get(name, name)] for name in setting.targets}
        living = [name for name in setting.targets if own[name].total > 0 and own[name].alive]
        ranks = dict.fromkeys(setting.targets, setting.rank)
        ranks |= redistribute({n: own[n] for n in living}, {n: ranks[n] for n in living}, self._caps(setting))
        layers, completed = {}, {}
        for name, (d, _) in setting.targets.items():
            if name not in living:
                layers[name] = stand_in(setting, name, ranks[name], self.scale)
                continue
            alive = min(own[name].alive, ranks[name])
            if alive < ranks[name]:
                completed[name] = ranks[name] - alive
            A = complete(own[name].vectors[:alive], ranks[name], torch_generator(setting.seed, "init", name))
            if self.whiten != "none":
                A[:alive] /= self._size(own[name], alive)[:, None]
            layers[name] = Factors((A * self.scale).float().contiguous(), torch.zeros(d, ranks[name]))
        notes = {
            "ranks": ranks if len(set(ranks.values())) > 1 else {},
            "explained": {n: float(own[n].values[: ranks[n]].sum() / own[n].total) for n in living},
            "completed": completed,
            "replaced": {n: "its input was zero everywhere: kaiming" for n in setting.targets if n not in living},
        }
        return StartState(layers=layers, notes={key: value for key, value in notes.items() if value})

    def _caps(self, setting: Setting) -> dict[str, int]:
        return {n: min(int(self.rho * setting.rank + 0.5), *shape) for n, shape in setting.targets.items()}

    def _size(self, own: Moments, count: int) -> torch.Tensor:
        values = own.values[:count]
        return values**0.25 if self.whiten == "peft" else (values / own.count).sqrt()


def redistribute(own: Mapping[str, Moments], ranks: Mapping[str, int], caps: Mapping[str, int]) -> dict[str, int]:
    """Ranks with the sum of `ranks`: one a layer, and the rest to the components with the largest explained share.

    A layer gets `caps` at most. Shares fall within a layer, so what it keeps are its leading components.
    """
    dealt = {name: 1 for name in ranks}
    offers = [
        (-float(found.values[i]) / found.total if i < len(found.values) else 0.0, place, i, name)
        for place, (name, found) in enumerate(own.items())
        for i in range(1, caps[name])
    ]
    for *_, name in sorted(offers)[: sum(ranks.values()) - len(ranks)]:
        dealt[name] += 1
    return dealt
