"""Measurements of one low-rank matrix X*: a task with a known answer, on which starts show what theory says of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fedinit.data.matrix import MatrixConfig
from fedinit.data.source import Source

if TYPE_CHECKING:
    from rich.console import Console

    from fedinit.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class MatrixSensing(Source):
    """`data=matrix_sensing`: one domain, "matrix", whose recovery error is ‖W − X*‖/‖X*‖ of the effective weight W."""

    is_regression: ClassVar[bool] = True

    name: Literal["matrix_sensing"] = "matrix_sensing"
    matrix: MatrixConfig = MatrixConfig()

    def load(
        self,
        channels: int,
        size: tuple[int, int],
        seed: int = 0,
        domain: str | None = None,
        console: Console | None = None,
        held: Collection[str] = (),
    ) -> Dataset:
        from fedinit.data.measurements import load_measurements

        return load_measurements(self.matrix, channels, size, seed)
