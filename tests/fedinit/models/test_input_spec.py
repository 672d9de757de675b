"""What a run's model takes from a notebook: wrong images are an error or a warning, and no silently worse logits."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedinit.errors import InputError
from fedinit.models.input_spec import InputSpec, TakesImages

SPEC = InputSpec(1, 8, 6, (0.5,), (0.25,))  # normalised pixels reach from -2 to 2


def shown(images: object, spec: InputSpec = SPEC) -> Tensor:
    """What the module behind the hook is given; whatever is warned of is raised."""
    module = nn.Sequential(nn.Identity(), nn.LayerNorm(1))  # which has a parameter's device
    given: list[Tensor] = []
    module[0].register_forward_hook(lambda module, args, out: given.append(args[0]))
    module.register_forward_pre_hook(TakesImages(spec))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        module[1] = nn.Identity()
        module.register_parameter("there", nn.Parameter(torch.zeros(())))
        module(images)
    return given[0]


def test_uint8_is_normalised_and_what_is_normalised_stays() -> None:
    pixels = np.arange(96, dtype=np.uint8).reshape(2, 1, 8, 6)
    wanted = (torch.from_numpy(pixels) / 255 - 0.5) / 0.25
    torch.testing.assert_close(shown(pixels), wanted)
    torch.testing.assert_close(shown(torch.from_numpy(pixels)), wanted)
    assert torch.equal(shown(wanted), wanted)
    overshot = wanted * 1.3
    assert torch.equal(shown(overshot), overshot) and shown(wanted[:0]).shape == (0, 1, 8, 6)


@pytest.mark.parametrize("shape", [(1, 8, 6), (2, 3, 8, 6), (2, 1, 6, 8), (2, 1, 28, 28)])
def test_images_of_another_shape_are_one_line(shape: tuple[int, ...]) -> None:
    for images in (torch.zeros(shape), torch.zeros(shape, dtype=torch.uint8)):
        with pytest.raises(InputError, match=r"takes images \(n, 1, 8, 6\), n of any number; these are \("):
            shown(images)


def test_floats_that_are_not_normalised_are_told() -> None:
    pixels = torch.arange(96.0).reshape(2, 1, 8, 6)
    with pytest.raises(InputError, match=r"floats from 0 to 255, and normalised ones reach from -2 to 2; give uint8"):
        shown(pixels / pixels.max() * 255)
    with pytest.raises(UserWarning, match="floats from 0 to 1, which are not normalised yet; give uint8"):
        shown(pixels / pixels.max())
    identity = InputSpec(1, 8, 6, (0.0,), (1.0,))  # for which they are
    assert torch.equal(shown(pixels / pixels.max(), identity), pixels / pixels.max())
