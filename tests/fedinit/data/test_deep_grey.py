"""The levels of grey with more than 8 bits are the numbers in the file, whatever Pillow makes of them."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image, features

from fedinit.data import decoding
from fedinit.data.decoding import decode, identity, measure_windows
from tests.support.deep_pictures import RAMP, SIZE, pgm, png, tiff


def windows(content: bytes) -> dict[str, tuple[float, float]]:
    return measure_windows(lambda _: io.BytesIO(content), ["a"], 1)


def shown(content: bytes, window: tuple[float, float] | None = (0.0, 4095.0)) -> np.ndarray:
    return decode(content, 1, SIZE, window)[0]


PLAIN = shown(png(RAMP))


@pytest.mark.skipif(not features.check("libtiff"), reason="Pillow has no libtiff here")
@pytest.mark.parametrize("is_deflated", [False, True])
@pytest.mark.parametrize("kind", ["u2", "i2", "i4", "f4"])  # unsigned ones of 32 bits Pillow reads little-endian alone
def test_a_tiff_of_either_byte_order_has_its_numbers(kind, is_deflated):
    """What libtiff unpacks is in the machine's order, and Pillow turned it once more: one such file among others set
    levels of 1e38, between which all pictures are black."""
    levels = RAMP.astype(kind)
    little, big = (tiff(levels, order=order, is_deflated=is_deflated) for order in "<>")
    assert windows(big) == windows(little) == {"F" if kind == "f4" else "I": (0.0, 4095.0)}
    assert np.array_equal(shown(big), PLAIN) and np.array_equal(shown(little), PLAIN)
    assert identity(big) == identity(little)


def test_the_plain_picture_has_all_shades() -> None:
    assert np.array_equal(PLAIN, (RAMP / (4095 / 255)).round()) and len(np.unique(PLAIN)) == 256


def test_grey_with_alpha_keeps_its_sixteen_bits() -> None:
    """Its upper byte alone was taken: 12 bits were 0 to 15, nearly black."""
    opaque = png(np.stack([RAMP, np.full_like(RAMP, 65535)], -1))
    assert np.array_equal(shown(opaque), PLAIN) and windows(opaque) == windows(png(RAMP)) == {"I": (0.0, 4095.0)}


def test_what_is_transparent_is_white_and_not_measured() -> None:
    alpha = np.full_like(RAMP, 65535)
    alpha[0], alpha[1] = 0, 32768
    content = png(np.stack([RAMP, alpha], -1))
    pixels = shown(content)
    assert (pixels[0] == 255).all() and np.array_equal(pixels[2:], PLAIN[2:])
    assert abs(pixels[1] - (PLAIN[1] / 2 + 127.5)).max() <= 1
    assert windows(content) == {"I": (float(RAMP[1, 0]), 4095.0)}


def test_the_transparent_level_of_a_png_is_white_and_not_measured() -> None:
    content = png(RAMP, transparent=4095)
    lit = png(np.where(RAMP == 0, 65535, RAMP), transparent=65535)
    assert np.array_equal(shown(content), PLAIN) and windows(content) == {"I": (0.0, float(RAMP[-1, -2]))}
    assert shown(lit)[0, 0] == 255 > PLAIN[0, 0] and np.array_equal(shown(lit)[1:], PLAIN[1:])
    assert windows(lit) == {"I": (float(RAMP[0, 1]), 4095.0)}
    assert (shown(png(np.zeros_like(RAMP), transparent=0)) == 255).all(), "as of 8 bits: an empty sheet"


@pytest.mark.parametrize("is_text", [False, True])
@pytest.mark.parametrize("top", [4095, 300, 65534, 65535])
def test_the_numbers_of_a_pgm_are_its_own(top: int, is_text: bool) -> None:
    """Pillow scales them to 65,535, so that levels that were measured in other files made them white."""
    levels = np.linspace(0, top, 32 * 32).round().reshape(SIZE).astype(np.uint16)
    content, plain = pgm(levels, top, is_text), png(levels)
    assert windows(content) == {"I": (0.0, float(top))}
    for window in ((0.0, float(top)), (10.0, 290.0), (0.0, 4095.0)):
        assert np.array_equal(shown(content, window), shown(plain, window))
    assert np.array_equal(shown(content, None), shown(plain, (0.0, float(top)))), "the file names its own white"


def jp2(pixels: np.ndarray, bits: int, **options: bool) -> bytes:
    """What the encoder wrote as of another depth, said to be of `bits`."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG2000", **options)
    depth = content.getvalue().index(b"\xff\x4f\xff\x51") + 42
    return content.getvalue()[:depth] + bytes([bits - 1]) + content.getvalue()[depth + 1 :]


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without JPEG 2000")
@pytest.mark.parametrize("no_jp2", [False, True])
def test_the_numbers_of_a_jpeg_2000_are_its_own(no_jp2: bool) -> None:
    """Pillow has 12 bits as the upper ones of 16."""
    content = jp2(RAMP + 30720, 12, no_jp2=no_jp2)  # less half of 2^16, as it is stored, and more half of 2^12
    assert windows(content) == {"I": (0.0, 4095.0)} and identity(content) == identity(png(RAMP))
    assert np.array_equal(shown(content), PLAIN) and np.array_equal(shown(content, None), PLAIN)
    assert np.array_equal(shown(jp2(RAMP, 16, no_jp2=no_jp2)), PLAIN)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without JPEG 2000")
