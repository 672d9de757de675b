"""What tests of runs' folders share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def done(whole, tmp_path) -> Path:
    """A copy of the module's run that is done, where the same words with this test's output_dir look for it."""
    return Path(shutil.copytree(whole, tmp_path / whole.parent.name / whole.name))
