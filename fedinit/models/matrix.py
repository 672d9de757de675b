"""A model that is one matrix W, zero at first: what is learned is the adapter's product alone.

With it federated fine-tuning is low-rank matrix recovery, whose theory says what a start should do (docs/inits.md).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class Matrix(nn.Module):
    """W: (rows, columns), frozen at zero, in a linear layer named "weight"."""

    def __init__(self, rows: int, columns: int, observe: Literal["full", "gaussian"], num_classes: int = 0) -> None:
        """
        rows, columns: of W, two or more each.
        observe: ``full`` maps an input (n, 1, 1, columns) to the product W x, (n, rows); ``gaussian`` maps a sensing
            matrix (n, 1, rows, columns) to the one number ⟨M, W⟩, (n, 1).
        num_classes: timm's, and not used.

        Raises ValueError for other values.
        """
        super().__init__()
        if min(rows, columns) < 2 or observe not in ("full", "gaussian"):
            raise ValueError(f"expected rows and columns of 2 or more, and observe full or gaussian; got {observe!r}")
        self.observe = observe
        self.weight = nn.Linear(columns, rows, bias=False)
        nn.init.zeros_(self.weight.weight)
        self.num_features = rows if observe == "full" else 1
        height = 1 if observe == "full" else rows
        self.pretrained_cfg = {"input_size": (1, height, columns), "mean": (0.0,), "std": (1.0,)}

    def forward(self, x: Tensor) -> Tensor:
        y = self.weight(x[:, 0])  # (n, 1, rows), or M Wᵀ (n, rows, rows), whose trace is ⟨M, W⟩
        return y[:, 0] if self.observe == "full" else torch.einsum("nii->n", y)[:, None]
