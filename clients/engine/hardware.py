"""What a machine has to compute on, and how it computes there: devices, precision, determinism."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from clients.engine.cost import MOST, SHARE, StepCost, step_cost
from fedinit.config.engine import (
    BANK_ON_CPU,
    BANKS,
    COMPILED,
    SMALL_SIDE,
    SMALL_STEP,
    EngineConfig,
    InlineConfig,
    Precision,
    RayConfig,
    ThreadsConfig,
)
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.data.reporter import counted
from fedinit.devices import CPU, named
from fedinit.errors import InputError
from fedinit.models import build_backbone, select_targets
from fedinit.models.backbone import Backbone, outline
from fedinit.threads import cores

LANES = 16  # of a core, at the most: more than one is no faster, and each takes a bank and a moment to make
CLASSES = 1000  # that a head is reckoned with before the data is there
CUDNN: Any = torch.backends.cudnn
# Whose float32 products may be made of less.
PRODUCTS: tuple[Any, ...] = (torch.backends.cuda.matmul, CUDNN.conv, CUDNN.rnn)
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def devices(device: str, lanes: int | None, threads: int = 1) -> list[torch.device]:
    """The device of each lane.

    device: "auto" (CUDA where there is one), "cpu", "cuda" (all devices of the first one's kind) or "cuda:<n>".
    lanes: their number on CPU; None is as many as there is room for. threads: cores that each of them takes there.
    Raises InputError for a device that is not there, and for more threads than cores.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = named("engine.device", device)
    if wanted.type == "cpu":
        have = cores()
        if threads > have:
            there = counted(have, "core")
            raise InputError(f"engine.threads={threads}: this machine has {there}; use engine.threads={have}")
        return [CPU] * (lanes or have // threads)
    return [torch.device("cuda", i) for i in (alike() if wanted.index is None else [wanted.index])]


def alike() -> list[int]:
    """The CUDA devices of the first one's kind, by which a run's precision and banks are reckoned. Another kind's
    products are rounded otherwise, and who is free first would choose whose a bank is."""
    kinds = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [i for i, kind in enumerate(kinds) if kind == kinds[0]]


def left_out(engine: EngineConfig) -> str | None:
    """A line about CUDA devices that no lane is on, as they are of another kind than the first; None where there are
    none."""
    elsewhere = isinstance(engine, RayConfig) and engine.address  # whose devices a cluster deals out
    if elsewhere or engine.device not in ("auto", "cuda") or not torch.cuda.is_available():
        return None
    used, others = alike(), torch.cuda.device_count()
    odd = [f"cuda:{i}, {torch.cuda.get_device_name(i)}" for i in range(others) if i not in used]
    why = f"of another kind than cuda:0, {torch.cuda.get_device_name(0)}"
    return f"engine.device={engine.device}: not used, {why}: {'; '.join(odd)}" if odd else None


def crowded(config: EngineConfig, place: torch.device) -> str | None:
    """A line about more lanes than the cores have room for, which is no fault: no result depends on them. None where
    there are no more. place: what the lanes are on."""
    have = cores()
    room = have // config.threads
    if not isinstance(config, ThreadsConfig) or config.lanes is None or config.lanes <= room or place.type != "cpu":
        return None
    there = counted(have, "core") + f", {config.threads} for each" * (config.threads > 1)
    return (
        f"engine.lanes={config.lanes}: this machine has {there}; more lanes are no faster, hold a bank each, and "
        f"change no result: use engine.lanes={room}, or null"
    )


def resolved(config: Config) -> Config:
    """The configuration with a value for every `auto` of the engine that a run's result depends on.

    Raises InputError for a device that is not there, for a precision that it has not, and for lanes beyond reason.
    """
    if _elsewhere(config.engine):
        return config
    place = clients_device(config.engine)
    said = crowded(config.engine, place)
    if said and isinstance(config.engine, ThreadsConfig) and (config.engine.lanes or 0) > LANES * cores():
        raise InputError(said)
    precision = _precision(config.engine.precision, place, config.head.name == "none")
    size = config.engine.clients_per_bank
    if size == "auto":
        size = _bank_on_cpu(config)
        if place.type == "cuda":
            room = int(SHARE * torch.cuda.get_device_properties(place).total_memory)
            size = min(_cost(config, precision).fit(room, config.client.batch_size), _share(config))
    compiled = config.engine.compile
    if compiled == "auto":
        # Not on CUDA: with torch 2.11 gradients were wrong there, and it has not been measured since.
        steps = config.rounds * (config.client.max_steps or 0)
        compiled = place.type == "cpu" and steps >= COMPILED and not never_compiled(config)
    settled = {"precision": precision, "clients_per_bank": size, "compile": compiled}
    return replace(config, engine=replace(config.engine, **settled))


def _bank_on_cpu(config: Config) -> int:
    """Clients of a bank, by the configuration alone: a run has one name on every machine, whatever its cores."""
    there = config.partition.count(config.data.known_domains)
    asked = 0 if there is None else most_asked(config, there)
    if 1 < asked <= BANK_ON_CPU:
        return -(-asked // 2)  # one bank of all would leave every core idle but one
    side = config.model.image_size or config.model.kwargs.get("img_size")
    largest = max(side) if isinstance(side, list | tuple) else side
    if there is None or not isinstance(largest, int) or largest > SMALL_SIDE:
        return BANK_ON_CPU
    return max(BANK_ON_CPU, min(SMALL_STEP // config.client.batch_size, asked // BANKS))


def clients_device(engine: EngineConfig) -> torch.device:
    """The first device that clients train on; the CPU where those are a cluster's alone."""
    there = isinstance(engine, RayConfig) and bool(engine.address)  # whose cores they are
    return CPU if _elsewhere(engine) else devices(engine.device, 1, 1 if there else engine.threads)[0]


def never_compiled(config: Config) -> str:
    """Why no training step of the configuration can be compiled, in words behind "since"; empty where some may be."""
    if config.adapter.dropout:
        return f"adapter.dropout={config.adapter.dropout:g} draws in them, which torch's compiler cannot follow"
    if isinstance(config.privacy, ExamplePrivacyConfig):
        return "privacy=examples takes a gradient an example"
    return ""


def _elsewhere(engine: EngineConfig) -> bool:
    """Whether the devices are a cluster's alone, so that nothing can be reckoned by them here. Raises InputError where
    something would have to be."""
    if not isinstance(engine, RayConfig) or not engine.address or engine.device != "cuda" or torch.cuda.is_available():
        return False
    if "auto" in (engine.precision, engine.clients_per_bank):
        raise InputError(
            "engine.device=cuda: this machine has no CUDA device to reckon by; give both engine.precision and "
            "engine.clients_per_bank, by what the cluster's devices have, or start the run on one of its machines"
        )
    return True


def _precision(wanted: Precision, place: torch.device, numbers: bool) -> Precision:
    """numbers: the model's outputs are numbers to predict, which bf16 has not the digits for."""
    on_cuda = place.type == "cuda"
    # From Ampere on both; torch.cuda.is_bf16_supported takes most of a second to say so.
    has_tf32 = on_cuda and torch.cuda.get_device_capability(place) >= (8, 0)
    has_bf16 = not on_cuda or has_tf32
    if wanted == "auto":
        return "bf16" if on_cuda and has_bf16 and not numbers else "fp32"
    if (wanted == "bf16" and not has_bf16) or (wanted == "tf32" and not has_tf32):
        name = f"{place} ({torch.cuda.get_device_name(place)})" if on_cuda else "the CPU"
        raise InputError(f"engine.precision={wanted}: {name} has none; use engine.precision=fp32")
    return wanted


def _share(config: Config) -> int:
    """The clients of a round that each of several CUDA devices gets, so that none waits for another's bank; more than
    there can be on one device, and where the data alone says how many there are."""
    engine, there = config.engine, config.partition.count(config.data.known_domains)
    most = 1 if isinstance(engine, InlineConfig) else len(devices(engine.device, None))
    if isinstance(engine, RayConfig) and engine.actors != "auto":
        most = engine.actors
    return MOST if there is None or most == 1 else -(-most_asked(config, there) // most)


def most_asked(config: Config, there: int) -> int:
    """The clients of a round, or one more, of so many that there are."""
    return max(1, math.ceil(config.participation * there))


def _cost(config: Config, precision: str) -> StepCost:
    """Of the configuration's training step."""
    try:
        backbone = outline(config.model)
    except InputError:
        raise
    except Exception:  # noqa: BLE001 (a module that cannot be made without memory is made with it)
        backbone = build_backbone(config.model)
    adapter = config.adapter
    targets = select_targets(backbone.module, adapter.targets, adapter.rank, last_blocks=adapter.last_blocks)
    return step_cost(backbone, targets, adapter.rank, CLASSES, DTYPES[precision], adapter.kind, adapter.dropout)


@contextmanager
def computing(device: torch.device, precision: str, repeats: bool = True) -> Iterator[None]:
    """On CUDA, within the block: matrix products in this precision, and the same bytes every time.

    repeats: False where the model has an operation that cannot give the same bytes, which is then let through.
    """
    if device.type != "cuda":
        yield
        return
    with _flags.set(precision == "tf32", not repeats), torch.cuda.device(device):
        yield


class _Flags:
    """torch's switches, which are the process's: as they are needed while a lane of any device computes, and as they
    were when none does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within: list[tuple[bool, bool]] = []  # what those who are within want, tf32 and warn_only
        self._before = contextlib.ExitStack()

    @contextmanager
    def set(self, tf32: bool, warn_only: bool) -> Iterator[None]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else products on several streams may differ
        with self._lock:
            if not self._within:
                self._keep()
            self._within.append((tf32, warn_only))
            self._apply()
        try:
            yield
        finally:
            with self._lock:
                self._within.remove((tf32, warn_only))
                if self._within:
                    self._apply()
                else:
                    self._before.close()

    def _apply(self) -> None:
        """As the last to come wants it; operations that do not repeat are let through where anybody has such."""
        tf32 = self._within[-1][0]
        torch.use_deterministic_algorithms(True, warn_only=any(warn_only for _, warn_only in self._within))
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        torch.backends.cuda.matmul.allow_tf32 = tf32
        CUDNN.allow_tf32 = tf32
        _set_newer(["tf32" if tf32 else "ieee"] * len(PRODUCTS))  # which may be under a person's for all

    def _keep(self) -> None:
        """Have `_before` put things back."""
        enabled, only = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        self._before.callback(torch.use_deterministic_algorithms, enabled, warn_only=only)
        module, name = torch.utils.deterministic, "fill_uninitialized_memory"
        self._before.callback(setattr, module, name, getattr(module, name))
        self._before.callback(_put_back, _products())


Products = tuple[bool | None, str | None, list[str]]


def _products() -> Products:
    """How float32 products are made: by torch's older switches, of which each is None where it cannot be read, as a
    person has used the newer ones; and by these."""
    legacy, precision = None, None
    with contextlib.suppress(RuntimeError):
        legacy = CUDNN.allow_tf32
    with contextlib.suppress(RuntimeError):
        precision = torch.get_float32_matmul_precision()
    return legacy, precision, [module.fp32_precision for module in PRODUCTS]


def _put_back(products: Products) -> None:
    legacy, precision, newer = products
    if precision is not None:
        torch.set_float32_matmul_precision(precision)
    if legacy is not None:
        CUDNN.allow_tf32 = legacy
    _set_newer(newer)


def _set_newer(values: Sequence[str]) -> None:
    for module, value in zip(PRODUCTS, values, strict=True):
        if module.fp32_precision != value:
            module.fp32_precision = value


_flags = _Flags()


def repeats(backbone: Backbone, device: torch.device, precision: str) -> bool:
    """Whether a pass through the backbone and back gives the same bytes twice on this device; says so where not."""
    if device.type != "cuda":
        return True
    spec, dtype = backbone.input, next(backbone.module.parameters()).dtype
    try:
        with computing(device, precision), torch.inference_mode(False), torch.enable_grad():
            images = torch.zeros(1, spec.channels, spec.height, spec.width, device=device, dtype=dtype)
            backbone.module(images.requires_grad_(True)).sum().backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        print(f"engine: two runs may differ in their last digits: {str(error).partition('.')[0]}", file=sys.stderr)
        return False
    return True
