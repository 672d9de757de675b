"""A folder that timm makes the whole model of: ``timm.create_model("local-dir:FOLDER", pretrained=True)``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import timm
import torch
from torch import Tensor

from fedinit.errors import InputError
from fedinit.exports.merged import Merged
from fedinit.exports.portable import Portable


class TimmFolder(Merged):
    """`--format timm`: merged weights, and timm's config.json, as its models on the hub have them."""

    name: ClassVar[str] = "timm"
    library: ClassVar[str] = "timm"
    reader: ClassVar[str] = "timm"

    def refuse(self, model: Portable) -> None:
        """As Format says; also a model that timm cannot make by a name, or whose classifier cannot hold the head."""
        super().refuse(model)
        if model.is_class:
            raise InputError(f"--format timm: timm has no model of the name {model.architecture}; use --format merged")
        if not model.head_is_inside:
            raise InputError(
                f"--format timm: the classifier of {model.architecture} is more than a linear layer, which the head "
                "is; use --format merged"
            )

    @torch.inference_mode()
    def read(self, folder: Path, model: Portable) -> Tensor:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(model.probes)

    def code(self, model: Portable) -> Sequence[str]:
        return [
            "import timm",
            "",
            'model = timm.create_model("local-dir:.", pretrained=True).eval()  # the path of this folder',
            "logits = model(images)",
        ]
