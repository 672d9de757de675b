"""What names mean a split, and which side of a run each image is on: trained on, evaluated on, or neither."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from fedinit.errors import InputError

Split = Literal["train", "val", "test"]

_MEANINGS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def meaning(name: str) -> Split | None:
    """The split that a name means, in any case; None for any other name."""
    return _MEANINGS.get(name.strip().lower())


_ROOTS: tuple[Split, ...] = ("train", "test", "val")
# Whole words that are used for a split, and for other things too.
_ALIKE: dict[str, Split] = {
    **dict.fromkeys(("tr", "trn", "seen"), "train"),
    **dict.fromkeys(("dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("te", "tst", "unseen", "holdout", "heldout"), "test"),
}


def looks_like(name: str) -> Split | None:
    """The split that a name seems to mean, by a word that begins or ends as one does: TrainImages, seg_test, valB.

    What `meaning` knows is among them; so are names that mean something else, such as trains, valley and contest.
    """
    parts = re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name) + re.findall("[a-z]+", name.lower())  # TestB and TESTset
    for word in map(str.lower, parts):
        if split := _ALIKE.get(word):
            return split
        for root in _ROOTS:
            if word.startswith(root) or word.endswith(root):
                return root
    return None


class Sides(NamedTuple):
    """test: for every image whether it is evaluated on. left_out: the split for which it is neither trained nor
    evaluated on; None: it is used. remarks: a line each, about what was not said by the names alone."""

    test: list[bool]
    left_out: list[Split | None]
    remarks: list[str]


def choose_sides(
    splits: Sequence[Split | None],
    names: Sequence[str],
    domains: Sequence[str],
    evaluate_on: Literal["auto", "val"],
    test_fraction: float,
) -> Sides:
    """The side of every image, decided domain by domain, so that a site with one domain decides as the whole would.

    Images are trained on where their split is train or none. Validation images are never trained on: a domain with test
    images leaves them out, another is evaluated on them. A domain with neither is evaluated on those of its images
    where the sha256 of the name, as a fraction of the largest, lies under `test_fraction`: so an image keeps its side
    when others are added.

    splits: of each image; None: none was named.
    names: of the images.
    domains: the name of each image's domain.
    evaluate_on: "val": validation images are evaluated on, and test images left out.

    Raises InputError for a domain without validation images where those are asked for.
    """
    test = [False] * len(splits)
    left_out: list[Split | None] = [None] * len(splits)
    members: dict[str, list[int]] = {}
    for row, domain in enumerate(domains):
        members.setdefault(domain, []).append(row)
    on_val, of_train, of_all = [], [], []
    for domain, rows in members.items():
        there = {splits[row] for row in rows}
        if evaluate_on == "val" and "val" not in there:
            raise InputError(f"data.evaluate_on=val: domain '{domain}' has no val images; use data.evaluate_on=auto")
        judged = "val" if evaluate_on == "val" or "test" not in there else "test"
        pool = None if None in there else "train"  # of which some are evaluated on where no split says which
        for row in rows:
            split = splits[row]
            test[row] = split == judged if judged in there else split == pool and _below(names[row], test_fraction)
            if split in ("val", "test") and split != judged:
                left_out[row] = split
        if judged not in there:
            (of_all if pool is None else of_train).append(domain)
        elif judged == "val" and "test" not in there:
            on_val.append(domain)
    remarks = []
    share = f"evaluated on {test_fraction:.0%} of"
    for where, said in (
        (on_val, "evaluated on val"),
        (of_train, f"{share} train, by name"),
        (of_all, f"{share} all, by name"),
    ):
        if where:
            place = "" if len(where) == len(members) else f" in {', '.join(where)}"
            remarks.append(f"no test images{place}: {said}")
    return Sides(test, left_out, remarks)


def _below(name: str, share: float) -> bool:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
