"""CIFAR-10 and CIFAR-100 from the files that torchvision downloads. Nothing is downloaded here.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images": 50,000 training and 10,000 test
images of 32 x 32 pixels. The files are pickles; torchvision opens them only after their md5 was the one in
its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fedinit.data.source import DecodedSource
from fedinit.errors import InputError
from fedinit.home import expand_home

if TYPE_CHECKING:
    from fedinit.data.catalogue import Catalogue


@dataclass(frozen=True, kw_only=True)
class Cifar(DecodedSource):
    """The set as one domain, "all": training images first, then test images, split as published."""

    kind: ClassVar[str]  # torchvision's class

    root: str | None = None  # must be given: the folder that holds cifar-10-batches-py or cifar-100-python

    def catalogue(self, channels: int, size: tuple[int, int]) -> Catalogue:
        """The set's images, training images first, as `resize` brings them to (m, channels, H, W) uint8.
        Raises InputError, with the call that downloads the set, on a missing root or missing or changed files.
        """
        import torch
        from torchvision import datasets

        from fedinit.data.arrays import Arrays
        from fedinit.data.catalogue import Catalogue
        from fedinit.data.store import Store

        kind = getattr(datasets, self.kind)
        if self.root is None:
            raise InputError(
                f"data.root is not set: expected the folder that holds {kind.base_folder}; give it on the "
                f"command line as data.root=...; where it is not there yet, with a network, "
                f"{_download_call(self.kind, '<folder>')}"
            )
        folder = expand_home("data.root", self.root)
        try:
            train, test = (kind(str(folder), train=part, download=False) for part in (True, False))
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"data.root={self.root}: no whole {self.kind} there, expected its files in "
                f"{folder / kind.base_folder}; place them there, or, where there is a network, "
                f"{_download_call(self.kind, str(folder))}"
            ) from error
        pixels = np.concatenate([train.data, test.data])  # (n, 32, 32, 3)
        return Catalogue(
            labels=torch.tensor(train.targets + test.targets, dtype=torch.int64),
            domains=torch.zeros(len(pixels), dtype=torch.int64),
            test=torch.arange(len(pixels)) >= len(train.data),
            class_names=tuple(train.classes),
            domain_names=("all",),
            read=Store(Arrays(pixels, channels, size, f"data.root={self.root}"), self.keeping()),
        )


@dataclass(frozen=True, kw_only=True)
class Cifar10(Cifar):
    """`data=cifar10`: ten classes."""

    kind: ClassVar[str] = "CIFAR10"

    name: Literal["cifar10"] = "cifar10"


@dataclass(frozen=True, kw_only=True)
class Cifar100(Cifar):
    """`data=cifar100`: a hundred classes."""

    kind: ClassVar[str] = "CIFAR100"

    name: Literal["cifar100"] = "cifar100"


def _download_call(name: str, folder: str) -> str:
    return f'python -c "from torchvision.datasets import {name}; {name}({folder!r}, download=True)"'
