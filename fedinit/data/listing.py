"""The images of a tree with their domains, classes and splits: all that is known of them before one is opened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedinit.data.layout import Layout, Places, find_roles, wrapper
from fedinit.data.list_files import INDEX, list_files, read_index, read_lists
from fedinit.data.names import composed
from fedinit.data.splits import Split
from fedinit.data.tree import SHAPE, OnDisk, Tree, Zip
from fedinit.errors import InputError
from fedinit.pasted import pasted


@dataclass(frozen=True)
class Listing:
    """Row i of every column speaks of image i.

    names: below the root, sorted. splits: None where nothing names one.
    domain_names, class_names: all that there are folders of, sorted.
    passed_over: files that are no images, and images that no list names.
    """

    names: Sequence[str]
    domains: Sequence[str]
    classes: Sequence[str]
    splits: Sequence[Split | None]
    domain_names: Sequence[str]
    class_names: Sequence[str]
    passed_over: Sequence[str]

    def rows(self, rows: Sequence[int]) -> Listing:
        """The same of these rows alone."""
        return replace(
            self,
            names=[self.names[row] for row in rows],
            domains=[self.domains[row] for row in rows],
            classes=[self.classes[row] for row in rows],
            splits=[self.splits[row] for row in rows],
        )


def list_images(tree: Tree, suffixes: tuple[str, ...], layout: Layout, domains: Sequence[str] | None) -> Listing:
    """What the tree holds, by its folders, its index.csv or its lists.

    suffixes: of names that are images', in small letters. layout: as `find_roles` takes it.
    domains: whose class folders must not be empty; None: all.

    Raises InputError for a tree of another shape, and for a file that does not fit it.
    """
    images = [name for name in tree.files if name.lower().endswith(suffixes)]
    if not images:
        inside = [name for name in tree.files if name.lower().endswith(".zip")] if isinstance(tree, OnDisk) else []
        hint = f"; is {pasted(f'data.root={tree.root / inside[0]}')} meant?" if len(inside) == 1 else ""
        raise InputError(f"data.root={tree.root}: no images there; {SHAPE}, or a .zip of that{hint}")
    lists = list_files(tree, images)
    top = wrapper(images, layout)
    if top is not None and (isinstance(tree, Zip) or any(not file.startswith(f"{top}/") for file in lists)):
        tree.descend(top)
        images = [name.removeprefix(f"{top}/") for name in images]
        lists |= list_files(tree, images)
    roles = find_roles(tree, images, layout)
    images = [name for name in images if name.count("/") == len(roles)]
    places = Places(images, roles)
    domain_names, class_names = _folder_names(tree, places, roles, lists, domains)
    named: dict[str, Split] = {}
    if INDEX in tree.files:
        named = read_index(tree, images)
    elif lists:
        named = read_lists(tree, dict(zip(images, places.classes, strict=True)), lists)
    splits: list[Split | None] = [
        _agreed(tree, name, split, named.get(name)) for name, split in zip(images, places.splits, strict=True)
    ]
    rows = [row for row in range(len(images)) if not named or splits[row] is not None]
    used = {INDEX, *lists, *(images[row] for row in rows)}
    passed_over = [name for name in tree.files if name not in used]
    whole = Listing(images, places.domains, places.classes, splits, domain_names, class_names, passed_over)
    return whole.rows(rows)


def _agreed(tree: Tree, name: str, by_folder: Split | None, by_list: Split | None) -> Split | None:
    if by_folder is not None and by_list is not None and by_folder != by_list:
        raise InputError(
            f"data.root={tree.root}: {name!r} lies in a folder of the {by_folder} split, and {INDEX} or a list has it "
            f"in {by_list}; mend one of the two"
        )
    return by_list or by_folder


def _folder_names(
    tree: Tree, places: Places, roles: Sequence[str], lists: Iterable[str], domains: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """The names of the domains and of the classes, sorted. Raises InputError for a class folder of a domain that is
    used in which, in no split, there is an image."""
    only_lists = {name.rpartition("/")[0] for name in lists}
    folders = [f.split("/") for f in tree.folders if f not in only_lists]
    by_role = {
        role: {composed(parts[level]) for parts in folders if len(parts) > level} for level, role in enumerate(roles)
    }
    filled = set(zip(places.domains, places.classes, strict=True))
    for parts in folders:
        if len(parts) == len(roles):
            place = dict(zip(roles, map(composed, parts), strict=True))
            domain = place.get("domain", places.domains[0])
            if (domain, place["class"]) not in filled and (domains is None or domain in domains):
                wrong = f"{tree.where}: class folder {'/'.join(parts)!r} holds no images; add some, or delete it"
                tree.fault(InputError(wrong))
    return sorted(by_role.get("domain", {places.domains[0]})), sorted(by_role["class"])
