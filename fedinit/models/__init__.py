"""timm backbones, frozen, and which of their layers are adapted."""

import sys

# timm imports wandb, where it can, for a log writer of its own, and a deployed client pays for that at every message.
# Who logs with wandb (fedinit/runs/tracking.py) imports it later.
_hidden = "wandb" not in sys.modules
if _hidden:
    sys.modules["wandb"] = None
try:
    import timm  # noqa: F401
finally:
    if _hidden:
        del sys.modules["wandb"]

from fedinit.models.backbone import Backbone, InputSpec, build_backbone  # noqa: E402
from fedinit.models.head import init_head  # noqa: E402
from fedinit.models.targets import select_targets, shared_inputs  # noqa: E402

__all__ = ["Backbone", "InputSpec", "build_backbone", "init_head", "select_targets", "shared_inputs"]
