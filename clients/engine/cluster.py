"""A Ray to compute on: one of this machine's own, for as long as it is needed, or a cluster that is running."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from clients.engine.hardware import alike
from fedinit.config.engine import RayConfig
from fedinit.data.reporter import counted
from fedinit.errors import GOES_ON, InputError, RunFailed, first_line
from fedinit.stopping import unbroken
from fedinit.threads import cores

ANSWER = 10.0  # seconds that a cluster has to answer
TELL = 60.0  # seconds that its machines have to say what they are: a process each is started
VISIBLE = "CUDA_VISIBLE_DEVICES"
INSTALL = 'pip install "fedinit[ray]"'
START = "start one by `ray start --head`, or leave engine.address out for this machine's own"


def installed() -> Any:
    """The module ray, which tells nobody of its use. Raises InputError where there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # which ends the process by SIGTERM, with a trace
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray will have it; else it advises so
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"engine=ray: Ray is not installed: {INSTALL}") from error
    return ray


class Cluster:
    """What this process is connected to.

    ray: the module. where: what errors call it. cuda: whether its GPUs are meant, or its cores. actors: how many there
    are to be. threads: cores of each.
    """

    def __init__(self, config: RayConfig) -> None:
        """Connect, and where no address is given begin a Ray of this machine's own. One that this process was connected
        to before is used as it is, and left so.

        Raises InputError for a cluster that does not answer, has other versions, or has less than is asked for.
        """
        self.ray, self.cuda = installed(), (cuda := wants_gpus(config))
        self.threads = 1 if cuda else config.threads
        self._key = "GPU" if cuda else "CPU"
        self.where, self._address = _where(config), config.address
        self._connected = False  # by this
        self._told = contextlib.ExitStack()
        own = _own(cuda)
        self.actors = room(config, cuda, own, own) if not config.address else 0  # before seconds are spent on it
        try:
            if not self.ray.is_initialized():
                self._connected = True
                self._told.enter_context(_unannounced(self.ray))
                self._join(config.address) if config.address else self._begin(own)
            if config.address:
                self._judge(_tellers(self.ray, self._key))
                has, free = self.ray.cluster_resources(), self.ray.available_resources()
                self.actors = room(config, cuda, int(has.get(self._key, 0)), int(free.get(self._key, 0)))
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Raise RunFailed where a cluster that was joined by HOST:PORT is gone: Ray ends the process soon after, with a
        line of its own that does not say so."""
        try:
            if self._address not in ("", "auto"):
                reach(self._address)
        except InputError as error:
            raise RunFailed(f"{self.where}: the cluster is gone; {GOES_ON}, once one is there") from error

    def close(self) -> None:
        """Leave it; one of this machine's own ends."""
        if self._connected:
            self._connected = False
            self.ray.shutdown()
            self._told.close()

    def _begin(self, own: int) -> None:
        """Start a Ray of this machine's own. own: its cores, or GPUs."""
        try:
            with _undisturbed(), _visible(self.cuda):
                self.ray.init(
                    address="local",
                    num_cpus=cores(),
                    num_gpus=own if self.cuda else 0,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except Exception as error:
            raise RunFailed(f"engine=ray: Ray does not start on this machine: {first_line(error)}") from error

    def _join(self, address: str) -> None:
        if address != "auto":
            reach(address)
        try:
            with _undisturbed():
                self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            if address == "auto" and isinstance(error, ConnectionError):
                raise InputError(f"engine.address=auto: no cluster runs on this machine; {START}") from error
            said = " ".join(str(error).split()).rstrip(".")
            hint = "" if "ersion" in said else "; is it running? `ray status` says so there"
            raise InputError(f"engine.address={address}: no cluster to join ({said}){hint}") from error

    def _judge(self, tellers: Mapping[str, Any]) -> None:
        """Refuse machines with another fedinit, torch or Python. tellers: {machine: its answer to come}."""
        here = _facts()()
        for machine, answer in tellers.items():
            try:
                there = self.ray.get(answer, timeout=TELL)
            except Exception as error:
                raise InputError(f"{self.where}: {machine} does not answer ({first_line(error)})") from error
            if fault := difference(here, there):
                raise InputError(f"{self.where}: {machine} {fault}; the same bytes need the same of both")


def wants_gpus(config: RayConfig) -> bool:
    """Whether its actors are to have a GPU each, or cores."""
    return config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())


def foresee(config: RayConfig) -> None:
    """Raise InputError for what can be told before there are data, or a cluster: that Ray is not installed, that
    nothing answers at HOST:PORT, that this machine, where it is meant, has less than is asked for."""
    ray = installed()
    if not config.address:
        cuda = wants_gpus(config)
        room(config, cuda, _own(cuda), _own(cuda))
    elif config.address != "auto" and not ray.is_initialized():
        reach(config.address)


