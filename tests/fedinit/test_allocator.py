"""What a process frees stays with it, so that a step of training maps no pages anew."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from fedinit import allocator

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
STEPS = """
import resource, sys, threading, torch
from fedinit.allocator import keep_freed
kept = keep_freed() if sys.argv[1] == "kept" else None
def step():  # many of one size, as activations are, which are freed together
    return [torch.zeros(2**20) for _ in range(16)]
def lane():
    for _ in range(4):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        step()
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
worker = threading.Thread(target=lane)  # as a bank's lane is
worker.start(), worker.join()
"""


def faults(how: str, **environment: str) -> tuple[str, int]:
    """What `keep_freed` gives in a process, and how many pages were mapped anew in eight steps of 64 MiB."""
    clean = {name: value for name, value in os.environ.items() if name not in allocator.OWN}
    words = [sys.executable, "-c", STEPS, how]
    done = subprocess.run(words, env=clean | environment, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


def test_steps_map_no_pages_anew():
    assert faults("kept")[0] == "True" and faults("kept")[1] < 100
    assert faults("as it is")[1] > 2000, "the control"


def test_who_sets_it_decides():
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
