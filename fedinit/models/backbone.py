"""A frozen timm ViT or MLP-Mixer without its classifier: images in, pooled features out."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from timm.data.config import resolve_model_data_config
from timm.layers.patch_embed import PatchEmbed
from torch import nn

from fedinit.config.schema import ModelConfig
from fedinit.errors import InputError, first_line
from fedinit.models.checkpoint import Filter, load
from fedinit.models.creation import create
from fedinit.models.dry_pass import DryPass, dry_pass
from fedinit.models.input_spec import InputSpec
from fedinit.models.positions import grid_of
from fedinit.models.relative_positions import tables
from fedinit.state import digest

# What timm.create_model would load weights by, from a file or an address; the keys of `model` are the only way here.
LOADING = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}


@dataclass(frozen=True)
class Backbone:
    """A frozen model without its classifier.

    module: maps (n, channels, height, width) to (n, features); its parameters never require a gradient.
    features: D, how many there are.
    input: what it takes.
    arguments: that timm, or the model's class, made it with, without the number of classes; the image size among them.
    """

    module: nn.Module
    features: int
    input: InputSpec
    arguments: Mapping[str, Any] = field(default_factory=dict)

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

    Weights come from `settings.checkpoint` (safetensors, fitted by timm's own filter), from timm's own pretrained ones,
    or stay random (drawn from a fixed seed, so that all sites agree).
    settings: `model.<field>=`.

    Raises InputError for an unknown name, arguments timm refuses, an image size that the model cannot have, a missing,
    pickled or unfitting checkpoint.
    """
    kwargs = dict(settings.kwargs)
    for key in LOADING & kwargs.keys():
        raise InputError(f"model.kwargs.{key}: weights come from model.checkpoint or model.pretrained alone")
    weights = "file" if settings.checkpoint else "hub" if settings.pretrained else "none"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, convert, arguments = _created(settings, kwargs, weights)
    spec = _input_spec(module, settings, kwargs)
    if settings.image_size is not None or "img_size" in kwargs:
        _check_patches(module, settings.title, spec)
    if weights != "none":
        _check_grid(module, settings, kwargs, spec)
    if settings.checkpoint:
        load(module, settings.checkpoint, settings.sha256, convert, settings.checkpoint_grid)
    module.eval().requires_grad_(False)
    backbone = Backbone(module, cast(int, module.num_features), spec, arguments)
    # Some say another number of features than they give without a classifier (MambaOut): what counts is what they give.
    features = _features(backbone, settings.name)
    return backbone if features == backbone.features else dataclasses.replace(backbone, features=features)


def share(module: nn.Module) -> nn.Module:
    """A copy of the module tree whose parameters and buffers are the original's tensors, not copies of them."""
    return _copied(module, {id(t): t for t in [*module.parameters(), *module.buffers()]})


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """As copy.deepcopy makes it, which takes most of its time for the empty tables of hooks that every module has.

    memo: what stands for an object, by its id, as copy.deepcopy keeps it.
    """
    if id(module) in memo:
        return memo[id(module)]
    if hasattr(type(module), "__deepcopy__"):
        return copy.deepcopy(module, memo)
    copied = memo[id(module)] = object.__new__(type(module))
    for name, value in vars(module).items():
        if name == "_modules":
            value = {key: child if child is None else _copied(child, memo) for key, child in value.items()}
        elif type(value) in (dict, OrderedDict) and not value:
            value = type(value)()
        else:
            value = copy.deepcopy(value, memo)
        vars(copied)[name] = value
    return copied


def outline(settings: ModelConfig) -> Backbone:
    """The model that `build_backbone` makes, on the meta device: its shapes without its weights, in a moment.

    Raises InputError as `build_backbone` does, and whatever a module raises that cannot be made or passed there.
    """
    kwargs = dict(settings.kwargs)
    with torch.device("meta"), torch.no_grad():
        module, _, arguments = _created(settings, kwargs, "none")
        spec = _input_spec(module, settings, kwargs)
        module.eval().requires_grad_(False)
        features = module(torch.zeros(1, spec.channels, spec.height, spec.width)).shape[1]
    return Backbone(module, features, spec, arguments)


def _created(settings: ModelConfig, kwargs: dict[str, Any], weights: str) -> tuple[nn.Module, Filter, dict[str, Any]]:
    """`create`, with the image size, which models of any size take no argument for, and the arguments it was given."""
    if settings.image_size is not None:
        sized = {**kwargs, "img_size": settings.image_size}
        try:
            return *create(settings.name, sized, weights), sized
        except InputError as error:
            # In Python's words, or in those of a model that looks through its arguments itself.
            said = str(error.__cause__)
            if "unexpected keyword argument" not in said or "'img_size'" not in said:
                raise
    return *create(settings.name, kwargs, weights), kwargs


