"""Matrix products that give a row the same bits, however many rows there are beside it.

A client is promised the bytes that it computes alone in whatever bank it trains (docs/architecture.md). On Intel's CPUs
with AVX-512, MKL, by which torch multiplies there, takes other kernels for other numbers of rows, which add up in
another order; in its strict mode of reproducible results it does not. Other CPUs have no such mode, and need none.
"""

from __future__ import annotations

import os
import sys

MODE, STRICT = "MKL_CBWR", "AUTO,STRICT"


def keep_rows() -> None:
    """Have MKL be strict on Intel's CPUs, in this process and those that it starts; a mode that the environment names
    stays. It is read at the first product, so that what was computed before this is in the mode that was there."""
    if is_intel():
        os.environ.setdefault(MODE, STRICT)


def is_intel() -> bool:
    """Whether the processor is Intel's, as far as the system says."""
    if not sys.platform.startswith("linux"):
        return "GenuineIntel" in os.environ.get("PROCESSOR_IDENTIFIER", "")  # which Windows sets
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return "GenuineIntel" in file.read(512)
    except OSError:
        return False
