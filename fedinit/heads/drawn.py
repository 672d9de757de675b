"""Heads that need no data, and no head at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedinit.heads.head import Head, HeadContext, HeadState
from fedinit.models.head import init_head


@dataclass(frozen=True, kw_only=True)
class Zero(Head):
    """All logits zero: the first step moves the head alone."""

    silent: ClassVar[bool] = True

    def plan(self, context: HeadContext) -> HeadState:
        return HeadState(tensors=init_head("zero", *context.shape, context.seed))


@dataclass(frozen=True, kw_only=True)
class Random(Head):
    """U(−1/√D, 1/√D), a linear layer's own start."""

    def plan(self, context: HeadContext) -> HeadState:
        return HeadState(tensors=init_head("random", *context.shape, context.seed))


@dataclass(frozen=True, kw_only=True)
class NoHead(Head):
    """No classifier: the backbone's features are the model's outputs."""

    classifies: ClassVar[bool] = False

    def plan(self, context: HeadContext) -> HeadState:
        return HeadState(tensors={})
