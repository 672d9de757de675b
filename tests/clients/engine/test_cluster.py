"""What is refused before an actor starts, each in one line: no Ray, no answer, other versions, too many actors."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clients import client_app
from clients.engine import cluster, hardware
from clients.engine.cluster import Cluster, difference, reach
from clients.site import Site
from fedinit.config.engine import RayConfig
from fedinit.config.flower import to_run_config
from fedinit.errors import InputError, Refused, RunFailed
from fedinit.stopping import Stopped, listening
from fedinit.threads import cores
from strategies.server.compatibility import check_method
from tests.support.small import small_config


class FakeRay:
    """A cluster of these resources, of which some are free, on machines that say these versions of themselves."""

    def __init__(self, has: dict[str, float], free: dict[str, float] | None = None, **machines: dict[str, str]) -> None:
        self.has, self.free, self.machines = has, has if free is None else free, machines
        self.connected = False
        self.init_error: BaseException | None = None
        self.inits: list[dict[str, Any]] = []

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **options: Any) -> None:
        self.inits.append(options)
        if self.init_error is not None:
            raise self.init_error
        self.connected = True

    def shutdown(self) -> None:
        self.connected = False

    def cluster_resources(self) -> dict[str, float]:
        return self.has

    def available_resources(self) -> dict[str, float]:
        return self.free

    def get(self, answer: Any, timeout: float) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch):
    """connect(ray, **options): the Cluster of such a Ray, whose address answers."""

    def connected(ray: FakeRay, cuda: bool = False, **options: Any) -> Cluster:
        monkeypatch.setattr(cluster, "installed", lambda: ray)
        monkeypatch.setattr(cluster, "reach", lambda address: None)
        monkeypatch.setattr(cluster, "_tellers", lambda *_: ray.machines)
        monkeypatch.setattr(cluster, "wants_gpus", lambda config: cuda)
        return Cluster(RayConfig(**options))

    return connected


def refused(connect, ray: FakeRay, *args: Any, **options: Any) -> str:
    """The line that it is refused in; what was connected is left."""
    with pytest.raises((InputError, RunFailed)) as caught:
        connect(ray, *args, **options)
    assert "\n" not in str(caught.value) and not ray.connected
    return str(caught.value)


HERE = cluster._facts()()


def test_ray_is_not_installed(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'^engine=ray: Ray is not installed: pip install "fedinit\[ray\]"$'):
        cluster.installed()


def test_one_of_this_machines_own_has_an_actor_a_core_and_ends(connect) -> None:
    ray = FakeRay({"CPU": cores()})
    made = connect(ray)
    assert made.actors == cores()
    (options,) = ray.inits
    assert options["address"] == "local" and options["num_cpus"] == cores() and options["num_gpus"] == 0
    assert options["include_dashboard"] is False
    made.close()
    assert not ray.connected
    made.close()  # twice is once


def test_a_ray_that_this_process_was_connected_to_is_left_as_it_was(connect) -> None:
    ray = FakeRay({"CPU": 2})
    ray.connected = True
    made = connect(ray, actors=1)
    made.close()
    assert ray.connected and not ray.inits


def test_more_actors_than_cores(connect) -> None:
    there = cores()
    ray = FakeRay({})
    said = refused(connect, ray, actors=there + 1)
    assert said.startswith(f"engine.actors={there + 1}: this machine has {there} cores; use engine.actors={there}, or")
    assert not ray.inits  # nothing was begun for it
    said = refused(connect, FakeRay({"CPU": 8.0}, node=HERE), actors=9, address="head:6379")
    assert said == "engine.actors=9: engine.address=head:6379 has 8 cores; use engine.actors=8, or auto"


def test_it_is_told_before_data_are_read(connect, monkeypatch) -> None:
    connect(FakeRay({"CPU": cores()})).close()
    monkeypatch.setattr(type(small_config().data), "load", lambda *_: pytest.fail("data were read"))
    with pytest.raises(InputError, match=r"^engine.actors=99: this machine has"):
        Site(small_config("engine=ray", "engine.actors=99"))
    monkeypatch.setattr(cluster, "reach", reach)
    with pytest.raises(InputError, match=r"^engine.address=127.0.0.1:1: no cluster answers there"):
        Site(small_config("engine=ray", "engine.address=127.0.0.1:1"))
    with pytest.raises(pytest.fail.Exception):  # negative control: of a cluster nothing is known yet
        Site(small_config("engine=ray", "engine.actors=99", "engine.address=auto"))


def test_actors_of_several_cores(connect) -> None:
    """A group of cores each; GPUs have no such groups."""
    assert connect(FakeRay({"CPU": 9.0}, {"CPU": 5.0}, a=HERE), address="auto", threads=2).actors == 2
    assert connect(FakeRay({"CPU": 9.0}, {"CPU": 9.0}, a=HERE), address="auto", threads=4).threads == 4
    assert connect(FakeRay({"CPU": 9.0, "GPU": 3.0}, a=HERE), True, address="auto", threads=2).threads == 1
    said = refused(connect, FakeRay({"CPU": 9.0}, a=HERE), actors=5, address="head:6379", threads=2)
    assert said == "engine.actors=5: engine.address=head:6379 has 9 cores, 2 for each; use engine.actors=4, or auto"
    said = refused(connect, FakeRay({"CPU": 2.0}, a=HERE), address="head:6379", threads=3)
    assert said == "engine.threads=3: engine.address=head:6379 has 2 cores; use engine.threads=2"


def test_more_actors_than_gpus_and_none_at_all(connect) -> None:
    ray = FakeRay({"CPU": 8.0, "GPU": 2.0}, a=HERE)
    assert "has 2 GPUs; use engine.actors=2" in refused(connect, ray, True, actors=3, address="head:6379")
    said = refused(connect, FakeRay({"CPU": 8.0}, a=HERE), True, address="head:6379")
    assert said == "engine.address=head:6379 has no GPUs for actors; use engine.device=cpu"


def test_auto_takes_what_is_free_and_one_at_least(connect) -> None:
    for free, expected in ((5.0, 5), (0.0, 1), (99.0, 8)):
        assert connect(FakeRay({"CPU": 8.0}, {"CPU": free}, a=HERE), address="auto").actors == expected


@pytest.mark.parametrize("name", ["Python", "torch", "fedinit"])
def test_another_version_on_one_of_the_machines(name: str, connect) -> None:
    machines = {"ours": HERE, "10.0.0.7": {**HERE, name: "1.2.3"}}
    said = refused(connect, FakeRay({"CPU": 8.0}, **machines), address="head:6379")
    assert said.startswith(f"engine.address=head:6379: 10.0.0.7 has {name} 1.2.3, and this process {HERE[name]}")
    absent = {key: value for key, value in HERE.items() if key != name}
    assert difference(HERE, absent) == f"has {name} none, and this process {HERE[name]}"
    assert difference(HERE, HERE) is None


def test_the_facts_are_of_this_process_and_travel_without_fedinit() -> None:
    assert HERE["Python"] == ".".join(map(str, sys.version_info[:3])) and HERE["fedinit"].startswith("of the code ")
    assert HERE["torch"] == torch.__version__.partition("+")[0]
    facts = cluster._facts()
    assert not facts.__closure__ and "<locals>" in facts.__qualname__  # so that its code is sent, not its name


def test_a_machine_that_does_not_answer(connect) -> None:
    machines = {"10.0.0.7": TimeoutError("no answer")}
    said = refused(connect, FakeRay({"CPU": 8.0}, **machines), address="auto")
    assert said == "engine.address=auto: 10.0.0.7 does not answer (no answer)"


def test_ray_does_not_start_or_is_interrupted(connect) -> None:
    ray = FakeRay({"CPU": 2.0})
    ray.init_error = OSError("no room\nand a long story")
    assert refused(connect, ray) == "engine=ray: Ray does not start on this machine: no room"
    ray.init_error = KeyboardInterrupt()
    shut: list[bool] = []
    ray.shutdown = lambda: shut.append(True)
    with pytest.raises(KeyboardInterrupt):
        connect(ray)
    assert shut == [True]


class TakesSIGTERM(FakeRay):
    """As Ray does, which ends the process by it; and one comes while it starts."""

    passed = False

    def init(self, **options: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the signal is Ray's"))
        signal.raise_signal(signal.SIGTERM)
        self.passed = True
        super().init(**options)


@pytest.mark.parametrize("options", [{}, {"address": "head:6379"}])
def test_a_signal_while_ray_starts_stops_behind_it(connect, monkeypatch, options) -> None:
    ray, before = TakesSIGTERM({"CPU": 2.0}), signal.signal
    with pytest.raises(Stopped) as caught, listening(limit=None):
        connect(ray, **options)
    assert caught.value.code == 143 and ray.passed and ray.inits and not ray.connected
    assert signal.signal is before
    monkeypatch.setattr(cluster, "_undisturbed", contextlib.nullcontext)  # the control
    with pytest.raises(pytest.fail.Exception, match="the signal is Ray's"), listening(limit=None):
        connect(TakesSIGTERM({"CPU": 2.0}), **options)


def test_a_cluster_of_another_ray(connect) -> None:
    ray = FakeRay({"CPU": 2.0})
    ray.init_error = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1\n    Python: 3.9")
    said = refused(connect, ray, address="head:6379")
    assert "Version mismatch: The cluster was started with: Ray: 2.1 Python: 3.9" in said


def test_no_cluster_of_this_machine(connect) -> None:
    """Ray's own words name an option that there is not here."""
    ray = FakeRay({"CPU": 2.0})
    ray.init_error = ConnectionError("Could not find any running Ray instance. Please set the `--address` flag")
    assert (
        refused(connect, ray, address="auto")
        == f"engine.address=auto: no cluster runs on this machine; {cluster.START}"
    )