def _check_patches(module: nn.Module, name: str, spec: InputSpec) -> None:
    """Raise InputError for a size that patches do not fill, of which a model would leave the last rows unseen; the
    model's own is taken as it is."""
    embedding = getattr(module, "patch_embed", getattr(module, "stem", None))
    own = resolve_model_data_config(module)["input_size"][1:]
    if not isinstance(embedding, PatchEmbed) or embedding.dynamic_img_pad or (spec.height, spec.width) == tuple(own):
        return
    high, wide = cast("tuple[int, int]", embedding.patch_size)
    if spec.height % high or spec.width % wide:
        near = f"{max(spec.height // high, 1) * high},{max(spec.width // wide, 1) * wide}"
        raise InputError(
            f"model.image_size={spec.height}x{spec.width}: {name} cuts images into patches of {high}x{wide} pixels; "
            f"expected multiples of these, such as model.image_size=[{near}]"
        )


def _check_grid(module: nn.Module, settings: ModelConfig, kwargs: Mapping[str, Any], spec: InputSpec) -> None:
    """Raise InputError for a model whose weights are of one grid of tokens, where weights of another grid fit: those of
    an image with as many tokens, which lie elsewhere.

    Weights are of a square image unless `model.checkpoint_grid` says another. Position embeddings and tables of
    relative positions that are resampled are left out of account.
    """
    height, width = spec.height, spec.width
    grid = settings.checkpoint_grid if settings.checkpoint else None
    rows, columns = grid or (1, 1)
    own = tuple(resolve_model_data_config(module)["input_size"][1:])
    if rows * width == columns * height or (grid is None and own == (height, width)):
        return
    unit = math.isqrt(height * width // (rows * columns))
    as_many = unit * unit * rows * columns == height * width
    there = (rows * unit, columns * unit) if as_many else (width, height)  # no square: the grid may still be turned

    def shapes(high: int, wide: int) -> dict[str, torch.Size]:
        with torch.device("meta"):
            other, _ = create(settings.name, {**kwargs, "img_size": (high, wide)}, "none")
        return {name: value.shape for name, value in other.state_dict().items()}

    try:
        fitting, taller = shapes(*there), shapes(2 * height, width)
    except InputError:
        return  # it takes no such size, so no weights were trained at it
    # What fits in number is not resampled: timm's own weights where they are of that size, files of unknown grids.
    resampled = there != own if settings.checkpoint is None else grid_of(module) is not None
    passed = {*tables(module), *(["pos_embed"] if resampled else [])}
    for name, value in module.state_dict().items():
        if name in passed:
            continue
        if fitting.get(name) == value.shape != taller.get(name):
            raise InputError(
                f"model.image_size={height}x{width}: {name} of {settings.name} is trained for one grid of tokens, that "
                f"of {'a square image' if there[0] == there[1] else f'an image of {there[0]}x{there[1]}'} of as many; "
                f"choose a model with position embeddings, or set model.image_size=[{there[0]},{there[1]}], or, for a "
                "file of this model's grid, model.checkpoint_grid=[rows,columns]"
            )


def _features(backbone: Backbone, name: str) -> int:
    """How many features the module gives. Raises InputError where it fails on images of its own size, or gives no
    vector an image."""
    spec = backbone.input
    try:
        shape = backbone.dry_pass.output
    except Exception as error:  # whatever a module of timm's raises
        raise InputError(
            f"model.name={name}: fails on an image of {spec.height}x{spec.width} pixels and {spec.channels} channels: "
            f"{first_line(error)}; set another model.image_size, or choose another model"
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
    size = settings.image_size or kwargs.get("img_size") or defaults["input_size"][1:]
    height, width = (size, size) if isinstance(size, int) else size
    stats = {}
    for key in ("mean", "std"):
        own = defaults[key]
        # A model of other channels than its weights were trained on: each is normalised by the average.
        value = getattr(settings, key) or (own if len(own) == channels else (sum(own) / len(own),) * channels)
        if len(value) != channels:
            raise InputError(f"model.{key}: {len(value)} values given, expected {channels}, one a channel")
        stats[key] = tuple(float(v) for v in value)
    return InputSpec(channels=channels, height=int(height), width=int(width), **stats)
