"""Decoded images kept between runs, checked by sha256: `data.cache_dir` of data=image_folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_log = logging.getLogger(__name__)


def load(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The images kept at `path`, (n, C, H, W) uint8; None where there are none of this shape, or they are not what was
    written."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            images, written = file.get_tensor("images").clone(), (file.metadata() or {}).get("sha256")
        if images.dtype != torch.uint8 or tuple(images.shape) != shape:
            raise ValueError(f"it holds {images.dtype} {tuple(images.shape)}")
        if hashlib.sha256(images.numpy().data).hexdigest() != written:
            raise ValueError("its checksum differs")
    except Exception as error:  # whatever is wrong with it, the images are still there
        _log.warning("image cache %s is damaged (%s): decoding again", path, error)
        return None
    return images


def save(path: Path, images: Tensor) -> None:
    """Keep the images at `path`: written beside it, then renamed, so that a reader sees all or nothing. A failure, such
    as a full disk, is only a warning."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum = hashlib.sha256(images.numpy().data).hexdigest()
        save_file({"images": images}, scratch, metadata={"sha256": checksum})
        os.replace(scratch, path)
    except Exception as error:  # safetensors has an error type of its own beside OSError
        _log.warning("image cache %s could not be written (%s): the run goes on without it", path, error)
        with contextlib.suppress(OSError):
            scratch.unlink()
