"""Position embeddings of a file in the model's grid of tokens.

How many there are does not tell their grid: 16 are 4x4, 2x8 or 8x2. They are of a square image, as those of published
models are, unless `model.checkpoint_grid` says another grid.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from fedinit.errors import InputError

NAMES = ("pos_embed", "positional_embedding")  # the ends of their names in timm's files and in CLIP's
PREFIX = 16  # class and register tokens that may stand before the grid's

_log = logging.getLogger(__name__)


def token_grid(module: nn.Module) -> tuple[int, int] | None:
    """(rows, columns) of a model's tokens; None for one that keeps its grid elsewhere."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    return None if grid is None else (grid[0], grid[1])


def grid_of(module: nn.Module) -> tuple[int, int] | None:
    """(rows, columns) of the tokens that a table (1, tokens, width) of positions is for; None for a model without one,
    or that keeps its grid elsewhere."""
    grid, target = token_grid(module), getattr(module, "pos_embed", None)
    if grid is None or not isinstance(target, Tensor) or target.ndim != 3 or target.shape[1] < grid[0] * grid[1]:
        return None
    return grid


def read_from_grid(
    module: nn.Module, raw: Mapping[str, Tensor], convert: Callable[..., dict[str, Any]], grid: tuple[int, int]
) -> dict[str, Any]:
    """A file's tensors through timm's filter, their positions resampled from `grid`, (rows, columns).

    Raises InputError for a file with another number of positions.
    """
    target, key = grid_of(module), _key(raw)
    if target is None or key is None:
        return dict(convert(dict(raw), module))
    count, tokens = raw[key].shape[-2], target[0] * target[1]
    prefix = count - grid[0] * grid[1]
    if not 0 <= prefix <= PREFIX:
        raise InputError(
            f"model.checkpoint_grid=[{grid[0]},{grid[1]}]: the file has {count} positions in {key}, expected "
            f"{grid[0] * grid[1]} and those of its class tokens; set rows and columns of the image it was trained on"
        )
    position = raw[key].reshape(1, count, -1)
    position = resample_abs_pos_embed(position, list(target), list(grid), num_prefix_tokens=prefix)
    weights = dict(convert({**raw, key: position.reshape(*raw[key].shape[:-2], *position.shape[1:])}, module))
    if isinstance(after := weights.get("pos_embed"), Tensor) and after.ndim == 3 and after.shape[1] >= tokens:
        # A filter that takes as many for those of a square image has resampled them once more.
        weights["pos_embed"] = torch.cat([after[:, :-tokens], position[:, -tokens:]], 1)
    return weights


def unsaid_grid(module: nn.Module, raw: Mapping[str, Tensor]) -> str:
    """What a refusal says of positions that can be of no square image, nor of the model's grid; else empty."""
    grid, target, key = grid_of(module), getattr(module, "pos_embed", None), _key(raw)
    if grid is None or target is None or key is None or raw[key].shape[-1] != target.shape[-1]:
        return ""
    count = raw[key].shape[-2] - (target.shape[1] - grid[0] * grid[1])
    if count < 1 or count == grid[0] * grid[1] or math.isqrt(count) ** 2 == count:
        return ""
    return of_no_square(f"{count} positions")


def resample_from_square(module: nn.Module, weights: dict[str, Any], raw: Mapping[str, Tensor], source: str) -> None:
    """Bring positions of a square image to the model's grid where timm's filter left them as they were, and say so
    where the model has as many in a grid that is not square: 8x8 in a file are no 4x16.

    weights: as the filter gives them; changed in place.
    raw: the file's.
    source: `model.checkpoint`.

    Raises InputError for as many positions as the model has, which can be of no square image.
    """
    grid, position, target = grid_of(module), weights.get("pos_embed"), getattr(module, "pos_embed", None)
    if grid is None or target is None or not isinstance(position, Tensor) or position.ndim != 3:
        return
    tokens = grid[0] * grid[1]
    prefix = target.shape[1] - tokens
    old = position.shape[1] - prefix
    side = math.isqrt(max(old, 0))
    if position.shape[-1] != target.shape[-1]:
        return
    if old == tokens:
        before = raw.get(_key(raw) or "", torch.zeros(0, 0))
        untouched = torch.equal(before[..., -tokens:, :].squeeze(0), position[0, -tokens:])
        as_many = untouched or before.shape[-2] == position.shape[1]
        if not as_many or grid[0] == grid[1] or is_own(module, grid):
            return
        _say(source, grid, side)
        if not untouched:
            return
    if side**2 == old:
        weights["pos_embed"] = resample_abs_pos_embed(position, list(grid), [side, side], num_prefix_tokens=prefix)


def _say(source: str, grid: tuple[int, int], side: int) -> None:
    """Say that as many positions as the model has are taken for those of a square image; raise InputError where they
    can be of none."""
    what = f"{grid[0] * grid[1]} positions"
    if side**2 != grid[0] * grid[1]:
        raise InputError(f"model.checkpoint={source}: {of_no_square(what, grid)}")
    warn_of_square(source, what, f"{side}x{side}", grid)


def of_no_square(what: str, own: tuple[int, int] | None = None) -> str:
    """What a refusal says of positions whose grid nobody can tell. what: how many of which. own: the model's grid,
    where it has as many."""
    lying = "=[rows,columns], " if own is None else f"=[{own[0]},{own[1]}] if they lie as this model's, else "
    return (
        f"its {what} are of no square image, so that their grid has to be said: set "
        f"model.checkpoint_grid{lying}their rows and columns"
    )


def warn_of_square(source: str, what: str, square: str, own: tuple[int, int]) -> None:
    """Say that as many positions as the model has, in a grid that is not square, are taken for those of `square`."""
    _log.warning(
        "model.checkpoint=%s: its %s are taken for %s, a square image's, and resampled to %dx%d; set "
        "model.checkpoint_grid=[%d,%d] if they are of that grid already",
        *(source, what, square, *own, *own),
    )


def _key(raw: Mapping[str, Tensor]) -> str | None:
    """The name of the file's table of positions."""
    return next((k for k, v in raw.items() if k.rpartition(".")[2] in NAMES and v.ndim in (2, 3)), None)


def is_own(module: nn.Module, grid: tuple[int, int]) -> bool:
    """Whether this is the grid of the size that timm's weights of the model are of."""
    size = (getattr(module, "pretrained_cfg", None) or {}).get("input_size", (0, 0, 0))[1:]
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", (1, 1))
    return (size[0] // patch[0], size[1] // patch[1]) == grid
