"""The server side: aggregation methods, one a file, and the one Flower strategy that runs any of them."""

from __future__ import annotations

from typing import Any

from fedinit.config import build
from fedinit.errors import choose
from strategies.aggregator import Aggregator
from strategies.fedit import FedIT
from strategies.ffa_lora import FFALoRA
from strategies.head_alone import HeadAlone
from strategies.lora_fair import LoRAFAIR

AGGREGATORS: dict[str, type[Aggregator]] = {
    "fedit": FedIT,
    "ffa_lora": FFALoRA,
    "head_alone": HeadAlone,
    "lora_fair": LoRAFAIR,
}


def create_aggregator(name: str, **options: Any) -> Aggregator:
    """An aggregation method by name, ``create_aggregator("lora_fair", solver="closed_form", lam=0.01)``.

    Raises InputError for an unknown name or option, or a value out of range.
    """
    return build(AGGREGATORS[choose("strategy", name, AGGREGATORS)], options, "strategy")
