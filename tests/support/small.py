"""A configuration small enough for tests: two of the digit domains on an untrained ViT of width 24 and depth 2."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from fedinit.config.compose import compose_config
from fedinit.config.schema import Config

WORDS = (
    "model.checkpoint=null",
    "model.kwargs={img_size: 32, patch_size: 8, embed_dim: 24, depth: 2, num_heads: 3, in_chans: 1}",
    "data.domains=[plain,inverted,thick]",
    "adapter.rank=4",
    "client.max_steps=3",
    "rounds=2",
    "logger=none",
    "report=none",
    "evaluation.head_alone=false",
    "engine.clients_per_bank=3",
    "engine.precision=fp32",  # on CUDA too, since results are compared with float64
    "engine.compile=false",  # as it is resolved, so that a configuration is the run's
)


@functools.cache  # Hydra takes longer over it than many a test over its run
def small_config(*overrides: str) -> Config:
    """`WORDS`, then the given overrides."""
    return compose_config([*WORDS, *overrides])


def slow_unless(ordinary: Callable[..., bool], cases: Iterable[Sequence[object]]) -> Iterator[object]:
    """Cases of a parametrised test; only `pytest -m slow` runs those that are not ordinary."""
    return (pytest.param(*case, marks=() if ordinary(*case) else pytest.mark.slow) for case in cases)


def slow(*values: str) -> Iterator[object]:
    """Values of a parametrised test that only `pytest -m slow` runs, under ids of their own text."""
    return (pytest.param(value, id=value, marks=pytest.mark.slow) for value in values)
