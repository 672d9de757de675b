"""What starts have in common that are made from the clients' layer inputs: the sampling options, second moments and
their leading directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedinit.factors import Factors
from fedinit.initializers.initializer import InitContext, Initializer
from fedinit.initializers.random import Kaiming
from fedinit.seeding import torch_generator
from fedinit.spectra import fix_signs
from fedinit.statistics import Request, Sampled, Statistics
from fedinit.statistics.gram import unpack
from fedinit.statistics.nystrom import basis_of, decompose


@dataclass(frozen=True, kw_only=True)
class Measured(Initializer, Sampled):
    """A start from statistics of the clients' layer inputs.

    examples, tokens, weighting, min_examples, clip, noise: as in `Sampling`.
    """

    needs: ClassVar[str] = "activations"

    tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampling.check()

    def of_inputs(
        self,
        context: InitContext,
        kinds: Mapping[str, str],
        share: float = 1.0,
        tensors: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> Request:
        """The request for one pass over layer inputs, where layers with the same input are measured once.

        kinds: {layer: name of its statistic}; a layer that is absent is not measured.
        share: the part of the sampled images that the pass is about.
        tensors: {"<layer>/<key>": tensor} that the statistics need.
        options: plain values for the statistics.
        """
        layers = {n: kinds[n] for n in context.targets if context.groups.get(n, n) == n and n in kinds}
        return Request(
            source="inputs",
            layers=layers,
            shapes={n: context.targets[n] for n in layers},
            seed=context.seed,
            sampling=replace(self.sampling, share=share),
            options=options,
            tensors=tensors or {},
            rows={n: context.rows[n] for n in layers if n in context.rows},
        )


# Of the trace of a second moment, mean included: what a constant input may leave once its mean is taken out, since the
# layers below compute it in float32. An input that varies less, by 0.01 % of its size, counts as constant.
CONSTANT = (1024 * torch.finfo(torch.float32).eps) ** 2


@dataclass(frozen=True)
class Moments:
    """Leading directions of a layer's inputs in float64.

    values: (m,) eigenvalues of the summed second moment, falling, zero where there is no direction.
    vectors: (m, k) orthonormal rows, signs fixed.
    total: the trace of the second moment.
    size: the trace before the mean was taken out.
    count: rows that were summed.
    """

    values: Tensor
    vectors: Tensor
    total: float
    size: float
    count: float

    @property
    def alive(self) -> int:
        """How many directions stand out from float32's rounding, in which clients measured; 0 for a constant input."""
        if self.total <= CONSTANT * self.size:
            return 0
        return int((self.values > self.values[0] * len(self.vectors[0]) * torch.finfo(torch.float32).eps).sum())


def covariance(sums: Mapping[str, Tensor], k: int, centred: bool) -> Tensor:
    """Σ x xᵀ (k, k) in float64, about the mean where `centred`. sums: of a `Gram` statistic over k inputs."""
    moment = unpack(sums["gram"].double(), k)
    if centred and sums["count"] > 0:
        moment -= torch.outer(sums["sum"], sums["sum"]) / sums["count"]
    return moment


def moments(asked: Request, statistics: Statistics, layer: str, centred: bool) -> Moments:
    """The leading directions of a layer's inputs: exact from a `Gram` statistic, approximate from a `Nystrom` sketch.

    asked: the request.
    statistics: the clients' answers to it, added up.
    centred: take the mean out first.
    """
    sums, k = statistics.of(layer), asked.shapes[layer][1]
    count = float(sums["count"])
    mean = float(sums["sum"].double().square().sum()) / count if centred and count else 0.0  # its part of the trace
    if "gram" in sums:
        moment = covariance(sums, k, centred)
        values, vectors = torch.linalg.eigh(moment)
        values, vectors, total = values.flip(0).clamp(min=0), vectors.T.flip(0), float(moment.trace())
    else:
        basis = basis_of(asked, layer, *sums["sketch"].shape).double()
        sketch, total = sums["sketch"].double(), float(sums["trace"]) - mean
        if mean:
            sketch = sketch - torch.outer(sums["sum"], sums["sum"] @ basis) / count
        values, vectors = decompose(sketch, basis)
    total = max(total, 0.0)
    return Moments(values, fix_signs(vectors), total, total + mean, count)


def complete(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, k) in float64: the first of the given orthonormal rows (m, k), then drawn ones that are orthogonal to
    them."""
    missing = count - len(rows)
    if missing <= 0:
        return rows[:count]
    drawn = torch.randn(missing, rows.shape[1], generator=generator, dtype=torch.float64)
    for _ in range(2):  # twice, since what is left of a row that lay almost inside is mostly rounding
        drawn = drawn - (drawn @ rows.T) @ rows
        drawn = torch.linalg.qr(drawn.T)[0].T
    return torch.cat([rows, fix_signs(drawn)])


def stand_in(context: InitContext, layer: str, rank: int, scale: float) -> Factors:
    """LoRA's own start, for a layer on which nothing could be measured."""
    drawn = Kaiming().draw(*context.targets[layer], rank, torch_generator(context.seed, "init", layer), None)
    return Factors(drawn.A * scale, drawn.B)
