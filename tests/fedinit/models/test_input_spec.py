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


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int64, torch.int16])
def test_whole_numbers_are_pixels_from_0_to_255(dtype: torch.dtype) -> None:
    pixels = torch.arange(96).reshape(2, 1, 8, 6).to(dtype)
    torch.testing.assert_close(shown(pixels), (torch.arange(96.0).reshape(2, 1, 8, 6) / 255 - 0.5) / 0.25)
    with pytest.raises(InputError, match="whole numbers from 0 to 950; give uint8"):
        shown((torch.arange(96) * 10).reshape(2, 1, 8, 6).to(dtype))
    if dtype != torch.uint16:
        with pytest.raises(InputError, match="whole numbers from -1 to 94"):
            shown(pixels - 1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_what_is_no_number_of_a_pixel_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="these images are (bool|complex64); give uint8"):
        shown(torch.zeros(2, 1, 8, 6, dtype=dtype))


def test_normalised_floats_of_any_width_are_taken_as_the_models_own() -> None:
    wanted = torch.linspace(-2, 2, 96).reshape(2, 1, 8, 6)
    assert torch.equal(shown(wanted.double()), wanted) and torch.equal(shown(wanted.half()), wanted.half().float())
    assert torch.equal(shown(wanted.double().numpy()), wanted)


def test_a_model_goes_through_what_knows_no_numbers() -> None:
    """torch.func, graphs and the meta device; inputs with a gradient raise no warning."""
    module = nn.Linear(6, 2)
    module.register_forward_pre_hook(TakesImages(SPEC))
    images = torch.randn(3, 1, 8, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(torch.func.vmap(lambda one: module(one[None]))(images)[:, 0], module(images))
        assert module(images.requires_grad_()).requires_grad
        module.to("meta")(torch.zeros(2, 1, 8, 6, device="meta"))


def test_a_warning_names_the_line_that_gave_the_images() -> None:
    module = nn.Linear(6, 2)
    module.register_forward_pre_hook(TakesImages(SPEC))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        module(torch.rand(2, 1, 8, 6))
        module(torch.rand(2, 1, 8, 6))
    assert [warning.filename for warning in caught] == [__file__] * 2


def test_floats_that_are_not_normalised_are_told() -> None:
    pixels = torch.arange(96.0).reshape(2, 1, 8, 6)
    with pytest.raises(InputError, match=r"floats from 0 to 255, and normalised ones reach from -2 to 2; give uint8"):
        shown(pixels / pixels.max() * 255)
    with pytest.raises(UserWarning, match="floats from 0 to 1, which are not normalised yet; give uint8"):
        shown(pixels / pixels.max())
    identity = InputSpec(1, 8, 6, (0.0,), (1.0,))  # for which they are
    assert torch.equal(shown(pixels / pixels.max(), identity), pixels / pixels.max())
