"""What a training step costs, and so how many clients fit into a device's memory in one pass.

In closed form but for what autograd keeps and what is computed, which is asked of a pass over tensors without memory;
or, of the CPU, of a pass of one image.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fedinit.adapters.bank import Bank
from fedinit.adapters.dora import DoRAFactors
from fedinit.adapters.kinds import KINDS
from fedinit.adapters.vera import VeRAFactors
from fedinit.factors import Factors
from fedinit.models.backbone import Backbone

META = torch.device("meta")
# Of a device's memory, for a step. Once more as much is taken where a second shape is tried out before it is recorded,
# as when a client is done before its mates: what the first one's graph keeps is no step's but its own. The rest is the
# data's, the driver's, the libraries' and the fragments'.
SHARE = 0.35
ROWS = 3  # of an example's gradient in a private step: autograd's, those side by side, and what lies between them
COPIES = 10  # of a client's numbers in a step: leaves, values, gradients twice, the optimiser's two, and those put back
PASSING = 5  # tensors as large as the largest, there for a moment on the way back: measured, docs/benchmarks.md
MOST = 512  # clients of a bank: more win nothing, since the matrix products are as large as they need be long before


@dataclass(frozen=True)
class StepCost:
    """What a training step needs, in bytes.

    fixed: the frozen weights. image: what a pass keeps of one image for the way back. client: adapter, head, their
    gradients and the optimiser's state.
    flops: operations of one image's way through the model and back, where no weight has a gradient; 0: not counted.
    passing: what is there at once of an image that goes through without a way back; 0: not known.
    shared: what all clients of a bank have once, as VeRA's A and B.
    """

    fixed: int
    image: int
    client: int
    flops: int
    passing: int = 0
    shared: int = 0

    @property
    def measuring(self) -> int:
        """Bytes of an image that goes through while each layer's inputs are measured: its rows about their mean, their
        squares, these in float64, and what lies between them."""
        return 5 * self.passing // 2

    @property
    def returning(self) -> int:
        """Bytes of an image, where the inputs of all layers and the gradients at their outputs are measured."""
        return self.image + 2 * self.passing

    def peak(self, clients: int, batch: int) -> int:
        """Bytes at once, of so many clients with batches of so many images."""
        return self.fixed + self.shared + clients * (self.client + batch * self.image)

    def fit(self, room: int, batch: int) -> int:
        """The most clients whose step fits into `room` bytes; 1 at least, MOST at most."""
        return max(1, min(MOST, (room - self.fixed - self.shared) // (self.client + batch * self.image)))

    def by_examples(self) -> StepCost:
        """As this one, of a private step, in which each image has a gradient of its own in all that a client trains."""
        return replace(self, image=self.image + ROWS * self.client // COPIES)


def step_cost(
    backbone: Backbone,
    targets: Mapping[str, tuple[int, int]],
    rank: int,
    classes: int,
    dtype: torch.dtype,
    kind: str = "lora",
    dropout: float = 0.0,
) -> StepCost:
    """The model for one backbone, by a pass over tensors without memory.

    targets: {layer: (d, k)} of the layers with adapters. rank, classes: of the adapters and the head.
    dtype: what the backbone computes in. kind, dropout: of the adapters; a core is reckoned as LoRA of its rank.
    """
    from torch.utils.flop_counter import FlopCounterMode  # here, since it takes long to import and CUDA alone asks

    module = copy.deepcopy(backbone.module).to(META, dtype)
    counted = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: _product})
    outline = Backbone(module, backbone.features, backbone.input)
    with _FusedAttention():
        passed = _passed(outline, targets, rank, classes, META, counted, kind, dropout)
    weights, image, _, numbers, frozen = passed
    exact = sum(4 * d * k for d, k in targets.values()) if dtype != torch.float32 else 0
    flops = 2 * counted.get_total_flops()
    return StepCost(weights + exact, image, 4 * COPIES * numbers, flops, shared=4 * frozen)


class _FusedAttention(TorchFunctionMode):
    """Within, attention keeps for the way back what CUDA's fused kernels keep: on tensors without memory torch takes it
    apart, and keeps the weights of every pair of tokens."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(…, t, w) of each to (…, t, w); the two products of matrices are there to be counted."""
        out = (q @ k.mT) @ v
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


