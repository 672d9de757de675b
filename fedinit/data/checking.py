"""What a folder, zip or table of images holds, looked at image by image: `fedinit data check`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fedinit.data.decoding import identity, reason
from fedinit.data.file_source import FileSource, linked_twice
from fedinit.data.listing import Listing
from fedinit.data.reporter import Reporter, counted, readable
from fedinit.data.splits import choose_sides
from fedinit.data.store import THREADS
from fedinit.data.tree import Tree
from fedinit.errors import InputError, machine_failed

SPLITS = ("train", "val", "test")
_CHUNK = 256  # images that are looked at before the next are listed
_NAMED = 3  # in the line that says what is wrong


@dataclass(frozen=True)
class Look:
    """What one file is. size: (width, height) in pixels; digest: of its pixels; why: it cannot be read, else empty."""

    bytes: int
    size: tuple[int, int] = (0, 0)
    digest: str = ""
    why: str = ""


@dataclass(frozen=True)
class Checked:
    """names, domains, classes, splits: of every image, the split as a run uses it. looks: what each file is.
    domain_names, class_names: sorted. remarks: what the names alone did not say."""

    names: Sequence[str]
    domains: Sequence[str]
    classes: Sequence[str]
    splits: Sequence[str]
    looks: Sequence[Look]
    domain_names: Sequence[str]
    class_names: Sequence[str]
    remarks: Sequence[str]

    def counts(self) -> Mapping[tuple[str, str, str], int]:
        """{(domain, class, split): images}; 0 for any other."""
        return Counter(zip(self.domains, self.classes, self.splits, strict=True))

    def unreadable(self) -> list[str]:
        """A line for every file that is no image."""
        each = zip(self.names, self.looks, strict=True)
        return [f"{name!r} cannot be read: {look.why}" for name, look in each if look.why]

    def shared(self) -> list[str]:
        """A line for every picture that is in more than one split, with its files."""
        places: dict[str, list[int]] = defaultdict(list)
        for row, look in enumerate(self.looks):
            if not look.why:
                places[look.digest].append(row)
        lines = []
        for rows in places.values():
            if len({self.splits[row] for row in rows}) > 1:
                lines.append("the same picture: " + ", ".join(f"{self.names[r]!r} ({self.splits[r]})" for r in rows))
        return lines

    def gaps(self) -> list[str]:
        """A line for every class and every domain that could not be trained or judged on."""
        counts = self.counts()
        trained = {kind for (_, kind, split), _ in counts.items() if split == "train"}
        sides = {(domain, split) for (domain, _, split) in counts}
        tested = {kind for (_, kind, split), _ in counts.items() if split != "train"}
        lines = [f"class {kind!r} has no training images" for kind in self.class_names if kind not in trained]
        lines += [f"class {kind!r} has no test images" for kind in self.class_names if kind not in tested]
        lines += [f"domain {d!r} has no training images" for d in self.domain_names if (d, "train") not in sides]
        judged = {domain for domain, split in sides if split != "train"}
        return lines + [f"domain {d!r} has no test images" for d in self.domain_names if d not in judged]

    def sizes(self) -> str:
        """The bytes of all files and the sizes of the pictures, in a line."""
        text = f"{counted(len(self.names), 'image')}, {readable(sum(look.bytes for look in self.looks))}"
        sizes = sorted((look.size for look in self.looks if not look.why), key=lambda size: size[0] * size[1])
        if sizes:
            small, middle, large = (f"{w}x{h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
            span = f"{small} to {large} pixels, half of them up to {middle}" if small != large else f"{small} pixels"
            text += f"; {span} (width x height)"
        return text

    def verdict(self, named: bool = True) -> str:
        """What is wrong, in one line; empty where nothing is. named: with the first of each kind."""
        kinds = {
            "image{s} cannot be read": self.unreadable(),
            "picture{s} in more than one split": self.shared(),
            "gap{s}": self.gaps(),
        }
        parts = []
        for what, lines in kinds.items():
            if lines:
                shown = f" ({'; '.join(lines[:_NAMED])}{'; …' * (len(lines) > _NAMED)})" if named else ""
                parts.append(f"{len(lines):,} {what.format(s='s' * (len(lines) != 1))}{shown}")
        return ", ".join(parts)


class Misfits(InputError):
    """What does not fit in a folder or table. lines: of each."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        few = "; ".join(lines[:_NAMED]) + "; …" * (len(lines) > _NAMED)
        super().__init__(lines[0] if len(lines) == 1 else f"{len(lines):,} things do not fit: {few}")


def check(source: FileSource, reporter: Reporter) -> Checked:
    """Every image of a source, read and decoded at its full size.

    Raises Misfits where it cannot be said what the images are, with all that stands in the way.
    """
    tree, listed = _listed(source)
    sides = choose_sides(listed.splits, listed.names, listed.domains, source.evaluate_on, source.test_fraction)
    splits = ["test" if t and s != "val" else s or "train" for s, t in zip(listed.splits, sides.test, strict=True)]
    if doubles := [*linked_twice(tree, listed, sides)]:
        raise Misfits(doubles)
    looks: list[Look] = []
    with reporter.progress(len(listed.names), "checking") as advance, ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(listed.names), _CHUNK):
            some = listed.names[first : first + _CHUNK]
            looks += pool.map(lambda name: _look(tree, name), some)
            advance(len(some))
    remarks = [*sides.remarks]
    if listed.passed_over:
        remarks.append(f"{counted(len(listed.passed_over), 'file')} passed over, such as {listed.passed_over[0]!r}")
    return Checked(
        listed.names,
        listed.domains,
        listed.classes,
        splits,
        looks,
        listed.domain_names,
        listed.class_names,
        remarks,
    )


def _listed(source: FileSource) -> tuple[Tree, Listing]:
    faults: list[InputError] = []
    try:
        found = source.listing(faults.append)
    except InputError as error:  # without what was passed over there may be nothing left
        if not faults:
            raise
        faults.append(error)
    else:
        if not faults:
            return found
    raise Misfits([str(fault) for fault in faults])


def _look(tree: Tree, name: str) -> Look:
    size = 0
    try:
        content = tree.read(name)
        size = len(content)
        if not content:
            return Look(0, why="the file is empty")
        return Look(size, *identity(content))
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        if machine_failed(error):
            raise
        return Look(size, why=reason(error))
