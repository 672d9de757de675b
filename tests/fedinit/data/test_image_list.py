"""`data=csv`: images by a table of paths, labels, domains and splits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedinit.config.build import create
from fedinit.config.compose import compose_config
from fedinit.data import SOURCES
from fedinit.data.dataset import Dataset
from fedinit.errors import InputError
from tests.support.trees import load_folder, plant, sides

FOLDERS = ("art/cat", "art/dog", "photo/cat", "photo/dog")


def load(table: Path, domain: str | None = None, **options: object) -> Dataset:
    return create("data", SOURCES, "csv", {"root": str(table), **options}).load(3, (4, 4), domain=domain)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The table of a tree, with a column that nobody reads, in no order."""
    plant(tmp_path, *FOLDERS, count=3)
    lines = ["Path,note,label,domain,split"]
    for folder in reversed(FOLDERS):
        domain, label = folder.split("/")
        lines += [f'./{folder}/{i}.png,"a, b",{label},{domain},{("train", "Val", "test")[i]}' for i in range(3)]
    (tmp_path / "index.csv").write_text("path,split\n")  # so that the folder cannot be read as one
    file = tmp_path / "table.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return file


def test_a_table_equals_a_folder_of_the_same_split(table: Path, tmp_path: Path) -> None:
    made = load(table)
    index = ["path,split", *(f"{f}/{i}.png,{('train', 'val', 'test')[i]}" for f in FOLDERS for i in range(3))]
    (tmp_path / "index.csv").write_text("\n".join(index))
    table.rename(tmp_path.parent / "table.csv")
    theirs = load_folder(tmp_path)
    for column in ("images", "labels", "domains", "test"):
        assert torch.equal(getattr(made, column), getattr(theirs, column)), column
    assert (made.class_names, made.domain_names) == (theirs.class_names, theirs.domain_names)
    assert set(sides(made).values()) == {(1, 1)}  # val is left out


def test_a_site_needs_the_files_of_its_own_domain_alone(table: Path) -> None:
    for image in (table.parent / "photo").glob("*/*"):
        image.unlink()
    made = load(table, domain="art", domains=("art", "photo"))
    assert len(made) == 4 and made.domains.unique().tolist() == [0]
    with pytest.raises(InputError, match="names 'photo/cat/0.png', which is not there"):
        load(table)


@pytest.mark.parametrize("linked", ["the_same.png", "other"])
def test_a_link_to_the_image_of_another_row_is_refused(table: Path, linked: str) -> None:
    target = table.parent / "art/cat/0.png"
    (table.parent / linked).symlink_to(target if linked.endswith("png") else target.parent)
    name = linked if linked.endswith("png") else f"{linked}/0.png"
    with table.open("a") as file:
        file.write(f"{name},,cat,art,test\n")
    with pytest.raises(InputError, match=f"'{name}' is the file of 'art/cat/0.png' by a symbolic link"):
        load(table)


def test_domain_and_split_may_be_absent_and_another_delimiter_is_seen(tmp_path: Path) -> None:
    plant(tmp_path, "cat", "dog", count=16)
    rows = [f"{name}/{i}.png;{name}" for name in ("cat", "dog") for i in range(16)]
    (tmp_path / "t.csv").write_text("\n".join(["path;label", *rows]))
    made = load(tmp_path / "t.csv", test_fraction=0.5)
    assert made.domain_names == ("all",) and 0 < int(made.test.sum()) < 32


def test_a_split_that_is_named_for_some_is_kept(tmp_path: Path) -> None:
    plant(tmp_path, "cat", "dog", count=16)
    rows = [f"{name}/{i}.png,{name},{'train' if i < 8 else ''}" for name in ("cat", "dog") for i in range(16)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    made = load(tmp_path / "t.csv", test_fraction=0.9)
    named = torch.tensor([int(row.split("/")[1].split(".")[0]) < 8 for row in sorted(rows)])
    assert not made.test[named].any() and made.test[~named].any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,class\na,b\n", "has the columns file, class; expected path and label among them"),
        ("path,label\n", "has no rows"),
        ("path,label\nart/cat/0.png,\n", "line 2: has no label"),
        ("path,label,domain\nart/cat/0.png,cat,\n", "line 2: has no domain"),
        ("path,label,split\nart/cat/0.png,cat,dev\n", "line 2: split='dev'; expected train, val or test, or nothing"),
        ("path,label\n../a.png,cat\n", "line 2: '../a.png' leads out of the table's folder"),
        ("path,label\n/a.png,cat\n", "line 2: '/a.png' leads out of the table's folder"),
        ("path,label\nart/cat/0.png,cat\n./art/cat/0.png,dog\n", "line 3: 'art/cat/0.png' has a row already"),
        ("path,label,label\nart/cat/0.png,cat,dog\n", "has the column label 2 times"),
        ('path,label\nart/cat/0.png,cat\nart/cat/1.png,"cat\nart/dog/0.png,dog\n', "begins on line 3 cannot be read"),
        ('path,label\nart/cat/0.png,"' + "x" * 140_000, "the row that begins on line 2 cannot be read"),
        ("path,label\nart/cat/0.png,cat, dog\n", "line 2 has 3 values for 2 columns"),
        ("", "is empty; expected path and label"),
        ("path,label,domain\nart/cat/0.png,cat\n", "line 2: has no domain"),
        ("path,label\nart/cat/9.png,cat\n", "names 'art/cat/9.png', which is not there"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_its_line(table: Path, text: str, said: str) -> None:
    table.write_text(text)
    with pytest.raises(InputError) as caught:
        load(table)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data.root is not set: expected a CSV file"):
        create("data", SOURCES, "csv", {}).load(3, (4, 4))
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path)
    assert compose_config(["data=csv", "data.root=x.csv"]).data.name == "csv"
