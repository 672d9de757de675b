"""Flower's own tool, `flwr`, from the operator's side: register sites, start a run, ask what became of it.

What the tool prints when it fails is shown, not hidden. `flwr run --stream` ends with 0 whether or not the run failed,
so a run is started, and then its status is asked for.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli
import tomli_w

from fedinit.config.flower import from_run_config
from fedinit.config.schema import Config
from fedinit.deploy import certificates, reaching
from fedinit.deploy.layout import PROJECT
from fedinit.deploy.processes import DeployFailed, colourless, environment, last_lines
from fedinit.errors import InputError
from fedinit.opening import read_text
from fedinit.pasted import pasted

CONNECTION = "federation"
KEY_IN_USE = "[code: 23]"  # what Flower answers to a key that it knows
# The errors of fedinit that are one line, as a traceback names them: what a ServerApp ends with, and why.
TOLD = frozenset(
    {
        "clients.budget.BudgetSpent",
        "clients.statistics.TooFew",
        "fedinit.config.limits.Cut",
        "fedinit.config.limits.Exhausted",
        "fedinit.config.limits.Limited",
        "fedinit.data.checking.Misfits",
        "fedinit.config.build.Quoted",
        "fedinit.errors.DeviceFailed",
        "fedinit.errors.FolderBusy",
        "fedinit.errors.InputError",
        "fedinit.errors.PrivacySpent",
        "fedinit.errors.Refused",
        "fedinit.errors.RunFailed",
        "fedinit.unreadable.Unreadable",
    }
)
TRACEBACK = "Traceback (most recent call last):"
LAST_LINES = 15  # of a run's log, that are its end
ANSWER_SECONDS = 300.0  # what `flwr` has to answer, at the most
POLL_SECONDS = (1.0, 10.0)  # between two questions after a run, at first and at most: each starts a `flwr`


@dataclass(frozen=True)
class Server:
    """The server's folder, on the machine where the SuperLink runs."""

    folder: Path

    @staticmethod
    def at(folder: Path) -> Server:
        """Raises InputError for a folder that `fedinit deploy init` did not make. `folder` may be the one above."""
        for place in (folder, folder / "server"):
            if (place / "federation.json").is_file():
                return Server(place.resolve())
        if (folder / "supernode.sh").is_file():
            raise InputError(f"{folder}: a site's folder; this is asked of the server's, the one with superlink.sh")
        raise InputError(
            f"{folder}: no federation.json there; make the folder with: fedinit deploy init {pasted(folder)}"
        )

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether `fedinit deploy init` made it."""
        return any((place / "federation.json").is_file() for place in (folder, folder / "server"))

    @property
    def keys(self) -> list[Path]:
        """The files of the sites' public keys, in order; none of a federation without keys."""
        return sorted((self.folder / "sites").glob("*.pub"))

    @property
    def facts(self) -> dict[str, Any]:
        """port, secure. Raises InputError for a file in which they are not."""
        file = self.folder / "federation.json"
        try:
            facts = json.loads(read_text(file))
            if not isinstance(facts["secure"], bool):
                raise ValueError(f"secure is {facts['secure']!r}")
            return {"port": int(facts["port"]), "secure": facts["secure"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{file}: {type(error).__name__}: {error}; expected {{"port": 8000, "secure": true}}'
            ) from error

    @property
    def app(self) -> Path:
        """The folder of the Flower app that `flwr run` bundles."""
        return self.folder / "app"

    def config(self) -> Config:
        """The configuration that the app carries. Raises InputError when it was edited into something wrong."""
        try:
            project = tomli.loads(read_text(self.app / PROJECT))
            return from_run_config(project["tool"]["flwr"]["app"]["config"])
        except (OSError, KeyError, TypeError, tomli.TOMLDecodeError) as error:
            raise InputError(f"{self.app / PROJECT}: {error}") from error

    def register(self) -> list[str]:
        """Register every key in sites/ that is not registered yet; returns the names of the new ones.

        Which node a key became is kept beside it, in site-<i>.id: `flwr supernode list` names neither site nor key.
        """
        fresh = []
        for key in self.keys:
            try:
                answer = self._ask("supernode", "register", str(key), CONNECTION, "--name", key.stem)
            except DeployFailed as error:
                if KEY_IN_USE in str(error):
                    continue
                raise
            key.with_suffix(".id").write_text(f"{answer['node-id']}\n", encoding="utf-8")
            fresh.append(key.stem)
        return fresh

    def start_run(self) -> str:
        """Bundle the app and start it; returns the run's id."""
        self.config()
        return str(self._ask("run", str(self.app), CONNECTION)["run-id"])

    def status(self, run: str) -> str:
        """pending, starting, running, finished:completed, finished:failed or finished:stopped."""
        return str(self._ask("list", CONNECTION, "--run-id", run)["runs"][0]["status"])

    def wait(self, run: str, check: Callable[[], None] = lambda: None) -> None:
        """Until the run has ended. `check` is called meanwhile, and may raise. Unless it completed, raises DeployFailed
        with why, where it failed by an error of fedinit's own, else with the end of its log."""
        pause = POLL_SECONDS[0]
        while not (status := self.status(run)).startswith("finished"):
            check()
            time.sleep(pause)
            pause = min(1.3 * pause, POLL_SECONDS[1])
        if status != "finished:completed":
            log = self._log(run)
            why = reason(log) if status == "finished:failed" else None
            raise DeployFailed(f"run {run}: {why}" if why else f"run {run} is {status}:\n{last_lines(log, LAST_LINES)}")

    def log_tail(self, run: str, lines: int = LAST_LINES) -> str:
        """The end of what the ServerApp printed."""
        return last_lines(self._log(run), lines)

    def runs(self) -> list[dict[str, Any]]:
        """run-id, status, elapsed and more of every run. Raises DeployFailed."""
        return self._ask("list", CONNECTION)["runs"]

    def nodes(self) -> list[dict[str, Any]]:
        """node-id, status and more of every SuperNode, and under "name" its site's, or "" where it was not registered
        here. Raises DeployFailed."""
        names = {read_text(file).strip(): file.stem for file in (self.folder / "sites").glob("*.id")}
        nodes = self._ask("supernode", "list", CONNECTION)["nodes"]
        return [node | {"name": names.get(str(node["node-id"]), "")} for node in nodes]

    def _log(self, run: str) -> str:
        return self._flwr("log", run, CONNECTION, "--show").stdout

    def _ask(self, *words: str) -> dict[str, Any]:
        done = self._flwr(*words, "--format", "json")
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if done.returncode != 0 or not answer.get("success", False):
            said = answer.get("error-message") or (done.stderr + done.stdout).strip() or f"exit code {done.returncode}"
            if "SuperLink is unavailable" in said:
                raise DeployFailed(self._silence())
            raise DeployFailed(f"flwr {words[0]}: {' '.join(colourless(str(said)).split())}")
        return answer

    def _silence(self) -> str:
        """Why `flwr` reaches no SuperLink: one that shows a certificate that is over is none to it."""
        port, secure = self.facts["port"], self.facts["secure"]
        if secure and (why := certificates.fault(self.folder)):
            return why
        shown = reaching.shown_certificate(port) if secure else None
        other = None if shown is None else certificates.another(self.folder / "server.crt", shown)
        if other is not None:
            return (
                f"127.0.0.1:{port} shows another certificate than {self.folder / 'server.crt'} "
                f"({certificates.standing(other)}): start the SuperLink again"
            )
        return f"no SuperLink answers at 127.0.0.1:{port}; ./superlink.sh starts it"

    def _flwr(self, *words: str) -> subprocess.CompletedProcess[str]:
        home = self.folder / "flwr"
        self._write_connection(home)
        command, env, limit = ["flwr", *words], environment(home), ANSWER_SECONDS
        try:
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise DeployFailed(f"flwr {words[0]}: no answer in {limit:g} s; does the SuperLink run?") from error

    def _write_connection(self, home: Path) -> None:
        """Where `flwr` finds the SuperLink. Written anew each time, since it holds absolute paths."""
        facts = self.facts
        link: dict[str, Any] = {"address": f"127.0.0.1:{facts['port']}"}
        link |= {"root-certificates": str(self.folder / "ca.crt")} if facts["secure"] else {"insecure": True}
        home.mkdir(mode=0o700, exist_ok=True)
        text = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: link}})
        (home / "config.toml").write_text(text, encoding="utf-8")


def reason(log: str) -> str | None:
    """Why a ServerApp ended, where its log ends with an error of fedinit's own (TOLD); None for any other end."""
    lines = colourless(log).rstrip().splitlines()
    began = max((i for i, line in enumerate(lines) if line == TRACEBACK), default=len(lines))
    # What is between is indented: files, lines of code.
    for i, line in enumerate(lines[began + 1 :], began + 1):
        if line[:1].strip():
            name, _, why = line.partition(": ")
            return why if name in TOLD and why and i >= len(lines) - LAST_LINES else None
    return None


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Rows as lines of text with a heading, columns lined up."""
    table = [list(columns), *([str(row.get(c, "")) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
