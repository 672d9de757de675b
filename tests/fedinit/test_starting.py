"""Before a command has begun: Ctrl-C and SIGTERM are one line and their code, and no garbage is looked for."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli

from fedinit.starting import USUAL

ROOT = Path(__file__).resolve().parents[2]
LINE = "stopped; nothing had begun\n"


@pytest.mark.parametrize("number", USUAL)
def test_a_signal_ends_an_import_in_one_line_and_is_what_it_was_behind_it(number):
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's too
from fedinit import starting
if sys.argv[1] == "within":
    starting.begin()
else:
    with starting.imports():
        pass
signal.raise_signal(int(sys.argv[2]))  # to this thread, before the call returns: of kill(2) any thread may have it
"""
    usual = "KeyboardInterrupt" if number == signal.SIGINT else ""
    for when, expected, told in (("within", 128 + number, LINE), ("behind", -number, usual)):
        words = [sys.executable, "-c", code, when, str(int(number))]
        ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == expected and told in ended.stderr
        assert ("Traceback" in ended.stderr) == (usual != "" and when == "behind")


def test_garbage_is_looked_for_behind_the_imports_in_what_is_made_from_then_on():
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > frozen))  # the last of all that is done
from fedinit import starting
assert gc.isenabled() and not gc.get_freeze_count()
starting.begin()
assert not gc.isenabled()
starting.end()
frozen = gc.get_freeze_count()
assert gc.isenabled() and frozen > 1000
made = [[] for _ in range(1000)]
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "True\n", ended.stderr


def test_the_command_is_the_one_that_takes_it():
    scripts = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"fedinit": "fedinit.__main__:main"}


@pytest.mark.slow
@pytest.mark.parametrize("words", [["run_sim.py", "rounds=1"], ["-m", "fedinit", "deploy", "status", "absent"]])
def test_ctrl_c_at_any_moment_of_the_imports(words):
    for wait in (0.4, 0.7, 1.0, 1.5):
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert "Traceback" not in told and told.count("\n") == 1, told
        assert process.returncode in (130, 2), told
