"""Images that are arrays already, brought to the size that a model takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedinit.data.store import Decoding

_CHUNK = 512  # images resized at a time: bounds the float32 copy
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's grey


class Arrays(Decoding):
    """An array of images by `resize`."""

    chunk = _CHUNK

    def __init__(self, pixels: np.ndarray, channels: int, size: tuple[int, int], where: str) -> None:
        """pixels: (n, h, w, 3) uint8. channels: 1 (grey) or 3 (RGB). size: (H, W). where: what errors begin with."""
        self.pixels, self.where = pixels, where
        self.count, self.shape = len(pixels), (channels, *size)

    def key(self) -> Any:
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()
        return [torch.__version__, digest, list(self.pixels.shape)]  # another version may round otherwise

    def decode(self, rows: Sequence[int], prepared: Any) -> list[np.ndarray | str]:
        pixels = torch.from_numpy(self.pixels[list(rows)]).permute(0, 3, 1, 2)
        return list(resize(pixels, self.shape[0], self.shape[1:]).numpy())

    def name(self, row: int) -> str:
        return f"image {row}"


def resize(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """(n, 3, h, w) uint8 -> (n, channels, H, W) uint8 with size = (H, W): bicubic, antialiased, rounded.

    The proportions follow the target's. At the size they have, images keep their bytes.
    """
    resized = torch.empty(len(images), channels, *size, dtype=torch.uint8)
    luma = torch.tensor(_LUMA).reshape(1, 3, 1, 1)
    for start in range(0, len(images), _CHUNK):
        pixels = images[start : start + _CHUNK].float()  # (m, 3, h, w), 0..255
        if channels == 1:
            pixels = (pixels * luma).sum(dim=1, keepdim=True)
        if tuple(pixels.shape[-2:]) != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=True)
        resized[start : start + _CHUNK] = pixels.round().clamp(0, 255).to(torch.uint8)  # bicubic overshoots
    return resized
