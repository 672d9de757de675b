"""The images of a data set on the device that works on them, where they fit."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from fedinit.data.dataset import Dataset
from fedinit.data.image_cache import MappedImages
from fedinit.errors import InputError, out_of_memory

SHARE = 0.25  # of the device's memory: data sets up to this lie on the device, beside the SHARE of cost.py
ROWS = 1024  # images that are brought from a file at a time


class Resident:
    """A data set and its copy on one device, brought when it is first needed whole, or has been asked for as often.

    data: with the images, in memory or in a file.
    """

    def __init__(self, data: Dataset, device: torch.device) -> None:
        """device: of the copy. Beside a processor's memory there is none, and `pixels` are of the data itself."""
        self.data, self.device = data, device
        self._asked, self._elsewhere = 0, device.type != "cpu"

    @cached_property
    def images(self) -> Tensor | None:
        """All of them on the device, those of a file too; None where they take too much of its memory, or one cannot
        be read, which is then its client's to tell."""
        images = self.data.images
        if self.device.type == "cuda":
            room = SHARE * torch.cuda.get_device_properties(self.device).total_memory
            if images.shape.numel() * images.dtype.itemsize > room:
                return None
        try:
            with torch.inference_mode(False):  # training's too, whoever asks first
                return images.to(self.device) if isinstance(images, Tensor) else _brought(images, self.device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None  # somebody else's are there

    @cached_property
    def labels(self) -> Tensor:
        """All of them on the device."""
        return self.data.labels.to(self.device)

    def pixels(self, examples: Tensor) -> Tensor:
        """(n, C, H, W) of these examples (n,): on the device where a copy is there, else in memory. Raises IndexError
        for one that is not there, which no device has to find."""
        there = None
        if self._elsewhere:
            self._asked += len(examples)
            if "images" in vars(self) or self._asked > len(self.data):  # one by one they cross as often as all at once
                there = self.images
        if there is None:
            return self.data.images[examples]
        return there[_within(examples, len(self.data)).to(self.device)]

    def release(self) -> None:
        """Give back the memory of the copy."""
        self._asked = 0
        for name in ("images", "labels"):
            vars(self).pop(name, None)


def _within(examples: Tensor, count: int) -> Tensor:
    if len(examples) and not -count <= int(examples.min()) <= int(examples.max()) < count:
        raise IndexError(f"an example beyond the {count} of the data")
    return examples


def _brought(images: MappedImages, device: torch.device) -> Tensor | None:
    """All images of a file on the device; None where one cannot be read now."""
    there = torch.empty(images.shape, dtype=images.dtype, device=device)
    try:
        for rows in torch.arange(len(images)).split(ROWS):
            there[int(rows[0]) : int(rows[-1]) + 1] = images[rows]
    except (InputError, OSError):
        return None
    return there
