"""Files at the top of a tree that say which images are of which split: index.csv, and the lists of official releases.

index.csv has the columns `path` and `split`; other columns are not read. A list is a text file whose name says the
split, such as DomainNet's clipart_train.txt or NICO++'s NICO_DG_official/autumn_test.txt, with an image a line, a path
and a class number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fedinit.data.names import composed
from fedinit.data.splits import Split, looks_like, meaning
from fedinit.data.table import read_table
from fedinit.data.tree import Tree
from fedinit.errors import InputError

INDEX = "index.csv"
_SUFFIXES = (".txt", ".lst", ".csv", ".tsv")
_WORDS: Mapping[str, Split] = {"trainval": "train", "crossval": "val"}  # beside those that name a folder


class ListFile(NamedTuple):
    """The lines of a list that hold something, with their numbers, and the split of the images on them."""

    split: Split
    lines: list[tuple[int, str]]


def list_files(tree: Tree, images: Sequence[str]) -> dict[str, ListFile]:
    """The lists at the top of the tree, or in a folder there that has no images, by name.

    Raises InputError for a name that says two splits, one that seems to say one beside lists, and for what is no text.
    """
    with_images = {name.split("/")[0] for name in images}
    lists: dict[str, ListFile] = {}
    unclear: list[str] = []
    for name in tree.files:
        folder, _, file = name.rpartition("/")
        if not file.lower().endswith(_SUFFIXES) or folder.count("/") or folder in with_images or name == INDEX:
            continue
        words = re.findall("[a-z]+", file.lower().rpartition(".")[0])
        splits: set[Split] = {split for word in words if (split := meaning(word) or _WORDS.get(word))}
        if len(splits) > 1:
            said = " and ".join(sorted(splits))
            raise InputError(f"{tree.where}: the name of {name!r} says {said}; expected one split, rename it")
        if splits:
            lists[name] = read_list(tree, name, splits.pop())
        elif looks_like(file.rpartition(".")[0]):
            unclear.append(name)
    if lists and unclear and INDEX not in tree.files:
        raise InputError(
            f"{tree.where}: {unclear[0]!r} beside {next(iter(lists))!r} looks like the list of a split; name "
            "it train, val or test, or move it out of data.root"
        )
    return lists


def read_list(tree: Tree, name: str, split: Split) -> ListFile:
    """The file of that name, whose images are of that split. Raises InputError for what is no text."""
    try:
        lines = tree.read(name).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{tree.where}: {name!r} cannot be read ({error}); expected UTF-8") from error
    return ListFile(split, [(i, x.strip()) for i, x in enumerate(lines, 1) if x.strip()])


def read_index(tree: Tree, images: Sequence[str]) -> dict[str, Split]:
    """{image: split} by index.csv.

    Raises InputError for one that cannot be read, names what is absent, has an image twice, or leaves one out.
    """
    where = f"{tree.where}: {INDEX}"
    splits: dict[str, Split] = {}
    spelled = _spellings(images)
    for line, row in read_table(where, tree.read(INDEX), ("path", "split")):
        name, word = row["path"], row["split"]
        name = spelled.get(name) or spelled.get(composed(name), name)
        split = meaning(word)
        if split is None:
            raise InputError(f"{where} has split={word!r} for {name!r}; expected train, val or test")
        if name in splits:
            raise InputError(f"{where}: line {line}: {name!r} has a row already; delete one of the two")
        splits[name] = split
    absent, unlisted = set(splits) - set(images), set(images) - set(splits)
    if absent:
        raise InputError(f"{where} names {min(absent)!r}, which is not there; add the file or delete its line")
    if unlisted:
        raise InputError(f"{where} does not name {min(unlisted)!r}; add a line for it, or delete the image")
    return splits


def read_lists(tree: Tree, classes: Mapping[str, str], lists: Mapping[str, ListFile]) -> dict[str, Split]:
    """{image: split} by the lists; an image that none of them names is absent.

    A line's path may begin with folders above the root. Lines about a domain that is not in the tree are passed over.

    classes: {image: the name of its class}, of all images.

    Raises InputError for a list that cannot be read, by its name and line, and for an image that two lists name.
    """
    depth = next(iter(classes)).count("/") + 1
    tops = {composed(name.split("/")[0]) for name in classes}
    spelled = _spellings(classes)
    splits: dict[str, Split] = {}
    numbers: dict[str, str] = {}
    kinds: dict[str, str] = {}  # the inverse
    for file, (split, lines) in lists.items():
        for number, line in lines:
            where = f"{tree.where}: line {number} of {file!r}"
            path, label = parse_line(line)
            parts = path.replace("\\", "/").split("/")[-depth:]
            name = "/".join(parts)
            name = spelled.get(name) or spelled.get(composed(name), name)
            if name not in classes:
                is_plain = len(parts) == depth and not {"", ".", ".."} & set(parts)
                if is_plain and composed(parts[0]) not in tops:
                    continue
                raise InputError(
                    f"{where}: no image {path!r} there; by its name the file lists the images of a split, one a line: "
                    "add the image, mend the list, or move the file elsewhere"
                )
            if splits.setdefault(name, split) != split:
                raise InputError(
                    f"{where}: {name!r} is in the list of another split too; delete one of the two lines, or give an "
                    f"{INDEX} with the columns path and split in place of the lists"
                )
            kind = classes[name]
            if label and numbers.setdefault(kind, label) != label:
                raise InputError(f"{where}: class {kind!r} has number {label} here and {numbers[kind]} before; mend it")
            if label and kinds.setdefault(label, kind) != kind:
                raise InputError(f"{where}: number {label} is class {kind!r} here and {kinds[label]!r} before; mend it")
    return splits


def _spellings(images: Iterable[str]) -> dict[str, str]:
    """{an image's name, as it is or in one spelling: as it is}."""
    images = list(images)
    return {composed(name): name for name in images} | {name: name for name in images}


def parse_line(line: str) -> tuple[str, str]:
    """The path and the class number of a line such as `clipart/dog/1.jpg 3`; the number may be missing."""
    numbered = re.fullmatch(r"(.+?)[\s,;]+(\d+)", line)
    return (numbered[1], numbered[2]) if numbered else (line, "")
