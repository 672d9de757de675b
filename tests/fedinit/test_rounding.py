"""A row of a matrix product has the same bits among any number of others, which MKL does not promise by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from clients.engine import rows
from fedinit import rounding

# Of the embedded ViT's widths, forward and back, and of an attention's: whether clients' rows differ from their own.
PRODUCTS = """
import torch
torch.manual_seed(0)
differ = False
for k, n in ((128, 384), (128, 512), (512, 128), (128, 8), (8, 128), (384, 128)):
    for rows in (8, 260, 520):
        x, w = torch.randn(5 * rows, k), torch.randn(n, k)
        every = torch.nn.functional.linear(x, w)
        for size in (1, 2, 3):
            pairs = zip(x.split(size * rows), every.split(size * rows))
            differ |= any(not torch.equal(torch.nn.functional.linear(part, w), together) for part, together in pairs)
print(differ)
"""
STRICT, SAID = "import fedinit\n" + PRODUCTS, "from clients.engine import rows; print(rows.said())"
# Each in a process that has imported torch and multiplied nothing, since MKL looks at its mode at the first product.
FORKED = """
import json, os, sys, torch
for environment, code in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        os.environ.update(environment)
        exec(code, {})
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


def printed(*cases: tuple[Mapping[str, str], str]) -> list[str]:
    """What each of these (environment, code) prints, a line each."""
    plain = {name: value for name, value in os.environ.items() if name != rounding.MODE}
    command = [sys.executable, "-c", FORKED, json.dumps(cases)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=plain).stdout.splitlines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such processes there")
def test_a_clients_rows_are_its_own_in_every_product() -> None:
    """And where they are not without it, the control, a line says which mode."""
    product = "import torch; torch.ones(9, 9) @ torch.ones(9, 9); "
    strict, plain, silent, late, *other = printed(
        ({}, STRICT),
        ({}, PRODUCTS),
        ({}, SAID),
        ({}, product + SAID),
        *(({rounding.MODE: mode}, SAID) for mode in ("AVX", "COMPATIBLE")),  # which keep long rows, and not short ones
    )
    assert strict == "False"
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    if "GenuineIntel" not in flags or "avx512f" not in flags:
        pytest.skip("the control: no CPU of Intel's with AVX-512")
    if plain == "False":
        pytest.skip("the control: this CPU's kernels do not depend on the rows")
    assert silent == "None" and "import fedinit first" in late
    assert all(f"set {rounding.MODE}={rounding.STRICT}" in told for told in other)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such processes there")
def test_what_the_environment_says_of_the_rows_stays() -> None:
    plain, chosen = printed(({}, PRODUCTS), ({rounding.MODE: "AVX512"}, STRICT))
    if plain == "False" or "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("the control: this CPU's kernels do not depend on the rows, or it has no such modes")
    assert chosen == "True", "what the environment says stays"


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
