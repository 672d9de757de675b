"""The final adapter and head as files other tools read: what is exported scores what the run's table says.

adapter/            of a method with one model for all clients
adapter/client-N/   of one whose clients keep factors to themselves: client N's, with the shared ones
adapter/client-untrained/  of such a method: that of all clients of whom no update counted, or whose factors were lost
adapter/shared/     of such a method, on a deployment's server, which has nothing of the clients' own: what all share

adapter_model.safetensors and adapter_config.json carry the names PEFT gives the adapter of a wrapped timm model, and on
the untouched W0 they are the effective model: LoRA (A as lora_A (r, k), B as lora_B (d, r)), DoRA (m as
lora_magnitude_vector (d,) besides) or VeRA (one vera_A (r, max k) and vera_B (max d, r), and the layers' vectors).
head.safetensors holds the classifier. Where something, O, was merged into the base, they hold O + BA as one product,
and the run's own state lies beside it: factors.safetensors with the factors of the run, and base_offset.safetensors
with O by layer, (d, k), the weight these sit on being W0 + s·O.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fedinit.adapters.contract import Kind
from fedinit.adapters.kinds import KINDS, kind_of, of_parts
from fedinit.config.schema import Config
from fedinit.factors import Factors
from fedinit.spectra import matrix_spectrum
from fedinit.state import disk
from fedinit.threads import server_pool

PREFIX = "base_model.model."
ADAPTER, SETTINGS, UNMERGED = "adapter_model.safetensors", "adapter_config.json", "factors.safetensors"
HEAD, OFFSET, CLASSES = "head.safetensors", "base_offset.safetensors", "classes.json"
VERA_A, VERA_B = "base_model.vera_A", "base_model.vera_B"
ONE, PERSONAL, SHARED = "adapter", "adapter/client-N", "adapter/shared"  # where in the run's folder
UNTRAINED = "adapter/client-untrained"  # beside PERSONAL
FORMER = ".former"  # behind ONE: what an earlier end of the run wrote, of clients that have none of their own since
INPUTS = "inputs"  # in the file's metadata: {layer: k}, which VeRA's tensors do not show


@dataclass(frozen=True, kw_only=True)
class FinalModel:
    """What a run ended with.

    layers: {layer: global factors}.
    head: {key: tensor}; empty for a model without a classifier.
    offset: {layer: O (d, k)}; a layer that is absent has none.
    class_names: of the outputs, in their order.
    personal: the parts of the factors that clients keep to themselves; empty where all have one model.
    by_client: {client: {layer: its factors, its own in the personal parts}}, of those that have some; empty where they
    are not at hand.
    untrained: how many clients there are besides, which use `layers` as they are; 0 where nobody's are at hand.
    """

    layers: Mapping[str, Factors]
    head: Mapping[str, Tensor]
    offset: Mapping[str, Tensor]
    class_names: Sequence[str]
    personal: frozenset[str] = frozenset()
    by_client: Mapping[int, Mapping[str, Factors]] = field(default_factory=dict)
    untrained: int = 0


def export(folder: Path, model: FinalModel, config: Config) -> str:
    """Write into the run's `folder` what scores what its table says, one adapter or one a client that has its own;
    where that is: ONE, PERSONAL or SHARED. Raises OSError."""
    if not model.personal:
        save_adapter(folder / ONE, model.layers, model.head, model.offset, config, model.class_names)
        return ONE
    _put_former_aside(folder / ONE, model)
    for client, layers in model.by_client.items():
        save_adapter(folder_of(folder, client), layers, model.head, model.offset, config, model.class_names)
    if model.untrained:
        save_adapter(folder / UNTRAINED, model.layers, model.head, model.offset, config, model.class_names)
    at_hand = bool(model.by_client or model.untrained)
    if not at_hand:
        _save_shared(folder / SHARED, model)
    disk.replace_json(folder / ONE / CLASSES, {"classes": list(model.class_names)})
    return PERSONAL if at_hand else SHARED


def _put_former_aside(place: Path, model: FinalModel) -> None:
    """Keep adapters of clients that have none any more, which an earlier end of the run wrote and everybody would take
    for theirs, in a folder beside, which nobody reads."""
    named = {f"client-{client}" for client in model.by_client}
    if model.untrained:
        named.add(Path(UNTRAINED).name)
    for path in sorted(place.glob("client-*")):
        if path.name not in named:
            beside = place.with_name(ONE + FORMER)
            beside.mkdir(exist_ok=True)
            path.rename(disk.unused(beside / path.name))


def folder_of(folder: Path, client: int) -> Path:
    """Where in the run's `folder` the adapter of a client is that has one of its own."""
    return folder / PERSONAL.replace("N", str(client))


