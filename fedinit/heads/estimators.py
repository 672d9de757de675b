"""Two exact heads from summed statistics: ridge regression and nearest class mean, up to the scale of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from fedinit.errors import InputError
from fedinit.heads.measured import KnownClasses, Rows


def ridge(known: KnownClasses, lam: float) -> Rows:
    """Rows of the least squares of the one-hot labels on the features, with an intercept and a penalty λ‖W‖².

    With S the features' scatter about their mean z̄: w_c = (S + λI)⁻¹ n_c (μ_c − z̄), b_c = n_c/n − w_cᵀ z̄, and
    λ = lam·tr S/D.
    """
    weight = known.counts[:, None] * solve(known.scatter, known.means - known.mean, lam)
    return Rows(weight, known.counts / known.counts.sum() - weight @ known.mean)


def nearest_mean(known: KnownClasses, lam: float | None) -> Rows:
    """Rows whose logits differ from class to class as −½ dist(z, μ_c)² does.

    The distance is Euclidean for lam=None; else it is in the metric of the classes' common covariance, shrunk as in
    `ridge`, so that the head is linear discriminant analysis with equal priors. The features are taken about the mean
    of the means, which changes all logits alike and keeps the weights small.
    """
    centre = known.means.mean(0)
    spread = known.means - centre
    if lam is None:
        weight = spread
    else:
        about_mean = known.means - known.mean
        within = known.scatter - about_mean.T @ (known.counts[:, None] * about_mean)
        weight = solve(within, spread, lam)
    return Rows(weight, -weight @ centre - 0.5 * (weight * spread).sum(1))


def solve(scatter: Tensor, rows: Tensor, lam: float) -> Tensor:
    """(m, D): (S + λI)⁻¹ x for every row x, λ = lam·tr S/D. Directions that noise made negative count as empty.

    scatter: S, (D, D) symmetric, in float64.
    rows: (m, D) in float64.

    Raises InputError where the features do not vary.
    """
    values, vectors = torch.linalg.eigh(scatter)
    values = values.clamp(min=0)
    if not values[-1] > 0:
        raise InputError("head: the backbone's features are the same for all examples; use head.init=random")
    return (rows @ vectors) / (values + lam * values.mean()) @ vectors.T
