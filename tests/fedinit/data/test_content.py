"""What lies in a place, whatever the place: equal for the same images, and its differences said in words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedinit.config.build import create
from fedinit.data import SOURCES
from fedinit.data.content import Content
from tests.support.trees import pack, plant

TREE = ("photo/cat", "photo/dog", "sketch/cat", "sketch/dog")


def content(root: Path, **options: object) -> Content:
    found = create("data", SOURCES, "image_folder", {"root": str(root), **options}).content()
    assert found is not None
    return found


@pytest.fixture
def tree(tmp_path) -> Path:
    return plant(tmp_path / "imgs", *TREE, count=4)


def test_a_folder_a_copy_of_it_a_link_to_it_and_a_zip_hold_the_same(tree, tmp_path, monkeypatch):
    whole = content(tree)
    assert sum(group.images for group in whole.groups.values()) == 16 and set(whole.groups) == set(TREE)
    (tmp_path / "link").symlink_to(tree)
    copy = plant(tmp_path / "elsewhere" / "copy", *TREE, count=4)
    os.utime(copy / "photo/cat/0.png", (1, 1))
    monkeypatch.chdir(tmp_path)
    places = ["imgs", "./imgs", "imgs/", "link", str(copy), str(pack(tree, tmp_path / "a.zip"))]
    places.append(str(pack(tree, tmp_path / "b.zip", lead="imgs/")))
    for place in places:
        for option in ("names", "bytes"):
            assert content(place, fingerprint=option) == content(tree, fingerprint=option)
    assert content(tree, fingerprint="bytes") != whole
    assert Content.from_json(json.loads(json.dumps(whole.to_json()))) == whole and not whole.changes(whole)


def test_what_a_run_leaves_out_does_not_count(tree):
    photos, cats = content(tree, domains=("photo",)), content(tree, classes=("cat", "dog"))
    plant(tree, "sketch/dog", count=6)
    assert content(tree, domains=("photo",)) == photos
    assert content(tree, classes=("cat", "dog")) != cats
    (tree / "photo/cat/notes.txt").write_text("not an image")
    assert content(tree, domains=("photo",)) == photos


def test_what_changed_is_said(tree):
    before = content(tree, test_fraction=0.5)

    def said(change) -> str:
        change()
        return content(tree, test_fraction=0.5).changes(before)

    assert said(lambda: plant(tree, "photo/dog", count=5)) == "photo/dog has 5 images, 4 before"
    assert said((tree / "photo/dog/4.png").unlink) == ""
    assert said(lambda: (tree / "sketch/cat/1.png").write_bytes(b"1")) == "sketch/cat has other files"
    assert said(lambda: plant(tree, "clip/cat", "clip/dog")) == "domain clip is new, sketch/cat has other files"
    for name in ("photo/cat", "photo/dog"):
        (tree / name / "0.png").write_bytes(b"0")
    told = said(lambda: plant(tree, "sketch/dog", count=7))
    assert told == "domain clip is new, photo/cat has other files, photo/dog has other files and 2 more"
    assert before.changes(content(tree)).startswith("domain clip is gone")


def test_another_split_and_bytes_of_the_same_size_are_seen(tree):
    rows = [f"{p.relative_to(tree).as_posix()},{'test' if p.stem == '0' else 'train'}" for p in tree.rglob("*.png")]
    (tree / "index.csv").write_text("\n".join(["path,split", *sorted(rows)]))
    before, whole = content(tree), content(tree, fingerprint="bytes")
    index = (tree / "index.csv").read_text()
    (tree / "index.csv").write_text(index.replace("photo/cat/1.png,train", "photo/cat/1.png,test"))
    assert content(tree).changes(before) == "photo/cat has 2 test images, 1 before"
    (tree / "index.csv").write_text(index)
    image = tree / "photo/dog/1.png"
    image.write_bytes(image.read_bytes()[:-1] + b"?")
    assert content(tree) == before, "by choice"
    assert content(tree, fingerprint="bytes").changes(whole) == "photo/dog has other files"


def test_sources_without_a_place_have_none():
    for name, options in (("digits", {}), ("matrix_sensing", {}), ("image_folder", {}), ("cifar10", {"root": "x"})):
        assert create("data", SOURCES, name, options).content() is None


@pytest.mark.parametrize("values", [None, 3, [], {}, {"digest": 1}, {"digest": "", "groups": {"a": {"train": 1}}}])
def test_values_of_another_shape_are_refused(values):
    with pytest.raises(ValueError, match="not the content"):
        Content.from_json(values)
