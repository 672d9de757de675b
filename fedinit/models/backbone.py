"""A frozen timm ViT or MLP-Mixer without its classifier: images in, pooled features out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.data.config import resolve_model_data_config
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedinit.config.schema import ModelConfig
from fedinit.config.site import EMBEDDED
from fedinit.errors import InputError, did_you_mean
from fedinit.models.dry_pass import DryPass, dry_pass
from fedinit.models.input_spec import InputSpec
from fedinit.models.matrix import Matrix
from fedinit.state import digest

# By class, for shapes that timm's named models cannot be given: mixer_s32_224 refuses another width.
CLASSES = {"Matrix": Matrix, "MlpMixer": MlpMixer, "VisionTransformer": VisionTransformer}
EMBEDDED_DIR = Path(__file__).parent / "embedded"
# What timm.create_model would load weights by, from a file or an address; the keys of `model` are the only way here.
LOADING = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}


@dataclass(frozen=True)
class Backbone:
    """A frozen model without its classifier.

    module: maps (n, channels, height, width) to (n, features); its parameters never require a gradient.
    features: D, how many there are.
    input: what it takes.
    """

    module: nn.Module
    features: int
    input: InputSpec

    @functools.cached_property
    def dry_pass(self) -> DryPass:
        """What the module does with its linear layers, from a pass over two images. Raises as the module does."""
        return dry_pass(self.module, (self.input.channels, self.input.height, self.input.width))

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of every parameter and buffer: two sites agree on the backbone if and only if this agrees."""
        return digest.of_tensors(self.module.state_dict())


def build_backbone(settings: ModelConfig) -> Backbone:
    """Create the timm model, by its name or its class, load its weights, freeze it.

    Weights come from `settings.checkpoint` (safetensors; position embeddings are resampled to the image size), from
    timm's own pretrained ones, or stay random (drawn from a fixed seed, so that all sites agree).
    settings: `model.<field>=`.

    Raises InputError for an unknown name, arguments timm refuses, a missing, pickled or unfitting checkpoint.
    """
    base = settings.name.split(".")[0]
    if not timm.is_model(base) and base not in CLASSES:
        near = did_you_mean(base, [*timm.list_models(), *CLASSES])
        raise InputError(f"model.name={settings.name}: timm knows no such model{near}")
    kwargs = dict(settings.kwargs)
    for key in LOADING & kwargs.keys():
        raise InputError(f"model.kwargs.{key}: weights come from model.checkpoint or model.pretrained alone")
    if settings.image_size is not None:
        kwargs["img_size"] = settings.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            online = settings.pretrained and not settings.checkpoint
            if base in CLASSES:
                module = CLASSES[base](num_classes=0, **kwargs)
            else:
                module = timm.create_model(settings.name, pretrained=online, num_classes=0, **kwargs)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise InputError(f"model.name={settings.name}: timm refuses {kwargs}: {_first_line(error)}") from error
        except OSError as error:
            raise InputError(
                f"model.pretrained=true: the weights of {settings.name} could not be fetched "
                f"({_first_line(error)}); give a safetensors file with model.checkpoint="
            ) from error
    if settings.checkpoint:
        _load(module, settings.checkpoint, settings.sha256)
    module.eval().requires_grad_(False)
    backbone = Backbone(module, cast(int, module.num_features), _input_spec(module, settings, kwargs))
    # Some say another number of features than they give without a classifier (MambaOut): what counts is what they give.
    features = _features(backbone, settings.name)
    return backbone if features == backbone.features else dataclasses.replace(backbone, features=features)


def _features(backbone: Backbone, name: str) -> int:
    """How many features the module gives. Raises InputError where it fails on images of its own size, or gives no
    vector an image."""
    spec = backbone.input
    try:
        shape = backbone.dry_pass.output
    except Exception as error:  # whatever a module of timm's raises
        raise InputError(
            f"model.name={name}: fails on an image of {spec.height}x{spec.width} pixels and {spec.channels} channels: "
            f"{_first_line(error)}; set another model.image_size, or choose another model"
        ) from error
    if len(shape) != 2 or shape[0] != 1:
        raise InputError(
            f"model.name={name}: gives {shape} for one image, expected (1, features); choose a model whose features "
            "are pooled, or try +model.kwargs.global_pool=avg"
        )
    return shape[1]


