"""Pretrains the embedded backbones on printed glyphs and writes them into the package.

    python scripts/pretrain_glyphs.py vit|mixer [--epochs N] [--seed N] [--threads N] [--output FILE]

A small timm ViT or MLP-Mixer, 32 px, one channel, learns to tell printed glyphs apart: digits, letters and
signs from the fonts that matplotlib ships. The digits among them are printed ones; no handwritten digit is
seen in training. The checkpoint is written only if a linear probe on the handwritten digits says that its
features are worth more than those of the same network untrained.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from printed_glyphs import FONTS, GLYPHS, SIZE, render, templates
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.models import MlpMixer
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "fedinit" / "models" / "embedded"
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from fedinit.data.dataset import Dataset  # noqa: E402
from fedinit.data.digits import load_digits  # noqa: E402

MEAN, STD = 0.5, 0.5  # of pixels scaled to [0, 1]
IMAGES_PER_EPOCH = 16384
BATCH = 64
RAMP = 0.3  # the share of training over which the renderings grow from easy to as hard as they get
PEAK_LR, WARMUP, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.15, 0.02, 1.0
MARGIN = 10.0  # points of mean probe accuracy by which a checkpoint must beat the untrained network


@dataclass(frozen=True)
class Architecture:
    """A timm model as plain values. `name` is a timm entry point, or a class of timm.models."""

    name: str
    kwargs: dict[str, int]

    def build(self, num_classes: int) -> nn.Module:
        if self.name == "MlpMixer":
            return MlpMixer(num_classes=num_classes, **self.kwargs)
        # timm's default draws (sigma .02, also for positions) suit a wide network: at width 96 the blocks add
        # next to nothing and positions drown in the patches, so that the loss stands still for epochs.
        model = timm.create_model(self.name, num_classes=num_classes, weight_init="jax", **self.kwargs)
        nn.init.normal_(model.pos_embed, std=0.3)
        return model


ARCHITECTURES = {
    "vit": Architecture(
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3, "in_chans": 1},
    ),
    # The class, since timm's mixer entry points fix patch_size, num_blocks and embed_dim and refuse others.
    "mixer": Architecture(
        "MlpMixer", {"img_size": 32, "patch_size": 4, "embed_dim": 96, "num_blocks": 4, "in_chans": 1}
    ),
}


def normalise(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] -> what the network sees."""
    return (pixels - MEAN) / STD


