"""Every random draw is a function of (root seed, purpose, round, client, ...); no generator is ever stored.

So a resumed run, a run on other lanes and a run in another order of replies draw the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive(root: int, purpose: str, *keys: int | str) -> int:
    """A 63-bit seed from the run's root seed, the purpose of the draw and what distinguishes it.

    sha256 of the joined text, so that neighbouring roots, rounds or clients have unrelated streams (sums and
    shifts of small integers would collide: root 1 round 2 and root 2 round 1).
    """
    text = "\x1f".join([str(int(root)), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(root: int, purpose: str, *keys: int | str) -> torch.Generator:
    """A CPU generator for `derive(root, purpose, *keys)`, of which torch keeps 32 bits: of a hundred thousand draws two
    may be the same, and no secret is kept by it (fedinit/draws.py). Draws are made on the CPU on every device."""
    import torch  # here: a configuration is read without drawing, and torch takes a second to import

    return torch.Generator().manual_seed(derive(root, purpose, *keys))


def numpy_generator(root: int, purpose: str, *keys: int | str) -> np.random.Generator:
    """The numpy twin of `torch_generator`."""
    import numpy as np

    return np.random.default_rng(derive(root, purpose, *keys))