def _input_spec(module: nn.Module, settings: ModelConfig, kwargs: Mapping[str, Any]) -> InputSpec:
    defaults = resolve_model_data_config(module)
    channels = int(kwargs.get("in_chans", defaults["input_size"][0]))
    size = kwargs.get("img_size", defaults["input_size"][1:])
    height, width = (size, size) if isinstance(size, int) else size
    stats = {}
    for key in ("mean", "std"):
        value = getattr(settings, key) or defaults[key]
        if len(value) != channels:
            raise InputError(f"model.{key}: {len(value)} values given, expected {channels}, one a channel")
        stats[key] = tuple(float(v) for v in value)
    return InputSpec(channels=channels, height=int(height), width=int(width), **stats)


def _load(module: nn.Module, source: str, sha256: str | None) -> None:
    """Load a checkpoint into the module.

    source: the path of a safetensors file with timm's names, or "embedded:<file>" for one inside this package.
    sha256: what the file's must be; None: any.

    Raises InputError for a file that is missing, another, no safetensors file, or does not fit the module.
    """
    embedded = source.startswith(EMBEDDED)
    # By its bare name: what is embedded may be named by a server, and must not lead to another file of this machine.
    path = EMBEDDED_DIR / Path(source[len(EMBEDDED) :]).name if embedded else Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"model.checkpoint={source}: no such file; expected a safetensors file with timm's names")
    if sha256 is not None and (actual := digest.of_file(path)) != sha256:
        raise InputError(
            f"model.checkpoint={source}: its sha256 is {actual[:12]}…, expected {sha256[:12]}…; this is not the file "
            "that the run was made for"
        )
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise InputError(
            f"model.checkpoint={source}: not a safetensors file ({_first_line(error)}); pickled checkpoints can run "
            "code and are refused: load it where you trust it and save the state dict with safetensors.torch.save_file"
        ) from error
    wanted = module.state_dict()
    weights = {k: v for k, v in weights.items() if not k.startswith(("head.", "head_dist.", "pre_logits."))}
    _resample_positions(module, weights)
    missing = sorted(wanted.keys() - weights.keys())
    extra = sorted(weights.keys() - wanted.keys())
    wrong = [k for k in sorted(wanted.keys() & weights.keys()) if wanted[k].shape != weights[k].shape]
    if missing or extra or wrong:
        what = (
            f"{wrong[0]} is {tuple(weights[wrong[0]].shape)}, expected {tuple(wanted[wrong[0]].shape)}"
            if wrong
            else f"{missing[0]} is missing"
            if missing
            else f"{extra[0]} is not in the model"
        )
        raise InputError(
            f"model.checkpoint={source}: does not fit the model: {what} ({len(missing)} missing, {len(extra)} "
            f"unknown, {len(wrong)} of another shape); check model.name and model.kwargs"
        )
    module.load_state_dict(weights)


def _resample_positions(module: nn.Module, weights: dict[str, Tensor]) -> None:
    position = weights.get("pos_embed")
    target: Tensor | None = getattr(module, "pos_embed", None)
    if position is None or target is None or position.shape == target.shape or position.shape[-1] != target.shape[-1]:
        return
    grid: tuple[int, int] = cast(Any, module.patch_embed).grid_size
    prefix = target.shape[1] - grid[0] * grid[1]
    if prefix >= 0 and int((position.shape[1] - prefix) ** 0.5) ** 2 == position.shape[1] - prefix:
        weights["pos_embed"] = resample_abs_pos_embed(position, new_size=list(grid), num_prefix_tokens=prefix)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