def train(model: nn.Module, digits: Dataset, epochs: int, seed: int) -> float:
    """Trains in place; returns the accuracy in percent on 4096 fresh renderings. `digits` are only probed."""
    ink, labels = templates()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    steps_per_epoch = IMAGES_PER_EPOCH // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LR, total_steps=epochs * steps_per_epoch, pct_start=WARMUP
    )
    started = time.monotonic()
    for epoch in range(1, epochs + 1):
        model.train()
        losses, hits = 0.0, 0
        for step in range(steps_per_epoch):
            progress = (epoch - 1 + step / steps_per_epoch) / epochs
            strength = min(1.0, 0.2 + 0.8 * progress / RAMP)
            chosen = torch.randint(len(labels), (BATCH,), generator=generator)
            logits = model(normalise(render(ink[chosen], strength, generator)))  # (b, num_glyphs)
            loss = F.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
            losses += loss.item()
            hits += int((logits.argmax(1) == labels[chosen]).sum())
        print(
            f"epoch {epoch:3d}/{epochs}  loss {losses / steps_per_epoch:.3f}  "
            f"accuracy {100 * hits / IMAGES_PER_EPOCH:.1f} %  {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if epoch % 6 == 0 and epoch < epochs:
            print("  " + _row("probe", probe(features(model, digits.images), digits)), flush=True)
    return _validate(model, ink, labels, torch.Generator().manual_seed(seed + 1))


@torch.no_grad()
def _validate(model: nn.Module, ink: Tensor, labels: Tensor, generator: torch.Generator) -> float:
    model.eval()
    chosen = torch.randint(len(labels), (4096,), generator=generator)
    hits = 0
    for rows in chosen.split(BATCH):
        logits = model(normalise(render(ink[rows], 1.0, generator)))
        hits += int((logits.argmax(1) == labels[rows]).sum())
    return 100.0 * hits / len(chosen)


@torch.no_grad()
def features(model: nn.Module, images: Tensor) -> np.ndarray:
    """(n, 1, 32, 32) uint8 -> (n, embed_dim) pooled features before the classifier."""
    model.eval()
    rows = [normalise(batch.float() / 255.0) for batch in images.split(256)]
    pooled = [model.forward_head(model.forward_features(row), pre_logits=True) for row in rows]
    return torch.cat(pooled).numpy()


def probe(x: np.ndarray, digits: Dataset) -> dict[str, float]:
    """Test accuracy in percent of a linear classifier on frozen features (n, c), by domain, and their mean.

    One logistic regression on all domains' training digits together: 240 of one domain alone are too few.
    """
    y, test, domains = digits.labels.numpy(), digits.test.numpy(), digits.domains.numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    classifier.fit(x[~test], y[~test])
    right = classifier.predict(x) == y
    accuracy = {name: 100.0 * float(right[test & (domains == d)].mean()) for d, name in enumerate(digits.domain_names)}
    return accuracy | {"mean": float(np.mean(list(accuracy.values())))}


def _row(title: str, accuracy: dict[str, float]) -> str:
    return f"{title:<10}" + "  ".join(f"{name} {value:.1f}" for name, value in accuracy.items())


def save(model: nn.Module, architecture: Architecture, path: Path, facts: dict[str, object]) -> None:
    """The backbone without its classifier, float16, under timm's names; `facts` go to the metadata."""
    state = {
        name: value.to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("head.")
    }
    metadata = {
        "timm_name": architecture.name,
        "timm_kwargs": json.dumps(architecture.kwargs),
        "mean": str(MEAN),
        "std": str(STD),
        **{key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata=metadata)
    path.chmod(0o644)  # safetensors writes for the owner only; the package is for everyone


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=ARCHITECTURES)
    parser.add_argument("--epochs", type=int, default=24, help=f"of {IMAGES_PER_EPOCH} images each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads within an operation")
    parser.add_argument("--probe", action="store_true", help="probe the existing file again, without training")
    parser.add_argument("--output", type=Path, help="instead of the file in the package")
    arguments = parser.parse_args()
    path = arguments.output or EMBEDDED / f"glyph_{arguments.kind}.safetensors"

    torch.set_num_threads(arguments.threads)
    architecture = ARCHITECTURES[arguments.kind]
    digits = load_digits(SIZE)
    torch.manual_seed(arguments.seed)
    model = architecture.build(num_classes=len(GLYPHS))
    pixels = probe(digits.images.flatten(1).numpy() / 255.0, digits)
    untrained = probe(features(model, digits.images), digits)
    print(_row("pixels", pixels), _row("untrained", untrained), sep="\n", flush=True)
    if arguments.probe:
        with safe_open(path, framework="pt") as file:
            made = file.metadata()
            model.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()}, strict=False)  # noqa: SIM118
        command, glyph_accuracy = made["command"], float(made["glyph_accuracy"])
    else:
        command = (
            f"python scripts/pretrain_glyphs.py {arguments.kind} --epochs {arguments.epochs} "
            f"--seed {arguments.seed} --threads {arguments.threads}"
        )
        glyph_accuracy = train(model, digits, arguments.epochs, arguments.seed)
        print(f"glyphs    {glyph_accuracy:.2f} % of fresh renderings of {len(GLYPHS)} glyphs", flush=True)

    model.half().float()  # probe what is saved, not what was trained
    trained = probe(features(model, digits.images), digits)
    print(_row("untrained", untrained), _row("trained", trained), sep="\n")
    worse = [name for name, value in trained.items() if value <= untrained[name]]
    if worse or trained["mean"] < untrained["mean"] + MARGIN:
        print(f"not written: {MARGIN} points of mean and a gain everywhere are asked; no gain in {worse}")
        return 1
    facts = {
        "provenance": f"{len(GLYPHS)} printed glyphs in {len(FONTS)} fonts that matplotlib ships",
        "command": command,
        "glyph_accuracy": glyph_accuracy,
        "probe_trained": trained,
        "probe_untrained": untrained,
    }
    save(model, architecture, path, facts)
    print(f"wrote {path.name}, {path.stat().st_size / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
