"""Image files, in a folder or a zip, as pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL

from fedinit.data.decoding import VERSION, GreyRange, Windows, decode, is_measured, measure_windows, reason
from fedinit.data.store import THREADS, Decoding
from fedinit.data.tree import Tree
from fedinit.errors import machine_failed


class ImageFiles(Decoding):
    """The files of a tree by `decode`, grey of more than 8 bits in one window, of floating numbers in another."""

    chunk = 32

    def __init__(
        self, tree: Tree, names: Sequence[str], channels: int, size: tuple[int, int], grey_range: GreyRange | Windows
    ) -> None:
        """
        names: of the files, all of the source, so that what is measured does not depend on what is chosen.
        channels: 1 (grey) or 3 (RGB). size: (H, W) in pixels.
        grey_range: [low, high], of whole numbers and floating ones alike or of each, "full", or "auto", which is what
            the files have. Of a run's own, by kind, are those of whole numbers, of floating ones, or neither.
        """
        self.tree, self.names, self.grey_range = tree, names, grey_range
        self.count, self.shape, self.where = len(names), (channels, *size), f"data.root={tree.root}"

    def key(self) -> Any:
        # Pillow's version is in it, since another libjpeg may round otherwise.
        return [VERSION, PIL.__version__, self.grey_range, self.tree.stamps(self.names)]

    def prepare(self) -> Any:
        if self.grey_range == "auto":
            return measure_windows(self.tree.open, self.names, THREADS)
        return None if self.grey_range == "full" else self.grey_range

    def decode(self, rows: Sequence[int], prepared: Any) -> list[np.ndarray | str]:
        return [self._decode_one(self.names[row], prepared) for row in rows]

    def _decode_one(self, name: str, window: Any) -> np.ndarray | str:
        channels, *size = self.shape
        try:
            content = self.tree.read(name)
            if not content:
                return "the file is empty"
            if self.grey_range == "auto" and not is_measured(name):
                window = {}  # of the other files, which says nothing of deep grey under this name
            return decode(content, channels, (size[0], size[1]), window)
        except Exception as error:  # a broken file makes Pillow raise nearly anything
            if machine_failed(error):
                raise
            return reason(error)

    def name(self, row: int) -> str:
        return repr(self.names[row])
