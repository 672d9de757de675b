"""Images of printed glyphs, from the fonts that matplotlib ships: what the embedded backbones are pretrained on."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from scipy import ndimage
from torch import Tensor

# O o 0, I l 1 and the like look the same in some font, so one of each stays; so do letters whose small form
# is the capital scaled down.
GLYPHS = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZabdefghmnqrty?&%@#$="
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
CANVAS, GLYPH_BOX = 64, 44  # pixels: the side of a template, and the longer side of the glyph in it
STROKES = (-1, 0, 2, 4)  # pixels by which a template's strokes are eroded (< 0) or grown (> 0)
SIZE = 32  # pixels a side of an image


def templates() -> tuple[Tensor, Tensor]:
    """Every glyph in every font and stroke width: ink (m, 1, 64, 64) float32 in [0, 1], labels (m,) int64."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    inks, labels = [], []
    for font_name in FONTS:
        font = FT2Font(str(folder / f"{font_name}.ttf"))
        font.set_size(72, 96)
        for label, glyph in enumerate(GLYPHS):
            if not font.get_char_index(ord(glyph)):
                raise ValueError(f"{font_name} has no glyph {glyph!r}")
            font.set_text(glyph)
            font.draw_glyphs_to_bitmap(antialiased=True)
            canvas = _centred(np.asarray(font.get_image(), dtype=np.float64) / 255.0)
            for pixels in STROKES:
                inks.append(_restroked(canvas, pixels))
                labels.append(label)
    ink = torch.from_numpy(np.stack(inks)).float().unsqueeze(1)
    return ink, torch.tensor(labels)


def _centred(bitmap: np.ndarray) -> np.ndarray:
    """(h, w) -> (64, 64): the glyph's bounding box scaled to a longer side of 44 pixels, in the middle."""
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    box = bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = np.clip(ndimage.zoom(box, GLYPH_BOX / max(box.shape), order=1), 0.0, 1.0)
    canvas = np.zeros((CANVAS, CANVAS))
    top, left = (CANVAS - box.shape[0]) // 2, (CANVAS - box.shape[1]) // 2
    canvas[top : top + box.shape[0], left : left + box.shape[1]] = box
    return canvas


def _restroked(ink: np.ndarray, pixels: int) -> np.ndarray:
    if pixels == 0:
        return ink
    y, x = np.mgrid[-abs(pixels) : abs(pixels) + 1, -abs(pixels) : abs(pixels) + 1]
    disc = x * x + y * y <= pixels * pixels
    grow = ndimage.grey_dilation if pixels > 0 else ndimage.grey_erosion
    return grow(ink, footprint=disc)


def render(ink: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Random images of templates: ink (b, 1, 64, 64) in [0, 1] -> (b, 1, 32, 32) in [0, 1].

    Warped, at times blurred, laid over a background, at times inverted, with pixel noise.
    strength: 0 to 1, scales warp, background and noise.
    """
    b = len(ink)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(b, 1, 1, 1, generator=generator)

    def chance(p: float) -> Tensor:
        return torch.rand(b, 1, 1, 1, generator=generator) < p

    mask = F.grid_sample(ink, _warp(b, strength, generator), align_corners=False).clamp(0, 1)
    # Handwriting scanned at 8x8 has no sharp edge: half the glyphs go through a coarser grid and back.
    coarse = int(torch.randint(8, 17, (), generator=generator))
    blurred = F.interpolate(F.interpolate(mask, size=coarse, mode="area"), size=SIZE, mode="bicubic")
    blurred = (blurred * uniform(1.0, 1.6)).clamp(0, 1)
    mask = torch.where(chance(0.6), blurred, mask)

    ink_level = uniform(0.55, 1.0)
    ground = _background(b, generator) * torch.where(chance(0.4), 0.0, strength * (ink_level - 0.3))
    image = ground + (ink_level - ground) * mask
    image = torch.where(chance(0.4), 1.0 - image, image)
    sigma = torch.where(chance(0.5), 0.0, uniform(0.0, 0.35 * strength))
    return (image + sigma * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def _warp(b: int, strength: float, generator: torch.Generator) -> Tensor:
    """Sampling grids (b, 32, 32, 2): rotation, shear, scale, shift, and a smooth bend for the hand's."""

    def uniform(reach: float) -> Tensor:
        return strength * reach * (2.0 * torch.rand(b, generator=generator) - 1.0)

    # Half upright within 15 degrees, half anywhere within 65.
    degrees = torch.where(torch.rand(b, generator=generator) < 0.5, uniform(15.0), uniform(65.0))
    angle = torch.deg2rad(degrees)
    scale, aspect, shear = torch.exp(uniform(0.22)), torch.exp(uniform(0.3)), uniform(0.3)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(b)
    rotate = torch.stack([cos, -sin, sin, cos], 1).view(b, 2, 2)
    shape = torch.stack([scale * aspect, shear, zero, scale / aspect], 1).view(b, 2, 2)
    shift = torch.stack([uniform(0.15), uniform(0.15)], 1).unsqueeze(2)  # 0.15: 2.4 pixels
    theta = torch.cat([shape @ rotate, shift], 2)  # (b, 2, 3)
    grid = F.affine_grid(theta, [b, 1, SIZE, SIZE], align_corners=False)
    bend = 0.08 * strength * torch.randn(b, 2, 4, 4, generator=generator)
    bend = F.interpolate(bend, size=SIZE, mode="bicubic", align_corners=True)
    return grid + bend.permute(0, 2, 3, 1)


def _background(b: int, generator: torch.Generator) -> Tensor:
    """(b, 1, 32, 32) in [0, 1]: flat, a gradient, a grating or blotches."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(b, 1, 1, 1, generator=generator)

    axis = torch.linspace(-1, 1, SIZE)
    y, x = axis.view(1, 1, SIZE, 1), axis.view(1, 1, 1, SIZE)
    angle = uniform(0, 2 * torch.pi)
    along = x * angle.cos() + y * angle.sin()
    gradient = (0.5 + 0.35 * along).clamp(0, 1)
    grating = 0.5 + 0.5 * torch.sin(torch.pi * uniform(1, 8) * along + uniform(0, 2 * torch.pi))
    cells = int(torch.randint(3, 17, (), generator=generator))
    blotches = F.interpolate(torch.rand(b, 1, cells, cells, generator=generator), size=SIZE, mode="bilinear")
    flat = torch.full_like(blotches, 0.5)
    kinds = torch.stack([flat, gradient, grating, blotches])  # (4, b, 1, 32, 32)
    chosen = torch.randint(0, 4, (b,), generator=generator)
    return kinds[chosen, torch.arange(b)] * uniform(0, 1)
