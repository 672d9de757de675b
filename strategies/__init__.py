"""The server side: aggregation methods, one a file, and the one Flower strategy that runs any of them."""

from __future__ import annotations

from typing import Any

from fedinit.config import build
from fedinit.errors import choose
from strategies.aggregator import Aggregator
from strategies.fed_sb import FedSB
from strategies.fedex_lora import FedExLoRA
from strategies.fedit import FedIT
from strategies.fedrot_lora import FedRotLoRA
from strategies.fedsa_lora import FedSALoRA
from strategies.fedsvd import FedSVD
from strategies.ffa_lora import FFALoRA
from strategies.flexlora import FlexLoRA
from strategies.flora import FLoRA
from strategies.florist import FLoRIST
from strategies.frlora import FRLoRA
from strategies.head_alone import HeadAlone
from strategies.hetlora import HetLoRA
from strategies.lora_a2 import LoRAA2
from strategies.lora_fair import LoRAFAIR
from strategies.ravan import Ravan
from strategies.rbla import RBLA
from strategies.rolora import RoLoRA
from strategies.spectral import Spectral

AGGREGATORS: dict[str, type[Aggregator]] = {
    "fed_sb": FedSB,
    "fedex_lora": FedExLoRA,
    "fedit": FedIT,
    "fedrot_lora": FedRotLoRA,
    "fedsa_lora": FedSALoRA,
    "fedsvd": FedSVD,
    "ffa_lora": FFALoRA,
    "flexlora": FlexLoRA,
    "flora": FLoRA,
    "florist": FLoRIST,
    "frlora": FRLoRA,
    "head_alone": HeadAlone,
    "hetlora": HetLoRA,
    "lora_a2": LoRAA2,
    "lora_fair": LoRAFAIR,
    "ravan": Ravan,
    "rbla": RBLA,
    "rolora": RoLoRA,
    "spectral": Spectral,
}


def create_aggregator(name: str, **options: Any) -> Aggregator:
    """An aggregation method by name, ``create_aggregator("lora_fair", solver="closed_form", lam=0.01)``.

    Raises InputError for an unknown name or option, or a value out of range.
    """
    return build(AGGREGATORS[choose("strategy", name, AGGREGATORS)], options, "strategy")
