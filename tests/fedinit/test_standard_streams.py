"""Where nobody reads what a command prints, where its disk is full, and where characters cannot be shown."""

from __future__ import annotations

import functools
import itertools
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedinit.runs import folder as run_folder
from tests.support.recorded_runs import config, write_run
from tests.support.small import WORDS, slow, slow_unless

ROOT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")
LINE = "failed: standard output: No space left on device\n"
SHORT = (*WORDS, "rounds=1", "client.max_steps=1", "engine.lanes=1")
COMMANDS = {
    "help": ["-m", "fedinit", "--help"],
    "version": ["-m", "fedinit", "--version"],
    "completion": ["-m", "fedinit", "completion", "bash"],
    "help of run": ["-m", "fedinit", "run", "--help"],
    "help of run_sim": ["run_sim.py", "--help"],
    "help of predict": ["-m", "fedinit", "predict", "--help"],
    "configuration": ["run_sim.py", "--cfg", "job"],
    "table": ["-m", "fedinit", "compare", "{runs}"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "a-s0", config(seed=0), recorded=False)
    write_run(folder / "a-s1", config(seed=1), recorded=False)
    return folder


def python(words, stdout, *, stderr: Any = subprocess.PIPE, **variables: str) -> tuple[int, str]:
    """The exit code, and what it says on standard error. stdout: where to; "closed": a pipe that nobody reads."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONUNBUFFERED", "PYTHONIOENCODING")}
    command = [sys.executable, *words]
    inlet = None
    if stdout == "closed":
        outlet, inlet = os.pipe()
        os.close(outlet)
        target = inlet
    else:
        target = os.open(stdout, os.O_WRONLY)
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=target, stderr=stderr, env=environment | variables, text=True, timeout=120
        )
    finally:
        os.close(target)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    slow_unless(
        lambda command, unbuffered: (command, unbuffered) in [("help", ""), ("configuration", "1"), ("table", "")],
        itertools.product(COMMANDS, ("", "1")),
    ),
)
def test_nobody_reads_it_or_the_disk_is_full(command, unbuffered, runs):
    words = [word.format(runs=runs) for word in COMMANDS[command]]
    assert python(words, "closed", PYTHONUNBUFFERED=unbuffered) == (141, "")
    if FULL.exists():
        assert python(words, FULL, PYTHONUNBUFFERED=unbuffered) == (1, LINE)


@pytest.mark.parametrize(("stdout", "expected"), [("closed", (141, "")), (FULL, (1, LINE))])
def test_files_that_were_asked_for_too_are_written(stdout, expected, runs, tmp_path):
    if stdout == FULL and not FULL.exists():
        pytest.skip("no /dev/full here")
    files = tmp_path / "t.csv", tmp_path / "r.html"
    words = ["-m", "fedinit", "compare", str(runs), "--csv", str(files[0]), "--report", str(files[1])]
    assert python(words, stdout) == expected
    assert files[0].read_text().startswith("method") and files[1].read_text().endswith("</html>\n")


def test_wrong_input_is_still_told(runs):
    """The control: what fails before it prints has its own code."""
    code, told = python(["-m", "fedinit", "runn"], "closed")
    assert code == 2 and told.startswith("error: runn: no such command")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_standard_error_that_cannot_be_written_changes_no_code():
    with FULL.open("w") as full:
        assert python(["-m", "fedinit", "runn"], os.devnull, stderr=full)[0] == 2


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("stdout", "expected"), [pytest.param("closed", (0, ""), marks=pytest.mark.slow), (FULL, (1, LINE))]
)
def test_a_run_in_progress_goes_on_without_it(stdout, expected, tmp_path):
    words = ["-m", "fedinit", "run", *SHORT, f"output_dir={tmp_path}"]
    assert python(words, stdout, PYTHONUNBUFFERED="1") == expected
    (done,) = tmp_path.rglob("DONE.json")
    assert run_folder.finished(done.parent) is not None


CLOSED = (1, "failed: standard output is closed, and what was printed is gone\n")


def without_output(*words: object) -> tuple[int, str]:
    """The exit code, and what it says on standard error, of a process that begins without standard output."""
    shell = f"exec {shlex.join([sys.executable, *map(str, words)])} >&-"
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="its shell closes no stream")
@pytest.mark.parametrize(
    "command", ["version", "table", *slow(*(c for c in COMMANDS if c not in ("version", "table")))]
)
def test_a_stream_that_was_closed_before(command, runs):
    assert without_output(*(word.format(runs=runs) for word in COMMANDS[command])) == CLOSED


@pytest.mark.skipif(os.name == "nt", reason="its shell closes no stream")
@pytest.mark.slow
def test_what_is_asked_for_elsewhere_is_written_without_it(runs, tmp_path):
    compare, table = ("-m", "fedinit", "compare", runs), tmp_path / "table.csv"
    assert without_output(*compare, "--csv", "-") == CLOSED
    assert without_output(*compare, "--csv", table) == CLOSED and table.read_text().startswith("method")
    table.unlink()
    assert without_output(*compare, "-q", "--csv", table) == (0, "") and table.is_file()
    code, told = without_output(*compare, "-q", "--csv", "/dev/stdout")
    assert code == 2 and told.startswith("error: /dev/stdout: cannot be written") and told.count("\n") == 1
    assert without_output("-m", "fedinit", "report", runs, "--output", tmp_path / "r.html") == (0, "")
    assert (tmp_path / "r.html").read_text().endswith("</html>\n")
    code, told = without_output("-m", "fedinit", "compare", tmp_path / "none")
    assert code == 2 and told.startswith(f"error: {tmp_path / 'none'}: no such folder") and told.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="its shell closes no stream")
@pytest.mark.slow
def test_a_run_goes_on_where_it_was_closed_before(tmp_path):
    words = ("-m", "fedinit", "run", *SHORT, f"output_dir={tmp_path}")
    assert without_output(*words) == (0, "")
    (done,) = tmp_path.rglob("DONE.json")
    Image.new("L", (32, 32)).save(tmp_path / "a.png")
    assert without_output("-m", "fedinit", "predict", done.parent, tmp_path / "a.png") == CLOSED
    assert without_output(*words) == (0, ""), "and is shown where it is done"
    assert without_output("-m", "fedinit", "predict", done.parent, tmp_path / "a.png", "--csv") == CLOSED
    assert without_output("-m", "fedinit", "export", done.parent, "--format", "merged") == (0, "")
    assert (done.parent / "export" / "merged" / "config.json").is_file()


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONCOERCECLOCALE": "0"}])
def test_characters_that_a_terminal_lacks_are_replaced(variables, runs):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHONIO")}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", **variables}
    command = [sys.executable, "-m", "fedinit", "compare", str(runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment)
    assert done.returncode == 0 and not done.stderr
    assert b" ? " in done.stdout and done.stdout.isascii()


def test_half_a_character_in_a_name_is_shown(tmp_path):
    code = "from fedinit.standard_streams import ended; ended(lambda: print('a\\udcffb') or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"},
    )
    assert (done.returncode, done.stdout) == (0, b"a\\udcffb\n")


@pytest.mark.skipif(os.name == "nt", reason="no such terminals there")
@pytest.mark.slow
def test_a_run_goes_on_where_its_terminal_is_gone_and_sighup_is_ignored(tmp_path):
    """As under nohup, which has it write elsewhere too; a signal that is not ignored ends it."""
    for ignored in (True, False):
        ours, theirs = os.openpty()
        place = tmp_path / str(ignored)
        words = [
            sys.executable,
            "-m",
            "fedinit",
            "run",
            *SHORT,
            f"rounds={5 if ignored else 2000}",
            f"output_dir={place}",
        ]
        # Whatever it is in these tests, which may be under nohup themselves.
        way = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        streams = {"stdin": subprocess.DEVNULL, "stdout": theirs, "stderr": theirs}
        process = subprocess.Popen(words, cwd=ROOT, **streams, start_new_session=True, preexec_fn=way)
        os.close(theirs)
        while not [*place.rglob("metrics.csv")]:
            assert process.poll() is None
            os.read(ours, 4096)
        process.send_signal(signal.SIGHUP)  # first, as from a terminal: what is written between the two would fail
        os.close(ours)
        assert process.wait(120) == (0 if ignored else 128 + signal.SIGHUP)
        assert bool([*place.rglob("DONE.json")]) == ignored
