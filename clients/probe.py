"""The diagnostics of a start over a run: one probe set, measured at round 0, 1 and wherever the model is evaluated.

It watches and changes nothing: the probe is drawn from a stream of its own, and a run with it ends in the same bits.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clients import batches
from clients.site import Site
from fedinit import wire
from fedinit.adapters.bank import Bank
from fedinit.config.schema import InitDiagnostics
from fedinit.diagnostics.capture import Captured, capture
from fedinit.diagnostics.imbalance import imbalance
from fedinit.diagnostics.kernel import alignment, directions, gram, jacobian
from fedinit.diagnostics.loss_drop import adapter_gradients, predicted
from fedinit.diagnostics.regime import effective_rank, parameter_change, stable_rank, update_spectrum, weight_change
from fedinit.diagnostics.variance import variances
from fedinit.factors import Factors
from fedinit.losses import choose_loss
from fedinit.runs.observer import Observer
from fedinit.seeding import torch_generator
from fedinit.state import disk
from fedinit.state.base_offset import EMPTY, NAME
from fedinit.state.checkpoint import State
from fedinit.state.digest import of_tensors

FILE = "diagnostics.csv"
Row = dict[str, float | int | None]


class Probe(Observer):
    """Writes a row of diagnostics for every model that it is shown, to <folder>/diagnostics.csv."""

    def __init__(self, site: Site, parts: frozenset[str], at_first: frozenset[str], folder: Path) -> None:
        """parts: the factors that clients train. at_first: those of them that they train in round 1.
        folder: where diagnostics.csv is kept."""
        self.site, self.parts, self.at_first = site, parts & {"A", "B", "R"}, at_first & {"A", "B", "R"}
        self.path = folder / FILE
        train = torch.cat([part.train for part in site.partitions])
        seed, settings = site.config.seed, site.config.diagnostics
        if not isinstance(settings, InitDiagnostics):
            raise ValueError(f"diagnostics={settings.name}: there is nothing to measure")
        self.settings: InitDiagnostics = settings
        order = torch.randperm(len(train), generator=torch_generator(seed, "probe"))
        self.examples = train[order[: self.settings.examples]].sort().values
        labels = site.data.labels[self.examples]
        targets = labels if site.data.is_regression else torch.nn.functional.one_hot(labels, len(site.data.class_names))
        self.of_labels = gram(targets)
        self.first: dict[str, Tensor] = {}  # of round 0: "kernel", "features", "model/<wire name>"
        self.rows: list[Row] = []

    def snapshot(self) -> State:
        return State(self.first, {"rows": self.rows})

    def restore(self, state: State) -> None:
        self.first, self.rows = dict(state.tensors), list(state.facts["rows"])

    def model(self, round: int, tensors: Mapping[str, Tensor]) -> None:
        self.rows.append({"round": round, **self.measure(round, tensors)})
        text = io.StringIO()
        table = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        disk.replace(self.path, text.getvalue().encode())

    def measure(self, round: int, tensors: Mapping[str, Tensor]) -> Row:
        """{column: figure} of the model with these tensors, by wire name, after a round."""
        layers, head, offset = _parted(tensors)
        base = of_tensors(offset) if offset else EMPTY
        self.site.engine.hold(base, offset)
        with self.site.engine.borrow(base) as bank:
            bank.fold(layers, head)
            for value in bank.head.values():
                value.requires_grad_(True)
            row = self._measured(bank, round, tensors)
            for value in bank.head.values():
                value.requires_grad_(False)
        return row

    def _measured(self, bank: Bank, round: int, tensors: Mapping[str, Tensor]) -> Row:
        """The row of the model that is folded into the bank, its head with gradients."""
        layers, _, offset = _parted(tensors)
        site, device = self.site, bank.device
        blocks = dict(getattr(bank.module, "blocks", torch.nn.Module()).named_children())

        def forward(images: Tensor) -> tuple[Tensor, Tensor]:
            features = bank.embed(images)
            return features, bank.classify(features, 1)[0]

        images = batches.normalise(site.data.images[self.examples], site.backbone.input, device)
        with torch.enable_grad(), bank.every_token(), capture(forward, images, bank.layers, blocks) as seen:
            on_device = {name: factors.to(device) for name, factors in layers.items()}
            kernels = self._kernels(seen, on_device)
            labels = site.data.labels[self.examples].to(device)
            loss = choose_loss(site.config.client.loss, site.data.is_regression)(seen.outputs, labels).mean()
            steps = seen.gradients(loss)
            by_head = {}
            if bank.head:
                gradients = torch.autograd.grad(loss, list(bank.head.values()))
                by_head = dict(zip(bank.head, gradients, strict=True))
        total, features = functools.reduce(torch.add, kernels.values()), seen.features.double().cpu()
        if not self.first:
            kept = {f"model/{name}": value for name, value in tensors.items()}
            self.first = {"kernel": total, "features": features, **kept}
        row: Row = {"loss": loss.item()}
        row |= {f"ntk_{part}": float(kernel.trace()) / len(kernel) for part, kernel in sorted(kernels.items())}
        row["ntk_alignment"] = alignment(total, self.of_labels)
        row["ntk_drift"] = 1 - alignment(total, self.first["kernel"])
        row["representation_change"] = 1 - alignment(gram(features), gram(self.first["features"]))
        row |= self._update(layers, offset, [bank.layers[name].weight for name in layers])
        row["imbalance"] = imbalance(layers.values())
        row |= self._loss_drop(round, loss.item(), seen, on_device, steps, by_head)
        row |= {f"forward_variance_{n}": v for n, v in variances(seen.activations).items()}
        row |= {f"backward_variance_{n}": v for n, v in variances({n: steps[n] for n in blocks}).items()}
        return row

    def _kernels(self, seen: Captured, layers: Mapping[str, Factors]) -> dict[str, Tensor]:
        """{part: its kernel (n, n)}, summed over layers and outputs."""
        site, n = self.site, len(self.examples)
        draw = torch_generator(site.config.seed, "probe.outputs")
        kernels = {part: torch.zeros(n, n, dtype=torch.float64) for part in self.parts}
        for row in directions(seen.outputs.shape[1], self.settings.outputs, draw).to(seen.outputs):
            gradients = seen.gradients((seen.outputs @ row).sum())
            for name, product in layers.items():
                X = seen.inputs[name]
                G = gradients[name].reshape(n, X.shape[1], -1)
                for part in self.parts:
                    kernels[part] += gram(jacobian(part, X, G, product, site.config.adapter.scale)).cpu()
        return kernels

    def _update(self, layers: Mapping[str, Factors], offset: Mapping[str, Tensor], weights: Sequence[Tensor]) -> Row:
        """How far the model went from round 0, and the ranks of the update, averaged over layers. weights: the frozen
        ones (d, k), in the layers' order."""
        first = {name[len("model/") :]: value for name, value in self.first.items() if name.startswith("model/")}
        start, _, before = _parted(first)
        spectra = []
        for name in layers:
            moved = None
            if name in offset or name in before:
                zero = torch.zeros(layers[name].shape)
                moved = offset.get(name, zero) - before.get(name, zero)
            spectra.append(update_spectrum(start[name], layers[name], moved))
        return {
            "parameter_change": parameter_change(start, layers),
            "weight_change": weight_change(spectra, weights, self.site.config.adapter.scale),
            "effective_rank": sum(map(effective_rank, spectra)) / len(spectra),
            "stable_rank": sum(map(stable_rank, spectra)) / len(spectra),
        }

    def _loss_drop(
        self,
        round: int,
        loss: float,
        seen: Captured,
        layers: Mapping[str, Factors],
        gradients: Mapping[str, Tensor],
        by_head: Mapping[str, Tensor],
    ) -> Row:
        """Predicted at round 0 for a client's mean number of steps, measured at round 1."""
        row: Row = {"loss_drop_predicted": None, "loss_drop_measured": None}
        if round == 1:
            before = self.rows[0]["loss"]
            row["loss_drop_measured"] = None if before is None else before - loss
        if round == 0 and "R" not in self.parts:
            gradients_of = {f"head/{key}": value for key, value in by_head.items()}
            for name, product in layers.items():
                X = seen.inputs[name]
                G = gradients[name].reshape(len(X), X.shape[1], -1)
                of_layer = adapter_gradients(self.at_first, X, G, product, self.site.config.adapter.scale)
                gradients_of |= {f"{name}/{part}": value for part, value in of_layer.items()}
            settings, seed = self.site.config.client, self.site.config.seed
            plans = [batches.plan(p.train, settings, seed, 1, p.client) for p in self.site.partitions]
            row["loss_drop_predicted"] = predicted(gradients_of, settings, sum(map(len, plans)) / len(plans))
        return row


def _parted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Factors], dict[str, Tensor], dict[str, Tensor]]:
    """Factors, head and base offset of a model given by wire name."""
    offset = {name[len(NAME) :]: value for name, value in tensors.items() if name.startswith(NAME)}
    layers, head = wire.from_tensors({n: v for n, v in tensors.items() if not n.startswith(NAME)})
    return layers, head, offset
