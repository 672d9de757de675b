"""The final adapter and head as files other tools read.

adapter_model.safetensors and adapter_config.json carry the names PEFT gives the adapter of a wrapped timm model, and on
the untouched W0 they are the effective model; head.safetensors holds the classifier. Where something, O, was merged
into the base, they hold O + BA as one product, and the run's own state lies beside it: factors.safetensors with the
factors of the run, and base_offset.safetensors with O by layer, (d, k), the weight these sit on being W0 + s·O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fedinit import disk
from fedinit.config import Config
from fedinit.factors import Factors
from fedinit.spectra import matrix_spectrum
from fedinit.threads import server_pool

PREFIX = "base_model.model."
OWN = "factors.safetensors"


def save_adapter(
    folder: Path,
    layers: Mapping[str, Factors],
    head: Mapping[str, Tensor],
    offset: Mapping[str, Tensor],
    config: Config,
    class_names: Sequence[str],
) -> None:
    """Write the adapter (A as lora_A (r, k), B as lora_B (d, r)), the head and the base offset into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if offset:
        _save_factors(folder / OWN, layers)
        disk.replace(folder / "base_offset.safetensors", save({k: v.contiguous() for k, v in offset.items()}))

    def whole(name: str) -> Factors:
        return with_offset(layers[name], offset[name]) if name in offset else layers[name]

    layers = dict(zip(layers, server_pool().map(whole, layers), strict=True))
    _save_factors(folder / "adapter_model.safetensors", layers)
    disk.replace(folder / "head.safetensors", save({k: v.contiguous() for k, v in head.items()}))
    ranks = {name: factors.rank for name, factors in layers.items()}
    rank = max(ranks.values())
    # Readers scale by alpha / r; s stays what the run had, whatever the rank of a layer.
    disk.replace_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "base_model_name_or_path": config.model.name,
            "r": rank,
            "lora_alpha": config.adapter.scale * rank,
            "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
            "alpha_pattern": {name: config.adapter.scale * r for name, r in ranks.items() if r != rank},
            "lora_dropout": config.adapter.dropout,
            "target_modules": list(layers),
            "bias": "none",
            "inference_mode": True,
        },
    )
    disk.replace_json(folder / "classes.json", {"classes": list(class_names)})


def with_offset(product: Factors, offset: Tensor) -> Factors:
    """O + B A as one product in float32, balanced, of the least rank that holds it.

    What a start took out of the base, O = −B0A0, makes it [B, −B0]·[A; A0], of rank 2r. Left out is what is smaller
    than the rounding that O has as a float32 matrix.
    """
    exact = offset.to(torch.float64)
    found = matrix_spectrum(exact + product.to(torch.float64).dense())
    d, k = exact.shape
    rounding = torch.finfo(torch.float32).eps * float(exact.norm()) * (d**-0.5 + k**-0.5)
    part = found.cut(0, max(int((found.S > rounding).sum()), 1))
    root = part.S.sqrt()
    return Factors(root[:, None] * part.Vh, part.U * root).to(torch.float32)


def _save_factors(path: Path, layers: Mapping[str, Factors]) -> None:
    tensors = {}
    for name, factors in layers.items():
        plain = factors.absorb()
        tensors[f"{PREFIX}{name}.lora_A.weight"] = plain.A.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = plain.B.contiguous()
    disk.replace(path, save(tensors))


def load_adapter(folder: Path) -> tuple[dict[str, Factors], dict[str, Tensor], dict[str, Tensor]]:
    """What `save_adapter` was given: (factors by layer, head, base offset by layer)."""
    own = folder / OWN
    tensors = load_file(own if own.exists() else folder / "adapter_model.safetensors")
    suffix = ".lora_A.weight"
    names = [n[len(PREFIX) : -len(suffix)] for n in tensors if n.endswith(suffix)]
    layers = {
        n: Factors(tensors[f"{PREFIX}{n}.lora_A.weight"], tensors[f"{PREFIX}{n}.lora_B.weight"]) for n in names
    }
    merged = folder / "base_offset.safetensors"
    return layers, load_file(folder / "head.safetensors"), load_file(merged) if merged.exists() else {}
