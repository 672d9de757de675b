"""Which folder above an image names its domain, its class and its split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from fedinit.data.names import composed
from fedinit.data.splits import Split, looks_like, meaning
from fedinit.data.tree import SHAPE, Tree
from fedinit.errors import InputError

Layout = Literal[
    "auto",
    "class",
    "domain/class",
    "split/class",
    "class/split",
    "domain/split/class",
    "split/domain/class",
    "domain/class/split",
]
ONE_DOMAIN = "all"  # the domain of a tree without domain folders


class Places:
    """What each of a tree's images is, by the folders above it.

    domains, classes: (n,) names. splits: (n,) the split that a folder names, None where no level is one of splits.
    """

    def __init__(self, images: Sequence[str], roles: Sequence[str]) -> None:
        parts = [dict(zip(roles, name.split("/"), strict=False)) for name in images]
        self.domains = [composed(part.get("domain", ONE_DOMAIN)) for part in parts]
        self.classes = [composed(part["class"]) for part in parts]
        self.splits: list[Split | None] = [meaning(part.get("split", "")) for part in parts]


def wrapper(images: Sequence[str], layout: Layout) -> str | None:
    """The one folder that all images lie in, above the levels that the layout has; None where there is none."""
    tops, depths = {name.split("/")[0] for name in images}, {name.count("/") for name in images}
    if len(tops) != 1 or len(depths) != 1:
        return None
    depth = depths.pop()
    levels = [{name.split("/")[level] for name in images} for level in range(depth)]
    expected = 2 + any(all(map(meaning, names)) for names in levels) if layout == "auto" else layout.count("/") + 1
    return tops.pop() if depth == expected + 1 else None


def find_roles(tree: Tree, images: Sequence[str], layout: Layout) -> tuple[str, ...]:
    """What the levels of folders above the images are, from the top: "domain", "class" or "split".

    A level is one of splits where all of its names mean a split. One such name among others is a class where it stands
    on the lowest level (DomainNet has trains), and refused elsewhere.

    images: their names, one or more.
    layout: "auto", or the levels as the configuration names them.

    Raises InputError where the images lie at different depths, or the names can be understood in two ways.
    """
    where = f"data.root={tree.root}"
    usual = Counter(name.count("/") for name in images).most_common(1)[0][0]
    depth = usual if layout == "auto" else layout.count("/") + 1
    for name in images:
        if name.count("/") != depth:
            wrong = f"{where}: image {name!r} lies at another depth; {_expected(layout)}: move it or delete it"
            tree.fault(InputError(wrong))
    images = [name for name in images if name.count("/") == depth]
    levels = [sorted({name.split("/")[level] for name in images}) for level in range(depth)]
    if layout == "auto":
        roles = _guess(tree, images, levels)
    else:
        roles = tuple(layout.split("/"))
    if "split" in roles:
        _refuse_unclear_splits(where, images, roles.index("split"))
    return roles


def _guess(tree: Tree, images: Sequence[str], levels: list[list[str]]) -> tuple[str, ...]:
    where, depth = f"data.root={tree.root}", len(levels)
    split_levels = [level for level, names in enumerate(levels) if all(map(meaning, names))]
    if len(split_levels) > 1:
        raise InputError(f"{where}: {images[0]!r} has two folders that name a split; say which with {_REMEDY}")
    plain = [level for level in range(depth) if level not in split_levels]
    for level in plain:
        _refuse_mixture(where, levels[level], lowest=level == depth - 1)
    if depth == 0 or (depth == 1 and split_levels):
        raise InputError(f"{where}: image {images[0]!r} lies at another depth; {SHAPE}: move it or delete it")
    if len(plain) > 2:
        raise tree.too_deep(images[0].rpartition("/")[0])
    if depth == 1:
        first = images[0]
        raise InputError(
            f"{where}: found class folders and no domain folders ({first!r}); {SHAPE}: put the class folders into one "
            f"for their domain, such as {'all/' + first!r}, or set data.layout=class, which makes them one domain"
        )
    roles = dict(zip(plain, ("domain", "class")[-len(plain) :], strict=True))
    return tuple(roles.get(level, "split") for level in range(depth))


_REMEDY = "data.layout=domain/class, split/class, domain/split/class or split/domain/class"


def _expected(layout: Layout) -> str:
    return SHAPE if layout == "auto" else f"data.layout={layout} expects data.root/{layout}/image.jpg"


def _refuse_mixture(where: str, names: Sequence[str], lowest: bool) -> None:
    """Raise InputError for a level on which some names mean a split, or all seem to, and no rule says what is meant."""
    exact = [name for name in names if meaning(name)]
    if exact and not (lowest and len({meaning(name) for name in exact}) == 1):
        other = next(name for name in names if not meaning(name))
        raise InputError(
            f"{where}: the folder {exact[0]!r} names a split, and {other!r} beside it does not; rename one, or say "
            f"what the folders are with {_REMEDY}"
        )
    near = [name for name in names if looks_like(name)]
    # On the lowest level a few such names among others are classes, such as trains and valley.
    if len({looks_like(name) for name in near}) > 1 and (len(near) == len(names) or not lowest):
        raise InputError(
            f"{where}: the folders {', '.join(map(repr, near[:3]))} look like splits; name them train, val and test, "
            f"or say what they are with {_REMEDY}"
        )


def _refuse_unclear_splits(where: str, images: Sequence[str], level: int) -> None:
    """Raise InputError for a name on the level of splits that means none, and for two of one parent that mean one."""
    seen: dict[tuple[str, Split], str] = {}
    for image in images:
        parts = image.split("/")
        name = parts[level]
        split = meaning(name)
        if split is None:
            raise InputError(f"{where}: the folder {name!r} of {image!r} names no split; expected train, val or test")
        other = seen.setdefault(("/".join(parts[:level]), split), name)
        if other != name:
            raise InputError(
                f"{where}: the folders {other!r} and {name!r} both mean the {split} split; make them one folder"
            )
