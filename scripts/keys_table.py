"""Every key of a run, with its default and its meaning: ``python scripts/keys_table.py > docs/keys.md``.

Read from conf/, where what a key means stands beside it; the dataclasses of fedinit/config/ hold the same names and
defaults (tests/fedinit/config/test_choices.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fedinit.config.groups import CONF_DIR

KEY = re.compile(r"^( *)([a-z_0-9]+):(?: +([^#]*?))?(?: *# (.*))?$")
HIDDEN = {"defaults"}  # Hydra's own, of how the files are put together

MEANINGS = {  # of keys that many files of conf/ have alike, or whose name says it there
    "adapter.alpha": "α of the scale α/r that an adapter's product is multiplied by",
    "adapter.rank": "r",
    "attack.count": "how many clients attack, drawn from the seed; or name them by `attack.clients`",
    "attack.epsilon": "how many times the honest mean, turned round, is sent",
    "attack.examples": "that an attacker says it has, when it registers",
    "attack.factor": "how many times its own change, or that of the head, an attacker sends",
    "client.batch_size": "images of a step",
    "client.betas": "of Adam's moments",
    "client.clip_norm": "the most that the norm of a client's gradient may be; null: no limit",
    "client.epochs": "passes over a client's images in a round",
    "client.lr": "the learning rate",
    "client.max_steps": "steps of a round at most; null: as `client.epochs` says",
    "client.momentum": "of the optimiser",
    "client.weight_decay": "decoupled from the gradient in AdamW, added to it in SGD",
    "data.matrix.columns": "of the matrix to be recovered",
    "data.matrix.rows": "of the matrix to be recovered",
    "data.matrix.symmetric": "whether it is",
    "data.skip_unreadable": "whether a run goes on without the images that cannot be read, and tells them",
    "evaluation.batch_size": "images of a pass in which nothing is trained",
    "evaluation.every": "rounds between evaluations; the last round is always evaluated",
    "evaluation.head_alone": "also run the same budget with the adapters frozen",
    "evaluation.rounds": "the rounds to evaluate, in place of `every`",
    "gate.enabled": "whether updates are judged at all",
    "gate.max_factor_ratio": "of a factor's norm to its start's, either way",
    "gate.max_product_ratio": "of the norm of a layer's B·A to its start's, or to an orthonormal map's of its shape",
    "init.centred": "whether the moment of the inputs is about their mean",
    "init.scale": "multiplies both factors; what is taken out of the base is the scaled product",
    "logger.entity": "of wandb; null: one's own",
    "logger.project": "of wandb; the experiment of MLflow",
    "model.checkpoint": "a safetensors file of weights, or embedded:<file>, one of the package; null: see `pretrained`",
    "model.checkpoint_grid": "the grid of tokens that a file's positions are of; null: a square one",
    "model.image_size": "pixels a side, or [height,width]; null: the model's own",
    "model.kwargs": "further arguments of timm's model",
    "model.mean": "that is taken from pixels, a number a channel; null: the model's own",
    "model.name": "of timm",
    "model.pretrained": "timm's own weights, from the network, unless a checkpoint is given",
    "model.sha256": "of the file of weights, which must have it; null: it is not compared",
    "model.std": "that pixels are divided by, a number a channel; null: the model's own",
    "output_dir": "the folder that the runs' folders are in",
    "privacy.delta": "δ at which ε is stated",
    "reinit.beta": "β > 0 of the gauge: one factor is divided by it, the other multiplied",
    "robust.bad": "f, how many clients of a round may be bad: a number, or a share of them",
    "robust.iterations": "how often the centre, or the median, is moved",
    "robust.nu": "the least distance that is divided by, in medians of the round's lengths",
    "robust.root": "the partition id of the trusted client, whose change the others are compared with",
    "robust.selection": "best: those of the lowest scores; iterated: one after another, as Bulyan does",
    "robust.tau": "the longest change, or the radius, in medians of the round's lengths",
    "rounds": "of training",
    "seed": "of every draw",
    "server_opt.beta": "of the momentum",
    "server_opt.beta1": "of Adam's first moment",
    "server_opt.beta2": "of Adam's second moment",
    "server_opt.lr": "the server's learning rate",
    "server_opt.tau": "τ, how much the steps adapt: τ² is Adam's least second moment",
    "strategy.diagnostics": "whether aggregation bias and what was repaired of it are measured",
    "strategy.lam": "λ of the penalty on the correction",
    "strategy.lr": "of the SGD solvers",
}


def rows(path: Path, group: str) -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of a file of conf/, its keys as one writes them on the command line."""
    above: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = KEY.match(line)
        if match is None:
            continue
        indent, name, value, said = match.groups()
        above = [*above[: len(indent) // 2], name]
        if above[0] in HIDDEN or (not value and not said) or (group and value and value.strip() == path.stem):
            continue  # the last: the choice's own name
        key = ".".join([group, *above] if group else above)
        yield key, (value or "").strip(), (said or MEANINGS.get(key, "")).strip()


def table(found: list[tuple[str, str, str]]) -> list[str]:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("<", "&lt;")

    lines = ["| key | default | meaning |", "|---|---|---|"]
    return [
        *lines,
        *(f"| `{key}` | {f'`{cell(value)}`' if value else ''} | {cell(said)} |" for key, value, said in found),
    ]


def page() -> str:
    lines = [
        "# Every key",
        "",
        "Made by `scripts/keys_table.py` from `conf/`. A key is given on the command line, `client.lr=0.01`; a group's",
        "choice is `group=choice`. `python run_sim.py --help` lists the groups, `--cfg job` shows what would be run.",
        "",
        "## A run",
        "",
        *table([row for row in rows(CONF_DIR / "config.yaml", "") if not row[0].startswith("defaults")]),
    ]
    for folder in sorted(p for p in CONF_DIR.iterdir() if p.is_dir() and p.name not in ("experiment", "hydra")):
        lines += ["", f"## `{folder.name}=`"]
        for path in sorted(folder.glob("*.yaml")):
            first = path.read_text(encoding="utf-8").splitlines()[0]
            lines += ["", f"### `{folder.name}={path.stem}`", ""]
            if first.startswith("# ") and not first.startswith("# @"):
                lines += [first[2:], ""]
            lines += table([*rows(path, folder.name)])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
