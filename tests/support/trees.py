"""Trees of tiny images, written by their names."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from fedinit.config.build import create
from fedinit.data import SOURCES
from fedinit.data.dataset import Dataset


def plant(root: Path, *names: str, count: int = 2, suffix: str = "png", files: Mapping[str, str] | None = None) -> Path:
    """A folder with `count` images in each of the folders named, and text files."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (4, 4), (10 * i, 100, 200)).save(root / name / f"{i}.{suffix}")
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def pack(tree: Path, path: Path, lead: str = "") -> Path:
    """A zip of the tree, its names behind `lead`."""
    with zipfile.ZipFile(path, "w") as file:
        for found in sorted(p for p in tree.rglob("*") if p.is_file()):
            file.write(found, lead + found.relative_to(tree).as_posix())
    return path


def load_folder(root: Path, **options: object) -> Dataset:
    """The images at `root`, at 4 pixels."""
    return create("data", SOURCES, "image_folder", {"root": str(root), **options}).load(3, (4, 4))


def sides(data: Dataset) -> dict[tuple[str, str], tuple[int, int]]:
    """{(domain, class): (training images, test images)} of those that are there."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    rows: Iterable[tuple[int, int, bool]] = zip(
        data.domains.tolist(), data.labels.tolist(), data.test.tolist(), strict=True
    )
    for domain, label, test in rows:
        key = data.domain_names[domain], data.class_names[label]
        train, held = counts.get(key, (0, 0))
        counts[key] = (train + (not test), held + test)
    return counts
