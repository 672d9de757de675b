"""A cache file that is deleted, cut short or changed gives the pixels of a whole one, in every process, or one line."""

from __future__ import annotations

import json
import pickle
import platform
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedinit.config.build import create
from fedinit.data import SOURCES
from fedinit.data.image_cache import ImageFile, MappedImages
from fedinit.errors import InputError

PAGE = 4096
ALL = torch.arange(24)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """24 images of 16-bit grey, from 100 to 3415: with another window they have other pixels."""
    draw = np.random.default_rng(0)
    for name in ("art/cat", "art/dog", "photo/cat", "photo/dog"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for i in range(6):
            pixels = draw.integers(100, 3416, (6, 6), dtype=np.uint16)
            pixels[0, :2] = 100, 3415
            Image.fromarray(pixels).save(tmp_path / f"tree/{name}/{i}.png")
    return tmp_path / "tree"


def load(root: Path, cache: str | Path | None) -> torch.Tensor | MappedImages:
    kept = {"cache": "never"} if cache is None else {"cache_dir": str(cache), "cache_above": 0.0}
    return (
        create("data", SOURCES, "image_folder", {"root": str(root), "test_fraction": 0.5, **kept})
        .load(1, (4, 4))
        .images
    )


def sent(images: Any) -> Any:
    """As an actor takes it."""
    return pickle.loads(pickle.dumps(images))


def header(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return json.loads(file.read(PAGE))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()  # as it is mapped here, cutting it would end the process
    path.write_bytes(content[: PAGE + 9])


def another_header(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(b"[]".ljust(PAGE) + content[PAGE:])


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (cut, "is damaged (its length is another)"),
        (another_header, "(its header cannot be read)"),
        (Path.unlink, "is gone"),
    ],
)
def test_a_process_that_was_sent_the_images_makes_the_file_anew_as_it_was(tree, tmp_path, caplog, harm, told) -> None:
    """Of what was prepared too, which the next run believes."""
    expected = load(tree, None)
    whole = load(tree, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    before = header(path)
    assert before["prepared"] == {"I": [100.0, 3415.0]}
    harm(path)
    there = sent(whole)
    assert torch.equal(there[ALL[:9]], expected[:9])
    assert header(path) == before and caplog.text.count(told) == 1 and "checksums differ" not in caplog.text
    assert torch.equal(sent(there)[ALL], expected), "and by the next"
    assert torch.equal(load(tree, tmp_path / "cache")[ALL], expected)
    assert caplog.text.count("again") == 1


def test_what_was_prepared_otherwise_is_not_believed(tmp_path: Path) -> None:
    path, shape = tmp_path / "x.images", (1, 2, 2)
    file = sent(ImageFile(path, "key", 2, shape, lambda: [1.0, 2.0]))
    path.unlink()
    ImageFile(path, "key", 2, shape, lambda: None).write(0, np.ones(shape, np.uint8))
    with pytest.raises(InputError, match="which is damaged .its header is another's"):
        file.read(np.arange(2))
    assert header(path)["prepared"] is None, "and stays, for whom it may be right"


@pytest.mark.parametrize("gone", ["source", "zip"])
def test_a_machine_with_neither_the_file_nor_its_images_is_told_in_one_line(tree, tmp_path, gone) -> None:
    root = tree
    if gone == "zip":
        root = tmp_path / "tree.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for path in sorted(tree.rglob("*.png")):
                archive.write(path, path.relative_to(tmp_path))
    whole = load(root, tmp_path / "cache")
    there = pickle.dumps(whole)
    (path,) = (tmp_path / "cache").iterdir()
    assert torch.equal(pickle.loads(there)[ALL], load(root, None))
    path.unlink()
    root.rename(tmp_path / "elsewhere")
    said = f"{path}: the images are in this file, which {platform.node()} has not; give data.cache_dir=... on a file"
    with pytest.raises(InputError, match=re.escape(said)):
        _ = pickle.loads(there)[:0]
    (tmp_path / "elsewhere").rename(root)
    assert torch.equal(pickle.loads(there)[ALL], load(root, None))


def test_images_that_changed_meanwhile_are_not_those_of_the_file(tree, tmp_path) -> None:
    there = pickle.dumps(load(tree, tmp_path / "cache"))
    (path,) = (tmp_path / "cache").iterdir()
    path.unlink()
    Image.fromarray(np.full((6, 6), 7, np.uint16)).save(tree / "art/cat/0.png")
    with pytest.raises(InputError, match="has not"):
        _ = pickle.loads(there)[:0]


def test_a_relative_folder_is_the_same_from_another_one(tree, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = pickle.dumps(load(tree, "cache"))
    expected = load(tree, None)
    tree.rename(tmp_path / "moved")  # the file itself is needed
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert torch.equal(pickle.loads(there)[ALL], expected)


def test_a_file_that_cannot_be_used_there_is_told_in_one_line(tree, tmp_path) -> None:
    there = pickle.dumps(load(tree, tmp_path / "cache"))
    (path,) = (tmp_path / "cache").iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=f"which {platform.node()} cannot use .*is a folder"):
        _ = pickle.loads(there)[:0]


def test_what_another_process_made_meanwhile_stays(tmp_path: Path) -> None:
    """Two find one file damaged; the slower one must not take the other's away."""
    path, shape = tmp_path / "x.images", (1, 2, 2)
    first = ImageFile(path, "key", 2, shape)
    slow, quick = sent(first), sent(first)
    cut(path)

    def meanwhile() -> bool:
        quick.read(np.arange(2))
        quick.write(1, np.ones(shape, np.uint8))
        return True

    quick._remade, slow._remade = lambda: True, meanwhile
    images, lacking = slow.read(np.arange(2))
    assert lacking.tolist() == [0] and images[1].all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ((b"3415.0", b"7415.0"), "is damaged (its header has changed): decoding again"),
        ((b'"checksum"', b'"checksun"'), "is damaged (its header has changed): decoding again"),
        ((b'"format": 2', b'"format": 1'), "is in the format of another fedinit: decoding again"),
    ],
)
def test_a_header_that_changed_is_not_believed(tree, tmp_path, caplog, change, told) -> None:
    """Of a file that is half filled: what is whole is whole by its checksums, whatever the header says."""
    expected = load(tree, None)
    load(tree, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    assert change[0] in content[:PAGE]
    half = content[:PAGE].replace(*change) + content[PAGE : PAGE + 48] + b"\0" * 48 + content[PAGE + 96 :]
    path.unlink()
    path.write_bytes(half)
    assert torch.equal(load(tree, tmp_path / "cache")[ALL], expected)
    assert told in caplog.text and ("damaged" in caplog.text) == ("damaged" in told)
