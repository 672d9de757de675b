"""The final adapter and head as files other tools read.

adapter_model.safetensors and adapter_config.json carry the names PEFT gives the adapter of a wrapped timm model;
head.safetensors holds the classifier. Where something was merged into the base, base_offset.safetensors holds O by
layer, (d, k): the weight the adapter sits on is W0 + s·O, s = lora_alpha/r.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from fedinit import disk
from fedinit.config import Config
from fedinit.factors import Factors

PREFIX = "base_model.model."


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
    tensors = {}
    for name, factors in layers.items():
        plain = factors.absorb()
        tensors[f"{PREFIX}{name}.lora_A.weight"] = plain.A.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = plain.B.contiguous()
    disk.replace(folder / "adapter_model.safetensors", save(tensors))
    disk.replace(folder / "head.safetensors", save({k: v.contiguous() for k, v in head.items()}))
    if offset:
        disk.replace(folder / "base_offset.safetensors", save({k: v.contiguous() for k, v in offset.items()}))
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


def load_adapter(folder: Path) -> tuple[dict[str, Factors], dict[str, Tensor], dict[str, Tensor]]:
    """What `save_adapter` wrote: (factors by layer, head, base offset by layer)."""
    tensors = load_file(folder / "adapter_model.safetensors")
    suffix = ".lora_A.weight"
    names = [n[len(PREFIX) : -len(suffix)] for n in tensors if n.endswith(suffix)]
    layers = {
        n: Factors(tensors[f"{PREFIX}{n}.lora_A.weight"], tensors[f"{PREFIX}{n}.lora_B.weight"]) for n in names
    }
    merged = folder / "base_offset.safetensors"
    return layers, load_file(folder / "head.safetensors"), load_file(merged) if merged.exists() else {}
