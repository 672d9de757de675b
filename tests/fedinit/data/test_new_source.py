"""A data source is a file with a dataclass and a line in the registry: nothing that is shared learns of its options."""

from __future__ import annotations

import dataclasses
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


def stripes(**columns):
    """The catalogue with other columns, which are made of its own."""
    listed = Stripes().catalogue(1, (8, 8))
    return dataclasses.replace(listed, **{name: made(listed) for name, made in columns.items()})


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"labels": lambda c: c.labels.float()}, r"labels as float32 \(16,\), expected int64 \(16,\)"),
        ({"labels": lambda c: c.labels.tolist()}, "labels as list, expected int64"),
        ({"labels": lambda c: c.labels - 1}, r"labels -1..0, expected 0..1"),  # the last class, to an index
        ({"domains": lambda c: c.domains + 1}, r"domains 1..2, expected 0..1"),
        ({"domains": lambda c: c.domains[:-1]}, r"domains as int64 \(15,\)"),
        ({"test": lambda c: c.test.long()}, r"test as int64 \(16,\), expected bool"),
        ({"class_names": lambda c: [*c.class_names]}, "class_names=.*expected a tuple of texts"),
        ({"class_names": lambda c: (1, 2)}, "class_names=.*expected a tuple of texts"),
        ({"domain_names": lambda c: "ab"}, "domain_names='ab', expected a tuple of texts"),
    ],
)
def test_columns_that_are_not_what_they_should_be_are_told(columns, said):
    with pytest.raises(InputError, match=f"^a source's catalogue has {said}"):
        stripes(**columns)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda made: made.float() / 255, r"reads 16 rows as float32 \(16, 1, 8, 8\), expected uint8"),
        (lambda made: made[:-1], r"reads 16 rows as uint8 \(15, 1, 8, 8\)"),
        (lambda made: made.numpy(), r"reads 16 rows as ndarray of uint8"),
        (lambda made: None, "reads 16 rows as NoneType"),
        (lambda made: made[..., :-1], r"^data=stripes: images are read as \(1, 8, 7\), expected \(1, 8, 8\)"),
        (lambda made: made.expand(-1, 3, -1, -1), r"images are read as \(3, 8, 8\)"),
    ],
)
def test_pixels_that_are_not_what_they_should_be_are_told(read, said, monkeypatch):
    listed = Stripes().catalogue(1, (8, 8))
    made = dataclasses.replace(listed, read=lambda rows: read(listed.read(rows)))
    monkeypatch.setattr(Stripes, "catalogue", lambda *_: made)
    with pytest.raises(InputError, match=said):
        Stripes().load(1, (8, 8))
    monkeypatch.setattr(Stripes, "catalogue", lambda *_: None)
    with pytest.raises(InputError, match=r"^data=stripes: catalogue\(\) gives NoneType, expected a Catalogue$"):
        Stripes().load(1, (8, 8))
