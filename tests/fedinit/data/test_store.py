"""Decoded images in a mapped file: the same bytes as in memory, each decoded once, whoever stops or breaks what."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from clients import batches
from clients.loader import BankLoader
from fedinit.config.build import create
from fedinit.data import SOURCES, image_files, store
from fedinit.data.arrays import Arrays
from fedinit.data.dataset import Dataset
from fedinit.data.image_cache import ImageFile, MappedImages, default_folder
from fedinit.data.store import Keeping, Store
from fedinit.errors import InputError
from tests.support.trees import plant

FOLDERS = ("art/cat", "art/dog", "photo/cat", "photo/dog")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Sixty images of noise, fifteen in each of four folders."""
    draw = np.random.default_rng(0)
    for name in FOLDERS:
        (tmp_path / "tree" / name).mkdir(parents=True)
        for i in range(15):
            Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(tmp_path / f"tree/{name}/{i:02}.png")
    return tmp_path / "tree"


def load(root: Path, cache: Path | None = None, size: int = 4, **options: object) -> tuple[Dataset, list[str]]:
    """The data, mapped where there is a cache, and what was said."""
    console = Console(file=io.StringIO(), width=20)
    given = {"root": str(root), "test_fraction": 0.5, **options}
    given |= {"cache": "never"} if cache is None else {"cache_dir": str(cache), "cache_above": 0.0}
    data = create("data", SOURCES, "image_folder", given).load(3, (size, size), console=console)
    return data, console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was decoded."""
    calls: list[bytes] = []
    real = image_files.decode

    def counting(content: bytes, *rest: object) -> np.ndarray:
        calls.append(content)
        return real(content, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(image_files, "decode", counting)
    return calls


def test_mapped_images_are_those_in_memory_however_they_are_indexed(tree: Path, tmp_path: Path) -> None:
    for options in ({}, {"domains": ("photo",)}, {"classes": ("dog", "cat"), "validation_fraction": 0.3}):
        held, _ = load(tree, **options)
        mapped, _ = load(tree, tmp_path / "cache", **options)
        assert isinstance(mapped.images, MappedImages) and isinstance(held.images, torch.Tensor)
        assert mapped.images.shape == held.images.shape and len(mapped) == len(held)
        rows = torch.tensor([[3, 1], [4, 1]])
        for index in (rows, rows[0], 2, slice(3, 9), mapped.test, torch.tensor([], dtype=torch.int64)):
            assert torch.equal(mapped.images[index], held.images[index])
        for column in ("labels", "domains", "test"):
            assert torch.equal(getattr(mapped, column), getattr(held, column))
    assert len(list((tmp_path / "cache").iterdir())) == 1  # one file, whatever is chosen


def test_a_bank_sees_the_same_batches(tree: Path, tmp_path: Path) -> None:
    spec = SimpleNamespace(normalise=lambda images, device: images.float())
    settings = SimpleNamespace(epochs=1, max_steps=2, batch_size=5, augment="crop_flip")
    tasks = [
        SimpleNamespace(client=c, round=1, examples=torch.arange(20) + 20 * c, features=None, mute=False)
        for c in (0, 1)
    ]
    seen = []
    for data in (load(tree)[0], load(tree, tmp_path / "cache")[0]):
        loader = BankLoader(tasks, data, spec, settings, 0, torch.device("cpu"))  # type: ignore[arg-type]
        assert not loader.failures.mute
        seen.append(loader.images(batches.join([plan[0] for plan in loader._plans], 5), 0))
    assert torch.equal(*seen) and seen[0].any()


def test_every_image_is_decoded_once_and_the_start_says_where_they_come_from(tree, tmp_path, decoded) -> None:
    cache = tmp_path / "cache"
    _, said = load(tree, cache, domains=("art",))
    assert len(decoded) == 30
    assert said[2] == f"data: decoding 30 of 30 images, 1.4 kB, into cache {cache}"
    _, said = load(tree, cache)
    assert len(decoded) == 60
    _, said = load(tree, cache)
    assert len(decoded) == 60 and said[2] == f"data: 60 images, 2.9 kB, from cache {cache}"
    moved = tree.rename(tmp_path / "moved")
    load(moved, cache)
    assert len(decoded) == 60  # known by what is in it, not by its place


def test_what_is_another_image_or_another_transform_is_decoded_anew(tree, tmp_path, decoded, monkeypatch) -> None:
    cache = tmp_path / "cache"
    load(tree, cache)
    for options in ({"size": 5}, {"grey_range": "full"}):
        decoded.clear()
        load(tree, cache, **options)
        assert len(decoded) == 60, options
    image = tree / "art/cat/00.png"
    before, status = image.read_bytes(), image.stat()
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(image)
    assert image.stat().st_size == status.st_size and image.read_bytes() != before
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))  # same name, size and time
    assert torch.equal(load(tree, cache)[0].images[:], load(tree)[0].images)
    monkeypatch.setattr("PIL.__version__", "0")
    decoded.clear()
    load(tree, cache)
    assert len(decoded) == 60


def test_a_stop_keeps_what_was_decoded(tree, tmp_path, decoded, monkeypatch) -> None:
    expected = load(tree)[0].images
    counting, left = image_files.decode, iter(range(25))

    def stopping(*given: object) -> np.ndarray:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return counting(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(image_files, "decode", stopping)
    monkeypatch.setattr(image_files.ImageFiles, "chunk", 5)
    monkeypatch.setattr(store, "THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        load(tree, tmp_path / "cache")
    monkeypatch.setattr(image_files, "decode", counting)
    decoded.clear()
    assert torch.equal(load(tree, tmp_path / "cache")[0].images[:], expected)
    assert len(decoded) == 35


def test_two_at_once_share_one_file(tmp_path: Path) -> None:
    path, pixels = tmp_path / "x.images", np.arange(48, dtype=np.uint8).reshape(4, 3, 2, 2)
    ours, theirs = (ImageFile(path, "key", 4, (3, 2, 2)) for _ in range(2))
    ours.write(1, pixels[1])
    theirs.write(3, pixels[3])
    for file in (ours, theirs, ImageFile(path, "key", 4, (3, 2, 2))):
        assert file.missing(np.arange(4)).tolist() == [0, 2]
        images, damaged = file.read(np.array([3, 1]))
        assert np.array_equal(images.numpy(), pixels[[3, 1]]) and not len(damaged)
    assert len(list(tmp_path.iterdir())) == 1
    other = ImageFile(path, "another key", 4, (3, 2, 2))  # the negative control
    assert other.missing(np.arange(4)).tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_two_processes_fill_one_file(tree: Path, tmp_path: Path) -> None:
    import multiprocessing

    pool = multiprocessing.get_context("spawn").Pool(2)
    with pool:
        sums = pool.starmap(_sum_of, [(tree, tmp_path / "cache")] * 4)
    assert set(sums) == {int(load(tree)[0].images.long().sum())}
    assert len(list((tmp_path / "cache").iterdir())) == 1


def _sum_of(root: Path, cache: Path) -> int:
    return int(load(root, cache)[0].images[:].long().sum())


def test_pixels_that_changed_on_disk_are_decoded_again(tree, tmp_path, decoded, caplog) -> None:
    expected = load(tree)[0].images
    load(tree, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    decoded.clear()
    data, _ = load(tree, tmp_path / "cache")
    assert torch.equal(data.images[:], expected) and len(decoded) == 1
    assert "is damaged (checksums differ): decoding again" in caplog.text
    assert torch.equal(load(tree, tmp_path / "cache")[0].images[:], expected) and len(decoded) == 1


@pytest.mark.parametrize("after", [0, 20])
def test_a_disk_that_fills_up_leaves_the_rest_to_memory(tree, tmp_path, decoded, monkeypatch, after: int) -> None:
    expected, write, left = load(tree)[0].images, ImageFile.write, [after]

    def full(self: ImageFile, row: int, pixels: np.ndarray) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, row, pixels)

    monkeypatch.setattr(ImageFile, "write", full)
    monkeypatch.setattr(image_files.ImageFiles, "chunk", 1)
    data, said = load(tree, tmp_path / "cache")
    assert torch.equal(data.images, expected)
    assert said[-1].endswith("cannot be used (No space left on device): the images are held in memory, 2.9 kB")
    left[0] = 0
    monkeypatch.setattr(store, "free_memory", lambda: 100)
    with pytest.raises(InputError, match="No space left on device.*do not fit into memory; make room there"):
        load(tree, tmp_path / "cache")

    def refused(*_) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(ImageFile, "write", refused)
    with pytest.raises(
        InputError, match=r"cannot be written to \(Read-only.*do not fit into memory; give another folder"
    ):
        load(tree, tmp_path / "cache")
    monkeypatch.setattr(ImageFile, "write", write)
    decoded.clear()
    load(tree, tmp_path / "cache")
    assert len(decoded) == 60 - after  # nothing lost


@pytest.mark.parametrize("header", [b"[" * 4096, b"[]", b"\xff" * 9], ids=["deep", "list", "bytes"])
def test_a_file_with_a_header_that_is_none_is_made_anew(tree, tmp_path, header) -> None:
    expected, _ = load(tree, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.images")
    file.write_bytes(header.ljust(4096) + file.read_bytes()[4096:])
    assert torch.equal(load(tree, tmp_path / "cache")[0].images[:], expected.images[:])


def test_no_room_is_seen_before_hours_of_decoding(tree, tmp_path, decoded, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    monkeypatch.setattr(store, "free_memory", lambda: 100)
    with pytest.raises(InputError, match="no room left"):
        load(tree, tmp_path / "cache")
    with pytest.raises(InputError, match="data.cache=never: 60 images, 2.9 kB, do not fit into the 0.1 kB of memory"):
        load(tree)
    assert not decoded


def test_the_default_is_a_file_above_a_size_in_the_users_cache_folder(tree, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "fedinit"
    options = {"root": str(tree), "test_fraction": 0.5}
    size = 60 * 3 * 4 * 4
    for above, cache, files in [(size, "auto", 0), (0, "never", 0), (size - 1, "auto", 1), (1e9, "always", 1)]:
        data = create("data", SOURCES, "image_folder", options | {"cache_above": float(above), "cache": cache})
        images = data.load(3, (4, 4)).images
        assert isinstance(images, MappedImages) == (above == size - 1)
        place = tmp_path / "xdg" / "fedinit"
        assert len(list(place.iterdir()) if place.exists() else []) == files
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to pass over
    assert default_folder().is_absolute()


# Images that cannot be read


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_images_are_all_listed_and_may_be_left_out(tree, tmp_path, cached, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache = tmp_path / "cache" if cached else None
    whole = load(tree)[0]
    for i in range(5):
        (tree / f"art/cat/{i:02}.png").write_bytes(b"broken" * i)
    with pytest.raises(InputError) as caught:
        load(tree, cache)
    text = str(caught.value)
    assert "cannot read 'art/cat/00.png' (the file is empty), 'art/cat/01.png' (" in text and "\n" not in text
    listed = Path(text.partition("and 2 more, all listed in ")[2].partition(";")[0])
    assert [line.split("'")[1] for line in listed.read_text().splitlines()] == [f"art/cat/{i:02}.png" for i in range(5)]
    assert text.endswith("or go on without them by data.skip_unreadable=true")
    data, said = load(tree, cache, skip_unreadable=True)
    assert torch.equal(data.images[:], whole.images[5:]) and torch.equal(data.labels, whole.labels[5:])
    assert torch.equal(data.test, whole.test[5:])
    assert said[-1].startswith("data: 5 images left out, which cannot be read: 'art/cat/00.png'")


def test_a_class_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    root = plant(tmp_path, *FOLDERS, count=8)
    for image in root.glob("*/cat/*.png"):
        image.write_bytes(b"")
    with pytest.raises(InputError, match="class 'cat' has no images in art, photo"):
        load(root, skip_unreadable=True)


# What is resized


def test_arrays_are_resized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    keeping, rows = Keeping(above=0, folder=str(tmp_path)), torch.arange(40)
    held, _ = Store(Arrays(pixels, 3, (12, 12), "data"), Keeping(cache="never")).fetch(rows, None)
    mapped, _ = Store(Arrays(pixels, 3, (12, 12), "data"), keeping).fetch(rows, None)
    assert torch.equal(mapped[:], held)
    monkeypatch.setattr(Arrays, "decode", None)  # a call would fail
    again, _ = Store(Arrays(pixels.copy(), 3, (12, 12), "data"), keeping).fetch(rows, None)
    assert torch.equal(again[:], held)
    with pytest.raises(TypeError):
        Store(Arrays(255 - pixels, 3, (12, 12), "data"), keeping).fetch(rows, None)


def test_a_terminal_shows_a_bar(tree: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    options = {"root": str(tree), "test_fraction": 0.5, "cache_dir": str(tmp_path / "cache")}
    create("data", SOURCES, "image_folder", options).load(3, (4, 4), console=console)
    assert "data: decoding" in console.file.getvalue() and "60/60" in console.file.getvalue()  # type: ignore[attr-defined]
