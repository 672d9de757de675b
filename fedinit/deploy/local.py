"""A whole federation on this machine, for trying: one SuperLink, a SuperNode a site, and one run.

The folder, the scripts and the steps are those of a real federation; only the addresses are loopback's.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fedinit.config import site as site_settings
from fedinit.config.limits import OFF
from fedinit.config.schema import Config
from fedinit.deploy import layout
from fedinit.deploy.flower import Server
from fedinit.deploy.processes import Process, check_port_free, environment, free_port, stop_all, wait_for_port
from fedinit.errors import InputError
from fedinit.state.disk import WINDOWS
from fedinit.stopping import listening, unbroken


class LocalFederation:
    """The processes of a federation in `folder`. `start` brings all of them up, `stop` ends what is left."""

    def __init__(self, folder: Path, config: Config, sites: int, secure: bool, port: int | None = None) -> None:
        """
        folder: a new one, which the keys, scripts and logs go into.
        config: of the run, with places that are this machine's.
        sites: how many SuperNodes there are.
        secure: TLS and registered keys.
        port: TCP, of the SuperLink; None: one that is free.

        Raises InputError for a port that is in use.
        """
        if port is not None:
            check_port_free(port)
        self.folder, self.port = folder, port or free_port()
        ports = [free_port() for _ in range(sites)]
        self.federation = layout.Federation(hosts=["127.0.0.1"], port=self.port, node_ports=ports, secure=secure)
        sent, settings = site_settings.split_off(config)
        layout.make(folder, self.federation, sent, {**settings, OFF: "off"})  # nobody to keep anything from
        self.server = Server.at(folder)
        self.superlink: Process | None = None
        self.supernodes: dict[int, Process] = {}

    def start(self) -> None:
        """SuperLink, registrations, SuperNodes. Raises DeployFailed, with the log's end, for one that does not live."""
        self.start_superlink()
        if self.federation.secure:
            self.server.register()
        for site in range(len(self.federation.node_ports)):
            self.start_supernode(site)

    def start_superlink(self) -> None:
        """Start the SuperLink, and wait until it listens. Raises DeployFailed where it ends, or does not in time."""
        with unbroken():  # a process that runs is one that `stop` knows
            self.superlink = self._start("SuperLink", self.server.folder / "superlink.sh")
        wait_for_port(self.port, self.superlink)

    def start_supernode(self, site: int) -> None:
        """Start the SuperNode of a site, by its number, without waiting for it."""
        with unbroken():
            self.supernodes[site] = self._start(f"SuperNode {site}", self.folder / f"site-{site}" / "supernode.sh")

    def check(self) -> None:
        """Raises DeployFailed for a process that has ended."""
        for process in self._processes():
            process.check()

    def stop(self) -> None:
        """End whatever runs, all at once, within STOP_SECONDS."""
        stop_all(self._processes())

    def _processes(self) -> list[Process]:
        return [p for p in (self.superlink, *self.supernodes.values()) if p is not None]

    def _start(self, name: str, script: Path) -> Process:
        log = script.parent / f"{script.stem}.log"
        return Process(name, ["/bin/sh", str(script)], log, environment(script.parent / "flwr"))


def _look(federation: LocalFederation, look: Callable[[], None]) -> None:
    federation.check()
    look()


def run_locally(
    config: Config,
    sites: int,
    secure: bool,
    port: int | None,
    say: Callable[[str], None],
    look: Callable[[], None] = lambda: None,
) -> None:
    """One run in a federation that is taken down again, whatever happens. Its logs are kept where it failed.

    config: with an absolute output_dir, since the ServerApp runs in a folder of its own.
    look: called now and then while the run goes on.
    Raises InputError, DeployFailed; Stopped, for Ctrl-C, SIGTERM and SIGHUP, once everything has ended.
    """
    if WINDOWS:
        raise InputError("fedinit deploy up: starts the federation by sh scripts, which Windows has not; use WSL")
    with listening(limit=None):
        folder = Path(tempfile.mkdtemp(prefix="fedinit-"))
        federation, kept = None, False
        try:
            federation = LocalFederation(folder, config, sites, secure, port)
            kept = True
            federation.start()
            how = "TLS, registered keys" if secure else "insecure"
            say(f"SuperLink on 127.0.0.1:{federation.port}, {sites} SuperNodes ({how})")
            run = federation.server.start_run()
            say(f"run {run}")
            federation.server.wait(run, functools.partial(_look, federation, look))
            kept = False
        finally:
            with unbroken():
                if federation is not None:
                    federation.stop()
                if kept:
                    with contextlib.suppress(OSError):  # of a terminal that is gone
                        say(f"logs: {folder}")
                else:
                    shutil.rmtree(folder, ignore_errors=True)
