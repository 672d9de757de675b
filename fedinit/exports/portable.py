"""A trained model with all that a user of it has to know, whatever format it is written in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedinit.models import Backbone
from fedinit.models.creation import CLASSES
from fedinit.runs.result import Run
from fedinit.runs.summary import noise_is_of_the_seed
from fedinit.scores import SCORES, average_among


@dataclass(frozen=True, kw_only=True)
class Portable:
    """What is exported.

    run: that it comes of.
    client: whose model it is; None: of all clients.
    module: images, as float32 (n, channels, height, width) that are normalised already, to logits; in eval mode.
    backbone: the frozen model that the run began with, W0, without a classifier.
    adapter: the folder of the adapter, in the run's.
    """

    run: Run
    client: int | None
    module: nn.Module
    backbone: Backbone
    adapter: Path

    @staticmethod
    def of(run: Run, client: int | None = None) -> Portable:
        """The model that a run ended with. Raises InputError as `Run.model` does."""
        return Portable(
            run=run, client=client, module=run.model(client), backbone=run.backbone(), adapter=run.adapter(client)
        )

    @property
    def architecture(self) -> str:
        """timm's name of the model, without the tag of its weights, or the name of its class."""
        return self.run.config.model.name.split(".")[0]

    @property
    def is_class(self) -> bool:
        """Whether the model was made by its class, which timm has no name for."""
        return self.architecture in CLASSES

    @property
    def head_is_inside(self) -> bool:
        """Whether timm's own classifier holds the head, or there is none; else it stands behind the model."""
        return not (isinstance(self.module, nn.Sequential) and "head" in dict(self.module.named_children()))

    @property
    def num_classes(self) -> int:
        """How many classes timm's model is made with: none where the head stands behind it, or there is none."""
        return len(self.run.class_names) if self.head_is_inside and self.run.config.head.name != "none" else 0

    @property
    def probes(self) -> Tensor:
        """(2, channels, height, width) images that a reader is tried with."""
        spec = self.backbone.input
        return torch.randn(2, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """(2, classes): what the run's model makes of the probes."""
        return self.module(self.probes).clone()

    def classifiers(self) -> tuple[str, ...]:
        """The names of the module's classifiers."""
        names = (getattr(self.module, "pretrained_cfg", None) or {}).get("classifier") or "head"
        return ((names,) if isinstance(names, str) else tuple(names)) if self.num_classes else ()

    def config(self) -> dict[str, Any]:
        """config.json, in the form of timm's: what the model is made with, what it takes, its classes."""
        spec, own = self.backbone.input, getattr(self.module, "pretrained_cfg", None) or {}
        data = {"input_size": [spec.channels, spec.height, spec.width], "mean": list(spec.mean), "std": list(spec.std)}
        # As fedinit/data/decoding.py does: the shorter side is brought to size, and the centre cut out.
        data |= {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center", "fixed_input_size": True}
        layers = {"classifier": own.get("classifier", "head"), "first_conv": own.get("first_conv")}
        return {
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "num_features": self.backbone.features,
            "label_names": list(self.run.class_names),
            "model_args": dict(self.backbone.arguments),
            "pretrained_cfg": {**data, **layers, "num_classes": self.num_classes, "custom_load": False},
            "fedinit": self.origin(),
        }

    @property
    def noise_is_of_the_seed(self) -> bool:
        """Whether the run's privacy is off for whoever knows its seed."""
        return noise_is_of_the_seed(self.run.config.privacy.name, self.run.summary)

    def origin(self) -> dict[str, Any]:
        """Where the model comes from: what config.json and an ONNX file say of it."""
        config, summary = self.run.config, self.run.summary
        return {
            "strategy": config.strategy.name,
            "data": config.data.name,
            "rounds": summary["rounds"],
            "clients": summary["clients"],
            **({} if self.noise_is_of_the_seed else {"seed": config.seed}),
            "final_hash": summary["final_hash"],
            "grey_range": self.run.grey_range,
            **({} if self.client is None else {"client": self.client}),
        }

    def scores(self) -> list[tuple[str, str]]:
        """(domain, figure as the run's table shows it), their average last; empty for a run without evaluation."""
        summary = self.run.summary
        score = SCORES[summary["score"]]
        if summary[score.name] is None:
            return []
        by_domain = summary[f"{score.name}_by_domain"]
        return [
            *((n, score.show(v)) for n, v in by_domain.items()),
            (average_among(by_domain), score.show(summary[score.name])),
        ]
