"""timm in, timm out: building backbones for gray and color images, saving them, and their parameter groups."""

from ssl_mednet.backbones.artifact import Preprocessing, load_backbone, save_backbone
from ssl_mednet.backbones.factory import backbone_args, backbone_kind, create_backbone

__all__ = ["Preprocessing", "backbone_args", "backbone_kind", "create_backbone", "load_backbone", "save_backbone"]
