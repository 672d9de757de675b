"""The bytes of an image file as the pixels that a model takes."""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms

from fedinit.data.deep_grey import AS_PILLOW_HAS_IT, KINDS, Stored, as_stored, deep_grey, is_deep
from fedinit.errors import machine_failed

GreyRange = Literal["auto", "full"] | tuple[float, float]  # `data.grey_range`
Window = tuple[float, float]  # the levels shown black and white, of grey with more than 8 bits
Windows = Mapping[str, Window]  # of whole numbers, "I", and of floating ones, "F"

VERSION = 8  # raise it when the same file would decode to other pixels

# Pillow's, of which it is told by a name alone: EPS is run as a program, the others are no pictures or never whole.
_NOT_READ = frozenset({"BUFR", "EPS", "FPX", "GRIB", "HDF5", "IPTC", "MIC", "MPEG", "PCD", "WMF"})
# Tried first: their first bytes say for certain what they are, whatever the file is called.
_COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SHALLOW = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp")  # never have more than 8 bits a channel
LEVELS = "nobody said which levels are black and white"
UNKNOWN = (  # of a picture that was measured by no name, or is of a kind that a run's own images had not
    "it is grey of {}, and " + LEVELS + "; say them, predict --grey-range LOW HIGH or "
    "data.grey_range=[LOW,HIGH], or name a file by its own ending"
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()  # loads all of its readers, a tenth of a second
    return (*_COMMON, *sorted(set(Image.OPEN) - {*_COMMON, *_NOT_READ}))


@functools.cache
def suffixes() -> tuple[str, ...]:
    """The ends of names, in small letters and with the dot, of images that can be read."""
    readable = {*formats(), "MPO"}  # MPO is read as the JPEG that it begins with
    return tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in readable))


def decode(content: bytes, channels: int, size: tuple[int, int], window: Window | Windows | None = None) -> np.ndarray:
    """The bytes of an image file -> (channels, H, W) uint8, channels 1 (grey) or 3 (RGB). Of several pictures in one
    file, the first.

    Turned upright by its EXIF orientation where that can be read; what is transparent shows white, like paper. The
    shorter side is brought to the target by bicubic resampling and the centre is cropped, in one step: only the box
    that will be seen is computed. For square images and targets it is a plain resize.

    window: the levels of grey with more than 8 bits that become 0 and 255, of whole and floating point numbers alike or
        of each kind that there is; what lies outside is clipped. None: 0 and the white that the file names, else 65535,
        or 1 of floating point numbers.

    Raises what Pillow raises on bytes that are no image, and ValueError for one without a finite number, or of a kind
    whose window is not there.
    """
    with Image.open(io.BytesIO(content), formats=formats()) as image:
        # JPEG decodes at 1/2, 1/4 or 1/8 in less time; twice the target leaves bicubic its work.
        image.draft(None, (2 * max(size), 2 * max(size)))
        stored = as_stored(image)
        upright = _upright(image)
    return fit(upright, channels, size, window, stored)


def fit(
    image: Image.Image,
    channels: int,
    size: tuple[int, int],
    window: Window | Windows | None = None,
    stored: Stored = AS_PILLOW_HAS_IT,
) -> np.ndarray:
    """A picture as `decode` gives it. Raises ValueError for one without a finite number."""
    height, width = size
    if is_deep(image, stored):
        grey = deep_grey(image, stored)
        if isinstance(window, Mapping) and grey.kind not in window:
            raise ValueError(UNKNOWN.format(KINDS[grey.kind]))
        image = grey.shown(*(window[grey.kind] if isinstance(window, Mapping) else window or (0.0, grey.top)))
    image = _on_paper(image).convert("L" if channels == 1 else "RGB")
    scale = max(height / image.height, width / image.width)
    box_width, box_height = min(image.width, width / scale), min(image.height, height / scale)
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def identity(content: bytes) -> tuple[tuple[int, int], str]:
    """((width, height), a digest of the pixels) of an image file, at its full size and upright. Two files have the same
    digest where they show the same, grey of more than 8 bits between the same levels, whatever their names, formats and
    other contents. Raises as `decode` does."""
    with Image.open(io.BytesIO(content), formats=formats()) as opened:
        stored = as_stored(opened)
        image = _upright(opened)
    if is_deep(image, stored):
        grey = deep_grey(image, stored)
        mode, pixels = grey.kind, grey.identity()
    else:
        image = _on_paper(image).convert("RGB")
        mode, pixels = image.mode, [np.asarray(image)]
    said = hashlib.sha256(repr((mode, image.size)).encode())
    for array in pixels:
        said.update(array.tobytes())
    return image.size, said.hexdigest()


def is_measured(name: str) -> bool:
    """Whether `measure_windows` looks into a file of this name. A million JPEGs are not opened for it."""
    return not name.lower().endswith(_SHALLOW)


def measure_windows(open_file: Callable[[str], IO[bytes]], names: Iterable[str], threads: int) -> dict[str, Window]:
    """The lowest and the highest level in these images' grey of more than 8 bits: of whole numbers ("I") and, in units
    of their own, of floating point numbers ("F"), as far as there are any. Files whose names say that they have no
    such grey are passed over.

    open_file: gives a file by its name. Files that cannot be read are passed over; `decode` names them.
    """

    def levels(name: str) -> tuple[str, Window] | None:
        try:
            with open_file(name) as file, Image.open(file, formats=formats()) as image:
                stored = as_stored(image)
                if not is_deep(image, stored):
                    return None
                grey = deep_grey(image, stored)
                return None if (window := grey.window()) is None else (grey.kind, window)
        except Exception as error:  # a broken file makes Pillow raise nearly anything
            if machine_failed(error):  # other pictures would be shown between other levels
                raise
            return None

    with ThreadPoolExecutor(threads) as pool:
        found = [each for each in pool.map(levels, filter(is_measured, names)) if each is not None]
    windows: dict[str, Window] = {}
    for kind, (low, high) in found:
        lowest, highest = windows.get(kind, (low, high))
        windows[kind] = min(low, lowest), max(high, highest)
    return windows


def reason(error: Exception) -> str:
    """Why bytes are no picture, in one line that is the same at every start: without the addresses of objects, and
    where a file cannot be read the system's words, without its place."""
    if isinstance(error, OSError) and error.strerror:  # Pillow's own has none
        return error.strerror.lower()
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error))
    return " ".join(text.split()) or type(error).__name__


def _on_paper(image: Image.Image) -> Image.Image:
    """The image, with white where it is transparent, in a mode that `convert` takes to RGB and grey."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if image.mode in ("RGBa", "La"):  # with the colours multiplied by their alpha
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def _upright(image: Image.Image) -> Image.Image:
    """The image, loaded and turned as its EXIF orientation says. A TIFF turns itself as it is loaded."""
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # EXIF is written by many programs, and the picture does not depend on it
        if machine_failed(error):
            raise
        turn = None
    return image.copy() if turn is None else image.transpose(turn)
