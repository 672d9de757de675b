"""Tables of accuracy on real images: every method, with its learning rate chosen on a validation split.

    python -m benchmarks.pacs methods --data <PACS folder or zip> --checkpoint <ViT-Tiny safetensors>
    python -m benchmarks.pacs inits --data <PACS folder or zip> --checkpoint <ViT-Tiny safetensors>

`methods` compares the aggregation methods, `inits` every initialiser with LoRA-FAIR and with FedIT. A run that is done
is not run again, so a command that was interrupted goes on where it was. The workers are processes with one lane each,
and change no number. Written: benchmarks/results/pacs-<table>.csv, a row a run, and the table.

The settings: ViT-Tiny (augreg, ImageNet-21k then 1k) at 96 px (`inits`: 80), rank 16, s = 2, three batches of 32 images
a client and round, SGD with momentum 0.9, no augmentation. The rate is the one of the table's grid with the best
accuracy on a fifth of the training images (seed SELECT, the table's first setting, the test images left out), for all
settings; `methods` goes on beyond an edge of its grid while the best rate lies there. Initialisers start from the head
that is ridge regression on the features of 256 images a client, since gradients need one.
The centralised reference takes as many batches a round as all the clients of a round together.
"""

from __future__ import annotations

import csv
import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.machine import RESULTS, commit
from benchmarks.pacs.markdown import render
from benchmarks.pacs.rates import choose_rates
from benchmarks.pacs.runs import accuracy_by_round, cpu_seconds, run_all, summary_of, words_of
from benchmarks.pacs.table import TABLES, Table


def make(table: Table, place: Sequence[str], seeds: int, workers: int) -> list[dict[str, object]]:
    """A row a run, with its accuracy at every evaluated round."""
    rates = choose_rates(table, place, workers)
    tried = sorted({rate for _, scores in rates.values() for rate in scores})
    reported = [
        (row, setting, seed, words_of(table, row, setting, rates[row.label][0], seed, place))
        for seed in range(seeds)
        for setting in table.settings
        for row in table.rows
    ]
    run_all([words for *_, words in reported], workers)
    made = []
    for row, setting, seed, words in reported:
        summary = summary_of(words)
        if summary is None:
            raise SystemExit(f"{row.label}, {setting}, seed {seed}: the run did not end; see the messages above")
        rate, scores = rates[row.label]
        by_round = accuracy_by_round(words)
        made.append(
            {
                "setting": setting,
                "method": row.label,
                "seed": seed,
                "lr": rate,
                **{f"validation_lr_{r:g}": round(scores[r], 2) if r in scores else "" for r in tried},
                **{f"round_{r}": round(by_round[r], 3) for r in table.evaluated},
                **({"cpu_seconds": cpu_seconds(words)} if table.timed else {}),
                "bytes_up": summary["bytes_up"],
                "bytes_down": summary["bytes_down"],
                "final_hash": summary["final_hash"],
            }
        )
    return made


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("pacs", __doc__)
    words.add_argument("table", choices=sorted(TABLES))
    words.add_argument("--data", required=True, help="PACS: a folder root/domain/class/*.jpg, or a zip of one")
    words.add_argument("--checkpoint", required=True, help="vit_tiny_patch16_224 augreg weights, safetensors")
    words.add_argument("--output", default="outputs", help="where the runs are kept")
    words.add_argument("--seeds", type=machine.count, help="how many (methods: 5, inits: 3)")
    words.add_argument("--workers", type=machine.count, default=2)
    return words


def main() -> None:
    words = parser()
    given = words.parse_args()
    for key in ("data", "checkpoint"):
        if not Path(getattr(given, key)).exists():
            words.error(f"--{key} {getattr(given, key)}: is not there")
    table = TABLES[given.table]
    place = (
        f"data.root={given.data}",
        f"model.checkpoint={given.checkpoint}",
        f"output_dir={given.output}",
        f"data.cache_dir={given.output}/cache",
    )
    rows = make(table, place, given.seeds or table.seeds, given.workers)
    path = RESULTS / f"pacs-{table.name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "commit"], lineterminator="\n")
        writer.writeheader()
        at = commit()
        writer.writerows({**row, "commit": at} for row in rows)
    print(render(table, rows))
    print(json.dumps({"written": path.name, "runs": len(rows)}))


if __name__ == "__main__":
    main()
