"""A row of a matrix product has the same bits among any number of others, which MKL does not promise by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.engine import rows
from fedinit import rounding

# Of the embedded ViT's widths, forward and back, and of an attention's: whether clients' rows differ from their own.
PRODUCTS = """
import sys
if sys.argv[1] == "strict":
    import fedinit
import torch
torch.manual_seed(0)
for k, n in ((128, 384), (128, 512), (512, 128), (128, 8), (8, 128), (384, 128)):
    for rows in (8, 260, 520):
        x, w = torch.randn(5 * rows, k), torch.randn(n, k)
        every = torch.nn.functional.linear(x, w)
        if any(not torch.equal(torch.nn.functional.linear(part, w), together)
               for size in (1, 2, 3) for part, together in zip(x.split(size * rows), every.split(size * rows))):
            print(True)
            sys.exit()
print(False)
"""


def differing(mode: str, **environment: str) -> bool:
    plain = {name: value for name, value in os.environ.items() if name != rounding.MODE}
    command = [sys.executable, "-c", PRODUCTS, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**plain, **environment})
    return {"True": True, "False": False}[done.stdout.strip()]


def test_a_clients_rows_are_its_own_in_every_product() -> None:
    assert not differing("strict")


def test_without_it_they_are_not_where_the_kernels_depend_on_the_rows() -> None:
    """The control: on such a CPU the test above can fail."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    if "GenuineIntel" not in flags or "avx512f" not in flags:
        pytest.skip("no CPU of Intel's with AVX-512")
    if not differing("plain"):
        pytest.skip("this CPU's kernels do not depend on the rows")
    assert differing("strict", **{rounding.MODE: "AVX512"}), "what the environment says stays"
    said = "from clients.engine import rows; print(rows.said())"
    for before, expected in (
        ("", "None"),
        ("import torch; torch.ones(9, 9) @ torch.ones(9, 9); ", "import fedinit first"),
    ):
        plain = {name: value for name, value in os.environ.items() if name != rounding.MODE}
        done = subprocess.run([sys.executable, "-c", before + said], capture_output=True, text=True, env=plain)
        assert expected in done.stdout, done.stderr
    for mode in ("AVX", "COMPATIBLE"):  # which keep long rows, and not those of few images
        other = {**os.environ, rounding.MODE: mode}
        done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, env=other)
        assert f"set {rounding.MODE}={rounding.STRICT}" in done.stdout, done.stderr


def test_the_line_is_of_the_processor_where_it_has_no_such_mode(monkeypatch) -> None:
    monkeypatch.setattr(rows, "rows_are_kept", lambda: False)
    for intel, expected in ((True, "import fedinit first"), (False, "this processor's products")):
        monkeypatch.setattr(rows, "is_intel", lambda intel=intel: intel)
        assert expected in (rows.said() or "")


@pytest.mark.parametrize(
    ("vendor", "said", "mode"),
    [("GenuineIntel", None, "AUTO,STRICT"), ("GenuineIntel", "AVX2", "AVX2"), ("AuthenticAMD", None, None)],
)
def test_mkl_is_strict_on_intels_cpus_where_nothing_else_is_said(monkeypatch, vendor, said, mode) -> None:
    monkeypatch.setattr(rounding, "is_intel", lambda: vendor == "GenuineIntel")
    monkeypatch.delenv(rounding.MODE, raising=False)
    if said is not None:
        monkeypatch.setenv(rounding.MODE, said)
    rounding.keep_rows()
    assert os.environ.get(rounding.MODE) == mode
    monkeypatch.delenv(rounding.MODE, raising=False)
