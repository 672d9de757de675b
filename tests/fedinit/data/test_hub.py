"""`data=hub` on local folders of parquet files; without the package it says what to install."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

from fedinit.config.build import create
from fedinit.config.compose import compose_config
from fedinit.data import SOURCES
from fedinit.data.dataset import Dataset
from fedinit.errors import InputError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="needs the [hub] extra: pip install fedinit[hub]"
)


def load(root: Path | str, **options: object) -> Dataset:
    return create("data", SOURCES, "hub", {"root": str(root), **options}).load(3, (8, 8))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parquet files with a picture, a class and a place of each, in three splits."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    root = tmp_path / "set" / "data"
    root.mkdir(parents=True)
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "place": datasets.Value("string"),
        }
    )
    for split, count in (("train", 12), ("validation", 4), ("test", 8)):
        rows = {"picture": [], "kind": [], "place": []}
        for i in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (200 * (i % 2), 0, 10 * i)).save(buffer, "PNG")
            rows["picture"].append({"bytes": buffer.getvalue(), "path": None})
            rows["kind"].append(i % 2)
            rows["place"].append("art" if i % 4 < 2 else "photo")
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root.parent


@needs_package
def test_a_folder_of_parquet_files_is_read_with_its_splits(folder: Path, tmp_path: Path) -> None:
    made = load(folder)
    assert made.class_names == ("cat", "dog") and made.domain_names == ("all",)
    assert made.test.tolist() == [False] * 12 + [True] * 8
    assert made.images[:, 0, 0, 0].tolist() == [200 * (i % 2) for n in (12, 8) for i in range(n)]
    assert made.labels.tolist() == [i % 2 for n in (12, 8) for i in range(n)]
    assert int(load(folder, evaluate_on="val").test.sum()) == 4
    cached = load(folder, cache_dir=str(tmp_path / "cache"), cache_above=0.0)
    assert torch.equal(cached.images[:], made.images)


@needs_package
def test_a_column_says_the_domain(folder: Path) -> None:
    made = load(folder, domain_column="place")
    assert made.domain_names == ("art", "photo") and made.domains.bincount().tolist() == [10, 10]
    one = load(folder, domain_column="place", domains=("photo",), label_column="kind", image_column="picture")
    assert one.domain_names == ("photo",) and len(one) == 10
    source = create("data", SOURCES, "hub", {"root": str(folder)})
    assert source.content() == source.content()  # type: ignore[attr-defined]


@needs_package
def test_what_is_not_clear_or_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    for options, said in [
        ({"label_column": "kinds"}, "data.label_column=kinds: no such column (did you mean 'kind'?)"),
        ({"domain_column": "x"}, "data.domain_column=x: no such column"),
    ]:
        with pytest.raises(InputError) as caught:
            load(folder, **options)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match="the set cannot be had"):
        load(tmp_path / "void")


def test_without_a_root_or_the_package_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="data.root is not set: expected a set's name on the hub"):
        create("data", SOURCES, "hub", {}).load(3, (8, 8))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match="data=hub: needs the package datasets: pip install 'fedinit.hub.'"):
        load("x")
    assert compose_config(["data=hub", "data.root=uoft-cs/cifar10"]).data.name == "hub"


class ClassLabel:
    """As the package has it, of this name."""

    names = ["cat", "dog"]

    def int2str(self, value: int) -> str:
        if not 0 <= value < 2:
            raise ValueError(f"Invalid integer class label {value}")
        return self.names[value]


class Picture:
    """The package's column of images goes by the name of its class."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


Picture.__name__ = "Image"


class Part:
    """A split of the package's, of black pictures with these labels."""

    features = {"image": Picture(), "label": ClassLabel()}
    info = SimpleNamespace(dataset_size=0)

    def __init__(self, split: str, labels: list[int | None]) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "PNG")
        self.split, self.labels, self.picture = split, labels, {"bytes": buffer.getvalue(), "path": None}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: str | int) -> object:
        return self.labels if key == "label" else {"image": self.picture}

    def select_columns(self, columns: list[str]) -> Part:
        return self

    def cast_column(self, column: str, feature: object) -> Part:
        return self


def pretend(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[int | None]]) -> None:
    """Put a package in the place of `datasets` that has these labels, whatever it is asked for."""
    parts = {name: Part(name, labels) for name, labels in splits.items()}
    package = SimpleNamespace(load_dataset=lambda *asked: parts, Image=Picture)
    monkeypatch.setitem(__import__("sys").modules, "datasets", package)


def test_splits_without_labels_or_of_another_name_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"train": [0, 1] * 4, "validation": [0, 1], "test": [-1, -1], "extra": [0], "unlabeled": [-1]})
    console = Console(file=io.StringIO(), width=200)
    made = create("data", SOURCES, "hub", {"root": "x"}).load(3, (8, 8), console=console)
    assert made.test.tolist() == [False] * 8 + [True] * 2 and made.labels.tolist() == [0, 1] * 5
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said[1:3] == ["data: not read, by their names: extra, unlabeled", "data: not read, without labels: test"]


def test_a_row_without_a_label_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in (-1, None):
        pretend(monkeypatch, {"train": [0, 1], "test": [0, absent]})
        with pytest.raises(InputError, match="row 1 of the split test has no value in the column label"):
            load("x")
    pretend(monkeypatch, {"train": [-1, -1]})
    with pytest.raises(InputError, match="no image has a value in the column label"):
        load("x")
