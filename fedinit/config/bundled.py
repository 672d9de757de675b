"""The models of conf/model/ whose arguments are their own: under another name they are another model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import yaml

from fedinit.config.groups import CONF_DIR, LOADER
from fedinit.errors import InputError


@functools.cache
def bundled() -> Mapping[str, Mapping[str, Any]]:
    """{choice of `model=`: its keys}, of those that bring arguments."""
    files = {file.stem: file for file in sorted((CONF_DIR / "model").glob("*.yaml"))}
    read = {choice: yaml.load(file.read_bytes(), Loader=LOADER) for choice, file in files.items()}
    return {choice: keys for choice, keys in read.items() if keys["kwargs"]}


def refuse_renamed(name: str, kwargs: Mapping[str, Any], checkpoint: str | None) -> None:
    """Raise InputError for another model's name beside the arguments or the weights of one that is bundled.

    Its weights fit whatever timm builds alike, which is then called what it is not.
    """
    for choice, own in bundled().items():
        if name != own["name"] and (dict(kwargs) == own["kwargs"] or checkpoint == own["checkpoint"] is not None):
            raise InputError(
                f"model.name={name}: its arguments and weights would be those of model={choice}, another model; choose "
                f"a group without any: model=vit_tiny model.name={name}"
            )


def title(name: str, checkpoint: str | None) -> str:
    """What a model is called where people read it: the choice of `model=` where the weights are the package's own,
    which are not those that timm gives under the name."""
    own = (choice for choice, keys in bundled().items() if (keys["name"], keys["checkpoint"]) == (name, checkpoint))
    return name if checkpoint is None else next(own, name)


def remark(model: str, data: str) -> str:
    """A line to begin a run with where a model of the package's own is to judge what it was not made for; "" elsewhere.

    model: its title. data: the choice of `data=`.
    """
    if data == "digits" or bundled().get(model, {}).get("checkpoint") is None:
        return ""
    return (
        f"model={model} is a small model for grey images of 32 px, pretrained on printed digits and letters, to which "
        f"those of data={data} are brought; for photographs choose another, such as model=vit_tiny"
    )
