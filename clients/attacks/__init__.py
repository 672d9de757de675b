"""Bad clients of a simulation, an attack a file; a name here is `attack=<name>`, what each reads is in
fedinit/config/attack.py."""

from __future__ import annotations

from typing import Any

from clients.attacks.alie import Alie
from clients.attacks.contract import Attack
from clients.attacks.gaussian import Gaussian
from clients.attacks.head_only import HeadOnly
from clients.attacks.ipm import Ipm
from clients.attacks.label_flip import LabelFlip
from clients.attacks.minmax import MinMax
from clients.attacks.scaled import Scaled
from clients.attacks.sign_flip import SignFlip

ATTACKS: dict[str, type[Attack[Any]]] = {
    "alie": Alie,
    "claims": SignFlip,
    "gaussian": Gaussian,
    "head_only": HeadOnly,
    "ipm": Ipm,
    "label_flip": LabelFlip,
    "minmax": MinMax,
    "scaled": Scaled,
    "sign_flip": SignFlip,
}