def _save_shared(folder: Path, model: FinalModel) -> None:
    """What clients share, which is no adapter that PEFT would read: their own parts are not in it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = _kind(model.layers).files.items()
    shared = {
        f"{PREFIX}{name}.{key}": factors.parts[part]
        for name, factors in model.layers.items()
        for part, key in files
        if part not in model.personal
    }
    disk.replace(folder / UNMERGED, as_file(shared))
    disk.replace(folder / HEAD, as_file(model.head))
    if model.offset:
        disk.replace(folder / OFFSET, as_file(model.offset))


def save_adapter(
    folder: Path,
    layers: Mapping[str, Factors],
    head: Mapping[str, Tensor],
    offset: Mapping[str, Tensor],
    config: Config,
    class_names: Sequence[str],
) -> None:
    """Write the adapter, the head and the base offset into `folder`, which is made where it is not there.

    layers: {layer: factors}.
    head: {key: tensor}; empty for a model without a classifier.
    offset: {layer: O (d, k)}; a layer that is absent has none.
    config: of the run, for the model's name, the scale and the dropout.
    class_names: of the outputs, in their order.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if offset:
        _save_factors(folder / UNMERGED, layers)
        disk.replace(folder / OFFSET, as_file(offset))

    def merged(name: str) -> Factors:
        return with_offset(layers[name], offset[name]) if name in offset else layers[name]

    layers = dict(zip(layers, server_pool().map(merged, layers), strict=True))
    _save_factors(folder / ADAPTER, layers)
    disk.replace(folder / HEAD, as_file(head))
    common = {
        "base_model_name_or_path": config.model.name,
        "target_modules": list(layers),
        "bias": "none",
        "inference_mode": True,
    }
    ranks = {name: factors.rank for name, factors in layers.items()}
    told = _kind(layers).peft_settings(ranks, config.adapter.scale, config.adapter.dropout)
    disk.replace_json(folder / SETTINGS, told | common)
    disk.replace_json(folder / CLASSES, {"classes": list(class_names)})


def _kind(layers: Mapping[str, Factors]) -> Kind:
    """The kind that a file's layers are all of, or LoRA, in which any product can be written."""
    kinds = {kind_of(factors) for factors in layers.values()}
    return kinds.pop() if len(kinds) == 1 else KINDS["lora"]


def with_offset(product: Factors, offset: Tensor) -> Factors:
    """O + B A as one product in float32, balanced, of the least rank that holds it; magnitudes as they are.

    What a start took out of the base, O = −B0A0, makes it [B, −B0]·[A; A0], of rank 2r. Left out is what is smaller
    than the rounding that O has as a float32 matrix.
    """
    exact = offset.to(torch.float64)
    spectrum = matrix_spectrum(exact + product.to(torch.float64).dense())
    d, k = exact.shape
    rounding = torch.finfo(torch.float32).eps * float(exact.norm()) * (d**-0.5 + k**-0.5)
    part = spectrum.cut(0, max(int((spectrum.S > rounding).sum()), 1))
    root = part.S.sqrt()
    return product.with_product(Factors(root[:, None] * part.Vh, part.U * root).to(torch.float32))


def _save_factors(path: Path, layers: Mapping[str, Factors]) -> None:
    kind = _kind(layers)
    tensors, about = {}, None
    if not {"A", "B"} <= kind.files.keys():
        # The layers' A and B are the leading columns and rows of one pair, which the largest of them are.
        tensors[VERA_A] = max((f.A for f in layers.values()), key=lambda a: a.shape[1])
        tensors[VERA_B] = max((f.B for f in layers.values()), key=len)
        about = {INPUTS: json.dumps({name: factors.shape[1] for name, factors in layers.items()})}
    for name, factors in layers.items():
        parts = {**factors.parts, "B": factors.absorb().B}
        tensors |= {f"{PREFIX}{name}.{key}": parts[part] for part, key in kind.files.items()}
    disk.replace(path, as_file(tensors, about))


def as_file(tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> bytes:
    """A safetensors file, which wants each tensor by itself: equal ones are one, where they come from a checkpoint."""
    return save({name: value.contiguous().clone() for name, value in tensors.items()}, about)


def load_adapter(folder: Path) -> tuple[dict[str, Factors], dict[str, Tensor], dict[str, Tensor]]:
    """({layer: factors}, {key: tensor of the head}, {layer: O (d, k)}): what `save_adapter` was given. Raises OSError
    where a file is missing."""
    unmerged = folder / UNMERGED
    with safe_open(unmerged if unmerged.exists() else folder / ADAPTER, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        inputs = json.loads((file.metadata() or {}).get(INPUTS, "{}"))
    parts: dict[str, dict[str, Tensor]] = {}
    for part, key in ((part, f".{key}") for kind in KINDS.values() for part, key in kind.files.items()):
        for name in [n for n in tensors if n.endswith(key)]:
            parts.setdefault(name[len(PREFIX) : -len(key)], {})[part] = tensors[name]
    for name, k in inputs.items():
        parts[name] |= {"A": tensors[VERA_A][:, :k], "B": tensors[VERA_B][: len(parts[name]["b"])]}
    layers = {name: of_parts(parts[name]) for name in inputs or parts}
    merged = folder / OFFSET
    return layers, load_file(folder / HEAD), load_file(merged) if merged.exists() else {}