def room(config: RayConfig, cuda: bool, there: int, free: int) -> int:
    """How many actors there are to be, where so many cores or GPUs are, and so many of them free. Raises InputError for
    too many."""
    threads, kind, where = 1 if cuda else config.threads, "GPU" if cuda else "core", _where(config)
    if there < 1:
        raise InputError(f"{where} has no {kind}s for actors; use engine.device={'cpu' if cuda else 'cuda'}")
    if there < threads:
        raise InputError(f"engine.threads={threads}: {where} has {counted(there, 'core')}; use engine.threads={there}")
    most = there // threads
    if config.actors == "auto":
        return max(1, min(most, free // threads))
    if config.actors > most:
        each = f", {threads} for each" * (threads > 1)
        hint = f"use engine.actors={most}, or auto"
        raise InputError(f"engine.actors={config.actors}: {where} has {counted(there, kind)}{each}; {hint}")
    return config.actors


@contextmanager
def _unannounced(ray: Any) -> Iterator[None]:
    """Without the ten lines, with colours, that Ray prints to stdout of a process that died, whatever `log_to_driver`
    is: who died, and what is done again, is the engine's line. ray: the module."""
    worker = getattr(getattr(ray, "_private", None), "worker", None)
    shown = getattr(worker, "print_to_stdstream", None)
    if worker is None or shown is None:  # they are no public part of Ray, and another version may have none
        yield
        return
    worker.print_to_stdstream = lambda data, *rest, **named: (
        None if data.get("pid") == "raylet" else shown(data, *rest, **named)
    )
    try:
        yield
    finally:
        worker.print_to_stdstream = shown


def _where(config: RayConfig) -> str:
    """What errors call the cluster."""
    return f"engine.address={config.address}" if config.address else "this machine"


def _own(cuda: bool) -> int:
    """This machine's GPUs, of the first one's kind, or the cores that the process may use."""
    return len(alike()) if cuda else cores()


@contextmanager
def _visible(cuda: bool) -> Iterator[None]:
    """Within, a Ray that is begun deals out the GPUs of the first one's kind alone."""
    there, before = torch.cuda.device_count() if cuda else 0, os.environ.get(VISIBLE)
    if there and len(alike()) < there:
        names = before.split(",") if before else [str(i) for i in range(there)]
        os.environ[VISIBLE] = ",".join(names[i] for i in alike())
    try:
        yield
    finally:
        if before is not None:
            os.environ[VISIBLE] = before
        elif there:
            os.environ.pop(VISIBLE, None)


def reach(address: str) -> None:
    """Raise InputError where nothing at HOST:PORT, or ray://HOST:PORT, answers as a cluster does within ANSWER
    seconds."""
    target = address.removeprefix("ray://")
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or first_line(error)
        if isinstance(error, UnicodeError):  # an empty label, or one of more than 63 letters
            said = f"{host} is no name that a machine can have"
        raise InputError(f"engine.address={address}: no cluster answers there ({said}); {START}") from error
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # the connection itself needs Ray's certificates
    import grpc

    said, channel = "", grpc.insecure_channel(target)
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER)
        # The first call that Ray makes, which it repeats for twenty seconds and more where something else listens.
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId", bytes, bytes)(b"", timeout=ANSWER)
    except grpc.FutureTimeoutError:
        said = f"something listens there, which is no Ray, or says nothing within {ANSWER:.0f} s"
    except grpc.RpcError as error:  # a refusal is an answer too
        assert isinstance(error, grpc.Call)
        unknown = error.code() is grpc.StatusCode.UNIMPLEMENTED and target == address and _first_call()
        if unknown or "http2 header with status" in (error.details() or ""):
            said = "something else than Ray listens there"
    finally:
        channel.close()
    if said:
        raise InputError(f"engine.address={address}: no cluster answers there ({said}); {START}")


def _first_call() -> bool:
    """Whether the Ray that is installed begins with that call."""
    try:
        from ray.core.generated import gcs_service_pb2 as calls  # pyright: ignore[reportMissingImports]

        return "GetClusterId" in calls.DESCRIPTOR.services_by_name["NodeInfoGcsService"].methods_by_name
    except (ImportError, AttributeError, KeyError):
        return False


def difference(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """What a machine has another version of, in words; None where it has the same. Both as `_facts` gives them."""
    for name, own in here.items():
        other = there.get(name, "none")
        if other != own:
            return f"has {name} {other}, and this process {own}"
    return None


def _facts() -> Callable[[], dict[str, str]]:
    """A function that says which versions a process has. It is made here since Ray sends such a function by its code,
    so that it runs where no fedinit is."""

    def facts() -> dict[str, str]:
        import hashlib
        import importlib.util
        import platform
        from importlib import metadata
        from pathlib import Path

        found = {"Python": platform.python_version(), "torch": "none", "fedinit": "none"}
        try:
            found["torch"] = metadata.version("torch").partition("+")[0]  # CPU's and CUDA's builds go together
        except metadata.PackageNotFoundError:
            pass
        package = importlib.util.find_spec("fedinit")
        if package is not None and package.origin is not None:
            root, code = Path(package.origin).parent.parent, hashlib.sha256()
            for path in sorted(path for name in ("fedinit", "clients") for path in (root / name).rglob("*.py")):
                code.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
            found["fedinit"] = f"of the code {code.hexdigest()[:10]}"
        return found

    return facts


def _tellers(ray: Any, key: str) -> dict[str, Any]:
    """{machine: its answer to come} of the cluster's machines with something of this resource."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

    ask = ray.remote(num_cpus=0, max_retries=0)(_facts())
    machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(key, 0) >= 1]
    return {
        node["NodeManagerAddress"]: ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in machines
    }


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Within, no signal breaks into Ray's start, which would leave half of it, and Ray takes none for itself: it would
    end the process by SIGTERM without a word."""
    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield
        return
    whole, signal.signal = signal.signal, lambda number, handler: signal.getsignal(number)
    try:
        with unbroken():
            yield
    finally:
        signal.signal = whole
