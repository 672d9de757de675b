"""Folders of runs that nobody ran: the files that a report reads, of any size, as functions of a seed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from fedinit.said import csv_row

DOMAINS = ("plain", "inverted", "rotated", "thick", "noise", "texture")


def config(**changes: Any) -> dict[str, Any]:
    """A run's configuration, as config.yaml has it, with dotted keys (with __ for a dot) changed."""
    values: dict[str, Any] = {
        "name": "digits",
        "rounds": 5,
        "seed": 0,
        "output_dir": "outputs",
        "strategy": {"name": "lora_fair", "lam": 0.01},
        "reinit": {"name": "auto"},
        "model": {"name": "vit_tiny_patch16_224"},
        "adapter": {"kind": "lora", "rank": 8},
        "data": {"name": "digits", "domains": None},
        "partition": {"name": "domain"},
        "client": {"optimizer": "sgd", "lr": 0.04},
    }
    for key, value in changes.items():
        group, _, inside = key.partition("__")
        if inside:
            values[group] = {**values.get(group, {}), inside: value}
        else:
            values[group] = value
    return values


def write_run(
    folder: Path,
    values: dict[str, Any],
    *,
    gain: float = 0.0,
    domains: tuple[str, ...] = DOMAINS,
    classes: tuple[str, ...] = tuple("0123456789"),
    layers: int = 8,
    reached: int | None = None,
    recorded: bool = True,
) -> Path:
    """Write a run of this configuration.

    gain: points of accuracy above what every run has. reached: the rounds that it came to; None: it is done.
    recorded: whether it has record/.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    draw = np.random.default_rng(values["seed"])
    rounds = values["rounds"] if reached is None else reached
    level = np.linspace(95, 60, len(domains)) + draw.normal(0, 0.5, len(domains)) + gain
    scores = [level - 30 * np.exp(-t / (1 + values["rounds"] / 4)) + draw.normal(0, 0.2) for t in range(1, rounds + 1)]
    header = ["round", "seconds", "clients", "train_loss", "accuracy", *(f"accuracy_{d}" for d in domains)]
    header += [
        "bytes_up",
        "bytes_down",
        "bias",
        "correctable",
        "cosine",
        "norm_ratio",
        "drift_factors",
        "drift_product",
    ]
    rows = [
        [t, 2.5, len(domains), 2 / t, s.mean(), *s, 560436, 561396, 0.07, 0.07, 0.9977, 0.9976, 0.1 / t, 0.02]
        for t, s in enumerate(scores, 1)
    ]
    write_table(folder / "metrics.csv", header, rows)
    clients = [[t, c, 240, 12, 2 / t + c / 10, 0, 0, 10] for t in range(1, rounds + 1) for c in range(len(domains))]
    names = ["round", "client", "examples", "steps", "train_loss", "drift_factors", "drift_product", "optimizer_state"]
    write_table(folder / "clients.csv", names, clients)
    (folder / "ledger.jsonl").write_text(
        '{"kind": "refused", "round": 1, "client": 2, "code": "norm", "ratio": 99.0}\n'
    )
    if reached is None:
        final = dict(zip(domains, map(float, scores[-1]), strict=True))
        alone = {d: v - 8 for d, v in final.items()}
        mean = float(scores[-1].mean())
        figures = {"final_hash": "ecc55b1d" * 8, "score": "accuracy", "accuracy": mean, "accuracy_by_domain": final}
        figures |= {"head_alone": {"accuracy": mean - 8, "accuracy_by_domain": alone}, "trainable_parameters": 22474}
        (folder / "summary.json").write_text(json.dumps(figures))
        (folder / "DONE.json").write_text(json.dumps({"final_hash": figures["final_hash"], "rounds": rounds}))
    if recorded:
        _record(folder / "record", rounds, domains, classes, layers, draw)
    return folder


def unscore(folder: Path, *domains: str, round: int | None = None) -> None:
    """Take these domains out of the scores of a round, the last one where none is named, and of its average; of a run
    that is done also out of what the head alone scored."""
    with open(folder / "metrics.csv") as file:
        header, *rows = list(csv.reader(file))
    row = rows[-1 if round is None else round - 1]
    for domain in domains:
        row[header.index(f"accuracy_{domain}")] = ""
    kept = [float(v) for name, v in zip(header, row, strict=True) if name.startswith("accuracy_") and v]
    row[header.index("accuracy")] = str(sum(kept) / len(kept))
    write_table(folder / "metrics.csv", header, rows)
    if round is None and (folder / "summary.json").exists():
        figures = json.loads((folder / "summary.json").read_text())
        alone = {d: v for d, v in figures["head_alone"]["accuracy_by_domain"].items() if d not in domains}
        figures["head_alone"] = {"accuracy": sum(alone.values()) / len(alone), "accuracy_by_domain": alone}
        (folder / "summary.json").write_text(json.dumps(figures))


def write_table(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO()
    text.write("".join(map(csv_row, [header, *rows])))
    path.write_text(text.getvalue())


def _record(
    folder: Path,
    rounds: int,
    domains: tuple[str, ...],
    classes: tuple[str, ...],
    layers: int,
    draw: np.random.Generator,
) -> None:
    (folder / "samples").mkdir(parents=True)
    names = [f"blocks.{i // 2}.{('attn.proj', 'mlp.fc2')[i % 2]}" for i in range(layers)]
    bias = [[t, n, 0.02 + 0.1 * draw.random(), 0.07, 0.9977, 0.9976] for t in range(1, rounds + 1) for n in names]
    write_table(folder / "layers.csv", ["round", "layer", "bias", "correctable", "cosine", "norm_ratio"], bias)
    values = [
        [t, n, 6 + draw.random(), 2.5, 0.1, " ".join(f"{0.1 * 0.7**i * (1 + draw.random()):.5g}" for i in range(8))]
        for t in range(1, rounds + 1)
        for n in names
    ]
    header = ["round", "layer", "effective_rank", "stable_rank", "norm", "singular_values"]
    write_table(folder / "spectra.csv", header, values)
    timing = [[t, 2.5, 1.5, 0.1, 0.9, 10**9 + 10**7 * t, ""] for t in range(1, rounds + 1)]
    header = ["round", "seconds", "clients", "server", "evaluation", "memory", "accelerator_memory"]
    write_table(folder / "timing.csv", header, timing)
    holdings = [
        {
            "client": c,
            "domain": d,
            "train": draw.integers(0, 40, len(classes)).tolist(),
            "test": draw.integers(1, 40, len(classes)).tolist(),
        }
        for c, d in enumerate(domains)
    ]
    partition = {
        "classes": list(classes),
        "images_by_domain": {d: 600 for d in domains},
        "test_by_domain": {d: 364 for d in domains},
        "clients": holdings,
    }
    (folder / "partition.json").write_text(json.dumps(partition))
    known = {"command": "run_sim.py rounds=5", "versions": {"fedinit": "0.1.0", "torch": "2.14.1"}, "python": "3.11.7"}
    (folder / "provenance.json").write_text(json.dumps(known))
    for c in range(len(domains)):
        pixels = draw.integers(0, 255, (32, 256), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "samples" / f"{c}.jpg", "JPEG", quality=60)
