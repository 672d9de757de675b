"""The classifier that a run starts from. One file a family; a name here is `head=<name>` on the command line."""

from __future__ import annotations

from functools import partial

from fedinit.config.build import create
from fedinit.heads.completed import MVN, Convex
from fedinit.heads.drawn import NoHead, Random, Zero
from fedinit.heads.head import Head
from fedinit.heads.ncm import NCM
from fedinit.heads.ridge import Ridge

HEADS: dict[str, type[Head]] = {
    "convex": Convex,
    "mvn": MVN,
    "ncm": NCM,
    "none": NoHead,
    "random": Random,
    "ridge": Ridge,
    "zero": Zero,
}

create_head = partial(create, "head", HEADS)  # create_head("ridge", {"lam": 0.01})
