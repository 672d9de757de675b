"""Files that this process may not read or write, also where the tests run as root, which may all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

VERSION = 0x20080522  # of the kernel's capability sets, of two words each
OVERRIDE = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Words(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def forbidden(path: Path, mode: int = 0) -> Iterator[None]:
    """Within, a file or folder has this mode, and it holds for this thread whoever runs it."""
    if sys.platform == "win32" or (os.geteuid() == 0 and sys.platform != "linux"):
        pytest.skip("modes of files forbid nothing here")
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with _as_others() if os.geteuid() == 0 else contextlib.nullcontext():
            yield
    finally:
        path.chmod(before)


@contextlib.contextmanager
def _as_others() -> Iterator[None]:
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(VERSION, 0), (_Words * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    whole = sets[0].effective
    sets[0].effective = whole & ~OVERRIDE
    assert libc.capset(ctypes.byref(header), sets) == 0
    try:
        yield
    finally:
        sets[0].effective = whole
        assert libc.capset(ctypes.byref(header), sets) == 0
