"""What starts have in common that are made from the clients' gradients.

The gradient G (d, k) of a layer is that of the mean loss over all clients' examples in its frozen weight, at W0 without
an adapter, in evaluation mode, under the head that round 0 made first: under a zero head it is exactly zero, and under
a random one its column space is the random head's. Clients send n_k·G_k, whole, or two sketches of it, one after the
other (`fedinit.statistics.gradient`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedinit.config.checks import at_least, refuse_unread
from fedinit.errors import InputError
from fedinit.factors import Factors, norm
from fedinit.initializers.initializer import InitContext, Initializer, taken_out
from fedinit.initializers.measured import complete, stand_in
from fedinit.seeding import torch_generator
from fedinit.spectra import Spectrum, matrix_spectrum, spectrum
from fedinit.state.start import StartState
from fedinit.statistics import Request, Sampled, Statistics
from fedinit.threads import server_pool

EXACT_UP_TO = 2**16  # numbers in a layer's weight up to which `auto` sends whole gradients: 256 kB


@dataclass(frozen=True, kw_only=True)
class FromGradients(Initializer, Sampled):
    """A start from q = components·r components of every layer's gradient.

    examples, weighting, min_examples, clip, noise: as in `Sampling`.
    sketch: ``exact`` sends whole gradients, ``sketch`` sends two sketches of l columns and l rows, ``auto`` whole ones
        where no layer has more than 65,536 weights.
    width: l; None: 2q + 8.
    """

    needs: ClassVar[str] = "gradients"
    # The name that `init=` calls it by, for messages.
    key: ClassVar[str]
    # Components of the gradient that a start of rank one is made of.
    components: ClassVar[int] = 1

    sketch: Literal["auto", "exact", "sketch"] = "auto"
    width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampling.check()
        if self.width is not None:
            at_least("init.width", self.width, 1)
        if self.sketch == "exact":
            refuse_unread("init", self, ("width",), "with init.sketch=exact, but with sketch")

    @property
    def zero(self) -> str:
        return ""

    def check(self, rank: int) -> None:
        super().check(rank)
        if self.width is not None:
            at_least("init.width", self.width, self.components * rank, "a sketch must hold the components of the start")

    def fit(self, targets: Mapping[str, tuple[int, int]], rank: int) -> None:
        for name, shape in targets.items():
            if self.components * rank > min(shape):
                raise InputError(
                    f"adapter.rank={rank}: init={self.key} takes {self.components * rank} components of a gradient, "
                    f"and layer {name} is {shape[0]}x{shape[1]}; expected {min(shape) // self.components} or less"
                )

    def plan(self, context: InitContext) -> Request:
        """Raises InputError under a head through which no gradient comes."""
        self.fit(context.targets, context.rank)
        if context.head and not context.head["weight"].any():
            raise InputError(f"init={self.key}: under a head of zeros every gradient is zero; use head.init=ridge")
        kind = "gradient" if self.sends_whole(context.targets) else "gradient_range"
        return self._ask(context, kind, {})

    def sends_whole(self, targets: Mapping[str, tuple[int, int]]) -> bool:
        """Whether clients send whole gradients of these layers {name: (d, k)}, not sketches."""
        if self.sketch == "auto":
            return all(d * k <= EXACT_UP_TO for d, k in targets.values())
        return self.sketch == "exact"

    def step(self, context: InitContext, asked: Request, statistics: Statistics) -> Request | StartState:
        """Raises InputError when no layer has a gradient."""
        if "gradient_range" in asked.layers.values():
            return self._ask(context, "gradient_rows", orthonormal(statistics, context.targets))
        q = self.components * context.rank

        def of_layer(name: str) -> tuple[Factors, int] | None:
            decomposed = self.decompose(mean_gradient(name, asked, statistics))
            if not decomposed.S[0] > 0:
                return None
            components, missing = filled(decomposed, q, torch_generator(context.seed, "init", name))
            return self.start_of(components, name, context), missing

        starts = dict(zip(context.targets, server_pool().map(of_layer, context.targets), strict=True))
        if not any(starts.values()):
            raise InputError(f"init={self.key}: every gradient is exactly zero under this head; use head.init=ridge")
        replaced = [name for name, start in starts.items() if start is None]
        layers = {n: self.replacement(context, n) if start is None else start[0] for n, start in starts.items()}
        merge = taken_out({n: layers[n] for n in starts if n not in replaced}) if self.takes_out else {}
        notes = {
            "replaced": dict.fromkeys(replaced, "its gradient was zero"),
            "completed": {n: start[1] for n, start in starts.items() if start is not None and start[1]},
            "moved": {} if self.takes_out else moved(context, layers),
        }
        return StartState(layers=layers, merge=merge, notes={key: value for key, value in notes.items() if value})

    def decompose(self, gradient: Tensor | Factors) -> Spectrum:
        """The singular values and vectors that a start is made of.

        gradient: G (d, k) in float64, or its approximation QT from the sketches, as factors.
        """
        return spectrum(gradient) if isinstance(gradient, Factors) else matrix_spectrum(gradient)

    @abstractmethod
    def start_of(self, spectrum: Spectrum, name: str, context: InitContext) -> Factors:
        """The factors of a layer in float32. spectrum: the first q components of `decompose`."""

    def replacement(self, context: InitContext, name: str) -> Factors:
        """The factors of a layer whose gradient is zero: LoRA's own start."""
        return stand_in(context, name, context.rank, self.scale)

    def _ask(self, context: InitContext, statistic: str, tensors: Mapping[str, Tensor]) -> Request:
        return Request(
            source="gradients",
            layers=dict.fromkeys(context.targets, statistic),
            shapes=dict(context.targets),
            seed=context.seed,
            sampling=self.sampling,
            options={"width": self.width or 2 * self.components * context.rank + 8},
            tensors=tensors,
            head=context.head,
        )


