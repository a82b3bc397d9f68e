"""Masked autoencoding against the paper's definitions."""

from __future__ import annotations

import pytest
import torch

from ssl_mednet.backbones import backbone_args, backbone_kind, create_backbone
from ssl_mednet.draws import Draws
from ssl_mednet.errors import RecipeError
from ssl_mednet.methods import METHODS, Batch

PATCH, SIZE = 8, 32


def make(channels: int = 1, **config: object) -> torch.nn.Module:
    cls = METHODS.get("mae")
    return cls(create_backbone("test_vit", backbone_args("test_vit", channels, SIZE, PATCH)), cls.Config(**config))


def batch(n: int = 4) -> Batch:
    rows = torch.arange(n)
    return Batch(rows, rows * 0, Draws(0, 0, rows), 0, 0.0)


def test_three_of_four_patches_are_hidden_and_the_class_token_never() -> None:
    keep, hide = make().random_mask(batch())
    assert keep.shape == (4, 1 + 4)
    assert hide.shape == (4, 12)
    assert (keep[:, 0] == 0).all()
    together = torch.cat([keep, hide], dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(17).expand(4, -1))
    assert not torch.equal(keep[0], keep[1])  # each image has its own mask


def test_the_loss_is_the_mean_squared_error_on_hidden_patches_only() -> None:
    method, info = make(norm_pixels=False), batch()
    images = torch.randn(4, 1, SIZE, SIZE)
    torch.nn.init.zeros_(method.decoder_pred.weight)
    torch.nn.init.zeros_(method.decoder_pred.bias)
    _, hide = method.random_mask(info)
    patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).reshape(4, 16, -1)
    hidden = patches.gather(1, (hide - 1)[..., None].expand(-1, -1, PATCH * PATCH))
    torch.testing.assert_close(method.training_step([images], info).loss, (hidden**2).mean())


def test_the_encoder_does_not_see_hidden_patches() -> None:
    method, info = make().eval(), batch()
    images = torch.randn(4, 1, SIZE, SIZE)
    keep, hide = method.random_mask(info)
    changed = images.clone()
    for row in range(4):
        patch = int(hide[row, 0]) - 1
        y, x = patch // 4 * PATCH, patch % 4 * PATCH
        changed[row, :, y : y + PATCH, x : x + PATCH] += 5.0
    one, other = (method._masked[0].encode(i, idx_keep=keep) for i in (images, changed))
    assert torch.equal(one, other)


def test_pictures_put_the_patch_statistics_back_and_keep_what_was_seen() -> None:
    for channels in (1, 3):
        method, info = make(channels), batch()
        images = torch.rand(4, channels, SIZE, SIZE) * 3 + 7  # far from zero mean
        triples = method.pictures([images], info)["reconstruction"].view(4, 3, channels, SIZE, SIZE)
        assert torch.equal(triples[:, 0], images)
        seen = triples[:, 1] != 0
        torch.testing.assert_close(triples[:, 2][seen], images[seen])
        # Even an untrained decoder lands near the picture once mean and deviation are back.
        assert (triples[:, 2] - images).abs().mean() < 2.0


def test_the_backbone_is_checkpointed_once() -> None:
    names = make().state_dict()
    assert not [n for n in names if "_masked" in n or n.startswith("masked")]
    assert any(n.startswith("backbone.") for n in names)


def other(name: str, **extra: object) -> torch.nn.Module:
    cls = METHODS.get("mae")
    args = backbone_args(name, 1, SIZE, PATCH, extra={"depth": 1, "embed_dim": 64, "num_heads": 2} | extra)
    return cls(create_backbone(name, args), cls.Config(decoder_depth=1))


@pytest.mark.parametrize(
    "name", ["vit_wee_patch16_reg1_gap_256", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_gap_224"]
)
def test_registers_and_nets_without_a_class_token_train_all_that_has_a_gradient(name: str) -> None:
    method = other(name)
    loss = method.training_step([torch.rand(4, 1, SIZE, SIZE)], batch()).loss
    loss.backward()
    without = {name for name, p in method.named_parameters() if p.requires_grad and p.grad is None}
    assert not without  # or DistributedDataParallel waits for them
    assert method.backbone(torch.rand(2, 1, SIZE, SIZE)).shape == (2, 64)
    positions = method.backbone.pos_embed.reshape(-1, 64)[-16:]  # of the patches
    assert len(positions.unique(dim=0)) == 16


def test_a_pooling_that_no_patch_trains_is_refused_and_so_are_hybrids() -> None:
    with pytest.raises(RecipeError, match=r"attention pooling.*global_pool=avg"):
        other("vit_base_patch16_siglip_224")
    assert other("vit_base_patch16_siglip_224", global_pool="avg").backbone.attn_pool is None
    assert backbone_kind("vit_tiny_r_s16_p8_224") == "cnn"  # its patches are of a feature map
    assert backbone_kind("vit_tiny_patch16_224") == "vit"
