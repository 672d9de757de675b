"""The final adapter and head as files other tools read.

adapter_model.safetensors and adapter_config.json carry the names PEFT gives the adapter of a wrapped timm model, and on
the untouched W0 they are the effective model: LoRA (A as lora_A (r, k), B as lora_B (d, r)), DoRA (m as
lora_magnitude_vector (d,) besides) or VeRA (one vera_A (r, max k) and vera_B (max d, r), and the layers' vectors).
head.safetensors holds the classifier. Where something, O, was merged into the base, they hold O + BA as one product,
and the run's own state lies beside it: factors.safetensors with the factors of the run, and base_offset.safetensors
with O by layer, (d, k), the weight these sit on being W0 + s·O.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fedinit.config.schema import Config
from fedinit.factors import Factors
from fedinit.spectra import matrix_spectrum
from fedinit.state import disk
from fedinit.threads import server_pool

PREFIX = "base_model.model."
OWN = "factors.safetensors"
SHARED_A, SHARED_B = "base_model.vera_A", "base_model.vera_B"
INPUTS = "inputs"  # in the file's metadata: {layer: k}, which VeRA's tensors do not show


def save_adapter(
    folder: Path,
    layers: Mapping[str, Factors],
    head: Mapping[str, Tensor],
    offset: Mapping[str, Tensor],
    config: Config,
    class_names: Sequence[str],
) -> None:
    """Write the adapter, the head and the base offset into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if offset:
        _save_factors(folder / OWN, layers)
        disk.replace(folder / "base_offset.safetensors", save({k: v.contiguous() for k, v in offset.items()}))

    def whole(name: str) -> Factors:
        return with_offset(layers[name], offset[name]) if name in offset else layers[name]

    layers = dict(zip(layers, server_pool().map(whole, layers), strict=True))
    _save_factors(folder / "adapter_model.safetensors", layers)
    disk.replace(folder / "head.safetensors", save({k: v.contiguous() for k, v in head.items()}))
    common = {
        "base_model_name_or_path": config.model.name,
        "target_modules": list(layers),
        "bias": "none",
        "inference_mode": True,
    }
    disk.replace_json(folder / "adapter_config.json", _settings(layers, config) | common)
    disk.replace_json(folder / "classes.json", {"classes": list(class_names)})


def _settings(layers: Mapping[str, Factors], config: Config) -> dict[str, Any]:
    """What PEFT's configuration says of these factors."""
    ranks = {name: factors.rank for name, factors in layers.items()}
    rank = max(ranks.values())
    if _by_vectors(layers):
        return {"peft_type": "VERA", "r": rank, "save_projection": True, "vera_dropout": config.adapter.dropout}
    # Readers scale by alpha / r; s stays what the run had, whatever the rank of a layer.
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": config.adapter.scale * rank,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: config.adapter.scale * r for name, r in ranks.items() if r != rank},
        "lora_dropout": config.adapter.dropout,
        "use_dora": any(factors.m is not None for factors in layers.values()),
    }


def with_offset(product: Factors, offset: Tensor) -> Factors:
    """O + B A as one product in float32, balanced, of the least rank that holds it; magnitudes as they are.

    What a start took out of the base, O = −B0A0, makes it [B, −B0]·[A; A0], of rank 2r. Left out is what is smaller
    than the rounding that O has as a float32 matrix.
    """
    exact = offset.to(torch.float64)
    found = matrix_spectrum(exact + product.to(torch.float64).dense())
    d, k = exact.shape
    rounding = torch.finfo(torch.float32).eps * float(exact.norm()) * (d**-0.5 + k**-0.5)
    part = found.cut(0, max(int((found.S > rounding).sum()), 1))
    root = part.S.sqrt()
    made = Factors(root[:, None] * part.Vh, part.U * root).to(torch.float32)
    return dataclasses.replace(made, m=product.m)


def _by_vectors(layers: Mapping[str, Factors]) -> bool:
    return all(factors.b is not None for factors in layers.values())


def _save_factors(path: Path, layers: Mapping[str, Factors]) -> None:
    tensors, about = {}, None
    if _by_vectors(layers):
        # The layers' A and B are the leading columns and rows of one pair, which the largest of them are.
        tensors[SHARED_A] = max((f.A for f in layers.values()), key=lambda a: a.shape[1]).contiguous()
        tensors[SHARED_B] = max((f.B for f in layers.values()), key=len).contiguous()
        for name, factors in layers.items():
            tensors[f"{PREFIX}{name}.vera_lambda_b"] = factors.b.contiguous()
            tensors[f"{PREFIX}{name}.vera_lambda_d"] = factors.d.contiguous()
        about = {INPUTS: json.dumps({name: factors.shape[1] for name, factors in layers.items()})}
    else:
        for name, factors in layers.items():
            plain = factors.absorb()
            tensors[f"{PREFIX}{name}.lora_A.weight"] = plain.A.contiguous()
            tensors[f"{PREFIX}{name}.lora_B.weight"] = plain.B.contiguous()
            if factors.m is not None:
                tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = factors.m.contiguous()
    disk.replace(path, save(tensors, about))


def load_adapter(folder: Path) -> tuple[dict[str, Factors], dict[str, Tensor], dict[str, Tensor]]:
    """What `save_adapter` was given: (factors by layer, head, base offset by layer)."""
    own = folder / OWN
    with safe_open(own if own.exists() else folder / "adapter_model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        inputs = json.loads((file.metadata() or {}).get(INPUTS, "{}"))
    suffix = ".lora_A.weight"
    names = [n[len(PREFIX) : -len(suffix)] for n in tensors if n.endswith(suffix)]
    layers = {
        n: Factors(
            tensors[f"{PREFIX}{n}.lora_A.weight"],
            tensors[f"{PREFIX}{n}.lora_B.weight"],
            m=tensors.get(f"{PREFIX}{n}.lora_magnitude_vector"),
        )
        for n in names
    }
    for n, k in inputs.items():
        b, d = (tensors[f"{PREFIX}{n}.vera_lambda_{part}"] for part in "bd")
        layers[n] = Factors(tensors[SHARED_A][:, :k], tensors[SHARED_B][: len(b)], b=b, d=d)
    merged = folder / "base_offset.safetensors"
    return layers, load_file(folder / "head.safetensors"), load_file(merged) if merged.exists() else {}
