"""Folders whose names mean a split are splits, wherever they stand; what can be understood in two ways is refused."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import pytest
from rich.console import Console

from fedinit.config.build import create
from fedinit.data import SOURCES
from fedinit.errors import InputError
from tests.support.trees import load_folder, pack, plant, sides

WORDS = [("train", "val"), ("Train", "Validation"), ("training", "VALID"), ("TRAIN", "test"), ("Training", "Testing")]
TWO = {("all", "cat"): (2, 2), ("all", "dog"): (2, 2)}


def names(*levels: tuple[str, ...]) -> list[str]:
    """All paths through the levels."""
    return ["/".join(parts) for parts in itertools.product(*levels)]


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_folder(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("words", WORDS)
def test_split_over_class_is_one_domain_and_the_other_split_is_not_trained_on(tmp_path: Path, words) -> None:
    data = load_folder(plant(tmp_path, *names(words, ("cat", "dog"))))
    assert data.domain_names == ("all",) and sides(data) == TWO


@pytest.mark.parametrize("layout", ["domain/split/class", "split/domain/class", "domain/class/split"])
@pytest.mark.parametrize("packed", [None, "", "ds/"])
def test_a_split_stands_on_any_level(tmp_path: Path, layout: str, packed: str | None) -> None:
    levels = {"domain": ("art", "photo"), "split": ("train", "test"), "class": ("cat", "dog", "train")}
    if layout.endswith("split"):
        levels["class"] = ("cat", "dog", "truck")
    root = plant(tmp_path / "tree", *names(*(levels[role] for role in layout.split("/"))))
    root = root if packed is None else pack(root, tmp_path / "tree.zip", packed)
    expected = {(d, c): (2, 2) for d in levels["domain"] for c in levels["class"]}
    assert sides(load_folder(root)) == expected
    assert sides(load_folder(root, layout=layout)) == expected
    assert sides(load_folder(root, domains=["photo"])) == {k: v for k, v in expected.items() if k[0] == "photo"}


def test_val_is_left_out_beside_test_or_evaluated_on_when_asked_or_alone(tmp_path: Path) -> None:
    root = plant(tmp_path, *names(("train",), ("cat", "dog")), count=3)
    plant(root, *names(("val",), ("cat", "dog")), count=2)
    assert said(root) == ["data: 10 images, 2 classes, 1 domain", "data: no test images: evaluated on val"]
    assert sides(load_folder(root)) == {("all", "cat"): (3, 2), ("all", "dog"): (3, 2)}
    plant(root, *names(("test",), ("cat", "dog")), count=1)
    assert sides(load_folder(root)) == {("all", "cat"): (3, 1), ("all", "dog"): (3, 1)}
    assert said(root)[1].startswith("data: 4 val images are neither trained nor evaluated on; data.evaluate_on=val")
    assert sides(load_folder(root, evaluate_on="val")) == {("all", "cat"): (3, 2), ("all", "dog"): (3, 2)}


def said(root: Path, **options: object) -> list[str]:
    console = Console(file=io.StringIO(), width=40)
    create("data", SOURCES, "image_folder", {"root": str(root), **options}).load(3, (4, 4), console=console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_domains_decide_for_themselves_and_training_images_alone_are_split_by_name(tmp_path: Path) -> None:
    root = plant(tmp_path, *names(("art", "photo"), ("train",), ("cat", "dog")), count=16)
    plant(root, *names(("art",), ("val",), ("cat", "dog")))
    data = load_folder(root, test_fraction=0.5)
    assert sides(data)[("art", "cat")] == (16, 2)
    train, test = sides(data)[("photo", "cat")]
    assert train + test == 16 and 0 < test < 16
    lines = said(root, test_fraction=0.5)
    assert lines[1:] == [
        "data: no test images in art: evaluated on val",
        "data: no test images in photo: evaluated on 50% of train, by name",
    ]


def test_a_lone_word_among_classes_is_a_class(tmp_path: Path) -> None:
    root = plant(tmp_path, *names(("art", "photo"), ("bus", "train")), count=8)
    assert load_folder(root, test_fraction=0.5).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (names(("train", "val", "extra"), ("cat", "dog")), "'train' names a split, and 'extra' beside it does not"),
        (names(("photo", "art", "test"), ("cat", "dog")), "'test' names a split, and 'art' beside it does not"),
        (names(("photo",), ("train", "test", "dog")), "names a split, and 'dog' beside it does not"),
        (names(("Train", "train", "val"), ("cat", "dog")), "'Train' and 'train' both mean the train split"),
        (names(("a", "b"), ("train", "val", "validation"), ("cat", "dog")), "both mean the val split"),
        (names(("train", "val"), ("train", "test"), ("cat", "dog")), "two folders that name a split"),
        (names(("seg_train", "seg_test"), ("cat", "dog")), "'seg_test', 'seg_train' look like splits"),
        (names(("train2017", "val2017"), ("cat", "dog")), "look like splits"),
        ([*names(("a",), ("train", "test"), ("cat", "dog")), "b/cat"], "'b/cat/0.png' lies at another depth"),
    ],
)
def test_what_can_be_understood_in_two_ways_is_refused(tmp_path: Path, folders: list[str], message: str) -> None:
    assert message in refusal(plant(tmp_path, *folders))


def test_a_layout_settles_what_is_unclear(tmp_path: Path) -> None:
    root = plant(tmp_path / "a", *names(("photo", "art", "test"), ("cat", "dog")), count=8)
    assert load_folder(root, layout="domain/class").domain_names == ("art", "photo", "test")
    root = plant(tmp_path / "b", *names(("cat", "dog")), count=8)
    assert load_folder(root, layout="class").domain_names == ("all",)
    assert "found class folders and no domain folders" in refusal(root)
    assert "data.layout=split/class expects data.root/split/class/image.jpg" in refusal(root, layout="split/class")
    root = plant(tmp_path / "c", *names(("train", "rest"), ("cat", "dog")))
    assert "'rest' of 'rest/cat/0.png' names no split" in refusal(root, layout="split/class")
    assert "did you mean 'domain/class'?" in refusal(root, layout="domain-class")


def test_a_level_too_deep_proposes_no_root_that_leaves_a_split_outside(tmp_path: Path) -> None:
    root = plant(tmp_path / "a", *names(("set",), ("art", "photo"), ("cat", "dog")))
    assert f"is data.root={root}/set meant?" in refusal(root)
    root = plant(tmp_path / "b", *names(("train", "val"), ("set",), ("art", "photo"), ("cat", "dog")))
    assert "level too deep" in refusal(root) and "meant?" not in refusal(root)
    root = plant(tmp_path / "c", *names(("set",), ("art", "photo"), ("train", "val"), ("cat", "dog")))
    assert f"is data.root={root}/set meant?" in refusal(root)
    assert sides(load_folder(root / "set"))["art", "cat"] == (2, 2)


def test_a_class_folder_may_be_empty_in_one_split_and_not_in_all(tmp_path: Path) -> None:
    root = plant(tmp_path, *names(("train", "test"), ("cat", "dog")))
    for image in (root / "test" / "dog").iterdir():
        image.unlink()
    assert sides(load_folder(root))["all", "dog"] == (2, 0)
    (root / "train" / "eel").mkdir()
    assert "class folder 'train/eel' holds no images" in refusal(root)


PAIRS = [("TrainImages", "TestImages"), ("testset", "trainset"), ("tr", "te"), ("trn", "tst"), ("seen", "unseen")]
PAIRS += [("trainB", "testB", "valB"), ("mytrain", "mytest"), ("X_train", "X_test"), ("TRAINset", "VALset")]


@pytest.mark.parametrize("words", PAIRS)
def test_names_that_look_like_splits_are_refused_on_any_level_and_no_root_leads_past_them(
    tmp_path: Path, words
) -> None:
    shapes = [(words, ("a", "b")), (("p", "q"), words, ("a", "b")), (words, ("p", "q"), ("a", "b"))]
    for i, shape in enumerate([*shapes, (("h",), ("p", "q"), words, ("a", "b"))]):
        said = refusal(plant(tmp_path / str(i), *names(*shape), count=1))
        assert "meant?" not in said and ("look like splits" in said or "level too deep" in said)
    assert load_folder(plant(tmp_path / "0", count=1), layout="domain/class", test_fraction=0.9)


def test_other_folders_beside_what_looks_like_splits_do_not_hide_them(tmp_path: Path) -> None:
    root = plant(tmp_path / "a", *names(("TrainImages", "TestImages", "more"), ("a", "b")))
    assert "'TestImages', 'TrainImages' look like splits" in refusal(root)
    root = plant(tmp_path / "b", *names(("art", "photo"), ("valley", "trains", "dog")), count=8)
    assert load_folder(root).class_names == ("dog", "trains", "valley")


def test_of_several_folders_that_lie_too_high_none_is_proposed(tmp_path: Path) -> None:
    said = refusal(plant(tmp_path, *names(("here", "there"), ("art", "photo"), ("cat", "dog"))))
    assert "level too deep" in said and "meant?" not in said


def test_a_name_that_is_not_utf8_is_refused_where_it_is_listed(tmp_path: Path) -> None:
    plant(tmp_path, *names(("p",), ("a", "b")))
    try:
        (tmp_path / "p" / os.fsdecode(b"a\xff")).mkdir()
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    said = refusal(tmp_path)
    assert "'p/a\\udcff' is not UTF-8" in said and said.isprintable()


def test_a_class_that_is_evaluated_on_and_never_trained_on_is_named(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/cat", "train/eel", "test/cat", "test/dog")
    assert said(root)[-1] == "data: 1 of the classes have test images and none to train on: dog"
    assert len(said(plant(root, "train/dog"))) == 1
