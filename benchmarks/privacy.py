"""What counted privacy costs in accuracy: three methods with and without `privacy=clients`, over three seeds.

    python -m benchmarks.privacy [--quick] [--methods fedit …] [--clips 0.1 …]

The embedded domains dealt to 60 clients, ten a domain, of which each is in a round with probability one half; fifteen
rounds at ε = 8, δ = 1e-5. The clip is the best of CLIPS on seed 0, for each method by itself, which ε does not count;
without privacy the same runs, samples of a fixed size. --quick: one seed, three rounds, one clip.

accuracy, std    mean over domains after the last round, in %, over the seeds
lost             to the same method without privacy, in points; a mean over seeds
epsilon, noise   as the run says, and the multiplier z that it takes
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

from benchmarks import machine
from clients.cohort import Cohort
from clients.site import Site
from fedinit.config.compose import compose_config
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate

PLAIN = "strategy.diagnostics=false"
METHODS = {
    "fedit": ("strategy=fedit", PLAIN),
    "ffa_lora": ("strategy=ffa_lora", PLAIN),
    "lora_fair, two phases": ("strategy=lora_fair", "strategy.phases=2", PLAIN),
    "head_alone": ("strategy=head_alone",),
}
CLIPS = (0.1, 0.3, 1.0)
BASE = (
    "partition.clients=60",
    "participation=0.5",
    "evaluation.every=15",
    "evaluation.head_alone=false",
    "logger=none",
    "report=none",
)
PRIVATE = ("privacy=clients", "privacy.epsilon=8", "privacy.delta=1e-5")


def run(words: Sequence[str], seed: int, rounds: int) -> Mapping[str, float]:
    """{"accuracy", "epsilon", "noise"} of one run, the last two 0 without privacy."""
    config = compose_config([*words, f"rounds={rounds}", f"seed={seed}"])
    site = Site(config)
    grid = LocalGrid(Cohort(site), len(site.partitions))
    outcome = federate(config, grid, site.backbone, evaluate_fn=site.evaluate_round)
    assert outcome.score is not None
    print(f"{' '.join(words[len(BASE) :])} seed={seed}: {outcome.score.mean:.1f} %", flush=True)
    told = outcome.privacy
    return {"accuracy": outcome.score.mean, "epsilon": told.get("epsilon", 0.0), "noise": told.get("noise", 0.0)}


def rows_of(method: str, seeds: Sequence[int], rounds: int, clips: Sequence[float]) -> list[dict[str, object]]:
    """Two rows: without privacy, and with it at the better clip."""
    words = [*BASE, *METHODS[method]]
    plain = [run(words, seed, rounds)["accuracy"] for seed in seeds]
    first = {clip: run([*words, *PRIVATE, f"privacy.clip={clip}"], seeds[0], rounds) for clip in clips}
    clip = max(first, key=lambda c: first[c]["accuracy"])
    private = [first[clip], *(run([*words, *PRIVATE, f"privacy.clip={clip}"], seed, rounds) for seed in seeds[1:])]
    accuracy = [figures["accuracy"] for figures in private]

    def row(privacy: str, values: Sequence[float], **more: float) -> dict[str, object]:
        return {
            "method": method,
            "privacy": privacy,
            "seeds": len(seeds),
            "accuracy": round(fmean(values), 1),
            "std": round(pstdev(values), 1),
            "lost": round(fmean(before - after for before, after in zip(plain, values, strict=True)), 1),
            "clip": more.get("clip", ""),
            "epsilon": round(more.get("epsilon", 0.0), 2),
            "noise": round(more.get("noise", 0.0), 2),
        }

    last = private[-1]
    return [row("none", plain), row("clients", accuracy, clip=clip, epsilon=last["epsilon"], noise=last["noise"])]


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("privacy", __doc__)
    words.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    words.add_argument("--clips", nargs="+", type=float, default=CLIPS, help="the best on seed 0 is taken")
    words.add_argument("--quick", action="store_true", help="one seed, three rounds, one clip")
    return words


def main() -> None:
    options = parser().parse_args()
    quick, rows = options.quick, []
    for method in options.methods:
        rows += rows_of(method, (0,), 3, CLIPS[1:2]) if quick else rows_of(method, (0, 1, 2), 15, options.clips)
        for row in rows[-2:]:
            print(f"{method}, privacy={row['privacy']}: {row['accuracy']} ± {row['std']} %", flush=True)
    machine.publish(machine.named("privacy", parser(), options), rows, dtype="float32", seed=0)


if __name__ == "__main__":
    main()
