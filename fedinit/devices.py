"""The devices that a key of the configuration may name."""

from __future__ import annotations

import torch

from fedinit.config.engine import refuse_no_device
from fedinit.errors import InputError

CPU = torch.device("cpu")


def named(key: str, word: str) -> torch.device:
    """The device that `key=word` names, cpu, cuda (all, or the first) or cuda:<n>.

    Raises InputError for another word, and for a device that is not there.
    """
    refuse_no_device(key, word)
    wanted = torch.device(word)
    if wanted == CPU:
        return CPU
    there = torch.cuda.device_count()
    if there == 0 or (wanted.index or 0) >= there:
        raise InputError(f"{key}={word}: this machine has {there} CUDA devices; use {key}=cpu")
    return wanted


def chosen(key: str, word: str) -> torch.device | None:
    """The device that `key=word` names, the first where it names all; None for auto. Errors as of `named`."""
    if word == "auto":
        return None
    device = named(key, word)
    return torch.device("cuda", 0) if device == torch.device("cuda") else device
