"""torchvision's sets by name, from files that the test writes and from sets that it makes."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import io as matlab
from torchvision import datasets

from fedinit.config.build import create
from fedinit.config.compose import compose_config
from fedinit.data import SOURCES, published_sets
from fedinit.data.dataset import Dataset
from fedinit.data.published_sets import SETS
from fedinit.errors import InputError


def load(name: str | None, root: Path | None, size: int = 8, **options: object) -> Dataset:
    given = {"set": name, "root": root and str(root), **options}
    return create("data", SOURCES, "torchvision", given).load(3, (size, size))


@pytest.mark.parametrize("name", sorted(SETS))
def test_torchvision_has_every_set_and_takes_the_arguments(name: str) -> None:
    kind, splits = SETS[name]
    signature = inspect.signature(getattr(datasets, kind).__init__)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for given in splits.values():
        assert takes_any or {*given, "download"} <= set(signature.parameters)


def test_svhn_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3, 20), dtype=np.uint8)
    for number, split in enumerate(("train", "test")):
        file = tmp_path / f"{split}_32x32.mat"
        matlab.savemat(file, {"X": pixels[number], "y": np.arange(20)[:, None] % 10 + 1})
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    made = load("svhn", tmp_path, size=32)
    expected = torch.from_numpy(pixels.transpose(0, 4, 3, 1, 2).reshape(40, 3, 32, 32).copy())
    assert torch.equal(made.images, expected) and made.test.tolist() == [False] * 20 + [True] * 20
    assert made.class_names == tuple("0123456789") and made.labels.tolist() == [(i % 20 + 1) % 10 for i in range(40)]


def test_eurosat_has_no_split_and_gets_one_by_name(tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for i in range(16):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{name}_{i}.jpg")
    made = load("eurosat", tmp_path, test_fraction=0.5)
    assert made.class_names == ("Forest", "River") and len(made) == 32 and 0 < int(made.test.sum()) < 32
    source = create("data", SOURCES, "torchvision", {"set": "eurosat", "root": str(tmp_path)})
    before = source.content()  # type: ignore[attr-defined]
    (tmp_path / "eurosat/2750/River/River_3.jpg").write_bytes(b"other")
    assert source.content() != before  # type: ignore[attr-defined]


def test_three_splits_leave_val_out_or_evaluate_on_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Made(datasets.FakeData):
        def __init__(self, root: str, split: str, download: bool) -> None:
            super().__init__(size={"train": 12, "val": 4, "test": 6}[split], image_size=(3, 8, 8), num_classes=3)
            self._labels = [i % 3 for i in range(self.size)]

        def __getitem__(self, i: int):
            return super().__getitem__(i)[0], self._labels[i]

    monkeypatch.setattr(datasets, "Made", Made, raising=False)
    monkeypatch.setitem(SETS, "made", ("Made", published_sets._THREE))
    assert int(load("made", tmp_path).test.sum()) == 6 and len(load("made", tmp_path)) == 18
    assert int(load("made", tmp_path, evaluate_on="val").test.sum()) == 4
    cached = load("made", tmp_path, cache_dir=str(tmp_path / "cache"), cache_above=0.0)
    assert torch.equal(cached.images[:], load("made", tmp_path).images)
    assert load("made", tmp_path, classes=2).class_names == ("0", "1")


def test_what_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data.set is not set: expected a set of torchvision's; choices: caltech101"):
        load(None, tmp_path)
    with pytest.raises(InputError, match="data.set=svnh: no such choice .did you mean 'svhn'"):
        load("svnh", tmp_path)
    with pytest.raises(InputError, match="data.root is not set: expected the folder that holds SVHN") as caught:
        load("svhn", None)
    assert "SVHN('<folder>', split='train', download=True); SVHN('<folder>', split='test', download=True)" in str(
        caught.value
    )
    for name in sorted(SETS):
        with pytest.raises(InputError, match=f"data.root={tmp_path}: no whole {SETS[name][0]} there") as caught:
            load(name, tmp_path)
        assert "\n" not in str(caught.value) and "You can use download" not in str(caught.value)
        assert "a run downloads nothing: where there is a network, python -c " in str(caught.value)
    assert compose_config(["data=torchvision", "data.set=dtd"]).data.set == "dtd"  # type: ignore[attr-defined]
