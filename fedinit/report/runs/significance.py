"""What differs by more than noise: differences seed by seed, Student's t, corrected for how many are asked about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
ROUNDING = 1e-9  # of a figure, that is no spread


@dataclass(frozen=True)
class Sample:
    """A figure over seeds. by_seed: {seed: figure}."""

    by_seed: Mapping[int, float]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those whose figure is a number, in their order."""
        return tuple(seed for seed in sorted(self.by_seed) if np.isfinite(self.by_seed[seed]))

    @property
    def values(self) -> np.ndarray:
        """(n,) in the order of the seeds, those that are numbers."""
        return np.array([self.by_seed[seed] for seed in self.seeds], dtype=np.float64)

    def over(self, seeds: Iterable[int]) -> Sample:
        """The same figure over these of its seeds alone."""
        return Sample({seed: self.by_seed[seed] for seed in seeds if seed in self.by_seed})

    @property
    def mean(self) -> float:
        """NaN where there is no figure."""
        return float(self.values.mean()) if len(self.values) else float("nan")

    @property
    def std(self) -> float | None:
        """Of the seeds, with n − 1; None for fewer than two."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """One sample against another, seed by seed.

    mean: of the differences; NaN where no seed is in both. seeds: how many are.
    half: half the width of the 95 % interval of the mean (Student's t, n − 1).
    p: of no difference, two-sided, not corrected.
    Both are None for fewer than two seeds, and where the differences are all the same and not zero: so are those of two
    seeds often that come in steps of one image, and there is no spread to judge by.
    """

    mean: float
    seeds: int
    half: float | None
    p: float | None


def paired(one: Sample, other: Sample) -> Difference:
    """`one` less `other` over the seeds that both have.

    The paired t-test (Student 1908): t = d̄ √n / s_d with n − 1 degrees of freedom, d the differences by seed. Where all
    are zero p is 1.
    """
    seeds = [s for s in sorted(one.by_seed) if np.isfinite([one.by_seed[s], other.by_seed.get(s, np.nan)]).all()]
    d = np.array([one.by_seed[seed] - other.by_seed[seed] for seed in seeds], dtype=np.float64)
    n = len(d)
    if n < 2:
        return Difference(float(d.mean()) if n else float("nan"), n, None, None)
    from scipy.special import stdtr, stdtrit  # here: most reports are of one seed

    error, mean = float(d.std(ddof=1)) / n**0.5, float(d.mean())
    if error <= ROUNDING * max(abs(one.by_seed[seed]) for seed in seeds):
        return Difference(mean, n, None, None) if d.any() else Difference(0.0, n, 0.0, 1.0)
    p = float(2 * stdtr(n - 1, -abs(mean) / error))
    return Difference(mean, n, float(stdtrit(n - 1, 1 - LEVEL / 2)) * error, p)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number, in their order (Holm 1979): the i-th smallest of m becomes
    max_{j ≤ i} min(1, (m − j + 1) p_(j)). None stays None and is not counted."""
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected, least = list(values), 0.0
    for rank, (p, i) in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p))
        corrected[i] = least
    return corrected


def p_said(p: float) -> str:
    """``p = 0.012``; what is below a thousandth says so alone."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def sampling_error(accuracy: Sequence[float], images: Sequence[int]) -> float:
    """The standard error, in points, of the mean of these domains' accuracies in percent, for drawing their test images
    alone: √Σ p_d (1 − p_d)/n_d / D of independent binomial shares, each with one image right and one wrong added
    (Laplace), without which none or all of few would be no error."""
    n = np.asarray(images, dtype=np.float64)
    p = (n * np.clip(np.asarray(accuracy, dtype=np.float64) / 100, 0, 1) + 1) / (n + 2)
    variance = p * (1 - p) / n
    return float(100 * np.sqrt(variance.sum()) / len(p))
