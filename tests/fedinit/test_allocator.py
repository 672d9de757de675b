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


@pytest.mark.slow
def test_steps_map_no_pages_anew():
    kept, count = faults("kept")
    assert kept == "True" and count < 100
    assert faults("as it is")[1] > 2000, "the control"


@pytest.mark.slow
def test_who_sets_it_decides():
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


FREED = """
import torch
from fedinit.allocator import give_back, keep_freed
from fedinit.memory import _pages
keep_freed()
guard = [torch.zeros(2**20) for _ in range(32)]
last = torch.zeros(16)
del guard
held = _pages()[1]
give_back()
print(held - _pages()[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system does not say what a process holds")
@pytest.mark.slow
def test_what_was_freed_can_be_given_back() -> None:
    clean = {name: value for name, value in os.environ.items() if name not in allocator.OWN}
    done = subprocess.run([sys.executable, "-c", FREED], env=clean, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100 * 2**20
