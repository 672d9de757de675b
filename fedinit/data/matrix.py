"""The matrix of `data=matrix_sensing`, and how it is measured: the keys `data.matrix.<field>=`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedinit.config.checks import at_least, refuse_unread, within
from fedinit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MatrixConfig:
    """Which matrix is measured, how often and how exactly. Raises InputError for a value out of range."""

    rows: int = 40
    columns: int = 40
    rank: int = 3  # of the truth
    symmetric: bool = False
    condition: float = 1.5  # largest over smallest singular value
    observe: Literal["gaussian", "full"] = "gaussian"
    measurements: int = 1200
    noise: float = 0.0  # both in units of the targets' root mean square
    outlier: float = 10.0
    corrupted: float = 0.0  # share of the training targets that are outliers

    def __post_init__(self) -> None:
        for key in ("rows", "columns"):
            at_least(f"data.matrix.{key}", getattr(self, key), 2)
        at_least("data.matrix.rank", self.rank, 1)
        if self.rank > min(self.rows, self.columns):
            raise InputError(
                f"data.matrix.rank={self.rank}: the matrix is {self.rows}x{self.columns}; expected "
                f"{min(self.rows, self.columns)} or less"
            )
        if self.symmetric and self.rows != self.columns:
            shape = f"{self.rows}x{self.columns}"
            raise InputError(f"data.matrix.symmetric=true: the matrix is {shape}; expected a square one")
        within("data.matrix.condition", self.condition, 1, math.inf, open_high=True)
        at_least("data.matrix.measurements", self.measurements, 1)
        for key in ("noise", "outlier"):
            within(f"data.matrix.{key}", getattr(self, key), 0, math.inf, open_high=True)
        within("data.matrix.corrupted", self.corrupted, 0, 1, open_high=True)
        if not self.corrupted:
            refuse_unread("data.matrix", self, ("outlier",), "with data.matrix.corrupted=0")
        if self.rank == 1:
            refuse_unread("data.matrix", self, ("condition",), "with data.matrix.rank=1, of one singular value")
