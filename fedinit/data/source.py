"""The contract of a data source: a dataclass of the options that it reads, which loads what they ask for.

A source is a file here with a subclass, a line in `SOURCES` and conf/data/<name>.yaml. Its file is read together with
the configuration, in processes that may never load any data: what takes a second to import, torch too, is imported
inside the functions that need it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from fedinit.config.checks import at_least, within
from fedinit.data.names import composed
from fedinit.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from fedinit.data.catalogue import Catalogue
    from fedinit.data.content import Content
    from fedinit.data.dataset import Dataset
    from fedinit.data.store import Keeping


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """name: its key in `SOURCES`, the one value of a Literal. Every field is a key, `data.<field>=`.

    A place on this machine is called `root` or `cache_dir`: in a deployment those are the site's to set and no
    server's (fedinit/config/site.py), and a run is not known by them. A source that has a root says what lies there
    (`content`), unless that can only be one thing.
    """

    is_regression: ClassVar[bool] = False  # whether the targets are numbers, not classes

    name: str

    @property
    def known_domains(self) -> tuple[str, ...] | None:
        """The names of the domains, in their order, where they are known before anything is read."""
        return None

    @property
    def known_classes(self) -> tuple[str, ...] | None:
        """The names of the classes, likewise."""
        return None

    def content(self, held: Collection[str] = ()) -> Content | None:
        """What the data are, wherever they lie, so that a run is known by them and not by their place; None where they
        are a function of the options alone, or their place is not set.

        held: as in `load`, which raises the same."""
        return None

    @abstractmethod
    def load(
        self,
        channels: int,
        size: tuple[int, int],
        seed: int = 0,
        domain: str | None = None,
        console: Console | None = None,
        held: Collection[str] = (),
    ) -> Dataset:
        """The data, as a model takes it.

        channels: 1 (grey) or 3 (RGB), for images.
        size: (H, W) in pixels.
        seed: the run's, for what is drawn.
        domain: for a site that holds one of the domains that the configuration names: only its images are read, and the
            others need not be there. None: all domains.
        console: where it is printed what there is; None: nowhere.
        held: domains that nobody trains on, of which the validation images are there too.

        Raises InputError for a source that cannot be read, or has nothing that fits the options or the model.
        """


@dataclass(frozen=True, kw_only=True)
class ImageSource(Source):
    """Labelled images, of which classes may be chosen."""

    classes: tuple[str, ...] | int | None = None  # names, or the first n in sorted order; null: all
    validation_fraction: float | None = None  # set: evaluate on this share of the training images, leave the test out

    def __post_init__(self) -> None:
        if isinstance(self.classes, int):
            at_least("data.classes", self.classes, 2, "a classifier needs two classes")
        elif self.classes is not None:
            object.__setattr__(self, "classes", tuple(map(composed, self.classes)))
        if self.validation_fraction is not None:
            within("data.validation_fraction", self.validation_fraction, 0, 1, open_low=True, open_high=True)

    @property
    def known_classes(self) -> tuple[str, ...] | None:
        return self.classes if isinstance(self.classes, tuple) else None

    @abstractmethod
    def catalogue(self, channels: int, size: tuple[int, int]) -> Catalogue:
        """All that the source has, before its pixels are read.

        channels: 1 (grey) or 3 (RGB), as the pixels are to be.
        size: (H, W) in pixels, to which they are brought.

        Raises InputError for a source that cannot be read.
        """

    def listed(self, channels: int, size: tuple[int, int], held: Collection[str]) -> Catalogue:
        """The catalogue, of which the val images of the held domains are used too; not where settings are chosen on a
        share of the training images."""
        from fedinit.data.catalogue import Catalogue

        made = self.catalogue(channels, size)
        if not isinstance(made, Catalogue):
            raise InputError(f"data={self.name}: catalogue() gives {type(made).__name__}, expected a Catalogue")
        return made.with_val_of(held if self.validation_fraction is None else ())

    def reading(self, domain: str | None) -> ImageSource:
        """This source restricted to one domain, where its options can say that. domain: its name; None: all of it."""
        return self

    def load(
        self,
        channels: int,
        size: tuple[int, int],
        seed: int = 0,
        domain: str | None = None,
        console: Console | None = None,
        held: Collection[str] = (),
    ) -> Dataset:
        """The chosen images, as (n, channels, H, W) uint8; see `fedinit.data.catalogue.choose_images`."""
        from fedinit.data.catalogue import choose_images

        if channels not in (1, 3):
            raise InputError(
                f"the model takes {channels} channels: images come in 1 (grey) or 3 (RGB); choose another model"
            )
        listed = self.reading(domain).listed(channels, size, held)
        chosen = choose_images(
            listed, self.known_domains, self.classes, self.validation_fraction, seed, domain, console
        )
        if (shape := tuple(chosen.images.shape[1:])) != (channels, *size):
            raise InputError(f"data={self.name}: images are read as {shape}, expected {(channels, *size)}, (C, H, W)")
        return chosen


@dataclass(frozen=True, kw_only=True)
class DecodedSource(ImageSource):
    """Images that take long to decode or to resize, and may be more than memory holds."""

    cache: Literal["auto", "always", "never"] = "auto"  # whether decoded images are kept in a file, mapped into memory
    cache_above: float = 1e9  # bytes of decoded images; auto: more than that, or a cache_dir, and they are in a file
    cache_dir: str | None = None  # the file's folder; null: the user's cache folder
    skip_unreadable: bool = False  # go on without the images that cannot be decoded

    def __post_init__(self) -> None:
        super().__post_init__()
        within("data.cache_above", self.cache_above, 0, math.inf)

    def keeping(self) -> Keeping:
        """Where the decoded images are to be kept."""
        from fedinit.data.store import Keeping

        return Keeping(self.cache, self.cache_above, self.cache_dir, self.skip_unreadable)


@dataclass(frozen=True, kw_only=True)
class SplitSource(DecodedSource):
    """Images at a place of which a split may be named: `fedinit.data.splits.choose_sides`."""

    root: str | None = None  # must be given
    test_fraction: float = 0.2  # of a domain's images, where nothing names its split
    evaluate_on: Literal["auto", "val"] = "auto"  # auto: test images, where there are none val images

    def __post_init__(self) -> None:
        super().__post_init__()
        within("data.test_fraction", self.test_fraction, 0, 1, open_low=True, open_high=True)
        if self.evaluate_on == "val" and self.validation_fraction is not None:
            raise InputError(
                f"data.evaluate_on=val data.validation_fraction={self.validation_fraction}: each names other images to "
                "evaluate on, those of the val split and a share of those of train; give one of the two"
            )

    @property
    def is_placed(self) -> bool:
        """Whether it is said where the images are."""
        return self.root is not None

    def content(self, held: Collection[str] = ()) -> Content | None:
        from fedinit.data.content import content_of

        if not self.is_placed:
            return None
        return content_of(self.listed(3, (1, 1), held), self.known_domains, self.classes)


@dataclass(frozen=True, kw_only=True)
class DomainSource(ImageSource):
    """Images in several domains, of which some may be chosen."""

    domains: tuple[str, ...] | None = None  # null: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.domains is not None:
            object.__setattr__(self, "domains", tuple(map(composed, self.domains)))

    @property
    def known_domains(self) -> tuple[str, ...] | None:
        return self.domains

    def reading(self, domain: str | None) -> ImageSource:
        return self if domain is None or self.domains is None else replace(self, domains=(domain,))
