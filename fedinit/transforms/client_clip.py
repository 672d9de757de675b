"""Clipping for privacy=clients: what leaves a client is no farther than the clip from what it was sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit import wire
from fedinit.factors import Factors
from fedinit.norms import rounded_off
from fedinit.transforms.contract import Payload, Task, UpdateTransform


@dataclass(frozen=True)
class ClientClip(UpdateTransform):
    """x → s + min(1, C/‖x − s‖)(x − s) for all tensors x of a reply together and what the server knows of them, s.

    clip: C of an update, whose s is the client's start. second_clip: C of a second phase, whose s is B̄(ĀĀᵀ).
    """

    clip: float
    second_clip: float

    def on_client(self, task: Task, result: Payload) -> Payload:
        second = any(name.endswith(wire.IMAGE) for name in result.tensors)
        known = known_images(task.adapter) if second else wire.to_tensors(task.adapter, task.head)
        clipped = clip_to(result.tensors, known, self.second_clip if second else self.clip)
        return dataclasses.replace(result, tensors=clipped)


def known_images(means: Mapping[str, Factors]) -> dict[str, Tensor]:
    """{"<layer>/S": B̄(ĀĀᵀ)}, (d, r) in float64: what the means themselves would answer in a second phase."""
    pairs = {name: (f.A.double(), f.B.double()) for name, f in means.items()}
    return {wire.image_name(name): B @ (A @ A.T) for name, (A, B) in pairs.items()}


def clip_to(tensors: Mapping[str, Tensor], known: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """The tensors, moved towards the `known` ones of the same names until their joint distance is at most `clip`; as
    they are where it is. NaN stays, for the gate to refuse."""
    changes = {name: value.double() - known[name].double() for name, value in tensors.items()}
    size = sum(float(change.square().sum()) for change in changes.values()) ** 0.5
    if size <= clip:
        return dict(tensors)
    coarsest = max((tensors[name].dtype for name in changes), key=lambda dtype: torch.finfo(dtype).eps)
    lost = rounded_off({name: known[name] for name in changes}, clip, coarsest)
    factor = max(clip - max(1e-6 * clip, lost), 0.0) / size
    return {n: (known[n].double() + factor * change).to(tensors[n].dtype) for n, change in changes.items()}
