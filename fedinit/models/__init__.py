"""timm backbones, frozen, and which of their layers are adapted."""

import fedinit.models.timm_alone  # noqa: F401, I001  (before what imports timm)
from fedinit.models.backbone import Backbone, build_backbone
from fedinit.models.head import init_head
from fedinit.models.input_spec import InputSpec
from fedinit.models.targets import adapted_layers, select_targets, shared_inputs

__all__ = [
    "Backbone",
    "InputSpec",
    "adapted_layers",
    "build_backbone",
    "init_head",
    "select_targets",
    "shared_inputs",
]
