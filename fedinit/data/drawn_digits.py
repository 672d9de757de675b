"""The pixels of `data=digits`: scikit-learn's images at another size, in the costumes of six domains.

Source: sklearn.datasets.load_digits, 1797 images of 8x8 pixels with 17 grey levels, from the UCI set "Optical
Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998). The domains are made here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from fedinit.data.dataset import Dataset
from fedinit.errors import InputError

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # (H, W) in [0, 1] -> (H, W)

_SEED = 20240607  # arbitrary, and fixed: every process must draw the same pixels
_TEST_STRIDE = 5  # one digit in five is held out
_HELD_OUT = -1  # the owner of a digit that no domain trains on


def _plain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image


def _inverted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1.0 - image


def _rotated(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counter-clockwise by 60 to 120 degrees: one side only, so that the domain has a mean shift."""
    return ndimage.rotate(image, rng.uniform(60.0, 120.0), reshape=False, order=1)


def _thick(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Strokes grown by a disc of 1/10 of the side: most counters close."""
    return _dilated(np.round(255.0 * image).astype(np.uint8), image.shape[0] // 10) / 255.0


def _dilated(image: np.ndarray, radius: int) -> np.ndarray:
    """(H, W) -> (H, W), each pixel the greatest of a disc around it, with nothing beyond the edges.

    Row by row of the disc, whose rows are runs of pixels: at 224 pixels a side a disc has 1,500, and scipy's
    grey_dilation, which looks at each, took two minutes of a process's start for this one domain.
    """
    height, width = image.shape
    wide = np.pad(image, radius)
    grown = np.zeros_like(image)
    run, reach = wide[:, radius : radius + width].copy(), 0  # the greatest of a pixel's row within reach of it
    for away in range(radius, -1, -1):  # from the disc's shortest rows to its longest
        while (reach + 1) ** 2 + away**2 <= radius**2:
            reach += 1
            for start in (radius - reach, radius + reach):
                np.maximum(run, wide[:, start : start + width], out=run)
        for start in {radius - away, radius + away}:
            np.maximum(grown, run[start : start + height], out=grown)
    return grown


def _noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey background and independent pixel noise: contrast .6 at sigma .35."""
    return 0.2 + 0.6 * image + rng.normal(0.0, 0.35, image.shape)


def _texture(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two gratings of random direction, phase and 2 to 6 periods a side, at up to .8, behind the ink."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] / image.shape[0]
    grating = np.zeros_like(image)
    for _ in range(2):
        angle, phase = rng.uniform(0.0, 2.0 * np.pi, 2)
        periods = rng.uniform(2.0, 6.0)
        wave = 2.0 * np.pi * periods * (x * np.cos(angle) + y * np.sin(angle)) + phase
        grating += 0.2 * (1.0 + np.sin(wave))
    return np.maximum(image, grating)


TRANSFORMS: dict[str, Transform] = {
    "plain": _plain,
    "inverted": _inverted,
    "rotated": _rotated,
    "thick": _thick,
    "noise": _noise,
    "texture": _texture,
}


def draw(size: int) -> Dataset:
    """The data set, `size` pixels a side; see `fedinit.data.digits.load_digits`."""
    grey, target = _source()
    canvases = _upscale(grey / 16.0, size)  # (1797, size, size)
    owner = _deal(target)

    images, labels, domains, test = [], [], [], []
    for d, transform in enumerate(TRANSFORMS.values()):
        for index in np.flatnonzero((owner == d) | (owner == _HELD_OUT)):
            rng = np.random.default_rng((_SEED, d, int(index)))
            image = canvases[index] / 255.0  # of whole levels, so that 1 - x is exact
            pixels = np.clip(transform(image, rng), 0.0, 1.0)
            images.append(np.round(255.0 * pixels).astype(np.uint8))
            labels.append(int(target[index]))
            domains.append(d)
            test.append(owner[index] == _HELD_OUT)
    return Dataset(
        images=torch.from_numpy(np.stack(images)).unsqueeze(1),
        labels=torch.tensor(labels, dtype=torch.int64),
        domains=torch.tensor(domains, dtype=torch.int64),
        test=torch.tensor(test, dtype=torch.bool),
        class_names=tuple(str(name) for name in range(10)),
        domain_names=tuple(TRANSFORMS),
    )


def _source() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) grey levels 0 to 16 and (1797,) labels, as sklearn.datasets.load_digits has them.

    Read from scikit-learn's own file where it lies: importing the package takes longer than a deployed client's whole
    evaluation, and every message to such a client meets a new process.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise InputError("data=digits: the images are scikit-learn's, which is not installed: pip install scikit-learn")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        rows = np.loadtxt(file, delimiter=",")
    else:
        from sklearn import datasets

        bunch: Any = datasets.load_digits()
        rows = np.column_stack([bunch.data, bunch.target])
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)


def _deal(target: np.ndarray) -> np.ndarray:
    """(n,) labels -> (n,) the domain that trains on each digit, or _HELD_OUT for the test split.

    Counted within a class, not over the whole file: the file runs 0 1 2 … 9 in places, so every fifth index
    would hold out 48 threes and 26 twos.
    Training digits are dealt disjointly since clients own different handwriting: with one digit in six
    costumes every client would hold the same information, and there would be little to federate.
    """
    owner = np.empty(len(target), dtype=np.int64)
    dealt = 0
    for label in np.unique(target):
        members = np.flatnonzero(target == label)
        held_out = np.arange(len(members)) % _TEST_STRIDE == 0
        owner[members[held_out]] = _HELD_OUT
        # The count runs on over the classes, so that the domains' sizes differ by one at most.
        num_train = int((~held_out).sum())
        owner[members[~held_out]] = (dealt + np.arange(num_train)) % len(TRANSFORMS)
        dealt += num_train
    return owner


def _upscale(images: np.ndarray, size: int) -> np.ndarray:
    """(n, 8, 8) -> (n, size, size) uint8: cubic to 3/4 of the side, and a margin that leaves room to rotate."""
    inner, margin = size * 3 // 4, size // 8
    # Interpolation is linear and separable, so one small matrix does the file: 0.1 s instead of 1 s.
    weight: Any = ndimage.zoom(np.eye(8), (inner / 8, 1), order=3, mode="grid-constant", grid_mode=True)
    zoomed = np.einsum("ui,nij,vj->nuv", weight, images, weight, optimize=True)  # weight: (inner, 8)
    np.clip(zoomed, 0.0, 1.0, out=zoomed)  # in place: at 224 pixels they are 0.4 GB
    zoomed *= 255.0
    np.round(zoomed, out=zoomed)
    return np.pad(zoomed.astype(np.uint8), ((0, 0), (margin, margin), (margin, margin)))
