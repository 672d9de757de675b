"""What an actor's answer comes to, without Ray."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from clients.engine.arrays import pack
from clients.engine.dispatch import ActorDied
from clients.engine.ray import RayPool
from fedinit.errors import DeviceFailed, InputError


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
