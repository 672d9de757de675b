"""Inputs and output gradients of the adapted layers, and the variances of the blocks, from plain passes over images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]  # images -> pooled features (n, D), outputs (n, C)


@dataclass(frozen=True)
class Captured:
    """One pass over n images. Inputs and gradients are float32 where the layers compute in less.

    features: (n, D), pooled.
    outputs: (n, C), with a graph behind them.
    inputs: {layer: (n, t, k)}.
    taps: {layer or block: the zeros that were added to its output}, whose gradient is the output's.
    activations: {block: its output}.
    """

    features: Tensor
    outputs: Tensor
    inputs: Mapping[str, Tensor]
    taps: Mapping[str, Tensor]
    activations: Mapping[str, Tensor]

    def gradients(self, scalar: Tensor) -> dict[str, Tensor]:
        """{layer or block: ∂scalar/∂output}, of the outputs' shapes; zero where the scalar does not depend on it."""
        gradients = torch.autograd.grad(scalar, list(self.taps.values()), retain_graph=True, materialize_grads=True)
        return {name: _exact(value) for name, value in zip(self.taps, gradients, strict=True)}


@contextmanager
def capture(
    forward: Forward, images: Tensor, layers: Mapping[str, nn.Module], blocks: Mapping[str, nn.Module]
) -> Iterator[Captured]:
    """Run `forward` over the images and give what went in and out of the layers and blocks.

    layers: {name: module}, whose inputs and output gradients are wanted.
    blocks: {name: module}, whose outputs and output gradients are wanted.
    """
    inputs: dict[str, Tensor] = {}
    taps: dict[str, Tensor] = {}
    activations: dict[str, Tensor] = {}

    def tap(name: str, output: Tensor) -> Tensor:
        taps[name] = torch.zeros_like(output, requires_grad=True)
        return output + taps[name]

    def of_layer(name: str) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple, output: Tensor) -> Tensor:
            inputs[name] = _exact(args[0].detach().reshape(len(images), -1, args[0].shape[-1]))
            return tap(name, output)

        return hook

    def of_block(name: str) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple, output: Tensor) -> Tensor:
            activations[name] = output.detach()
            return tap(name, output)

        return hook

    hooks = [module.register_forward_hook(of_layer(name)) for name, module in layers.items()]
    hooks += [module.register_forward_hook(of_block(name)) for name, module in blocks.items()]
    try:
        features, outputs = forward(images)
    finally:
        for hook in hooks:
            hook.remove()
    yield Captured(features.detach(), outputs, inputs, taps, activations)


def _exact(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
