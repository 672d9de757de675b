"""An adapter for PEFT, with the classifier in it, and the weights that it sits on where nobody else has them.

PEFT keeps a trained classifier as one of the `modules_to_save`, under the name that it has in the wrapped model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fedinit.errors import InputError
from fedinit.exports.contract import Format, called
from fedinit.exports.merged import bare
from fedinit.exports.portable import Portable
from fedinit.opening import read_text
from fedinit.runs.export import ADAPTER, HEAD, PREFIX, SETTINGS, as_file

BASE = "base.safetensors"


class PeftAdapter(Format):
    """`--format peft`: the smallest export, for whoever has the backbone, or fine-tunes further."""

    name: ClassVar[str] = "peft"
    library: ClassVar[str] = "peft"
    reader: ClassVar[str] = "PEFT"
    reads_with: ClassVar[tuple[str, ...]] = ("peft",)
    at_times: ClassVar[tuple[str, ...]] = (HEAD, BASE)

    def refuse(self, model: Portable) -> None:
        """As Format says; also a run whose layers PEFT has no adapters for."""
        super().refuse(model)
        layers = dict(model.backbone.module.named_modules())
        targets = json.loads(read_text(model.adapter / SETTINGS))["target_modules"]
        for name in targets:
            if not isinstance(layers.get(name), nn.Linear):
                raise InputError(
                    f"--format peft: {name} of {model.architecture} is no linear layer that PEFT adapts; use "
                    "--format merged"
                )

    def files(self, model: Portable) -> dict[str, bytes]:
        head, names = load_file(model.adapter / HEAD), model.classifiers()
        with safe_open(model.adapter / ADAPTER, "pt") as file:
            tensors, about = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
        tensors |= {f"{PREFIX}{name}.{key}": value for name in names for key, value in head.items()}
        settings = json.loads(read_text(model.adapter / SETTINGS))
        settings |= {"modules_to_save": list(names) or None}
        written = {ADAPTER: as_file(tensors, about), SETTINGS: (json.dumps(settings, indent=2) + "\n").encode()}
        if head and not names:
            written[HEAD] = save(head)
        if not _has_weights_of_timm(model):
            written[BASE] = as_file(model.backbone.module.state_dict())
        return written

    @torch.inference_mode()
    def read(self, folder: Path, model: Portable) -> Tensor:
        import peft

        module = bare(model)
        module.load_state_dict(model.backbone.module.state_dict(), strict=False)
        adapted = peft.PeftModel.from_pretrained(module, str(folder)).eval()
        logits = adapted(model.probes)
        if (folder / HEAD).is_file():
            head = load_file(folder / HEAD)
            logits = nn.functional.linear(logits, head["weight"], head["bias"])
        return logits

    def code(self, model: Portable) -> Sequence[str]:
        own = _has_weights_of_timm(model)
        read_head = bool(not model.classifiers() and model.run.config.head.name != "none")
        lines = ["import timm, torch"] if read_head else ["import timm"]
        lines += ["from peft import PeftModel"]
        lines += ["from safetensors.torch import load_file"] if read_head or not own else []
        lines += ["", f"base = {called(model, *(['pretrained=True'] if own else []))}"]
        if not own:
            lines.append(f'base.load_state_dict(load_file("{BASE}"), strict=False)  # the classifier is the adapter\'s')
        lines += ['model = PeftModel.from_pretrained(base, ".").eval()  # the path of this folder']
        if read_head:
            lines += [f'head = load_file("{HEAD}")']
            return [*lines, 'logits = torch.nn.functional.linear(model(images), head["weight"], head["bias"])']
        return [*lines, "logits = model(images)"]


def _has_weights_of_timm(model: Portable) -> bool:
    """Whether the frozen weights are timm's own, which it fetches."""
    settings = model.run.config.model
    return settings.pretrained and settings.checkpoint is None
