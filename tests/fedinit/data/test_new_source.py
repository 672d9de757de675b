"""A data source is a file with a dataclass and a line in the registry: nothing that is shared learns of its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
import torch

from fedinit.config.checks import at_least
from fedinit.config.compose import compose_config
from fedinit.config.flower import from_run_config, to_run_config
from fedinit.data import SOURCES
from fedinit.data.catalogue import Catalogue
from fedinit.data.source import DomainSource
from fedinit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Stripes(DomainSource):
    """Two classes, lying and standing, in two domains."""

    name: Literal["stripes"] = "stripes"
    period: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("data.period", self.period, 2)

    def catalogue(self, channels: int, size: tuple[int, int]) -> Catalogue:
        lying = (torch.arange(size[0]) % self.period == 0).byte()[:, None].expand(size) * 255
        images = torch.stack([lying, lying.T])[:, None].expand(-1, channels, -1, -1)
        rows = torch.arange(16)
        return Catalogue(
            labels=rows % 2,
            domains=rows // 8,
            test=rows % 8 < 2,
            class_names=("lying", "standing"),
            domain_names=("one", "two"),
            read=lambda rows: images[rows % 2],
        )


@pytest.fixture
def flat(monkeypatch):
    """The default run config with the new source in it."""
    monkeypatch.setitem(SOURCES, "stripes", f"{__name__}:Stripes")
    rest = {key: v for key, v in to_run_config(compose_config([])).items() if not key.startswith("data.")}
    return rest | {"data.name": "stripes"}


def test_it_is_chosen_by_name_with_its_own_option_and_loads(flat):
    config = from_run_config(flat | {"data.period": 4, "data.domains": '["two"]'})
    assert config.data == Stripes(period=4, domains=("two",))
    assert config.identity() != from_run_config(flat | {"data.domains": '["two"]'}).identity()
    data = config.data.load(3, (8, 8))
    assert data.images.shape == (8, 3, 8, 8) and data.domain_names == ("two",)
    assert torch.equal(data.images[0, 0, :, 0] > 0, torch.arange(8) % 4 == 0)
    assert [len(part.train) for part in config.partition.cut(data, 0)] == [6]


def test_what_is_wrong_is_said_as_of_any_other(flat):
    for more, said in [
        ({"data.period": 1}, "data.period=1: expected 2 or more"),
        (
            {"data.root": "x"},
            "data.root: data=stripes does not read it; data=cifar10, cifar100, csv, hub, image_folder, torchvision do",
        ),
        ({"data.name": "digits", "data.period": 4}, "data.period: data=digits does not read it; data=stripes does"),
    ]:
        with pytest.raises(InputError, match=said):
            from_run_config(flat | more)
