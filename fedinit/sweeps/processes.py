"""Runs side by side in processes of this machine, each with its share of the cores, or a GPU of its own.

A process does one run after another, so that torch is imported once; one that dies takes its run with it and nothing
else. None outlives this process, however that ends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import fedinit
from fedinit.config.schema import Config, to_dict
from fedinit.stopping import LIMIT
from fedinit.sweeps.outcome import Outcome

CORES = "FEDINIT_CORES"  # the variable that fedinit/threads.py reads
WORKER = [sys.executable, "-m", "fedinit.sweeps.worker"]
MOST = 8  # processes that are started unasked: each holds its own backbone and images
GRACE = LIMIT + 2.0  # seconds that processes have to end, all together
LINES = 12  # of what a process printed last, that are shown when it dies

Named = tuple[str, Config]  # what a run is called, and what it is


def side_by_side(runs: Sequence[Named], environments: Sequence[Mapping[str, str]]) -> Iterator[Outcome]:
    """Do the runs, in a process an environment, and give what came of each as it ends.

    environments: what is other there than in this process's own variables.

    Runs that would be kept in one folder are done one after another. When the iterator is closed the processes end.
    """
    groups: queue.SimpleQueue[list[Named]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    for group in _by_folder(runs):
        groups.put(group)
    workers = [_Worker(environment) for environment in environments]
    for worker in workers:
        threading.Thread(target=_give, args=(worker, groups, ended), daemon=True).start()
    try:
        for _ in runs:
            yield ended.get()
    finally:
        _stop(workers)


def environments(configs: Sequence[Config], jobs: int | None) -> list[dict[str, str]]:
    """What each process has other than this one, in variables.

    jobs: how many processes; None: one a GPU, or one a core up to `MOST`. There are no more than runs. A process has a
        GPU of its own, unless a run names one by its number, which is that among all of them.
    """
    from fedinit.memory import SHARE, free_memory
    from fedinit.threads import cores  # with torch, which says what GPUs there are

    named = {word for config in configs for word in (config.engine.device, config.server_device) if ":" in word}
    on_gpus = any(config.engine.device != "cpu" for config in configs)
    shares = _shares_of_gpus() if on_gpus and not named else []
    every = any(config.engine.device in ("auto", "cuda") for config in configs)  # GPU, or a core each
    unasked = 1 if named and every else len(named) or len(shares) or min(cores(), MOST)
    count = min(jobs or unasked, len(configs))
    threads = str(max(1, cores() // max(count, 1)))
    common = {CORES: threads, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    if (free := free_memory()) is not None:
        common[SHARE] = str(free // max(count, 1))
    return [common | (shares[i % len(shares)] if shares else {}) for i in range(count)]


def _shares_of_gpus() -> list[dict[str, str]]:
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    said = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in (said or map(str, range(there)))][:there]


def _by_folder(runs: Sequence[Named]) -> list[list[Named]]:
    groups: dict[tuple[object, ...], list[Named]] = defaultdict(list)
    for words, config in runs:
        folder = config.output_dir, config.name, config.identity(), config.seed
        groups[folder].append((words, config))
    return list(groups.values())


def _give(worker: _Worker, groups: queue.SimpleQueue[list[Named]], ended: queue.SimpleQueue[Outcome]) -> None:
    while True:
        try:
            group = groups.get_nowait()
        except queue.Empty:
            return worker.close()
        for words, config in group:
            try:
                outcome = worker.do(words, config)
            except OSError as error:  # no process, no memory for one
                outcome = Outcome(words, why=f"run failed: no process for it: {error.strerror or error}")
            ended.put(outcome)


class _Worker:
    """A process of `fedinit.sweeps.worker`, started when there is something for it to do, and again where it died."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """environment: what is other there than in this process's own variables."""
        packages = str(Path(fedinit.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))
        self._environment = {**os.environ, **environment, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
        self._log = tempfile.TemporaryFile()
        self._stopped = False
        self.process: subprocess.Popen[bytes] | None = None

    def do(self, words: str, config: Config) -> Outcome:
        """Have the run done. Raises OSError where no process can be started."""
        if self._stopped:
            return Outcome(words, why="stopped")
        if self.process is None or self.process.poll() is not None:
            self._start()
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        self._log.truncate(0)
        try:
            question = json.dumps({"words": words, "config": to_dict(config)})
            self.process.stdin.write(question.encode() + b"\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if answer.endswith(b"\n"):
            return Outcome(**json.loads(answer))
        return Outcome(words, why=f"run failed: its process {_ended(self.process.wait())}", trace=self._said())

    def close(self) -> None:
        """Let it end: there is nothing more to do."""
        if self.process is not None and self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass

    def ask_to_end(self) -> None:
        """In the midst of a run, which keeps its last checkpoint."""
        self._stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def _start(self) -> None:
        # A session of its own: Ctrl-C goes to this process, which ends the others in order.
        self.process = subprocess.Popen(
            WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment,
            start_new_session=True,
        )

    def _said(self) -> str:
        """The last lines that it printed."""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").replace("\0", "").rstrip().splitlines()
        return "".join(f"  {line}\n" for line in lines[-LINES:])


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = ", as the system does where memory runs out; fewer jobs need less" if name == "SIGKILL" else ""
    return f"was ended by {name}{memory}"


def _stop(workers: Sequence[_Worker]) -> None:
    """End all processes, asked first, killed after GRACE seconds."""
    for worker in workers:
        worker.ask_to_end()
    deadline = time.monotonic() + GRACE
    for process in [worker.process for worker in workers if worker.process is not None]:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
