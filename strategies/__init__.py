"""The server side: aggregation methods, one a file, and the one Flower strategy that runs any of them."""

from __future__ import annotations

from typing import Any

from fedinit.config.build import create
from strategies.aggregator import Aggregator
from strategies.methods.fed_sb import FedSB
from strategies.methods.fedex_lora import FedExLoRA
from strategies.methods.fedit import FedIT
from strategies.methods.fedrot_lora import FedRotLoRA
from strategies.methods.fedsa_lora import FedSALoRA
from strategies.methods.fedsvd import FedSVD
from strategies.methods.ffa_lora import FFALoRA
from strategies.methods.flexlora import FlexLoRA
from strategies.methods.flora import FLoRA
from strategies.methods.florist import FLoRIST
from strategies.methods.frlora import FRLoRA
from strategies.methods.head_alone import HeadAlone
from strategies.methods.hetlora import HetLoRA
from strategies.methods.lora_a2 import LoRAA2
from strategies.methods.lora_fair import LoRAFAIR
from strategies.methods.ravan import Ravan
from strategies.methods.rbla import RBLA
from strategies.methods.rolora import RoLoRA
from strategies.methods.spectral import Spectral

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
    return create("strategy", AGGREGATORS, name, options)
