"""Data sets that give a picture by its number, as torchvision's and datasets' do, as pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL
from PIL import Image

from fedinit.data.decoding import VERSION, decode, fit, reason
from fedinit.data.store import Decoding
from fedinit.errors import machine_failed


class Items(Decoding):
    """Pictures by their numbers, of which those with more than 8 bits of grey are shown from 0 to 65,535."""

    chunk = 32

    def __init__(
        self,
        count: int,
        item: Callable[[int], Image.Image | bytes],
        content: str,
        channels: int,
        size: tuple[int, int],
        where: str,
    ) -> None:
        """
        count: n. item: row -> the picture, or the bytes of its file.
        content: a word that changes when the pictures do.
        channels: 1 (grey) or 3 (RGB). size: (H, W) in pixels. where: what errors begin with.
        """
        self.count, self.shape, self.where = count, (channels, *size), where
        self.item, self.content = item, content

    def key(self) -> Any:
        return [VERSION, PIL.__version__, self.content]

    def decode(self, rows: Sequence[int], prepared: Any) -> list[np.ndarray | str]:
        return [self._decode_one(row) for row in rows]

    def _decode_one(self, row: int) -> np.ndarray | str:
        channels, *size = self.shape
        try:
            picture = self.item(row)
            if isinstance(picture, bytes):
                return decode(picture, channels, (size[0], size[1]))
            return fit(picture, channels, (size[0], size[1]))
        except Exception as error:  # a broken picture makes Pillow raise nearly anything
            if machine_failed(error):
                raise
            return reason(error)

    def name(self, row: int) -> str:
        return f"image {row}"


def digest(*parts: Any) -> str:
    """A word that changes when one of the parts, which print themselves, does."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
