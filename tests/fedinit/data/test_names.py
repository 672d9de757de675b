"""Names that look the same are the same, in whichever way Unicode spells them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from fedinit.config.build import create
from fedinit.config.compose import compose_config
from fedinit.data import SOURCES
from tests.support.trees import load_folder, plant, sides

ONE, TWO = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def tree(root: Path, top: str = "p", count: int = 2, files: dict[str, str] | None = None) -> Path:
    """Three domains; of the names with an accent, those of one domain are composed and of the other are not."""
    names = [f"{top}/{ONE}", f"q/{TWO}", f"{top}/dog", "q/dog", f"{ONE}/dog", f"{TWO}/{ONE}"]
    return plant(root, *names, count=count, files=files)


def test_folders_are_one_class_and_one_domain(tmp_path: Path) -> None:
    data = load_folder(tree(tmp_path, count=12))
    assert ONE != TWO and data.class_names == (ONE, "dog") and data.domain_names == (ONE, "p", "q")


def test_chosen_names_are_found_however_they_are_spelled(tmp_path: Path) -> None:
    root = tree(tmp_path, count=12)
    for name in (ONE, TWO):
        data = load_folder(root, classes=("dog", name), domains=(name, "q"))
        assert data.class_names == ("dog", ONE) and data.domain_names == (ONE, "q") and len(data) == 48
    config = compose_config([f"partition.test_domains=[{TWO}]", "evaluation=server"])
    assert config.partition.test_domains == (ONE,)


@pytest.mark.parametrize("kind", ["index", "lists", "table"])
def test_lists_and_tables_may_spell_them_otherwise(tmp_path: Path, kind: str) -> None:
    folders = [f"p/{TWO}", "p/dog", f"q/{ONE}", "q/dog"]
    root = plant(tmp_path, *folders)
    rows = [(f"{folder}/{i}.png", "train" if i else "test") for folder in folders for i in range(2)]
    swapped = [(name.translate({0x301: None}).replace("cafe", ONE) if TWO in name else name, s) for name, s in rows]
    if kind == "index":
        (root / "index.csv").write_text("path,split\n" + "".join(f"{n},{s}\n" for n, s in swapped))
    elif kind == "lists":
        for split in ("train", "test"):
            (root / f"{split}.txt").write_text("".join(f"{n}\n" for n, s in swapped if s == split))
    if kind != "table":
        data = load_folder(root)
    else:
        table = root / "t.csv"
        lines = [f"{n},{n.split('/')[1]},{s}\n" for n, s in rows]
        table.write_text("path,label,split\n" + "".join(lines))
        data = create("data", SOURCES, "csv", {"root": str(table)}).load(3, (4, 4))
    assert data.class_names == (ONE, "dog")
    assert set(sides(data).values()) == ({(2, 2)} if kind == "table" else {(1, 1)})
