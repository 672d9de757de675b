"""A backbone's weights from a safetensors file, whoever wrote it: through timm's own filter, then compared strictly.

timm's filters know open_clip's and Facebook's names, position embeddings and patches of another size, BEiT's tables of
relative positions. What they leave must be the model's tensors, all of them, in their shapes; classifiers are left out.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from timm.models import clean_state_dict
from torch import Tensor, nn

from fedinit.config.site import EMBEDDED
from fedinit.errors import InputError, first_line, machine_failed
from fedinit.home import expand_home
from fedinit.models.positions import read_from_grid, resample_from_square, unsaid_grid
from fedinit.models.relative_positions import in_grid_of
from fedinit.state import digest

EMBEDDED_DIR = Path(__file__).parent / "embedded"
CLASSIFIERS = ("head.", "head_dist.", "pre_logits.")  # besides those that the model's pretrained_cfg names
UNUSED = ("mask_token",)  # of pre-training, where the model does not have them
Filter = Callable[[dict[str, Any], nn.Module], dict[str, Any]]


def load(
    module: nn.Module, source: str, sha256: str | None, convert: Filter, grid: tuple[int, int] | None = None
) -> None:
    """Load a checkpoint into the module.

    source: the path of a safetensors file, or "embedded:<file>" for one inside this package.
    sha256: what the file's must be; None: any.
    convert: timm's filter of this model, from a file's tensors to the module's.
    grid: (rows, columns) of the file's position embeddings; None: of a square image.

    Raises InputError for a file that is missing, another, no safetensors file, or does not fit the module.
    """
    raw, wanted = _unwrapped(source, _read(source, sha256)), module.state_dict()
    positions = unsaid_grid(module, raw) if grid is None else ""
    try:
        # EVA's filter prints what it passes over, and interpolating tables warns of how timm writes it.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"timm\.layers\.interpolate")
            raw |= (tables := in_grid_of(module, raw, grid, source))
            if grid is not None:
                weights = read_from_grid(module, raw, convert, grid)
            else:
                weights = dict(convert(dict(raw), module))
                resample_from_square(module, weights, raw, source)
        weights |= {name: table for name, table in tables.items() if name in weights}  # not resampled once more
    except InputError:
        raise
    except Exception as error:  # whatever a filter of timm's raises on tensors it was not written for
        _compare(source, raw, wanted, positions)
        raise InputError(
            f"model.checkpoint={source}: does not fit the model: timm cannot read it as weights of "
            f"{type(module).__name__} ({first_line(error)}); check model.name, model.kwargs, "
            "model.image_size and model.checkpoint_grid"
        ) from error
    _adapt_channels(module, weights, wanted)
    left_out = (*CLASSIFIERS, *(f"{name}." for name in _named(module, "classifier")), *UNUSED)
    weights = {k: v for k, v in weights.items() if k in wanted or not k.startswith(left_out)}
    _compare(source, weights, wanted, positions)
    for name, value in weights.items():
        if wanted[name].is_floating_point() and not value.is_floating_point():
            raise InputError(
                f"model.checkpoint={source}: {name} holds whole numbers ({value.dtype}); quantised weights are not "
                "read: give the file before quantisation"
            )
        if not value.isfinite().all() and wanted[name].isfinite().all():
            raise InputError(
                f"model.checkpoint={source}: {name} holds numbers that are NaN or infinite; the file is damaged, "
                "or of a training that diverged: give another"
            )
    module.load_state_dict(weights)


def _read(source: str, sha256: str | None) -> dict[str, Tensor]:
    """The file's tensors, floating point ones in float32. Raises InputError."""
    embedded = source.startswith(EMBEDDED)
    # By its bare name: what is embedded may be named by a server, and must not lead to another file of this machine.
    path = EMBEDDED_DIR / Path(source[len(EMBEDDED) :]).name if embedded else expand_home("model.checkpoint", source)
    if not path.is_file():
        raise InputError(f"model.checkpoint={source}: no such file; expected a safetensors file of the model's weights")
    if sha256 is not None and (actual := digest.of_file(path)) != sha256:
        raise InputError(
            f"model.checkpoint={source}: its sha256 is {actual[:12]}…, expected {sha256[:12]}…; this is not the file "
            "that the run was made for"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    except RuntimeError as error:  # torch's, of a file that cannot be opened, or for want of memory
        if machine_failed(error):
            raise
        raise InputError(f"model.checkpoint={source}: {first_line(error)}") from error
    except SafetensorError as error:
        raise InputError(
            f"model.checkpoint={source}: not a safetensors file ({first_line(error)}); pickled checkpoints can run "
            "code and are refused: load it where you trust it and save the state dict with safetensors.torch.save_file"
        ) from error


def _unwrapped(source: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors without `module.` and `_orig_mod.` before their names. Raises InputError where two get one name."""
    clean = dict(clean_state_dict(dict(weights)))
    if len(clean) < len(weights):
        twice = [name for name in sorted(weights) if name not in clean]
        raise InputError(
            f"model.checkpoint={source}: holds two sets of weights, one of them as {twice[0]!r}; save the one that is "
            "meant"
        )
    return clean


def _adapt_channels(module: nn.Module, weights: dict[str, Any], wanted: Mapping[str, Tensor]) -> None:
    """Bring the first layer's weights of RGB to the model's channels as timm does."""
    from timm.models._manipulate import adapt_input_conv

    for name in _named(module, "first_conv"):
        weight, target = weights.get(f"{name}.weight"), wanted.get(f"{name}.weight")
        if weight is None or target is None or target.ndim != 4 or weight.ndim != 4:
            continue
        if weight.shape[1] == 3 != target.shape[1]:
            weights[f"{name}.weight"] = adapt_input_conv(target.shape[1], weight)


def _named(module: nn.Module, key: str) -> tuple[str, ...]:
    """The layers that the model's pretrained_cfg names under `key`."""
    names = (getattr(module, "pretrained_cfg", None) or {}).get(key) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _compare(source: str, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], positions: str) -> None:
    """Raise InputError unless the names and shapes are those of the model. positions: what is wrong where it is the
    position embeddings that do not fit; empty where that is not known."""
    missing = sorted(wanted.keys() - weights.keys())
    extra = sorted(weights.keys() - wanted.keys())
    wrong = [k for k in sorted(wanted.keys() & weights.keys()) if wanted[k].shape != weights[k].shape]
    if not (missing or extra or wrong):
        return
    if positions and wrong[:1] == ["pos_embed"]:
        raise InputError(f"model.checkpoint={source}: does not fit the model: {positions}")
    if wrong:
        what = f"{wrong[0]} is {tuple(weights[wrong[0]].shape)}, expected {tuple(wanted[wrong[0]].shape)}"
    else:
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} is not in the model"
    prefix = _prefix(missing, extra)
    advice = f"its names begin with '{prefix}': save it without" if prefix else "check model.name and model.kwargs"
    raise InputError(
        f"model.checkpoint={source}: does not fit the model: {what} ({len(missing)} missing, {len(extra)} unknown, "
        f"{len(wrong)} of another shape); {advice}"
    )


def _prefix(missing: Sequence[str], extra: Sequence[str]) -> str:
    """What is before the names of most missing tensors in the file: "backbone." or "teacher.backbone."; "" where that
    is nothing."""
    there = set(extra)
    for prefix in {name.removesuffix(m) for m in missing[:1] for name in extra if name.endswith(f".{m}")}:
        if sum(prefix + name in there for name in missing) > len(missing) / 2:
            return prefix
    return ""
