"""Peak memory against the clients of a round and against the clients of a bank, and of what it is made.

    python -m benchmarks.memory [--quick] [--clients 1 10 50 100 250 500] [--banks 1 8 64 256] [--strategies fedit …]

Every point is a process of its own, and a whole run of three rounds with all that it writes; a client takes one AdamW
step of four images on a ViT of 12 blocks and width 192 (32 px, 17 tokens), whose adapters are a megabyte.

Clients of a round, in banks of the default size:
peak MB     of the process, at its end
updates MB  of all clients' adapters and heads together: what a round brings
beyond      what the peak rose above that of the fewest clients, in updates of one client, for each one more

Clients of a bank, all of a round in one bank on one lane:
peak MB     as above
reckoned MB what a run reckons that a step takes beside the fewest: adapters, gradients, optimiser, activations
"""

from __future__ import annotations

import json
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence

from benchmarks import machine, scale
from clients.engine.cost import step_cost_on_cpu
from fedinit.config.compose import compose_config
from fedinit.models import build_backbone, select_targets

ROUNDS, RANK, BATCH = 3, 16, 4
WORDS = (
    "model.kwargs={img_size: 32, patch_size: 8, embed_dim: 192, depth: 12, num_heads: 3, in_chans: 1}",
    f"adapter.rank={RANK}",
    "client=adamw",
    f"client.batch_size={BATCH}",
    "client.max_steps=1",
)
SUMMED = "fedit, summed"  # while updates come, since nobody looks at single ones
STRATEGIES = {
    "fedit": ("strategy=fedit",),
    "lora_fair": ("strategy=lora_fair",),
    "flora": ("strategy=flora",),
    SUMMED: ("strategy=fedit", "strategy.diagnostics=false"),
}


def words(strategy: str, bank: int) -> list[str]:
    """Of a run. bank: clients of one, on one lane; 0: the default."""
    one = [f"engine.clients_per_bank={bank}", "engine.lanes=1"] if bank else []
    return [*WORDS, *STRATEGIES[strategy], *one]


def measured(strategy: str, clients: int, bank: int) -> float:
    """MB at the peak of a run in a process of its own."""
    return scale.apart("benchmarks.memory", [*STRATEGIES].index(strategy), clients, bank)["peak_MB"]


def rounds(strategies: Sequence[str], clients: Sequence[int], update: float) -> list[dict[str, object]]:
    """A row a strategy and number of clients. update: MB of one client's adapter and head."""
    rows: list[dict[str, object]] = []
    for strategy in strategies:
        peaks = {count: measured(strategy, count, 0) for count in clients}
        fewest = min(clients)
        for count, peak in peaks.items():
            more = (peak - peaks[fewest]) / (update * (count - fewest)) if count > fewest else ""
            rows.append(
                {"strategy": strategy, "clients": count, "peak_MB": peak, "updates_MB": count * update, "beyond": more}
            )
    return rows


def banks(sizes: Sequence[int]) -> list[dict[str, object]]:
    """A row a size of a bank."""
    config = compose_config([*scale.WORDS, *WORDS])
    backbone = build_backbone(config.model)
    targets = select_targets(backbone.module, None, RANK)
    cost = step_cost_on_cpu(backbone, targets, RANK, scale.CLASSES)
    peaks = {size: measured("fedit", size, size) for size in sizes}
    least = min(sizes)
    return [
        {
            "bank": size,
            "peak_MB": peak,
            "above_MB": peak - peaks[least],
            "reckoned_MB": (cost.peak(size, BATCH) - cost.peak(least, BATCH)) / 2**20,
            "of_it_adapters_MB": (size - least) * cost.client / 2**20,
        }
        for size, peak in peaks.items()
    ]


def size_of_update() -> float:
    """MB of one client's adapter and head."""
    backbone = build_backbone(compose_config([*scale.WORDS, *WORDS]).model)
    factors = sum(RANK * sum(shape) for shape in select_targets(backbone.module, None, RANK).values())
    return 4 * (factors + scale.CLASSES * (backbone.features + 1)) / 2**20


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("memory", __doc__)
    words.add_argument("--quick", action="store_true", help="1 and 20 clients, banks of 1 and 8, fedit alone")
    words.add_argument("--clients", type=machine.count, nargs="+", default=[1, 10, 50, 100, 250, 500])
    words.add_argument("--banks", type=machine.count, nargs="+", default=[1, 8, 64, 256])
    words.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=[*STRATEGIES])
    words.add_argument("--point", nargs=4, help=SUPPRESS)
    return words


def main() -> None:
    options = parser().parse_args()
    if options.point:
        strategy, clients, bank = map(int, options.point[:3])
        also = words([*STRATEGIES][strategy], bank)
        print(json.dumps(scale.point(clients, clients, ROUNDS, float(options.point[3]), also)))
        return
    tables = [machine.named(table, parser(), options) for table in ("memory", "memory-banks")]
    if options.quick:
        options.clients, options.banks, options.strategies = [1, 20], [1, 8], ["fedit"]
    machine.publish(tables[0], rounds(options.strategies, options.clients, size_of_update()), dtype="float32", seed=0)
    machine.publish(tables[1], banks(options.banks), dtype="float32", seed=0)


if __name__ == "__main__":
    main()
