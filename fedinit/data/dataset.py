"""Labelled images in several domains: the one value that every data source returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # eq=False: comparing tensors yields tensors, not a truth value
class Dataset:
    """Images with the label, the domain and the split of each.

    images: (n, C, H, W) uint8, 0..255.  labels: (n,) int64, indices into class_names.
    domains: (n,) int64, indices into domain_names.  test: (n,) bool, True in the test split.
    Law: row i of every tensor speaks of the same image.
    Raises ValueError naming the field on a wrong dtype, shape, length or index.
    """

    images: Tensor
    labels: Tensor
    domains: Tensor
    test: Tensor
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 (n, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}"
            )
        for field, dtype in (("labels", torch.int64), ("domains", torch.int64), ("test", torch.bool)):
            column = getattr(self, field)
            if column.dtype != dtype or tuple(column.shape) != (len(self),):
                raise ValueError(
                    f"{field} must be {dtype} ({len(self)},), got {column.dtype} {tuple(column.shape)}"
                )
        for field, names in (("labels", self.class_names), ("domains", self.domain_names)):
            column = getattr(self, field)
            if column.numel() and not 0 <= int(column.min()) <= int(column.max()) < len(names):
                raise ValueError(
                    f"{field} must lie in 0..{len(names) - 1}, got {int(column.min())}..{int(column.max())}"
                )

    def __len__(self) -> int:
        """The number of images n."""
        return self.images.shape[0]
