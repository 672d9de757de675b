"""timm backbones, frozen, and which of their layers are adapted."""

from fedinit.models.backbone import Backbone, InputSpec, build_backbone
from fedinit.models.head import init_head
from fedinit.models.targets import select_targets, shared_inputs

__all__ = ["Backbone", "InputSpec", "build_backbone", "init_head", "select_targets", "shared_inputs"]