def step_cost_on_cpu(
    backbone: Backbone,
    targets: Mapping[str, tuple[int, int]],
    rank: int,
    classes: int,
    kind: str = "lora",
    dropout: float = 0.0,
) -> StepCost:
    """As `step_cost`, in float32 and without its operations, by a pass of one image through the backbone as it is. A
    pass without memory takes torch two seconds at first, and keeps other things of attention.

    kind, dropout: of the adapters; a core is reckoned as LoRA of its rank."""
    given = backbone, targets, rank, classes, torch.device("cpu"), contextlib.nullcontext()
    weights, image, largest, numbers, frozen = _passed(*given, kind, dropout)
    image += PASSING * largest
    return StepCost(weights, image, 4 * COPIES * numbers, 0, (PASSING + 1) * largest, 4 * frozen)


def _passed(
    backbone: Backbone,
    targets: Mapping[str, tuple[int, int]],
    rank: int,
    classes: int,
    device: torch.device,
    counted: contextlib.AbstractContextManager,
    kind: str = "lora",
    dropout: float = 0.0,
) -> tuple[int, int, int, int, int]:
    """(bytes of the weights, bytes that a pass of one image keeps for the way back, of the largest tensor among these,
    numbers that a client trains, those beside them in its adapters). counted: counts its operations."""
    bank = Bank(backbone, targets, 1.0, dropout)
    adapter = {name: _zeros(kind, rank, d, k) for name, (d, k) in targets.items()}
    trained, generators = KINDS[kind].trained(frozenset("AB")), [torch.Generator(device)] if dropout else []
    # An input that only a trained A would keep is freed and leaves a hole, which smaller tensors that stay split up:
    # the process takes as much as if it were kept (VeRA on ViT-Tiny: 30 MB an image, of which 21 are tensors).
    trainable = trained | {"A"}
    head = {"weight": torch.zeros(classes, backbone.features), "bias": torch.zeros(classes)}
    leaves = bank.load([adapter], [head], trainable, generators=generators)
    weights = list(backbone.module.parameters())
    parts = [named for layer in bank.layers.values() for named in layer.leaves.items()]
    held = {value.untyped_storage()._cdata for value in (*weights, *leaves.values(), *(part for _, part in parts))}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()._cdata
        if storage not in held:
            kept[storage] = value  # the tensor too, so that no other gets its place
        return value

    spec = backbone.input
    with counted, torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        bank.forward(torch.zeros(1, spec.channels, spec.height, spec.width, device=device), 1)
    frozen = sum(part.numel() for name, part in parts if name not in trained)
    numbers = sum(part.numel() for name, part in parts if name in trained) + sum(v.numel() for v in bank.head.values())
    sizes = [value.untyped_storage().nbytes() for value in kept.values()]
    return sum(value.numel() * value.itemsize for value in weights), sum(sizes), max(sizes, default=0), numbers, frozen


def _zeros(kind: str, rank: int, d: int, k: int) -> Factors:
    """A layer's factors, whose values no cost depends on."""
    A, B = torch.zeros(rank, k), torch.zeros(d, rank)
    if kind == "dora":
        return DoRAFactors(A, B, m=torch.ones(d))
    return VeRAFactors(A, B, b=torch.zeros(d), d=torch.zeros(rank)) if kind == "vera" else Factors(A, B)


def _product(total: torch.Size, a: torch.Size, b: torch.Size, **_: object) -> int:
    """Operations of `total.baddbmm_(a, b)`, which torch counts out of place alone. a: (n, t, r). b: (n, r, d)."""
    return 2 * a.numel() * b[2]
