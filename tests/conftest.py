"""What several test files share: tiny random backbones, data and settings, and an ordinary one-client LoRA model."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from timm.models import MlpMixer
from torch import Tensor, nn

from clients.task import Task
from fedinit.config import words
from fedinit.config.client import CLIENTS, ClientConfig
from fedinit.config.schema import ModelConfig
from fedinit.data.dataset import Dataset
from fedinit.factors import Factors
from fedinit.models import Backbone, build_backbone, select_targets

pytest.register_assert_rewrite("tests.support")
torch.set_num_threads(1)  # layers of width 24: a second thread costs more than it computes


@pytest.fixture(scope="session", autouse=True)
def cheap_compositions() -> Iterator[None]:
    """Configurations in a tenth of Hydra's time, for the hundreds that the tests ask for."""
    from tests.support import composing  # here, so that its assertions are pytest's as well

    with pytest.MonkeyPatch.context() as patch:
        for module in ("compose", "unknown"):
            patch.setattr(f"fedinit.config.{module}.compose", composing.compose)
            patch.setattr(f"fedinit.config.{module}.groups", lambda: composing.CHOICES)
        patch.setattr("fedinit.config.words._parsed", functools.cache(words._parsed))
        yield


@pytest.fixture(scope="session", autouse=True)
def absl_has_the_real_stderr() -> None:
    """absl, which dp-accounting logs by, keeps the stream that it finds when it is imported and closes it where logging
    is set up anew, as Hydra does; that would be pytest's."""
    with contextlib.suppress(ImportError):
        from absl import logging  # pyright: ignore[reportMissingImports]

        logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """What is written is not flushed to the disk, which takes milliseconds a file: what survives a power cut no test
    here can tell, and a killed process loses nothing either way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_lane() -> Iterator[None]:
    """One lane for a run, unless a test asks for a number of them: pytest's own workers have the cores already, and
    threads that share a core wait for each other. Lanes change no hash (tests/faults/test_runs.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clients.engine.hardware.cores", lambda: 1)
        yield


@pytest.fixture(scope="session")
def tiny_vit() -> Backbone:
    """Two blocks of width 24 over 16 patches, one channel, random weights."""
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "in_chans": 1}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # whatever the default is in the test that asks first
    try:
        return build_backbone(
            ModelConfig(
                name="vit_tiny_patch16_224",
                kwargs=shape,
                checkpoint=None,
                pretrained=False,
                image_size=None,
                mean=(0.5,),
                std=(0.5,),
            )
        )
    finally:
        torch.set_default_dtype(usual)


@pytest.fixture(scope="session")
def tiny_mixer(tiny_vit: Backbone) -> Backbone:
    """Two blocks of width 24 over 16 patches, one channel, random weights.

    From timm's class, since its mixer entry points fix patch_size, num_blocks and embed_dim.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = MlpMixer(img_size=16, patch_size=4, embed_dim=24, num_blocks=2, in_chans=1, num_classes=0)
    # In float32, whatever the default is in the test that asks first.
    return Backbone(module.float().eval().requires_grad_(False), module.num_features, tiny_vit.input)


@pytest.fixture(params=["vit", "mixer"])
def tiny_backbone(request: pytest.FixtureRequest) -> Backbone:
    """Both of them in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def tiny_data() -> Dataset:
    """60 random 16×16 images of five classes in three domains; every third is a test image."""
    draw = torch.Generator().manual_seed(5)
    return Dataset(
        images=torch.randint(0, 256, (60, 1, 16, 16), generator=draw, dtype=torch.uint8),
        labels=torch.randint(0, 5, (60,), generator=draw),
        domains=torch.randint(0, 3, (60,), generator=draw),
        test=torch.arange(60) % 3 == 0,
        class_names=tuple("abcde"),
        domain_names=("x", "y", "z"),
    )


@pytest.fixture(scope="session")
def client_config() -> Callable[..., ClientConfig]:
    """What a client with this optimiser reads, with the given fields changed."""
    common = {"lr": 0.05, "weight_decay": 0.01, "clip_norm": None, "batch_size": 4}
    return lambda optimizer="sgd", **changes: CLIENTS[optimizer](**{**common, **changes})


@pytest.fixture(scope="session")
def random_adapter() -> Callable[..., dict[str, Factors]]:
    """random_adapter(targets, rank, seed): factors with neither A nor B zero, so that both get gradients."""

    def make(targets: Mapping[str, tuple[int, int]], rank: int, seed: int, size: float = 0.3) -> dict[str, Factors]:
        draw = torch.Generator().manual_seed(seed)
        return {
            name: Factors(
                torch.randn(rank, k, generator=draw) / k**0.5, size * torch.randn(d, rank, generator=draw) / rank**0.5
            )
            for name, (d, k) in targets.items()
        }

    return make


@pytest.fixture(scope="session")
def random_head() -> Callable[..., dict[str, Tensor]]:
    """random_head(classes, features, seed, size): N(0, size²/features) weights."""

    def make(classes: int, features: int, seed: int, size: float = 1.0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return {
            "weight": size * torch.randn(classes, features, generator=draw) / features**0.5,
            "bias": 0.1 * torch.randn(classes, generator=draw),
        }

    return make


@pytest.fixture(scope="session")
def training_task(random_adapter, random_head) -> Callable[..., Task]:
    """training_task(backbone, client, images): one that trains on so many images of the tiny data, from a start of its
    own. size: of its head's weights."""

    def make(
        backbone: Backbone,
        client: int,
        images: int,
        rank: int = 4,
        round: int = 2,
        size: float = 1.0,
        trainable: str = "AB",
    ) -> Task:
        return Task(
            client=client,
            round=round,
            examples=(torch.arange(images) * 7 + 11 * client) % 60,
            adapter=random_adapter(select_targets(backbone.module, None, 4), rank, client),
            head=random_head(5, backbone.features, client, size),
            trainable=frozenset(trainable),
        )

    return make


class PlainLora(nn.Module):
    """One linear layer with one adapter, as a textbook has it: W x + bias + s·B A x."""

    def __init__(self, linear: nn.Linear, factors: Factors, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        self.A, self.B = nn.Parameter(factors.A.clone()), nn.Parameter(factors.B.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * (x @ self.A.T) @ self.B.T


class PlainClient(nn.Module):
    """The oracle of the bank: one client's own copy of the backbone, its adapters and an nn.Linear head."""

    def __init__(
        self, backbone: Backbone, adapter: Mapping[str, Factors], head: Mapping[str, Tensor], scale: float
    ) -> None:
        super().__init__()
        self.body = copy.deepcopy(backbone.module).requires_grad_(False)
        self.loras: dict[str, PlainLora] = {}
        for name, factors in adapter.items():
            parent, _, leaf = name.rpartition(".")
            self.loras[name] = PlainLora(self.body.get_submodule(name), factors, scale)
            setattr(self.body.get_submodule(parent), leaf, self.loras[name])
        self.head = nn.Linear(head["weight"].shape[1], head["weight"].shape[0])
        self.head.load_state_dict(dict(head))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


@pytest.fixture(scope="session")
def plain_client() -> type[PlainClient]:
    return PlainClient