def test_an_address_where_nothing_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    with pytest.raises(InputError) as caught:
        reach(f"ray://127.0.0.1:{port}")
    assert str(caught.value).startswith(f"engine.address=ray://127.0.0.1:{port}: no cluster answers there (")
    assert "leave engine.address out" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no cluster answers there"):
        reach("127.0.0.1:1")


def test_an_address_where_something_else_listens(monkeypatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ends: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    ends.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        with pytest.raises(InputError, match="something listens there, which is no Ray"):
            reach(f"127.0.0.1:{server.getsockname()[1]}")
        for end in ends:
            end.close()


def test_an_address_where_a_web_server_listens() -> None:
    """It speaks HTTP/2 (RFC 9113), so that the connection is ready, and has no page of that name: Ray would ask it for
    twenty seconds."""
    pytest.importorskip("grpc")
    settings, not_found = b"\0\0\0\4\0\0\0\0\0", b"\0\0\1\1\5\0\0\0\1\x8d"  # the latter :status 404
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            server.accept()[0].close()  # who looks whether anybody is there
            end = server.accept()[0]
            with end, end.makefile("rb") as file, contextlib.suppress(OSError):
                end.sendall(settings)
                file.read(24)  # the preface
                while head := file.read(9):
                    file.read(int.from_bytes(head[:3], "big"))
                    if head[3] == 1:  # what is asked
                        end.sendall(not_found)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(InputError, match="something else than Ray listens there"):
            reach(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("begins_so", [True, False])
def test_a_server_of_other_calls(monkeypatch, begins_so: bool) -> None:
    """As a SuperLink's is. Through `ray://`, or of a Ray that begins otherwise, it may be one: the controls."""
    grpc = pytest.importorskip("grpc")
    monkeypatch.setattr(cluster, "_first_call", lambda: begins_so)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        reach(f"ray://127.0.0.1:{port}")
        with pytest.raises(InputError, match="something else than Ray") if begins_so else contextlib.nullcontext():
            reach(f"127.0.0.1:{port}")
    finally:
        server.stop(None)


def test_the_ray_that_is_installed_begins_so() -> None:
    pytest.importorskip("ray")
    assert cluster._first_call()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"actors": 0}, "engine.actors=0: expected 1 or more"),
        ({"threads": 0}, "engine.threads=0: expected 1 or more"),
        ({"address": "head"}, "engine.address=head: expected auto, HOST:PORT, ray://HOST:PORT or nothing"),
        ({"address": "head:99999"}, "engine.address=head:99999: expected a port from 1 to 65535"),
        ({"address": "ray://head:0"}, "engine.address=ray://head:0: expected a port from 1 to 65535"),
        ({"address": "http://head:8265"}, "engine.address=http://head:8265: expected auto"),
        ({"device": "cuda:1"}, "engine.device=cuda:1: Ray says which device an actor has; use engine.device=cuda"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        RayConfig(**options)
    assert str(caught.value).startswith(said)


def test_addresses_that_can_be() -> None:
    for address in ("", "auto", "10.0.0.1:6379", "ray://head-node.lan:10001", "[::1]:6379"):
        assert RayConfig(address=address).address == address


def test_a_clusters_gpus_are_not_reckoned_by_a_machine_that_has_none(monkeypatch) -> None:
    monkeypatch.setattr(hardware, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)))
    words = "engine=ray", "engine.address=head:6379", "engine.device=cuda"
    given = small_config(*words, "engine.precision=bf16", "engine.clients_per_bank=64")
    assert hardware.resolved(given) == given
    with pytest.raises(InputError, match="engine.device=cuda: this machine has no CUDA device to reckon by; give both"):
        hardware.resolved(small_config(*words, "engine.precision=auto"))


