"""What a run's images are, wherever they lie: how many of each domain and class and split, and digests of them.

Two places hold the same images if and only if their contents are equal, as far as the marks tell: of each image its
name below the root, its label, its side of the split, and its size or the hash of its bytes, in the order in which the
run has them.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedinit.data.catalogue import Catalogue

_TOLD = 3  # differences that a message names


@dataclass(frozen=True)
class Group:
    """The images of one class in one domain. train, test: how many. digest: of their names, splits and marks."""

    train: int
    test: int
    digest: str

    @property
    def images(self) -> int:
        """How many there are."""
        return self.train + self.test


_NONE = Group(0, 0, "")


@dataclass(frozen=True)
class Content:
    """digest: of all images in their order. groups: {"domain/class": its images}."""

    digest: str
    groups: Mapping[str, Group] = field(default_factory=dict)

    def changes(self, before: Content) -> str:
        """What is other than in an earlier content, in a few words; empty where nothing is."""
        if self.digest == before.digest:
            return ""
        domains, earlier = _domains(self), _domains(before)
        told = [f"domain {name} is gone" for name in sorted(earlier - domains)]
        told += [f"domain {name} is new" for name in sorted(domains - earlier)]
        for name in sorted(before.groups.keys() | self.groups.keys()):
            old, new = before.groups.get(name, _NONE), self.groups.get(name, _NONE)
            if name.split("/")[0] not in domains & earlier or old == new:
                continue
            if old.images != new.images:
                told.append(f"{name} has {new.images} images, {old.images} before")
            elif old.test != new.test:
                told.append(f"{name} has {new.test} test images, {old.test} before")
            else:
                told.append(f"{name} has other files")
        more = f" and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        return ", ".join(told[:_TOLD]) + more if told else "the same images come in another order"

    def to_json(self) -> dict[str, Any]:
        """Values that `from_json` takes back."""
        return asdict(self)

    @staticmethod
    def from_json(values: Any) -> Content:
        """The inverse of `to_json`. Raises ValueError for values of another shape."""
        try:
            groups = {str(name): Group(**group) for name, group in values["groups"].items()}
            return Content(str(values["digest"]), groups)
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError("not the content of a data source") from error


def content_of(listed: Catalogue, domains: Sequence[str] | None, classes: Sequence[str] | int | None) -> Content:
    """The content of the images that a run chooses of what a source lists, by the marks that it has of them.

    domains, classes: as in `choose_images`; names that are not there are passed over here.
    """
    known = listed.class_names
    chosen = set(sorted(known)[:classes] if isinstance(classes, int) else known if classes is None else classes)
    names = {
        (d, c): f"{domain}/{kind}"
        for d, domain in enumerate(listed.domain_names)
        for c, kind in enumerate(known)
        if kind in chosen and (domains is None or domain in domains)
    }
    places = list(zip(listed.domains.tolist(), listed.labels.tolist(), strict=True))
    used = listed.used
    rows = [row for row, place in enumerate(places) if place in names and used[row]]
    test = listed.test.tolist()
    everything, parts, counts = hashlib.sha256(), defaultdict(hashlib.sha256), defaultdict(lambda: [0, 0])
    for row, mark in zip(rows, listed.marks(rows), strict=True):
        name = names[places[row]]
        line = f"{name}|{test[row]}|{mark}\n".encode("utf-8", "surrogateescape")
        everything.update(line)
        parts[name].update(line)
        counts[name][test[row]] += 1
    groups = {name: Group(counts[name][0], counts[name][1], parts[name].hexdigest()[:16]) for name in sorted(counts)}
    return Content(everything.hexdigest(), groups)


def _domains(content: Content) -> set[str]:
    return {name.split("/")[0] for name in content.groups}
