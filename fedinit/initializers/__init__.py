"""What adapters start from before round 1. One file a family; a name here is `init=<name>` on the command line."""

from __future__ import annotations

from functools import partial

from fedinit.config.build import create
from fedinit.initializers.corda import CorDA
from fedinit.initializers.eva import EVA
from fedinit.initializers.gaussian_pair import GaussianPair
from fedinit.initializers.initializer import Initializer
from fedinit.initializers.lora_ga import LoRAGA
from fedinit.initializers.lora_null import LoRANull
from fedinit.initializers.lora_one import LoRAOne
from fedinit.initializers.lora_sb import LoRASB
from fedinit.initializers.lora_xs import LoRAXS
from fedinit.initializers.mica import MiCA
from fedinit.initializers.milora import MiLoRA
from fedinit.initializers.olora import OLoRA
from fedinit.initializers.pissa import PiSSA
from fedinit.initializers.random import Gaussian, Kaiming, Orthogonal
from fedinit.initializers.random_core import RandomCore
from fedinit.initializers.vera import VeRA

INITIALIZERS: dict[str, type[Initializer]] = {
    "corda": CorDA,
    "eva": EVA,
    "gaussian": Gaussian,
    "gaussian_pair": GaussianPair,
    "kaiming": Kaiming,
    "lora_ga": LoRAGA,
    "lora_null": LoRANull,
    "lora_one": LoRAOne,
    "lora_sb": LoRASB,
    "lora_xs": LoRAXS,
    "mica": MiCA,
    "milora": MiLoRA,
    "olora": OLoRA,
    "orthogonal": Orthogonal,
    "pissa": PiSSA,
    "random_core": RandomCore,
    "vera": VeRA,
}

create_initializer = partial(create, "init", INITIALIZERS)  # create_initializer("eva", {"rho": 2.0})
