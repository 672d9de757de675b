"""scikit-learn's handwritten digits in six domains: a federated data set that needs no download.

They are drawn in fedinit/data/drawn_digits.py, which is imported with scipy when they are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedinit.data.names import pick
from fedinit.data.source import DomainSource
from fedinit.errors import InputError

if TYPE_CHECKING:
    from fedinit.data.catalogue import Catalogue
    from fedinit.data.dataset import Dataset

DOMAINS = ("plain", "inverted", "rotated", "thick", "noise", "texture")


@dataclass(frozen=True, kw_only=True)
class Digits(DomainSource):
    """`data=digits`: six domains of ten classes, drawn at any size that is a multiple of 8 pixels, 16 or more."""

    name: Literal["digits"] = "digits"

    def __post_init__(self) -> None:
        super().__post_init__()
        pick("domains", self.domains, DOMAINS)  # which a deployment's server has no images to find out by

    @property
    def known_domains(self) -> tuple[str, ...]:
        return DOMAINS if self.domains is None else self.domains

    @property
    def known_classes(self) -> tuple[str, ...] | None:
        every = tuple(map(str, range(10)))
        return self.classes if isinstance(self.classes, tuple) else every[: self.classes]

    def catalogue(self, channels: int, size: tuple[int, int]) -> Catalogue:
        """Grey whatever the model wants: for three channels the one is shown three times, in the same memory."""
        from fedinit.data.catalogue import Catalogue

        if size[0] != size[1] or size[0] % 8 or size[0] < 16:
            raise InputError(
                f"model.image_size={size[0]}x{size[1]}: data=digits is drawn in squares whose side is a multiple "
                "of 8, 16 or more; set model.image_size=32 for example"
            )
        drawn = load_digits(size[0])
        return Catalogue(
            labels=drawn.labels,
            domains=drawn.domains,
            test=drawn.test,
            class_names=drawn.class_names,
            domain_names=drawn.domain_names,
            read=lambda rows: drawn.images[rows].expand(-1, channels, -1, -1),
        )


@functools.lru_cache(maxsize=2)  # for the runs of a sweep; a small run takes less time than to draw its images
def load_digits(size: int = 32) -> Dataset:
    """The digits as (n, 1, size, size) uint8: 1433 training and 6 x 364 test images, the same every time.

    size: the side in pixels, a multiple of 8.  Domain d of DOMAINS has index d.
    Law: a digit of the test split is a test image in every domain and a training image in none; a digit of
    the training split occurs once, in one domain.
    """
    from fedinit.data.drawn_digits import draw

    if size < 16 or size % 8:
        raise ValueError(f"size must be a multiple of 8 and at least 16, got {size}")
    return draw(size)
