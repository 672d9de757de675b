"""Grey of more than 8 bits, "deep" here: the numbers that are in the file, where Pillow's picture has others or fewer.

Pillow scales a PGM and a JPEG 2000 to 16 bits, gives the upper byte of grey with alpha, takes unsigned numbers of 32
bits for signed ones, and looks neither at a PNG's transparent level nor at a TIFF whose 0 is white.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

KINDS = {"I": "12 or 16 bits", "F": "floating point numbers"}
_CUT = "it is grey of {} bits with alpha, of which 8 would be left; save it as 16-bit grey without alpha, or 8 bits"
TOP = {"I": 65535.0, "F": 1.0}  # the level that is white where nothing says another


class Stored(NamedTuple):
    """What a file says of its deep grey, and Pillow's picture of it does not.

    top: its own white; None where it names none. step: Pillow's levels for one of the file.
    has_alpha: the four bytes of a pixel are its level and its alpha, 16 bits each.
    is_unsigned: the numbers of 32 bits are. is_inverted: 0 is white, and the highest number black.
    """

    top: float | None = None
    step: float = 1.0
    has_alpha: bool = False
    is_unsigned: bool = False
    is_inverted: bool = False


AS_PILLOW_HAS_IT = Stored()


@dataclass(frozen=True)
class DeepGrey:
    """kind: "I", whole numbers, or "F", floating ones.
    levels: (H, W) float64, as in the file, or `TOP` less them where its 0 is white; some may be no numbers, where
        nothing was measured.
    opacity: (H, W) float64 from 0 to 1; None: 1 everywhere.
    top: the level that is white where no other is chosen."""

    kind: str
    levels: np.ndarray
    opacity: np.ndarray | None
    top: float

    def window(self) -> tuple[float, float] | None:
        """The lowest and the highest level that is seen; None where none is."""
        levels = self.levels if self.opacity is None else self.levels[self.opacity > 0]
        if self.kind == "F":
            levels = levels[np.isfinite(levels)]
        return (float(levels.min()), float(levels.max())) if levels.size else None

    def identity(self) -> list[np.ndarray]:
        """Arrays that are the same, byte by byte, for pictures of one kind that are shown alike in any one window."""
        levels = self.levels + 0.0  # of the two zeros one
        if self.opacity is None:
            return [levels]
        return [np.where(self.opacity > 0, levels, 0.0), self.opacity]

    def shown(self, low: float, high: float) -> Image.Image:
        """Grey of 8 bits, 0 at `low` and 255 at `high`; white where it is transparent."""
        grey = np.nan_to_num(self.levels, nan=low, posinf=high, neginf=low)
        grey -= low
        grey /= (high - low) / 255 if high > low else 1.0
        grey.clip(0, 255, out=grey)
        if self.opacity is not None:
            grey = 255 - (255 - grey) * self.opacity
        return Image.fromarray(grey.round().astype(np.uint8))


def as_stored(image: ImageFile.ImageFile) -> Stored:
    """What the file of an opened image says, before it is loaded: a PNG of 16 bits of grey with alpha is then loaded
    whole. Raises ValueError for a JPEG 2000 of such, of which Pillow has 8 bits alone."""
    arguments = image.tile[0][3] if image.tile else None
    if image.format == "PNG" and arguments == "LA;16B":
        image.tile = [image.tile[0]._replace(args="RGBA")]  # the bytes as they are, four to a pixel
        return Stored(has_alpha=True)
    if image.format == "PPM" and image.mode == "I" and isinstance(arguments, tuple):
        top = arguments[-1]
        return Stored(top=top, step=TOP["I"] / top)
    if image.format == "JPEG2000" and image.mode in ("I;16", "LA") and image.fp is not None:
        bits = _bits(image.fp)
        if image.mode == "I;16":
            return Stored(top=2.0**bits - 1, step=2.0 ** (16 - bits))
        if bits > 8:
            raise ValueError(_CUT.format(bits))
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tile and image.tile[0][0] == "libtiff" and isinstance(arguments, tuple):
            # libtiff gives numbers as this machine has them; Pillow would turn all but unsigned ones of 16 bits again.
            raw = re.sub(r";(16|32|64)B", r";\1N", arguments[0])
            image.tile = [each._replace(args=(raw, *arguments[1:])) for each in image.tile]
        tags = image.tag_v2
        numbers = tags.get(TiffImagePlugin.BITSPERSAMPLE), tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
        is_inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        return Stored(is_unsigned=numbers == ((32,), (1,)), is_inverted=is_inverted)
    return AS_PILLOW_HAS_IT


def _bits(file: IO[bytes]) -> int:
    """Of the first component of a JPEG 2000, as its codestream says."""
    before = file.tell()
    file.seek(0)
    depth = file.read().partition(b"\xff\x4f\xff\x51")[2][38:39]
    file.seek(before)
    return (depth[0] & 0x7F) + 1 if depth else 16  # the upper bit is the sign's; of a file cut short Pillow says so


def is_deep(image: Image.Image, stored: Stored) -> bool:
    """Whether it is grey of more than 8 bits, which Pillow would clip at 255."""
    return stored.has_alpha or image.mode[0] in KINDS


def deep_grey(image: Image.Image, stored: Stored) -> DeepGrey:
    """The numbers of an image that `is_deep`. Raises ValueError where none of its pixels is a finite number."""
    if stored.has_alpha:
        both = np.ascontiguousarray(image).view(">u2")  # (H, W, 4) bytes -> (H, W, 2)
        kind, levels, opacity = "I", both[..., 0].astype(np.float64), both[..., 1] / 65535
    else:
        kind, pixels, opacity = image.mode[0], np.asarray(image), None
        levels = (pixels.view(np.uint32) if stored.is_unsigned else pixels).astype(np.float64)
        if isinstance(transparent := image.info.get("transparency"), int):
            opacity = (levels != transparent).astype(np.float64)
    if stored.step != 1:
        levels = (levels / stored.step).round()  # exact: Pillow rounded by less than half of a step
    if stored.is_inverted:
        levels = TOP[kind] - levels
    if kind == "F" and not np.isfinite(levels).any():
        raise ValueError("none of its pixels is a finite number")
    if opacity is not None and (opacity == 1).all():
        opacity = None
    return DeepGrey(kind, levels, opacity, stored.top or TOP[kind])
