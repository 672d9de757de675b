"""Data sets of the Hugging Face hub, or in its formats on disk, by the package `datasets`: `data=hub`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedinit.data.layout import ONE_DOMAIN
from fedinit.data.names import composed
from fedinit.data.source import DomainSource, SplitSource
from fedinit.data.splits import Split, choose_sides, meaning
from fedinit.errors import InputError, did_you_mean
from fedinit.home import expand_home
from fedinit.opening import read_bytes

if TYPE_CHECKING:
    from fedinit.data.catalogue import Catalogue


@dataclass(frozen=True, kw_only=True)
class Hub(DomainSource, SplitSource):
    """`data=hub`: the set's own splits; a column of strings or classes may say the domain."""

    name: Literal["hub"] = "hub"
    root: str | None = None  # must be given: a set's name on the hub, or a folder of parquet files or images
    subset: str | None = None  # the set's configuration, where it has several
    image_column: str | None = None  # null: the one column of images
    label_column: str | None = None  # null: the one column of classes, or "label"
    domain_column: str | None = None  # null: one domain

    def catalogue(self, channels: int, size: tuple[int, int]) -> Catalogue:
        """Raises InputError without the package, for a set that cannot be had, and for columns that are not clear."""
        import torch

        from fedinit.data.catalogue import Catalogue
        from fedinit.data.items import Items, digest
        from fedinit.data.store import Store

        parts, unread = self._parts()
        first = next(iter(parts.values()))
        image, label = self._image_column(first.features), self._label_column(first.features)
        parts, unlabelled = self._labelled(parts, label)
        if self.domain_column is not None:
            self._known("domain_column", self.domain_column, first.features)
        classes: list[str] = []
        domains: list[str] = []
        for part in parts.values():
            classes += self._words(part, label)
            domains += [ONE_DOMAIN] * len(part) if self.domain_column is None else self._words(part, self.domain_column)
        places = [(split, i) for split, part in parts.items() for i in range(len(part))]
        names = [f"{split}/{i}" for split, i in places]
        pictures = {
            split: part.select_columns([image]).cast_column(image, _undecoded()) for split, part in parts.items()
        }
        used = [row for row, domain in enumerate(domains) if self.domains is None or domain in self.domains]
        splits: list[Split | None] = [meaning(places[row][0]) for row in used]
        of = [domains[row] for row in used]
        sides = choose_sides(splits, [names[row] for row in used], of, self.evaluate_on, self.test_fraction)
        class_names, domain_names = _class_names(first, label, classes), sorted(set(domains))
        content = digest(names, classes, domains, [part.info.dataset_size for part in parts.values()])

        def item(row: int) -> bytes:
            split, i = places[row]
            picture = pictures[split][i][image]
            return picture["bytes"] if picture["bytes"] is not None else read_bytes(Path(picture["path"]))

        decoding = Items(len(places), item, digest(content, _prints(parts)), channels, size, f"data.root={self.root}")
        return Catalogue(
            labels=torch.tensor([class_names.index(classes[row]) for row in used], dtype=torch.int64),
            domains=torch.tensor([domain_names.index(domains[row]) for row in used], dtype=torch.int64),
            test=torch.tensor(sides.test, dtype=torch.bool),
            class_names=tuple(class_names),
            domain_names=tuple(domain_names),
            read=Store(decoding, self.keeping(), used),
            remarks=[*unread, *unlabelled, *sides.remarks],
            left_out=sides.left_out,
            marks=lambda rows: [f"{names[used[row]]}|{content}" for row in rows],
        )

    def _parts(self) -> tuple[dict[str, Any], list[str]]:
        """{split: the data set}, of those whose names mean one, and what is to be said of the others."""
        if self.root is None:
            raise InputError(
                "data.root is not set: expected a set's name on the hub, or a folder of parquet files; give it as "
                "data.root=..."
            )
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError("data=hub: needs the package datasets: pip install 'fedinit[hub]'") from error
        folder = expand_home("data.root", self.root)
        try:
            loaded = datasets.load_dataset(str(folder) if folder.exists() else self.root, self.subset)
        except Exception as error:  # of many packages: the network's, the files', its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"data.root={self.root}: the set cannot be had ({reason}); without a network data.root is a folder of "
                "its parquet files"
            ) from error
        parts = {str(split): part for split, part in loaded.items() if meaning(str(split))}
        if not parts:
            raise InputError(
                f"data.root={self.root}: has the splits {', '.join(map(str, loaded))}; expected train, and test or "
                "validation"
            )
        others = [str(split) for split in loaded if str(split) not in parts]
        return parts, [f"not read, by their names: {', '.join(others)}"] if others else []

    def _labelled(self, parts: dict[str, Any], label: str) -> tuple[dict[str, Any], list[str]]:
        """The splits without those that have no label at all, and what is to be said of these."""
        bare = [split for split, part in parts.items() if len(part) and all(map(_is_absent, part[label][:]))]
        if len(bare) == len(parts):
            raise InputError(f"data.root={self.root}: no image has a value in the column {label}; give another one")
        kept = {split: part for split, part in parts.items() if split not in bare}
        return kept, [f"not read, without labels: {', '.join(bare)}"] if bare else []

    def _words(self, part: Any, column: str) -> list[str]:
        """A column as words: the names of classes, or what stands there."""
        feature, values = part.features[column], part[column][:]
        named = type(feature).__name__ == "ClassLabel"
        for row, value in enumerate(values):
            if value is None or (named and _is_absent(value)):
                raise InputError(
                    f"data.root={self.root}: row {row} of the split {part.split} has no value in the column {column}; "
                    "expected one in every row: add it, or leave the row out of the set"
                )
        return [composed(feature.int2str(value) if named else str(value)) for value in values]

    def _image_column(self, features: Any) -> str:
        if self.image_column is not None:
            return self._known("image_column", self.image_column, features)
        columns = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        return self._only("image_column", columns, features)

    def _label_column(self, features: Any) -> str:
        if self.label_column is not None:
            return self._known("label_column", self.label_column, features)
        classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
        columns = [name for name in classes if name != self.domain_column]
        return "label" if len(columns) != 1 and "label" in features else self._only("label_column", columns, features)

    def _known(self, key: str, name: str, features: Any) -> str:
        if name not in features:
            raise InputError(
                f"data.{key}={name}: no such column{did_you_mean(name, features)}. Known: {', '.join(features)}."
            )
        return name

    def _only(self, key: str, columns: list[str], features: Any) -> str:
        if len(columns) != 1:
            raise InputError(
                f"data.{key} is not set, and {', '.join(columns) or 'no column'} could be meant; give one of "
                f"{', '.join(features)}"
            )
        return columns[0]


def _undecoded() -> Any:
    from datasets import Image  # pyright: ignore[reportMissingImports]

    return Image(decode=False)


def _is_absent(label: Any) -> bool:
    """Whether a label says that there is none, as the hub's unlabelled splits have it."""
    return label is None or label == -1


def _class_names(part: Any, column: str, words: list[str]) -> list[str]:
    return list(dict.fromkeys(map(composed, getattr(part.features[column], "names", None) or sorted(set(words)))))


def _prints(parts: dict[str, Any]) -> list[str]:
    """The package's own fingerprints, which change with the files."""
    return [str(getattr(part, "_fingerprint", "")) for part in parts.values()]
