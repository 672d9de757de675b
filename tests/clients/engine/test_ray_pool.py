"""What an actor's answer comes to, and a cluster that is not there, without Ray."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace
from typing import Any

import pytest

from clients.engine import hardware
from clients.engine.arrays import pack
from clients.engine.cluster import START, Cluster, reach
from clients.engine.dispatch import ActorDied
from clients.engine.ray import RayPool
from fedinit.errors import DeviceFailed, InputError, RunFailed
from tests.support.small import small_config


def value(answer: object) -> Any:
    """Of a pool whose Ray gives this to every call."""
    nothing = SimpleNamespace(RayTaskError=io.UnsupportedOperation, RayError=io.UnsupportedOperation)
    pool = RayPool.__new__(RayPool)
    vars(pool).update(_ray=SimpleNamespace(get=lambda call: ("", answer), exceptions=nothing), _told=set())
    return pool.value("call")


def test_an_actor_whose_device_failed_has_died() -> None:
    """Its process is there, but answers nothing any more: another takes its place, and the job is given again."""
    with pytest.raises(ActorDied, match="^cuda:0 failed$"):
        value(DeviceFailed("cuda:0 failed"))


def test_what_else_ends_a_run_is_a_value() -> None:
    told = InputError("no such file")
    assert value(told) is told and value(pack((1, 2))) == (1, 2)


@pytest.mark.parametrize("host", ["my..cluster", ".x", "..", "a" * 64])
def test_a_host_that_is_no_name(host) -> None:
    """Of an empty label, or one of more than 63 letters, Python raises a UnicodeError."""
    with pytest.raises(InputError) as caught:
        reach(f"ray://{host}:6379")
    expected = (
        f"engine.address=ray://{host}:6379: no cluster answers there ({host} is no name that a machine can have); "
    )
    assert str(caught.value) == expected + START


@pytest.mark.parametrize(("address", "gone"), [("127.0.0.1:1", True), ("auto", False), ("", False)])
def test_a_cluster_that_is_gone_when_an_actor_has_died_ends_the_run_with_a_line(address, gone) -> None:
    """Before Ray ends the process with a line of its own, of an object that was lost."""
    asked, joined, actor = [], Cluster.__new__(Cluster), SimpleNamespace(ready=SimpleNamespace(remote=str))
    vars(joined).update(where=f"engine.address={address}", _address=address)
    pool = RayPool.__new__(RayPool)
    ray = SimpleNamespace(is_initialized=lambda: False)
    made = SimpleNamespace(remote=lambda: asked.append(1) or actor)
    vars(pool).update(_cluster=joined, _ray=ray, _actors={}, _actor=made, _goods="goods")
    assert pool.start(0) == "goods" and len(asked) == 1  # the first is nobody's who died
    ended = pytest.raises(
        RunFailed, match="^engine.address=127.0.0.1:1: the cluster is gone; the last whole checkpoint"
    )
    with ended if gone else contextlib.nullcontext():
        pool.start(0)
    assert len(asked) == 1 + (not gone)


def test_the_cores_of_an_actor_are_the_clusters(monkeypatch) -> None:
    """A small machine may start a run on larger ones."""
    monkeypatch.setattr(hardware, "cores", lambda: 1)
    wide = "engine=ray", "engine.device=cpu", "engine.threads=4"
    assert hardware.resolved(small_config(*wide, "engine.address=head:6379")).engine.threads == 4
    with pytest.raises(InputError, match="^engine.threads=4: this machine has 1 core; use engine.threads=1$"):
        hardware.resolved(small_config(*wide))
