"""A model of the package's own keeps its name, is called by it, and says what it is not made for."""

from __future__ import annotations

import dataclasses

import pytest

from fedinit.config.bundled import remark, title
from fedinit.config.compose import compose_config
from fedinit.errors import InputError


@pytest.mark.parametrize(
    ("words", "choice", "name"),
    [
        ("model.name=deit_tiny_patch16_224", "glyph_vit", "deit_tiny_patch16_224"),
        ("model.name=resnet18", "glyph_vit", "resnet18"),
        ("model.name=vit_tiny_patch16_224.augreg_in21k_ft_in1k", "glyph_vit", None),  # another model's weights
        ("model.name=deit_tiny_patch16_224 model.checkpoint=null", "glyph_vit", None),
        ("model.name=deit_tiny_patch16_224 model.kwargs.depth=2", "glyph_vit", None),
        ("model=glyph_mixer model.name=resmlp_12_224", "glyph_mixer", "resmlp_12_224"),
        ("model=matrix model.name=deit_tiny_patch16_224", "matrix", None),
    ],
)
def test_the_arguments_and_weights_of_one_model_do_not_go_under_anothers_name(words, choice, name):
    given = words.rpartition("model.name=")[2].split()[0]
    line = f"model.name={given}: its arguments and weights would be those of model={choice}, another model; choose a "
    with pytest.raises(InputError) as caught:
        compose_config(words.split())
    assert str(caught.value) == f"{line}group without any: model=vit_tiny model.name={name or given}"
    assert compose_config(["model=vit_tiny", f"model.name={given}"]).model.name == given


def test_a_bundled_model_is_called_by_its_choice_and_every_other_by_its_name():
    assert compose_config([]).model.title == "glyph_vit"
    assert compose_config(["model=glyph_mixer"]).model.title == "glyph_mixer"
    for words in (["model.checkpoint=null"], ["model.checkpoint=own.safetensors"], ["model=vit_tiny"]):
        model = compose_config(words).model
        assert model.title == model.name
    assert title("Matrix", None) == "Matrix"


def test_what_a_model_is_called_does_not_change_what_the_run_is():
    config = compose_config([])
    assert config.computed()["model"]["name"] == "vit_tiny_patch16_224"
    assert "title" not in dataclasses.asdict(config.model)


def test_photographs_for_the_model_of_glyphs_are_remarked_on():
    line = remark("glyph_vit", "image_folder")
    assert line.startswith("model=glyph_vit is a small model for grey images of 32 px") and "model=vit_tiny" in line
    assert not remark("glyph_vit", "digits") and not remark("vit_tiny_patch16_224", "image_folder")
