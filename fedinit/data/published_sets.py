"""torchvision's sets by name: `data=torchvision data.set=svhn`. Nothing is downloaded here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedinit.data.layout import ONE_DOMAIN
from fedinit.data.names import composed
from fedinit.data.source import SplitSource
from fedinit.data.splits import Split, choose_sides
from fedinit.errors import InputError, choose
from fedinit.home import expand_home

if TYPE_CHECKING:
    from fedinit.data.catalogue import Catalogue

Arguments = Mapping[str, Any]
_WHOLE: Mapping[Split | None, Arguments] = {None: {}}
_FLAG: Mapping[Split | None, Arguments] = {"train": {"train": True}, "test": {"train": False}}
_TWO: Mapping[Split | None, Arguments] = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: Mapping[Split | None, Arguments] = {**_TWO, "val": {"split": "val"}}

# {data.set: (torchvision's class, {split: the arguments that give it})}; None: the set has no splits.
SETS: dict[str, tuple[str, Mapping[Split | None, Arguments]]] = {
    "caltech101": ("Caltech101", _WHOLE),
    "caltech256": ("Caltech256", _WHOLE),
    "country211": ("Country211", {**_TWO, "val": {"split": "valid"}}),
    "dtd": ("DTD", _THREE),
    "emnist": ("EMNIST", {split: {**given, "split": "balanced"} for split, given in _FLAG.items()}),
    "eurosat": ("EuroSAT", _WHOLE),
    "fashion_mnist": ("FashionMNIST", _FLAG),
    "fgvc_aircraft": ("FGVCAircraft", _THREE),
    "flowers102": ("Flowers102", _THREE),
    "food101": ("Food101", _TWO),
    "gtsrb": ("GTSRB", _TWO),
    "imagenette": ("Imagenette", {"train": {"split": "train"}, "val": {"split": "val"}}),
    "kmnist": ("KMNIST", _FLAG),
    "mnist": ("MNIST", _FLAG),
    "oxford_iiit_pet": ("OxfordIIITPet", {**_TWO, "train": {"split": "trainval"}}),
    "pcam": ("PCAM", _THREE),
    "rendered_sst2": ("RenderedSST2", _THREE),
    "stanford_cars": ("StanfordCars", _TWO),
    "stl10": ("STL10", _TWO),
    "sun397": ("SUN397", _WHOLE),
    "svhn": ("SVHN", _TWO),
    "usps": ("USPS", _FLAG),
}


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet(SplitSource):
    """`data=torchvision`: the set as one domain, split as published."""

    name: Literal["torchvision"] = "torchvision"
    set: str | None = None  # must be given: a name of `SETS`
    root: str | None = None  # must be given: the folder that torchvision downloaded to

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.set is not None:
            choose("data.set", self.set, SETS)

    @property
    def is_placed(self) -> bool:
        return self.set is not None and super().is_placed

    def catalogue(self, channels: int, size: tuple[int, int]) -> Catalogue:
        """Raises InputError, with the call that downloads the set, where it is not whole under the root."""
        import torch

        from fedinit.data.catalogue import Catalogue
        from fedinit.data.items import Items, digest
        from fedinit.data.store import Store

        parts = self._parts()
        places: list[tuple[Split | None, Any, int]] = [
            (split, part, i) for split, part in parts.items() for i in range(len(part))
        ]
        labels = [label for part in parts.values() for label in _labels(part)]
        names = [f"{split}/{i}" for split, _, i in places]
        splits: list[Split | None] = [split for split, _, _ in places]
        sides = choose_sides(splits, names, [ONE_DOMAIN] * len(names), self.evaluate_on, self.test_fraction)
        content = digest(self.set, labels, [_content(part) for part in parts.values()])
        decoding = Items(
            len(places), lambda row: places[row][1][places[row][2]][0], content, channels, size, f"data.set={self.set}"
        )
        return Catalogue(
            labels=torch.tensor(labels, dtype=torch.int64),
            domains=torch.zeros(len(labels), dtype=torch.int64),
            test=torch.tensor(sides.test, dtype=torch.bool),
            class_names=_class_names(next(iter(parts.values())), max(labels) + 1),
            domain_names=(ONE_DOMAIN,),
            read=Store(decoding, self.keeping()),
            remarks=sides.remarks,
            left_out=sides.left_out,
            marks=lambda rows: [f"{names[row]}|{content}" for row in rows],
        )

    def _parts(self) -> dict[Split | None, Any]:
        from torchvision import datasets

        if self.set is None:
            raise InputError(
                f"data.set is not set: expected a set of torchvision's; choices: {', '.join(sorted(SETS))}"
            )
        kind, splits = SETS[self.set]
        calls = [
            f"{kind}({str(self.root or '<folder>')!r}, {', '.join([*(f'{k}={v!r}' for k, v in given.items()), ''])}"
            "download=True)"
            for given in splits.values()
        ]
        how = f'python -c "from torchvision.datasets import {kind}; {"; ".join(calls)}"'
        if self.root is None:
            raise InputError(
                f"data.root is not set: expected the folder that holds {kind}; give it as data.root=...; where it is "
                f"not there yet, with a network, {how}"
            )
        folder = str(expand_home("data.root", self.root))
        try:
            return {split: getattr(datasets, kind)(folder, **given, download=False) for split, given in splits.items()}
        except (RuntimeError, OSError, ImportError) as error:
            reason = " ".join(str(error).split())
            said = "" if "download=True" in reason else f" ({reason})"  # torchvision's words for a caller in Python
            raise InputError(
                f"data.root={self.root}: no whole {kind} there{said}; a run downloads nothing: where there is a "
                f"network, {how}"
            ) from error


def _labels(part: Any) -> list[int]:
    """The labels of a torchvision data set, without its pictures where it has them apart."""
    for attribute in ("targets", "labels", "_labels", "y"):
        if (labels := getattr(part, attribute, None)) is not None:
            return [int(label) for label in labels]
    for attribute in ("samples", "_samples"):
        if (samples := getattr(part, attribute, None)) is not None:
            return [int(label) for _, label in samples]
    return [int(part[i][1]) for i in range(len(part))]


def _class_names(part: Any, count: int) -> tuple[str, ...]:
    """The set's own names, or the labels' numbers where it has none, or other than labels."""
    names = getattr(part, "classes", None) or getattr(part, "categories", None) or ()
    named = tuple(composed(str(name if isinstance(name, str) else name[0])) for name in names)
    return named if len(set(named)) == len(named) >= count else tuple(str(label) for label in range(count))


def _content(part: Any) -> Any:
    """What changes when the pictures of a torchvision data set do: a digest of its array, or its files and sizes."""
    data = getattr(part, "data", None)
    if data is not None:
        import numpy as np

        return hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()
    for attribute in ("samples", "_samples", "_image_files", "_images"):
        files: Sequence[Any] = getattr(part, attribute, None) or ()
        paths = [Path(file if isinstance(file, (str, Path)) else file[0]) for file in files]
        if paths:
            return [(path.name, path.stat().st_size) for path in paths if path.is_file()]
    return len(part)