def test_no_client_of_flower_joins_a_cluster_that_a_server_names() -> None:
    config = small_config("engine=ray", "engine.address=evil.example:6379", "evaluation=none")
    check_method(config)
    with pytest.raises(InputError, match="engine=ray: actors are for simulations alone; use engine=threads"):
        check_method(config, under_flower=True)
    with pytest.raises(Refused, match="engine=ray: is for simulations by fedinit run"):
        client_app._configured(json.dumps(to_run_config(config), sort_keys=True), "{}")


@pytest.mark.parametrize(("before", "within"), [(None, "0,2"), ("5,6,GPU-7", "5,GPU-7")])
def test_a_ray_of_this_machine_deals_out_gpus_of_one_kind(before, within, monkeypatch):
    names = ["A", "B", "A"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])
    if before is None:
        monkeypatch.delenv(cluster.VISIBLE, raising=False)
    else:
        monkeypatch.setenv(cluster.VISIBLE, before)
    assert cluster._own(cuda=True) == 2 and cluster._own(cuda=False) == cores()
    with cluster._visible(cuda=True):
        assert os.environ[cluster.VISIBLE] == within
    assert os.environ.get(cluster.VISIBLE) == before
    names[1] = "A"
    for cuda in (True, False):
        with cluster._visible(cuda):
            assert os.environ.get(cluster.VISIBLE) == before


def test_what_ray_prints_of_a_dead_process_is_not_shown_while_it_is_connected(monkeypatch):
    """The engine has a line of its own; what else Ray prints is shown, and afterwards all of it is again."""
    shown: list[str] = []
    ray, worker = FakeRay({"CPU": 2}), SimpleNamespace(print_to_stdstream=lambda data, **_: shown.append(data["pid"]))
    ray._private = SimpleNamespace(worker=worker)
    monkeypatch.setattr(cluster, "installed", lambda: ray)
    made = Cluster(RayConfig(device="cpu"))
    for pid in ("raylet", "autoscaler"):
        worker.print_to_stdstream({"pid": pid, "lines": ["x"]}, ignore_prefix=False)
    made.close()
    worker.print_to_stdstream({"pid": "raylet", "lines": ["x"]}, ignore_prefix=False)
    assert shown == ["autoscaler", "raylet"]
