"""Tables of relative positions of a file, a row an offset between two tokens, in the model's grid of tokens.

A grid of r rows and c columns has (2r-1)(2c-1) offsets. How many there are does not tell the grid: 81 are of 5x5 and of
2x14. They are of a square image, as those of published models are, unless `model.checkpoint_grid` says another grid.
timm's filters take each square number for a square grid's, whatever the file and the model are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor, nn

from fedinit.errors import InputError
from fedinit.models.positions import is_own, of_no_square, token_grid, warn_of_square

TABLE = "relative_position_bias_table"


def tables(module: nn.Module) -> dict[str, Tensor]:
    """{name: (offsets and those of the class token, heads)} of BEiT's tables, and of a ViT's with biases of relative
    positions: those over the whole grid of the model's tokens. Tables of windows (Swin) are none of them."""
    grid, found = token_grid(module), {}
    for name, part in module.named_modules():
        table = getattr(part, TABLE, None)
        if isinstance(table, Tensor) and table.ndim == 2 and getattr(part, "window_size", None) == grid:
            found[f"{name}.{TABLE}" if name else TABLE] = table
    return found


def in_grid_of(
    module: nn.Module, raw: Mapping[str, Tensor], grid: tuple[int, int] | None, source: str
) -> dict[str, Tensor]:
    """{name: table} of a file's tables, resampled to the model's grid as timm does it.

    raw: the file's tensors.
    grid: (rows, columns) that the file's are of; None: of a square image, which is said where the model has as many in
        a grid that is not square.
    source: `model.checkpoint`.

    Raises InputError for a table of another number of offsets than the grid has, or that can be of no square image.
    """
    brought, grids, own = {}, {}, token_grid(module)
    for name, target in tables(module).items():
        table = raw.get(name)
        if own is None or table is None or table.ndim != 2 or table.shape[1] != target.shape[1]:
            continue
        count = len(table) - (len(target) - _offsets(own))
        if count not in grids:  # what is said of one is said of all
            grids[count] = _square(count, own, is_own(module, own), source) if grid is None else grid
        if _offsets(grids[count]) != count:
            raise InputError(
                f"model.checkpoint_grid=[{grids[count][0]},{grids[count][1]}]: the file has {count} relative positions "
                f"in {name}, expected {_offsets(grids[count])}; set rows and columns of the image it was trained on"
            )
        brought[name] = resize_rel_pos_bias_table(table, own, tuple(target.shape), old_window_size=grids[count])
    return brought


def _square(count: int, own: tuple[int, int], as_trained: bool, source: str) -> tuple[int, int]:
    """The grid that so many offsets are of where nobody says it: a square one. as_trained: whether the model's `own` is
    that of the size that timm's weights of it are of, which as many are then of. Raises InputError for no square."""
    side, as_many = math.isqrt(max(count, 0)), count == _offsets(own)
    if as_many and (as_trained or own[0] == own[1]):
        return own
    what = f"{count} relative positions"
    if side**2 != count or side % 2 == 0:
        raise InputError(f"model.checkpoint={source}: {of_no_square(what, own if as_many else None)}")
    square = ((side + 1) // 2, (side + 1) // 2)
    if as_many:
        warn_of_square(source, what, f"those of {square[0]}x{square[1]} tokens", own)
    return square


def _offsets(grid: tuple[int, int]) -> int:
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)
