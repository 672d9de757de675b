"""Where and when clients' work is done (`engine=`): a dataclass an engine, which is in clients/engine/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedinit.config.checks import at_least

Precision = Literal["auto", "fp32", "tf32", "bf16"]
BANK_ON_CPU = 3  # where the activations of a step still lie in a core's cache (python -m benchmarks.bank)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What every engine reads."""

    name: str
    device: str = "auto"  # auto, cpu, cuda, cuda:1 …
    # Clients trained in one pass. auto: on CUDA as many as its memory holds, on CPU BANK_ON_CPU.
    clients_per_bank: int | Literal["auto"] = "auto"
    precision: Precision = "auto"  # of the frozen backbone's products; auto: bf16 on CUDA, fp32 on CPU
    prefix_cache: bool = False  # what the blocks before the first adapter make of an image is computed once and kept
    strict: bool = False  # serialise every message, as a network would

    lanes: ClassVar[int | None] = 1  # workers; None: one a core on CPU, one a device on CUDA

    def __post_init__(self) -> None:
        if self.clients_per_bank != "auto":
            at_least("engine.clients_per_bank", self.clients_per_bank, 1)


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


ENGINES: dict[str, type[EngineConfig]] = {"inline": InlineConfig, "threads": ThreadsConfig}
