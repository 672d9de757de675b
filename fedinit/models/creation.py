"""A timm model by its name or class, and the filter by which timm reads weights for it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from timm.models import _builder, mlp_mixer, vision_transformer
from torch import nn

from fedinit.errors import InputError, did_you_mean, first_line
from fedinit.models.checkpoint import Filter
from fedinit.models.matrix import Matrix
from fedinit.models.undrawn import Undrawn

# By class, for shapes that timm's named models cannot be given: mixer_s32_224 refuses another width.
CLASSES: dict[str, type[nn.Module]] = {
    "Matrix": Matrix,
    "MlpMixer": mlp_mixer.MlpMixer,
    "VisionTransformer": vision_transformer.VisionTransformer,
}
FILTERS: dict[str, Filter] = {
    "MlpMixer": mlp_mixer.checkpoint_filter_fn,
    "VisionTransformer": vision_transformer.checkpoint_filter_fn,
}
PATIENCE = 5.0  # seconds that the hub is given to answer at all, before timm tries to fetch from it


def create(name: str, kwargs: Mapping[str, Any], weights: str) -> tuple[nn.Module, Filter]:
    """The module without a classifier, and timm's filter from a file's tensors to the module's.

    name: a timm name, with or without a tag, or one of CLASSES. kwargs: the model's arguments.
    weights: "hub" for timm's own, "file" where a file's are loaded into it afterwards, else "none": random ones.

    Raises InputError for an unknown name, arguments that timm refuses, and weights that cannot be fetched.
    """
    base = name.split(".")[0]
    if not timm.is_model(base) and base not in CLASSES:
        near = did_you_mean(base, [*timm.list_models(), *CLASSES])
        raise InputError(f"model.name={name}: timm knows no such model{near}")
    filters: list[Any] = []
    try:
        if base in CLASSES:
            with Undrawn() if weights == "file" else nullcontext():
                return CLASSES[base](num_classes=0, **kwargs), FILTERS.get(base, _as_they_are)
        if weights == "hub":
            _reach(name)
        with _unloaded(filters) if weights == "file" else nullcontext():
            module = timm.create_model(name, pretrained=weights != "none", num_classes=0, **kwargs)
    except InputError:
        raise
    except OSError as error:
        raise InputError(_unfetched(name, error)) from error
    except Exception as error:  # whatever a model of timm's raises on arguments that it cannot have
        said = _said(error)
        if "unexpected keyword argument" in said and len(kwargs) > 1:  # as another model's all are
            said += f"; without arguments it is model=vit_tiny model.name={name}"
        raise InputError(f"model.name={name}: timm refuses {dict(kwargs)}: {said}") from error
    found = next((f for f in filters if f is not None), None)
    return module, _as_they_are if found is None else _of_two(found)


def _said(error: Exception) -> str:
    """The first line, after the error's class where the line may be a bare key."""
    return f"{type(error).__name__}: {first_line(error)}" if isinstance(error, LookupError) else first_line(error)


def _as_they_are(weights: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    return weights


def _of_two(found: Any) -> Filter:
    """A filter of timm's that may take the weights alone."""
    alone = len(inspect.signature(found).parameters) == 1
    return (lambda weights, module: found(weights)) if alone else found


@contextmanager
def _unloaded(filters: list[Any]) -> Iterator[None]:
    """timm builds models, and in place of drawing and loading weights notes their filters, which no other interface of
    it tells."""
    load = _builder.load_pretrained

    def note(model: nn.Module, *args: Any, filter_fn: Any = None, **kwargs: Any) -> None:
        filters.append(filter_fn)

    _builder.load_pretrained = note
    try:
        with Undrawn():
            yield
    finally:
        _builder.load_pretrained = load


def _unfetched(name: str, error: BaseException) -> str:
    return (
        f"model.pretrained=true: the weights of {name} could not be fetched ({first_line(error)}); give a safetensors "
        "file with model.checkpoint="
    )


def _reach(name: str) -> None:
    """Raise InputError where the weights of this name are in no cache and the place that has them does not answer.

    timm's own attempts, one after another, take most of a minute to fail.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or _cached(config) or (config.hf_hub_id and constants.HF_HUB_OFFLINE):
        return
    address = constants.ENDPOINT if config.hf_hub_id else config.url
    if not isinstance(address, str):
        return  # timm has none, and says so
    answers: list[BaseException | None] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=PATIENCE)
            answers.append(None)
        except Exception as error:  # whatever the client raises: no route, no name, no certificate
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # looking a name up may outlast any time-out
    thread.start()
    thread.join(PATIENCE)
    wrong = answers[0] if answers else TimeoutError(f"no answer in {PATIENCE:g} s")
    if wrong is not None:
        raise InputError(_unfetched(name, wrong)) from wrong


def _cached(config: Any) -> bool:
    """Whether weights are in the cache of the hub, or of torch for those with an address of their own."""
    if not config.hf_hub_id:
        name = Path(config.url).name if isinstance(config.url, str) else ""
        return (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file()
    files = ("model.safetensors", "pytorch_model.bin", config.hf_hub_filename)
    return any(isinstance(huggingface_hub.try_to_load_from_cache(config.hf_hub_id, f), str) for f in files if f)
