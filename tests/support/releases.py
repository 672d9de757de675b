"""Small archives of the layouts in which published sets come."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from fedinit.data.official import OFFICIAL


def picture(seed: int) -> bytes:
    """A PNG of 3 x 2 pixels of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (3, 2), (seed % 256, seed // 256 % 256, 77)).save(out, "png")
    return out.getvalue()


def archive(path: Path, members: Mapping[str, bytes | str]) -> Path:
    """A zip of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def images(domain: str, classes: Sequence[str], lead: str = "", count: int = 2) -> dict[str, bytes]:
    """{name: picture} of `count` images a class, each of another colour."""
    base = sum(map(ord, domain)) * 7
    return {
        f"{lead}{domain}/{kind}/{kind}_{i}.png": picture(base + 31 * c + i)
        for c, kind in enumerate(classes)
        for i in range(count)
    }


def lists(domain: str, classes: Mapping[str, int], ends: Sequence[str], lead: str = "") -> dict[str, str]:
    """{name: text} of a list for each end, which names the image of its number of each class."""
    return {
        f"{domain}{end}": "".join(f"{lead}{domain}/{kind}/{kind}_{i}.png {n}\n" for kind, n in classes.items())
        for i, end in enumerate(ends)
    }


def domainnet(folder: Path) -> Path:
    """A folder with a zip and two lists for each domain; The_Eiffel_Tower is class 300, and sorts before the others."""
    classes = {"airplane": 0, "The_Eiffel_Tower": 300, "zigzag": 99, "ant": 100}
    for domain in OFFICIAL["domainnet"].domains:
        archive(folder / f"{domain}.zip", images(domain, list(classes)))
        for name, text in lists(domain, classes, ("_train.txt", "_test.txt")).items():
            (folder / name).write_text(text)
    return folder


def nico(path: Path) -> Path:
    """One zip with NICO_DG and the lists in NICO_DG_official; a class has a blank in its name."""
    classes = {"dog": 0, "hot air balloon": 1}
    members: dict[str, bytes | str] = {}
    for domain in OFFICIAL["nico"].domains:
        members |= images(domain, list(classes), "DG_Benchmark/NICO_DG/")
        texts = lists(domain, classes, ("_train.txt", "_test.txt"), "NICO_DG/")
        members |= {f"DG_Benchmark/NICO_DG_official/{name}": text for name, text in texts.items()}
    return archive(path, members)


def pacs(path: Path) -> Path:
    """One zip with images and lists side by side, of which *_test_kfold.txt names all."""
    classes = {"dog": 1, "person": 2}
    members: dict[str, bytes | str] = {}
    for domain in OFFICIAL["pacs"].domains:
        members |= images(domain, list(classes), "kfold/")
        found = lists(domain, classes, ("_train_kfold.txt", "_crossval_kfold.txt"))
        found[f"{domain}_test_kfold.txt"] = "".join(found.values())
        if domain == "sketch":
            found["sketch_train_kfold.txt"] += "sketch/dog/n02103406_4068-1.png 1\n"
        members |= {f"kfold/{name}": text for name, text in found.items()}
    return archive(path, members)