def orthonormal(sketches: Statistics, targets: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """{"<layer>/basis": Q (d, l)} in float32, an orthonormal basis of each layer's first sketch."""
    return {
        f"{name}/basis": torch.linalg.qr(sketches.of(name)["range"].double()).Q.float().contiguous() for name in targets
    }


def mean_gradient(name: str, asked: Request, statistics: Statistics) -> Tensor | Factors:
    """G (d, k) in float64, or its approximation QT as factors; zero for a layer that no image went through."""
    sums = statistics.of(name)
    count = sums["count"].clamp(min=1)
    if "gradient" in sums:
        return sums["gradient"].double() / count
    return Factors(sums["rows"].double() / count, asked.tensors[f"{name}/basis"].double())


def filled(spectrum: Spectrum, count: int, generator: torch.Generator) -> tuple[Spectrum, int]:
    """(the first `count` components, how many of them were missing).

    A component that does not stand out from float32's rounding, in which clients measured, is missing: it gets singular
    value zero and drawn vectors that are orthogonal to the others.
    """
    floor = spectrum.S[0] * max(len(spectrum.U), spectrum.Vh.shape[1]) ** 0.5 * torch.finfo(torch.float32).eps
    alive = min(int((spectrum.S > floor).sum()), count)
    if alive == count:
        return spectrum.cut(0, count), 0
    S = torch.nn.functional.pad(spectrum.S[:alive], (0, count - alive))
    U, Vh = (complete(rows[:alive], count, generator) for rows in (spectrum.U.T, spectrum.Vh))
    return Spectrum(U.T, S, Vh), count - alive


def moved(context: InitContext, layers: Mapping[str, Factors]) -> float:
    """How far the start is from the pretrained model, ‖s·B0A0‖ / ‖W0‖ over all layers; 0 without the weights."""
    if context.weight is None:
        return 0.0
    weights = sum(float(context.weight(name).double().square().sum()) for name in layers)
    products = sum(norm(f.to(torch.float64)) ** 2 for f in layers.values())
    return context.scale * (products / weights) ** 0.5
