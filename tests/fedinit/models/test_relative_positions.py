"""Tables of relative positions of a file: its own in its own grid, resampled from the grid that they are of."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from fedinit.errors import InputError
from fedinit.models import build_backbone
from fedinit.models.relative_positions import TABLE
from tests.support.timm_models import saved, settings

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}
FAMILIES = {"beit_base_patch16_224": {}, "vit_relpos_small_patch16_224": {"rel_pos_type": "bias", "class_token": True}}
BEIT = "beit_base_patch16_224"


def size(rows: int, columns: int) -> tuple[int, int]:
    return 8 * rows, 8 * columns


def weights_of(name: str, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Drawn anew, but for tables whose row of the offset (y, x) is (1 + y / 3) (1 + x / 5), so that each is known."""
    draw = torch.Generator().manual_seed(1)
    state = timm.create_model(name, num_classes=0, img_size=size(*grid), **SMALL, **FAMILIES[name]).state_dict()
    drawn = {k: torch.randn(v.shape, generator=draw) for k, v in state.items()}
    return {k: known(grid, v) if k.endswith(TABLE) else v for k, v in drawn.items()}


def known(grid: tuple[int, int], table: Tensor) -> Tensor:
    rows, columns = grid
    offsets = itertools.product(range(1 - rows, rows), range(1 - columns, columns))
    values = torch.tensor([(1 + y / 3) * (1 + x / 5) for y, x in offsets])
    return torch.cat([values[:, None].expand(-1, table.shape[1]), table[len(values) :]])


def built(name: str, path: str, grid: tuple[int, int], said: tuple[int, int] | None = None) -> dict[str, Tensor]:
    model = settings(
        name, kwargs={**SMALL, **FAMILIES[name]}, image_size=size(*grid), checkpoint=path, checkpoint_grid=said
    )
    return build_backbone(model).module.state_dict()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("grid", [(2, 14), (14, 2), (1, 5), (5, 13), (4, 6), (4, 4)])
def test_a_file_of_the_models_own_grid_is_read_as_it_is(name, grid, tmp_path):
    """(2r-1)(2c-1) is a square number of the first four, which timm's filter takes for a square grid's."""
    weights = weights_of(name, grid)
    read = built(name, saved(tmp_path, weights), grid, grid)
    assert read.keys() == weights.keys() and all(torch.equal(read[key], value) for key, value in weights.items())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ((4, 4), (2, 8), None),
        ((4, 4), (4, 8), None),
        ((4, 6), (6, 4), (4, 6)),
        ((2, 14), (4, 4), (2, 14)),
        ((2, 14), (14, 2), (2, 14)),
        ((5, 13), (2, 14), (5, 13)),
    ],
)
def test_offsets_of_another_grid_keep_their_place(name, theirs, ours, said, tmp_path):
    """By law: the middle of the file's table is the middle of the model's, it grows in the directions that the file's
    grows in, and the class token's rows are its own."""
    weights = weights_of(name, theirs)
    read = built(name, saved(tmp_path, weights), ours, said)
    for key in (k for k in weights if k.endswith(TABLE)):
        (high, wide), own = (2 * ours[0] - 1, 2 * ours[1] - 1), read[key]
        table = own[: high * wide].reshape(high, wide, -1)
        assert torch.allclose(table[high // 2, wide // 2], torch.ones(1), atol=1e-5)  # the offset (0, 0)
        assert torch.equal(own[high * wide :], weights[key][-3:])
        # It grows by rows and by columns (nowhere beyond the file's offsets), and is their product as the file's is.
        down, right = table[:, wide // 2, 0], table[high // 2, :, 0]
        for line in (down, right):
            assert bool((line.diff() >= -1e-6).all()) and float(line[0]) < 0.99 and float(line[-1]) > 1.01
        assert torch.allclose(table[..., 0], down[:, None] * right, atol=1e-4)


def test_as_many_offsets_are_taken_for_a_square_images_with_a_word(tmp_path, caplog):
    read = built(BEIT, saved(tmp_path, weights_of(BEIT, (5, 5))), (2, 14))
    assert caplog.text.count("81 relative positions are taken for those of 5x5 tokens") == 1
    assert "model.checkpoint_grid=[2,14]" in caplog.text
    table = read[f"blocks.0.attn.{TABLE}"][:81].reshape(3, 27, 3)
    assert torch.allclose(table[1, 13], torch.ones(1), atol=1e-5)
    caplog.clear()
    built(BEIT, saved(tmp_path, weights_of(BEIT, (5, 5))), (4, 4))
    assert "relative positions" not in caplog.text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("ours", "said"), [((6, 4), "grid=[6,4] if"), ((5, 5), "grid=[rows,columns], their")])
def test_offsets_of_no_square_have_to_be_said(name, ours, said, tmp_path):
    path = saved(tmp_path, weights_of(name, (4, 6)))
    with pytest.raises(InputError, match="77 relative positions are of no square image.*" + re.escape(said)):
        built(name, path, ours)


def test_a_grid_of_other_offsets_than_the_file_has_is_refused(tmp_path):
    path = saved(tmp_path, weights_of(BEIT, (4, 6)))
    with pytest.raises(InputError, match=r"checkpoint_grid=\[3,8\]: the file has 77 relative .* expected 75"):
        built(BEIT, path, (4, 6), (3, 8))


def test_no_warning_of_how_they_are_interpolated(tmp_path: Path, recwarn):
    built(BEIT, saved(tmp_path, weights_of(BEIT, (4, 4))), (4, 8))
    assert not recwarn.list
