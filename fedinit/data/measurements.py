"""The measurements of `data=matrix_sensing`, drawn from the seed.

    y_i = ⟨M_i, X*⟩ + noise         X* = U diag(σ) Vᵀ, (rows, columns), σ evenly spaced from 1 down to 1/condition

observe=gaussian: entries of M_i are N(0, 1). observe=full: the matrix itself by columns, √k·X* e_j at inputs √k·e_j.
Either way the mean ℓ2 loss is ½‖W − X*‖² (its expectation, for gaussian ones), so a learning rate means the same.
The test split is a whole orthogonal set of measurements without noise, so its error is ‖W − X*‖/‖X*‖.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedinit.data.dataset import Dataset
from fedinit.data.matrix import MatrixConfig
from fedinit.errors import InputError
from fedinit.seeding import torch_generator

LARGEST = 2**25  # numbers in the inputs: 128 MB


def load_measurements(settings: MatrixConfig, channels: int, size: tuple[int, int], seed: int) -> Dataset:
    """The measurements as a Dataset of one domain, "matrix".

    Its inputs are float32 (n, 1, rows, columns) with targets (n, 1), or, observed in full, (n, 1, 1, columns) with
    targets (n, rows).

    settings: `data.matrix.<field>=`.
    channels, size: what the model takes, size = (H, W).
    seed: of X*, the sensing matrices, and noise with outliers, each of which has a stream of its own.

    Raises InputError for a model that takes something else, and for more than fits.
    """
    rows, columns, full = settings.rows, settings.columns, settings.observe == "full"
    wanted = (1, 1 if full else rows, columns)
    if (channels, *size) != wanted:
        raise InputError(
            f"data=matrix_sensing: its inputs are {wanted}, the model takes {(channels, *size)}; use model=matrix with "
            f"model.kwargs={{rows: {rows}, columns: {columns}, observe: {settings.observe}}}"
        )
    truth = ground_truth(settings, seed)
    if full:
        train = columns**0.5 * torch.eye(columns, dtype=torch.float64)[:, None]  # (n, 1, columns)
        test, targets, exact = train, train[:, 0] @ truth.T, train[:, 0] @ truth.T
    else:
        count = settings.measurements
        if (count + rows * columns) * rows * columns > LARGEST:
            raise InputError(
                f"data.matrix.measurements={count}: with {rows}x{columns} the sensing matrices would have more than "
                f"{LARGEST} numbers; take fewer, or smaller ones"
            )
        draw = torch_generator(seed, "matrix.sensing")
        train = torch.randn(count, rows, columns, generator=draw, dtype=torch.float64)
        test = torch.eye(rows * columns, dtype=torch.float64).view(-1, rows, columns)
        targets, exact = ((m * truth).sum((1, 2))[:, None] for m in (train, test))
    targets = disturbed(targets, settings, seed)
    total = len(train) + len(test)
    return Dataset(
        images=torch.cat([train, test]).float()[:, None],
        labels=torch.cat([targets, exact]).float(),
        domains=torch.zeros(total, dtype=torch.int64),
        test=torch.arange(total) >= len(train),
        class_names=tuple(f"row {i}" for i in range(rows)) if full else ("measurement",),
        domain_names=("matrix",),
    )


def ground_truth(settings: MatrixConfig, seed: int) -> Tensor:
    """X*, (rows, columns) in float64 and of rank `settings.rank`; symmetric and positive semidefinite where that is
    asked for."""
    draw = torch_generator(seed, "matrix.truth")
    shapes = [(n, settings.rank) for n in (settings.rows, settings.columns)]
    left, right = (torch.linalg.qr(torch.randn(shape, generator=draw, dtype=torch.float64)).Q for shape in shapes)
    values = torch.linspace(1.0, 1 / settings.condition, settings.rank, dtype=torch.float64)
    return (left * values) @ (left if settings.symmetric else right).T


def disturbed(targets: Tensor, settings: MatrixConfig, seed: int) -> Tensor:
    """Targets (n, outputs) with N(0, noise²) on all, and N(0, outlier²) on a share of the numbers; both in units of the
    targets' root mean square."""
    draw = torch_generator(seed, "matrix.noise")
    unit = targets.square().mean().sqrt()
    noise = settings.noise * torch.randn(targets.shape, generator=draw, dtype=torch.float64)
    hit = torch.rand(targets.shape, generator=draw, dtype=torch.float64).flatten().argsort()
    outliers = torch.zeros_like(targets).flatten()
    chosen = hit[: round(settings.corrupted * targets.numel())]
    outliers[chosen] = settings.outlier * torch.randn(len(chosen), generator=draw, dtype=torch.float64)
    return targets + unit * (noise + outliers.view(targets.shape))
