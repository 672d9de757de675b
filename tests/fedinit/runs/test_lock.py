"""One process at a time writes to a run's folder, on every system, and a lock that nobody holds is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fedinit.errors import InputError
from fedinit.runs.lock import FolderLock


def test_one_at_a_time_and_nothing_left_behind(tmp_path):
    held = FolderLock(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match="another process is at this run"):
            FolderLock(tmp_path)
    held.release()
    assert not list(tmp_path.iterdir())
    held.release()  # nothing happens, also to whoever has it now
    FolderLock(tmp_path).release()


HOLD = "import sys, pathlib; from fedinit.runs.lock import FolderLock; lock = FolderLock(pathlib.Path(sys.argv[1])); "


def test_it_ends_with_its_process(tmp_path):
    words = [sys.executable, "-c", HOLD + "print('held', flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process is at this run"):
            FolderLock(tmp_path)
        process.kill()
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("windows", [False, True])
def test_a_folder_moved_aside_leaves_its_name_free(windows, tmp_path, monkeypatch):
    folder, aside = tmp_path / "run", tmp_path / "run.1"
    folder.mkdir()
    (folder / "metrics.csv").write_text("kept")
    held = FolderLock(folder)
    monkeypatch.setattr("fedinit.runs.lock.WINDOWS", windows)
    held.move_folder(aside)
    assert os.listdir(aside) == ["metrics.csv"] and not folder.exists()
    folder.mkdir()
    for place in (folder, aside):
        FolderLock(place).release()
