"""Which code a run was computed by: what was imported, and not what lies there by now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedinit
from fedinit.runs import code


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Path]:
    """A package of one file, in place of strategies."""
    monkeypatch.setattr(code, "PACKAGES", ("fedinit", "own"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("A = 1\n")
    os.utime(tmp_path / "own" / "__init__.py", (fedinit.BEGAN - 60,) * 2)
    monkeypatch.syspath_prepend(str(tmp_path))
    code.code_now.cache_clear()
    yield tmp_path / "own"
    code.code_now.cache_clear()


def test_what_was_edited_since_it_was_imported_is_not_vouched_for(package):
    assert set(code.code_now()) == {"fedinit", "own"} and code.edited_since() == []
    (package / "new.py").write_text("B = 2\n")
    os.utime(package / "new.py", (fedinit.BEGAN + 60,) * 2)
    assert code.edited_since() == ["own"]
    assert "own" in code.code_now(), "it was asked for before the edit, as it was imported"
    code.code_now.cache_clear()
    assert set(code.code_now()) == {"fedinit"}


def test_a_digest_is_of_names_and_content(package):
    first = code.code_now()["own"]
    (package / "__init__.py").write_text("A = 2\n")
    os.utime(package / "__init__.py", (fedinit.BEGAN - 60,) * 2)
    code.code_now.cache_clear()
    second = code.code_now()["own"]
    (package / "__init__.py").rename(package / "other.py")
    (package / "__init__.py").write_text("")
    os.utime(package / "__init__.py", (fedinit.BEGAN - 60,) * 2)
    code.code_now.cache_clear()
    assert len({first, second, code.code_now()["own"]}) == 3
    assert code.apart({"own": first}, ["own"]) == ["own"] and code.apart(code.code_now(), ["own"]) == []
