"""Processes that are started here and ended here, with all that they started themselves."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import fedinit
from fedinit.errors import InputError

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has none, and ends a process at once by the other
STOP_SECONDS = 8.0  # what processes that are asked to end have, all of them together, until they are killed
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class DeployFailed(RuntimeError):
    """A process or a run of a federation ended badly. The message says which, and holds what it printed last."""


def environment(flwr_home: Path) -> dict[str, str]:
    """The variables for Flower's tools: this Python's programs and packages, and a Flower home of its own."""
    programs, packages = str(Path(sys.executable).parent), str(Path(fedinit.__file__).resolve().parent.parent)
    return os.environ | {
        "FLWR_HOME": str(flwr_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")])),
    }


class Process:
    """A program that runs until `stop`, with all that it starts. It runs from the moment it is constructed."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        """
        name: for messages.
        command: the program and its words.
        log: the file that its output is appended to, whose end is shown when it fails.
        env: all of its variables; None: those of this process.
        """
        self.name, self.log = name, log
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:  # its owner's alone
            # A session of its own: Ctrl-C goes to whoever started this, who then ends its processes in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
            )
        self.pid = self._process.pid

    def check(self) -> None:
        """Raise DeployFailed, with the end of the log, if the program has ended."""
        code = self._process.poll()
        if code is not None:
            raise DeployFailed(f"{self.name} ended with exit code {code}:\n{tail(self.log)}")

    def kill(self) -> None:
        """As a power cut does it: at once, and all that it started."""
        family = [self.pid, *descendants(self.pid)]
        for pid in family:
            _signal(pid, KILL)
        self._process.wait()

    def running(self) -> bool:
        """Whether the program has not ended."""
        return self._process.poll() is None

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End the program and all that it started: asked first, killed after `seconds`."""
        stop_all([self], seconds)


def stop_all(processes: Sequence[Process], seconds: float = STOP_SECONDS) -> None:
    """Ask all of them to end, give them `seconds` together, then end what is left of them and of what they started."""
    family = {process.pid for process in processes if process.running()}

    def left() -> set[int]:
        family.update(descendants(*family))  # again and again: one that is ending may start another
        return {pid for pid in family if _alive(pid)} | {p.pid for p in processes if p.running()}

    for pid in left() & {process.pid for process in processes}:
        _signal(pid, signal.SIGINT)
    deadline = time.monotonic() + seconds
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left():
        _signal(pid, KILL)
    for process in processes:
        process._process.wait()


def descendants(*pids: int) -> list[int]:
    """The processes that these started, and those that they started. Needs /proc; elsewhere the list is empty."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state parent …", and the name may hold blanks and parentheses.
            parent = int(entry.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it ended while we looked
        children.setdefault(parent, []).append(int(entry.parent.name))
    started, open_ = [], list(pids)
    while open_:
        below = children.get(open_.pop(), [])
        started += below
        open_ += below
    return started


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_port_free(port: int) -> None:
    """Raises InputError if something listens on 127.0.0.1:port."""
    if not 0 < port < 65536:
        raise InputError(f"--port {port}: expected 1 to 65535")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise InputError(f"--port {port}: something else listens on 127.0.0.1:{port}; choose another port")


def wait_for_port(port: int, process: Process, seconds: float = 120.0) -> None:
    """Until `process` listens on 127.0.0.1:port. Raises DeployFailed if it ends, or does not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process.check()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise DeployFailed(f"{process.name} did not listen on port {port} in {seconds:g} s:\n{tail(process.log)}")


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return last_lines(text, lines)


def last_lines(text: str, lines: int) -> str:
    """The end of what a program printed, indented."""
    kept = colourless(text).rstrip().splitlines()[-lines:]
    return "\n".join(f"  {line}" for line in kept) or "  (it printed nothing)"


def colourless(text: str) -> str:
    """A text without the escape sequences that colour it in a terminal."""
    return _ESCAPE.sub("", text)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