def test_a_jpeg_2000_whose_depth_pillow_cuts_is_told() -> None:
    pixels = np.full((32, 32, 2), 200, np.uint8)
    assert (shown(jp2(pixels, 8)) > 200).all() and windows(jp2(pixels, 12)) == {}
    with pytest.raises(ValueError, match="12 bits with alpha, .*save it as 16-bit grey without alpha, or 8 bits"):
        shown(jp2(pixels, 12))
    with pytest.raises(ValueError, match="12 bits with alpha"):
        identity(jp2(pixels, 12))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_tiff_whose_zero_is_white_is_shown_so(dtype: type) -> None:
    """By TIFF 6.0 the highest number is black, which of floating point numbers is 1: a copy of the other way round."""
    content = tiff((dtype(65535 if dtype == np.uint16 else 1) - RAMP).astype(dtype), is_white_zero=True)
    assert np.array_equal(shown(content), PLAIN) and np.array_equal(shown(tiff(RAMP.astype(dtype))), PLAIN)
    assert list(windows(content).values()) == [(0.0, 4095.0)], "between the same levels as others"


def test_no_number_is_black_where_zero_is_white_too() -> None:
    levels = RAMP.astype(np.float32)
    levels[3] = np.nan
    assert (shown(tiff(levels, is_white_zero=True))[3] == 0).all()


def test_whole_numbers_of_32_bits_keep_their_levels() -> None:
    """Float32 has 24 bits: of these 103 levels, 3 were left. Above 2^31 Pillow's numbers are negative."""
    far = (1_000_000_000 + np.arange(1024).reshape(SIZE) // 10).astype(np.int32)
    assert len(np.unique(shown(tiff(far), windows(tiff(far))))) == 103
    wide = np.linspace(0, 2**32 - 1, 1024).round().reshape(SIZE).astype(np.uint32)
    assert windows(tiff(wide)) == {"I": (0.0, 2.0**32 - 1)}
    assert (np.diff(shown(tiff(wide), windows(tiff(wide))).ravel().astype(int)) >= 0).all()
    assert windows(tiff(-far)) == {"I": (float(-far.max()), -1e9)}, "signed ones may be negative"


def test_the_same_numbers_are_the_same_picture_in_any_file() -> None:
    """Pillow's I;16, I;16B and I of one picture have other bytes, and a copy in the test images was not found."""
    opaque = png(np.stack([RAMP, np.full_like(RAMP, 65535)], -1))
    big_endian, whole = io.BytesIO(), io.BytesIO()
    Image.frombytes("I;16B", SIZE, RAMP.astype(">u2").tobytes()).save(big_endian, "TIFF")
    Image.fromarray(RAMP.astype(np.int32)).save(whole, "TIFF")
    copies = [png(RAMP), opaque, pgm(RAMP, 4095, False), pgm(RAMP, 65535, True), tiff(RAMP), big_endian.getvalue()]
    copies += [whole.getvalue(), tiff(RAMP.astype(np.int16)), tiff(RAMP.astype(np.uint32))]
    copies.append(tiff(65535 - RAMP, is_white_zero=True))
    assert {Image.open(io.BytesIO(copy)).mode for copy in copies} == {"I;16", "I;16B", "I", "RGBA"}
    assert len({identity(copy) for copy in copies}) == 1
    other = RAMP.copy()
    other[5, 5] += 1
    hidden = [png(np.where(RAMP == RAMP[0, 7], level, RAMP), transparent=level) for level in (60000, 61000)]
    assert len({*map(identity, hidden)}) == 1, "what nobody sees does not count"
    others = [png(other), tiff(RAMP, is_white_zero=True), tiff(RAMP.astype(np.float32)), hidden[0], png(RAMP.T)]
    assert len({*map(identity, [*others, png(RAMP)])}) == 6


def test_the_identity_of_eight_bits_is_what_it_was() -> None:
    content = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(content, "PNG")
    expected = hashlib.sha256(b"('RGB', (16, 16))" + bytes(i // 3 for i in range(768))).hexdigest()
    assert identity(content.getvalue()) == ((16, 16), expected)


def test_the_ends_of_floating_point_numbers_are_shown_without_overflow() -> None:
    levels = np.full(SIZE, 0.5, np.float32)
    levels[0], levels[1], levels[2], levels[3] = np.inf, -np.inf, 3.4e38, -3.4e38
    with np.errstate(over="raise"):
        assert shown(tiff(levels), (-3.4e38, 3.4e38))[:5, 0].tolist() == [255, 0, 255, 0, 128]


def test_a_picture_that_there_is_no_memory_for_is_not_passed_over(monkeypatch):
    """All others would be shown between other levels, and a photograph stay on its side."""

    def full(*_):
        raise MemoryError

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(decoding, "deep_grey", full)
        windows(png(RAMP))
    monkeypatch.setattr(Image.Image, "getexif", full)
    with pytest.raises(MemoryError):
        shown(png(RAMP))
