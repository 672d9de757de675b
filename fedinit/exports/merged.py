"""The weights with the adapter folded into them, W0 + s·(O + B A), under the names of the model's own tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedinit.exports.contract import Format, called
from fedinit.exports.portable import Portable
from fedinit.models.creation import create
from fedinit.runs.export import as_file

WEIGHTS = "model.safetensors"


class Merged(Format):
    """`--format merged`: a state dict, for whoever makes the model themselves."""

    name: ClassVar[str] = "merged"
    library: ClassVar[str] = "pytorch"
    reader: ClassVar[str] = "PyTorch"

    def files(self, model: Portable) -> dict[str, bytes]:
        return {WEIGHTS: as_file(model.module.state_dict())}

    @torch.inference_mode()
    def read(self, folder: Path, model: Portable) -> Tensor:
        weights = load_file(folder / WEIGHTS)
        module = bare(model)
        if not model.head_is_inside:
            behind = nn.Linear(model.backbone.features, len(model.run.class_names))
            module = nn.Sequential()
            module.add_module("backbone", bare(model))
            module.add_module("head", behind)
        module.load_state_dict(weights)
        return module.eval()(model.probes)

    def code(self, model: Portable) -> Sequence[str]:
        lines = ["import timm", "from safetensors.torch import load_file", "", f"model = {called(model)}"]
        if not model.head_is_inside:
            head = f"torch.nn.Linear({model.backbone.features}, {len(model.run.class_names)})"
            lines[0] = "import timm, torch\nfrom collections import OrderedDict"
            lines.append(f"model = torch.nn.Sequential(OrderedDict(backbone=model, head={head}))")
        return [*lines, f'model.load_state_dict(load_file("{WEIGHTS}"))', "logits = model.eval()(images)"]


def bare(model: Portable) -> nn.Module:
    """The architecture with random weights and its classifier, where it has one."""
    with torch.random.fork_rng(devices=[]):
        module, _ = create(model.run.config.model.name, model.backbone.arguments, "none")
        if model.num_classes:
            module.reset_classifier(model.num_classes)  # pyright: ignore[reportCallIssue]
    return module.eval()
