"""Lists of official releases say the split, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedinit.errors import InputError
from tests.support.trees import load_folder, pack, plant, sides

FOLDERS = ("clipart/cat", "clipart/dog", "real/cat", "real/dog")


def lines(domain: str, image: int, lead: str = "") -> str:
    return "".join(f"{lead}{domain}/{name}/{image}.png {number}\n" for number, name in enumerate(("cat", "dog")))


def lists(lead: str = "", folder: str = "") -> dict[str, str]:
    splits = (("train", 0), ("test", 1))
    return {f"{folder}{d}_{s}.txt": lines(d, i, lead) for d in ("clipart", "real") for s, i in splits}


@pytest.mark.parametrize("packed", [False, True])
def test_domainnets_lists_are_the_split_and_what_they_do_not_name_is_passed_over(tmp_path: Path, packed: bool) -> None:
    root = plant(tmp_path / "tree", *FOLDERS, count=3, files=lists())
    data = load_folder(pack(root, tmp_path / "a.zip", "DomainNet/") if packed else root)
    assert sides(data) == {(d, c): (1, 1) for d in ("clipart", "real") for c in ("cat", "dog")}


def test_nicos_lists_lie_in_a_folder_beside_the_images(tmp_path: Path) -> None:
    images = [f"NICO_DG/{name}" for name in FOLDERS]
    root = plant(tmp_path / "a", *images, files=lists("NICO_DG/", "NICO_DG_official/"))
    expected = {(d, c): (1, 1) for d in ("clipart", "real") for c in ("cat", "dog")}
    assert sides(load_folder(root)) == expected
    root = plant(tmp_path / "b", *FOLDERS, files=lists("/somewhere/NICO_DG/", "NICO_DG_official/"))
    assert sides(load_folder(root)) == expected


def test_lists_of_a_domain_that_is_not_there_are_passed_over(tmp_path: Path) -> None:
    root = plant(tmp_path, *FOLDERS[:2], files=lists())
    assert sides(load_folder(root)) == {("clipart", "cat"): (1, 1), ("clipart", "dog"): (1, 1)}


def test_splits_without_domains_have_lists_too(tmp_path: Path) -> None:
    files = {"train.txt": "clipart/cat/0.png\nclipart/dog/0.png\nreal/cat/0.png\nreal/dog/0.png\n"}
    files["val.txt"] = files["train.txt"].replace("0.png", "1.png")
    data = load_folder(plant(tmp_path, *FOLDERS, files=files))
    assert set(sides(data).values()) == {(1, 1)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"clipart_train.txt": "clipart/cat/9.png 0\n"}, "line 1 of 'clipart_train.txt': no image 'clipart/cat/9.png'"),
        ({"real_test.txt": "\nto be done\n"}, "line 2 of 'real_test.txt': no image 'to be done' there"),
        ({"train.csv": "path,label\nclipart/cat/0.png,0\n"}, "line 1 of 'train.csv': no image 'path,label' there"),
        ({"train_val.txt": "clipart/cat/0.png 0\n"}, "the name of 'train_val.txt' says train and val"),
        (
            {"index.csv": "path,split\nreal/cat/0.png,train\nreal/cat/0.png,test\n"},
            "line 3: 'real/cat/0.png' has a row",
        ),
        ({"index.csv": "path,split,split\nreal/cat/0.png,train,test\n"}, "has the column split 2 times"),
        ({"index.csv": 'path,split\nreal/cat/0.png,"train\n' + "x" * 140_000}, "begins on line 2 cannot be read"),
        (
            {"a_train.txt": lines("real", 0), "a_test.txt": lines("real", 0)},
            "'real/cat/0.png' is in the list of another split too",
        ),
        (
            {"a_train.txt": lines("real", 0), "b_train.txt": "clipart/dog/0.png 0\n"},
            "class 'dog' has number 0 here and 1 before",
        ),
        (
            {"a_train.txt": "real/cat/0.png 0\nreal/dog/0.png 0\n"},
            "line 2 of 'a_train.txt': number 0 is class 'dog' here and 'cat' before",
        ),
        ({"train.txt": lines("real", 0), "eval.txt": lines("real", 1)}, "'eval.txt' beside 'train.txt' looks like the"),
    ],
)
def test_a_list_that_cannot_be_followed_is_refused_by_name(tmp_path: Path, files: dict, message: str) -> None:
    root = plant(tmp_path, *FOLDERS, files=files)
    with pytest.raises(InputError) as caught:
        load_folder(root)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_goes_before_lists_and_not_against_folders(tmp_path: Path) -> None:
    index = "path,split\n" + "".join(f"{f}/{i}.png,{'train' if i else 'val'}\n" for f in FOLDERS for i in range(2))
    root = plant(tmp_path / "a", *FOLDERS, files={"index.csv": index, "clipart_train.txt": "nothing"})
    data = load_folder(root)
    assert set(sides(data).values()) == {(1, 1)}
    folders = ("train/cat", "train/dog", "test/cat", "test/dog")
    index = "path,split\n" + "".join(f"{f}/{i}.png,train\n" for f in folders for i in range(2))
    root = plant(tmp_path / "b", *folders, files={"index.csv": index})
    with pytest.raises(InputError, match="'test/cat/0.png' lies in a folder of the test split, and index.csv .* train"):
        load_folder(root)
