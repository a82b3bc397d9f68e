"""The projection head of SimCLR, of two layers or of SimCLRv2's three."""

from __future__ import annotations

import pytest
from torch import nn

from ssl_mednet.backbones import backbone_args, create_backbone
from ssl_mednet.methods import METHODS


@pytest.mark.parametrize(
    ("settings", "widths"), [({}, [512, 128]), ({"num_layers": 3, "hidden_dim": 64}, [64, 64, 128])]
)
def test_a_head_of_as_many_layers_as_are_asked_for(settings: dict[str, int], widths: list[int]) -> None:
    cls = METHODS.get("simclr")
    method = cls(create_backbone("test_resnet", backbone_args("test_resnet", 1, 32)), cls.Config(**settings))
    head = method.projection_head.modules()
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == widths
