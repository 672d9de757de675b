"""The embedded data set: the same bytes every time, and no test digit seen in training in any domain."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn import datasets
from torch import Tensor

from fedinit.data.dataset import Dataset
from fedinit.data.digits import DOMAINS, Digits, load_digits
from fedinit.data.drawn_digits import _dilated


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_digits()


def _rows(digits: Dataset, domain: str, test: bool) -> Tensor:
    return (digits.domains == DOMAINS.index(domain)) & (digits.test == test)


def _bytes(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_same_bytes_every_time(digits):
    again = load_digits.__wrapped__()  # drawn again, not the ones that were kept
    for column in ("images", "labels", "domains", "test"):
        assert torch.equal(getattr(digits, column), getattr(again, column)), column


def test_shapes_and_types(digits):
    assert digits.images.shape == (len(digits), 1, 32, 32)
    assert digits.images.dtype == torch.uint8
    assert (int(digits.images.min()), int(digits.images.max())) == (0, 255)
    assert digits.domain_names == DOMAINS == ("plain", "inverted", "rotated", "thick", "noise", "texture")
    assert digits.class_names == tuple("0123456789")


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 6, 22])
def test_strokes_grow_by_a_whole_disc(radius):
    """scipy's, which looks at each pixel of the disc; up to the edges, and in pictures that are no squares."""
    image = np.random.default_rng(radius).integers(0, 256, (61, 47)).astype(np.uint8)
    image[image < 240] = 0
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = x * x + y * y <= radius * radius
    expected = ndimage.grey_dilation(image, footprint=disc, mode="constant", cval=0)
    assert np.array_equal(_dilated(image, radius), expected)
    if radius > 1:
        square = ndimage.grey_dilation(image, size=(2 * radius + 1, 2 * radius + 1), mode="constant", cval=0)
        assert not np.array_equal(expected, square), "which the test can tell apart"


def test_every_digit_is_trained_on_once_or_tested_everywhere(digits):
    tested = [digits.labels[_rows(digits, domain, True)] for domain in DOMAINS]
    assert all(torch.equal(labels, tested[0]) for labels in tested)
    trained = digits.labels[~digits.test]
    ours = torch.bincount(trained) + torch.bincount(tested[0])
    theirs = torch.bincount(torch.from_numpy(datasets.load_digits().target))
    assert torch.equal(ours, theirs)


def test_training_digits_are_dealt_evenly(digits):
    sizes = [int(_rows(digits, domain, False).sum()) for domain in DOMAINS]
    assert max(sizes) - min(sizes) <= 1


def test_no_test_digit_is_trained_on(digits):
    """Seen in the pixels, not in the split's own bookkeeping.

    Only the domains that can be undone show their digit: plain as it is, inverted as 255 - x, and texture
    where the ink is brighter than the brightest texture, .8 of white.
    """
    plain = digits.images[_rows(digits, "plain", False)]
    inverted = 255 - digits.images[_rows(digits, "inverted", False)]
    texture = digits.images[_rows(digits, "texture", False)]
    canvas = digits.images[_rows(digits, "plain", True)]
    assert _bytes(plain).isdisjoint(_bytes(inverted))
    assert _bytes(canvas).isdisjoint(_bytes(plain) | _bytes(inverted))
    ceiling = 205
    assert _bytes(canvas.clamp(min=ceiling)).isdisjoint(_bytes(texture.clamp(min=ceiling)))
    # The undoing itself is right: it finds the test digits of these domains to be the plain ones.
    assert _bytes(canvas) == _bytes(255 - digits.images[_rows(digits, "inverted", True)])
    theirs = digits.images[_rows(digits, "texture", True)].clamp(min=ceiling)
    assert _bytes(canvas.clamp(min=ceiling)) == _bytes(theirs)


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_is_in_every_split(digits, domain, test):
    counts = torch.bincount(digits.labels[_rows(digits, domain, test)], minlength=10)
    assert int(counts.min()) >= (20 if not test else 30)


def test_domains_differ_in_pixels_and_show_the_same_digits(digits):
    shown = [digits.images[_rows(digits, domain, True)].float() for domain in DOMAINS]
    for i, ours in enumerate(shown):
        for j, theirs in enumerate(shown[:i]):
            distance = (ours - theirs).abs().mean(dim=(1, 2, 3))  # (n,) grey levels
            assert float(distance.min()) > 2.0, (DOMAINS[i], DOMAINS[j])


@pytest.mark.parametrize("size", [0, 8, 20, 31])
def test_size_that_the_grid_cannot_hold_is_refused(size):
    with pytest.raises(ValueError, match="multiple of 8"):
        load_digits(size)


def test_dataset_refuses_columns_that_do_not_fit(digits):
    with pytest.raises(ValueError, match="images"):
        replace(digits, images=digits.images.double())
    with pytest.raises(ValueError, match="labels"):
        replace(digits, labels=digits.labels[1:])
    with pytest.raises(ValueError, match="test"):
        replace(digits, test=digits.test.long())
    with pytest.raises(ValueError, match="labels"):
        replace(digits, class_names=digits.class_names[:9])
    with pytest.raises(ValueError, match="domains"):
        replace(digits, domains=digits.domains - 1)


def test_the_classes_are_known_before_anything_is_drawn():
    """So that a server need not take a client's word for them."""
    for classes in (None, 4, ("7", "1")):
        data = Digits(classes=classes)
        drawn = data.load(1, (32, 32), 0)
        assert data.known_classes == drawn.class_names
