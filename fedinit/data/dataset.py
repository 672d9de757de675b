"""Labelled images, or inputs with numbers to predict, in domains: the one value that every data source returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.data.image_cache import MappedImages
from fedinit.data.shares import beyond


@dataclass(frozen=True, eq=False)  # eq=False: comparing tensors yields tensors, not a truth value
class Dataset:
    """Images with the label, the domain and the split of each.

    images: (n, C, H, W) uint8, 0..255, or float32, which a model takes as they are. Of more
        than memory should hold, rows of a file, which are indexed in the same way.
    labels: (n,) int64, indices into class_names; or (n, outputs) float32, numbers to predict, named by class_names.
    domains: (n,) int64, indices into domain_names.
    test: (n,) bool, True in the test split.
    class_names, domain_names: in the order of their numbers.
    marks: rows -> what tells each of these images from another where it lies: name and size, or a hash of its bytes;
        None: nobody knows.
    levels: where that was measured, the lowest and the highest level of grey with more than 8 bits in the whole source,
        of whole numbers ("I") and of floating point ones ("F"), between which it is shown; None: it was not.

    Law: row i of every tensor speaks of the same image.
    Raises ValueError naming the field on a wrong dtype, shape, length or index.
    """

    images: Tensor | MappedImages
    labels: Tensor
    domains: Tensor
    test: Tensor
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    marks: Callable[[Sequence[int]], Sequence[str]] | None = None
    levels: Mapping[str, Sequence[float]] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype not in (torch.uint8, torch.float32) or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 or float32 (n, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}"
            )
        shape = (len(self),)
        label = (torch.float32, (*shape, len(self.class_names))) if self.is_regression else (torch.int64, shape)
        for field, dtype, wanted in (
            ("labels", *label),
            ("domains", torch.int64, shape),
            ("test", torch.bool, shape),
        ):
            column = getattr(self, field)
            if column.dtype != dtype or tuple(column.shape) != wanted:
                raise ValueError(f"{field} must be {dtype} {wanted}, got {column.dtype} {tuple(column.shape)}")
        named = [("domains", self.domain_names), *([] if self.is_regression else [("labels", self.class_names)])]
        for field, names in named:
            column = getattr(self, field)
            if odd := beyond(column, len(names)):
                raise ValueError(f"{field} must lie in 0..{len(names) - 1}, got {odd}")

    @property
    def is_regression(self) -> bool:
        """Whether the targets are numbers, not classes."""
        return self.labels.is_floating_point()

    def __len__(self) -> int:
        """The number of images n."""
        return self.images.shape[0]

    def fingerprints(self, rows: Tensor, key: str = "") -> Iterator[str]:
        """What tells each of these images (m,) from another, wherever it lies: a hash of its values, by the key."""
        for part in rows.split(256):
            for image in self.images[part]:
                yield _hash(image.numpy().tobytes(), key)

    def origins(self, rows: Tensor, fingerprints: Iterable[str], key: str = "") -> Iterator[str]:
        """What tells each of these images (m,) from another of the same place, however they are decoded: a hash of its
        mark, by the key; of one without a mark, its fingerprint."""
        marks = [""] * len(rows) if self.marks is None else self.marks(rows.tolist())
        for mark, fingerprint in zip(marks, fingerprints, strict=True):
            yield _hash(mark.encode("utf-8", "surrogateescape"), key) if mark else fingerprint


def _hash(content: bytes, key: str) -> str:
    return hashlib.blake2b(content, digest_size=8, key=key.encode()).hexdigest()
