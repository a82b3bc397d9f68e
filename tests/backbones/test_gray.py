"""ImageNet's nets on gray images: what the channels differ by finds its place behind every stem, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from ssl_mednet.backbones.gray import one_channel, three_channels
from ssl_mednet.errors import ArtifactError
from ssl_mednet.evaluation.baselines import RepeatChannels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet(name: str, mean: tuple[float, ...] = MEAN) -> nn.Module:
    """A net with statistics of a trained one's kind in its norms."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0)
    net.pretrained_cfg |= {"mean": mean, "std": STD}
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("efficientnet_b0", ["bn1"]),
        ("mobilenetv3_small_050", ["bn1"]),
        ("regnety_002", ["stem.bn"]),
        ("densenet121", ["features.norm0"]),
        ("mobileone_s0", ["stem.conv_kxk.0.bn", "stem.conv_scale.bn"]),  # two branches
        ("resnet10t", ["conv1.1"]),
        ("convnext_atto", ["stem.0"]),  # a bias, no batch norm
    ],
)
def test_a_gray_image_gives_behind_the_stem_what_three_equal_channels_gave(name: str, seen: list[str]) -> None:
    color, gray = imagenet(name), timm.create_model(name, num_classes=0, in_chans=1).eval()
    before = {key: value.clone() for key, value in color.state_dict().items()}
    state, mean, std = one_channel(color, name)
    gray.load_state_dict(state, strict=True)
    images = torch.rand(1, 1, 64, 64)
    ours = outputs(gray, seen, (images - mean[0]) / std[0])
    theirs = outputs(color.eval(), seen, RepeatChannels(nn.Identity(), MEAN, STD)(images))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in color.state_dict().items())


def outputs(net: nn.Module, names: list[str], images: torch.Tensor) -> list[torch.Tensor]:
    """What these layers give, without the border."""
    found: list[torch.Tensor] = []
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda module, given, out: found.append(out[..., 4:-4, 4:-4]))
        for name in names
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    assert len(found) == len(names)
    return found


@pytest.mark.parametrize("name", ["dm_nfnet_f0", "resnetv2_50x1_bit"])
def test_a_stem_that_standardises_its_kernels_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match=r"standardises.*data\.convert=true"):
        one_channel(imagenet(name), name)
    assert three_channels(imagenet(name))[1] == pytest.approx(MEAN)


def norm_by_groups(net: Any) -> None:
    net.bn1 = nn.GroupNorm(4, net.bn1.num_features)


def norm_is_not_alone(net: Any) -> None:
    class Both(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm, self.act = norm, nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + self.act(x)

    net.bn1 = Both(net.bn1)


@pytest.mark.parametrize("change", [norm_by_groups, norm_is_not_alone])
def test_means_without_a_place_to_go_are_refused(change: Any) -> None:
    net = imagenet("resnet18")
    change(net)
    with pytest.raises(ArtifactError, match="neither bias nor batch norm"):
        one_channel(net, "imagenet:resnet18")
    equal = imagenet("resnet18", mean=(0.45, 0.45, 0.45))  # no place is needed
    change(equal)
    assert one_channel(equal, "imagenet:resnet18")[1] == (0.45,)


def test_a_net_that_does_not_name_its_stem_is_refused() -> None:
    net = imagenet("resnet18")
    net.pretrained_cfg["first_conv"] = None
    with pytest.raises(ArtifactError, match="sees the image"):
        one_channel(net, "imagenet:resnet18")
