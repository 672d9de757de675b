"""Where and when clients' work is done (`engine=`): a dataclass an engine, which is in clients/engine/."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from fedinit.config.checks import at_least
from fedinit.errors import InputError

Precision = Literal["auto", "fp32", "tf32", "bf16"]
# Clients of a bank on CPU: at the least as many as a core's cache has room for the activations of (python -m
# benchmarks.bank); more where steps are so small that calling their operations is most of them, which is where images
# have so many pixels a side: so many of them a step, as long as a round has so many banks for lanes.
BANK_ON_CPU, SMALL_SIDE, SMALL_STEP, BANKS = 3, 64, 64, 32
COMPILED = 10_000  # steps of a client, from which on a minute of compiling pays (docs/benchmarks.md)
DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?")  # torch keeps a number in 8 bits
ADDRESS = re.compile(r"(auto|(ray://)?([\w.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5})?")


def refuse_no_device(key: str, word: str) -> None:
    """Raise InputError for a word that is no device's, before torch is asked whether it is there. torch takes a number
    behind cpu too, but all are the one processor."""
    if DEVICE.fullmatch(word) is None:
        shown = word if word and word == word.strip() else repr(word)
        raise InputError(f"{key}={shown}: expected auto, cpu, cuda or cuda:<n>")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What every engine reads."""

    name: str
    device: str = "auto"  # auto, cpu, cuda, cuda:1 …
    # Clients trained in one pass. auto: on CUDA as many as its memory holds, on CPU BANK_ON_CPU, or as a round has.
    clients_per_bank: int | Literal["auto"] = "auto"
    precision: Precision = (
        "auto"  # of the frozen backbone's products; auto: bf16 on CUDA from Ampere on, else, and with head=none, fp32
    )
    prefix_cache: bool = False  # what the blocks before the first adapter make of an image is computed once and kept
    strict: bool = False  # serialise every message, as a network would
    # Whether a bank's steps go through torch's compiler. auto: on CPU, where a client takes COMPILED steps or more.
    compile: bool | Literal["auto"] = "auto"
    threads: int = 1  # cores inside each operation of a lane on CPU; another number is another rounding

    lanes: ClassVar[int | None] = 1  # workers; None: one a core on CPU, one a device on CUDA

    def __post_init__(self) -> None:
        refuse_no_device("engine.device", self.device)
        if self.clients_per_bank != "auto":
            at_least("engine.clients_per_bank", self.clients_per_bank, 1)
        at_least("engine.threads", self.threads, 1)


@dataclass(frozen=True, kw_only=True)
class InlineConfig(EngineConfig):
    """`engine=inline`: one job after another, the reference."""

    name: Literal["inline"] = "inline"


@dataclass(frozen=True, kw_only=True)
class ThreadsConfig(EngineConfig):
    """`engine=threads`: a worker a lane."""

    name: Literal["threads"] = "threads"
    lanes: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lanes is not None:
            at_least("engine.lanes", self.lanes, 1)


@dataclass(frozen=True, kw_only=True)
class RayConfig(EngineConfig):
    """`engine=ray`: a worker an actor of Ray, on this machine or on those of a cluster."""

    name: Literal["ray"] = "ray"
    actors: int | Literal["auto"] = "auto"  # auto: one a GPU, or one a core
    address: str = ""  # of a running cluster: auto, HOST:PORT or ray://HOST:PORT; "": one of this machine's own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.actors != "auto":
            at_least("engine.actors", self.actors, 1)
        if ADDRESS.fullmatch(self.address) is None:
            raise InputError(f"engine.address={self.address}: expected auto, HOST:PORT, ray://HOST:PORT or nothing")
        port = self.address.rpartition(":")[2]
        if port.isdecimal() and not 1 <= int(port) <= 65535:
            raise InputError(f"engine.address={self.address}: expected a port from 1 to 65535")
        if self.device.startswith("cuda:"):
            raise InputError(
                f"engine.device={self.device}: Ray says which device an actor has; use engine.device=cuda, with "
                "CUDA_VISIBLE_DEVICES for some of the GPUs alone"
            )


ENGINES: dict[str, type[EngineConfig]] = {"inline": InlineConfig, "ray": RayConfig, "threads": ThreadsConfig}
