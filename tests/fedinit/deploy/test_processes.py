"""The processes of `fedinit deploy`: none outlives its end. Stand-ins take the place of Flower's programs."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedinit
from fedinit.deploy import processes
from fedinit.deploy.processes import DeployFailed, Process, descendants, environment, stop_all

ROOT = Path(fedinit.__file__).resolve().parent.parent

PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
PARENT += "start_new_session=True); print('ready', flush=True); time.sleep(600)"


def started(tmp_path: Path, code: str) -> Process:
    process = Process("parent", [sys.executable, "-c", code], tmp_path / "log")
    for _ in range(600):
        if "ready" in (tmp_path / "log").read_text():
            return process
        time.sleep(0.1)
    raise AssertionError("it never started")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_nothing_that_was_started_outlives_its_end(tmp_path, how):
    """Not even a grandchild in a session of its own, as Flower starts its executors, nor one that ignores Ctrl-C."""
    process = started(tmp_path, "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " + PARENT)
    family = [process.pid, *descendants(process.pid)]
    assert len(family) == 2
    process.stop(seconds=0.5) if how == "stop" else process.kill()
    time.sleep(0.2)
    for pid in family:
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or ") Z " in state.read_text()


@pytest.mark.slow
def test_processes_that_do_not_end_share_one_deadline(tmp_path):
    """Three that ignore Ctrl-C take the time of one, and one that ends when it is asked to is not killed."""
    stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('ready', flush=True); "
    # A job in the background of a script inherits that SIGINT is ignored.
    polite = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    polite += "try: print('ready', flush=True); time.sleep(600)\nexcept KeyboardInterrupt: print('bye')"
    found = []
    for name, code in zip("abcd", [*[stubborn + "time.sleep(600)"] * 3, polite], strict=True):
        (tmp_path / name).mkdir()
        found.append(started(tmp_path / name, code))
    began = time.monotonic()
    stop_all(found, seconds=3.0)
    assert time.monotonic() - began < 6.0
    assert not any(process.running() for process in found)
    assert "bye" in (tmp_path / "d/log").read_text()


# In the place of flower-superlink and flower-supernode: ignores Ctrl-C, and has a child in a session of its own.
STAND_IN = """
import os, pathlib, signal, socket, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
folder, name, port = sys.argv[1:4]
if name == "superlink":
    listener = socket.create_server(("127.0.0.1", int(port)))
if name != "child":
    subprocess.Popen([sys.executable, sys.argv[0], folder, "child", "0"], start_new_session=True)
pathlib.Path(folder, f"{os.getpid()}.pid").touch()
time.sleep(600)
"""
UP = """
import pathlib, shlex, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
from fedinit import cli
from fedinit.deploy import layout, processes
from fedinit.deploy.flower import Server

folder, program, event = sys.argv[1:]

def script(*words):
    return "exec " + shlex.join([sys.executable, program, folder, *words]) + chr(10)

def wait(self, run, check):
    while len(list(pathlib.Path(folder).iterdir())) < 6:  # three and their children
        time.sleep(0.1)
    print("waiting", flush=True)
    if event.startswith("failure"):
        raise processes.DeployFailed("run 1 is finished:failed")
    time.sleep(600)

layout._superlink = lambda federation: script("deaf" if event == "starting" else "superlink", str(federation.port))
layout._supernode = lambda *_: script("supernode", "0")
processes.stop_all.__defaults__ = (4.0 if event == "failure, then a signal" else 0.5,)
Server.start_run, Server.wait = lambda self: "1", wait
sys.exit(cli.main(["deploy", "up", "--insecure", "data.domains=[plain,inverted]"]))
"""


@pytest.mark.parametrize(
    ("event", "numbers", "code"),
    [
        pytest.param("run", [signal.SIGINT, signal.SIGINT, signal.SIGTERM], 130, marks=pytest.mark.slow),
        pytest.param("run", [signal.SIGTERM, signal.SIGTERM, signal.SIGHUP], 143, marks=pytest.mark.slow),
        pytest.param("run", [signal.SIGHUP, signal.SIGINT], 129, marks=pytest.mark.slow),
        pytest.param("starting", [signal.SIGTERM], 143, marks=pytest.mark.slow),
        pytest.param("failure", [], 1, marks=pytest.mark.slow),
        pytest.param("failure, then a signal", [signal.SIGTERM], 143, marks=pytest.mark.slow),
    ],
)
def test_up_leaves_nothing_running(tmp_path, event, numbers, code):
    """Also where its processes ignore Ctrl-C, and where the operator does not wait for their end."""
    pids, temporary, said = tmp_path / "pids", tmp_path / "temporary", tmp_path / "said"
    pids.mkdir(), temporary.mkdir()
    (tmp_path / "program.py").write_text(STAND_IN)
    command = [sys.executable, "-c", UP, str(pids), str(tmp_path / "program.py"), event]
    with open(said, "wb") as out:
        here = environment(tmp_path) | {"TMPDIR": str(temporary)}
        process = subprocess.Popen(command, cwd=ROOT, env=here, stdout=out, stderr=out)

    def running() -> list[int]:
        return [int(path.stem) for path in pids.iterdir()]

    def ready() -> bool:
        return len(running()) == 2 if event == "starting" else "waiting" in said.read_text()

    while process.poll() is None and not ready():
        time.sleep(0.1)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    assert process.wait(60) == code, said.read_text()
    assert len(running()) == (2 if event == "starting" else 6)
    assert not [pid for pid in running() if processes._alive(pid)]
    assert "logs: " in said.read_text() and len(list(temporary.iterdir())) == 1  # of what did not end well


@pytest.mark.slow
def test_up_leaves_nothing_running_where_its_terminal_is_closed(tmp_path):
    """Then there is nowhere to say so either, and the exit code is that of SIGHUP all the same."""
    pids = tmp_path / "pids"
    pids.mkdir()
    (tmp_path / "program.py").write_text(STAND_IN)
    command = [sys.executable, "-c", UP, str(pids), str(tmp_path / "program.py"), "run"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, command, environment(tmp_path) | {"TMPDIR": str(tmp_path)})
    said = b""
    while b"waiting" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    running = [int(path.stem) for path in pids.iterdir()]
    assert len(running) == 6 and not [pid for pid in running if processes._alive(pid)]


def test_a_process_that_ends_early_is_shown_with_what_it_said(tmp_path):
    process = started(tmp_path, "print('ready'); print('cannot bind'); raise SystemExit(3)")
    process._process.wait()
    with pytest.raises(DeployFailed, match="parent ended with exit code 3:\n  ready\n  cannot bind"):
        process.check()
    process.stop()
