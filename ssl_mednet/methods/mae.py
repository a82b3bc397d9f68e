"""Masked autoencoding: hide most patches of an image, let a ViT read the rest and a small decoder paint the hidden."""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from lightly.models.utils import (
    get_at_index,
    initialize_positional_embedding,
    patchify,
    repeat_token,
    set_at_index,
    unpatchify,
)
from pydantic import Field
from torch import Tensor, nn

from ssl_mednet.errors import RecipeError
from ssl_mednet.methods.base import Batch, Method, MethodConfig, StepOutput, View, register_method


class MAEConfig(MethodConfig):
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that is hidden")
    decoder_dim: int = Field(128, gt=0, multiple_of=4, description="width of the decoder")
    decoder_depth: int = Field(2, gt=0, description="number of transformer blocks in the decoder")
    decoder_heads: int = Field(4, gt=0, description="attention heads of the decoder; divides decoder_dim")
    norm_pixels: bool = Field(True, description="predict each patch after its own mean and variance are removed")


@register_method("mae")
class MAE(Method):
    """Reconstruction of hidden patches (He et al. 2022, arXiv 2111.06377).

    The loss is the mean squared error on the hidden patches only (section 3). Gray images are reconstructed in one
    channel. A normalisation after the pooling stays as it began, for the loss does not see it.

    Raises:
        RecipeError: the backbone pools by attention, which no loss on patches would train.
    """

    Config = MAEConfig
    views = (View(scale=(0.5, 1.0), intensity=False),)
    backbone_kinds = frozenset({"vit"})
    paper = "arXiv 2111.06377"

    def __init__(self, backbone: nn.Module, config: MAEConfig) -> None:
        super().__init__(backbone, config)
        vit: Any = backbone
        if vit.attn_pool is not None:
            raise RecipeError(
                "method mae cannot train the backbone's attention pooling", "backbone.args.global_pool=avg"
            )
        vit.fc_norm.requires_grad_(False)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.channels: int = vit.patch_embed.proj.in_channels
        self.num_prefix: int = vit.num_prefix_tokens
        self.num_patches: int = vit.patch_embed.num_patches
        # Nothing is masked inside the encoder (hidden patches never enter it), so its mask token is not trained.
        token = nn.Parameter(torch.zeros(1, 1, vit.embed_dim), requires_grad=False)
        # In a tuple, so that the backbone is not registered (and checkpointed) a second time.
        self._masked = (MaskedVisionTransformerTIMM(backbone, mask_token=token, pos_embed_initialization="skip"),)
        placed = 0 if vit.no_embed_class else self.num_prefix  # prefix tokens that have positions
        initialize_positional_embedding(vit.pos_embed, "sincos", placed)
        self.decoder_embed = nn.Linear(vit.embed_dim, config.decoder_dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=self.num_patches,
            embed_dim=config.decoder_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            num_prefix_tokens=self.num_prefix,
        )
        self.decoder_pred = nn.Linear(config.decoder_dim, self.patch_size**2 * self.channels)

    def training_step(self, views: list[Tensor], batch: Batch) -> StepOutput:
        images = views[0]  # [B, C, H, W]
        keep, hide = self.random_mask(batch)
        encoded = self._masked[0].encode(images, idx_keep=keep)  # [B, 1 + K, D]
        predicted = self.decode(encoded, keep, hide)  # [B, M, P*P*C]
        target = get_at_index(self.targets(images)[0], hide - self.num_prefix)
        loss = nn.functional.mse_loss(predicted.float(), target.float())
        return StepOutput(loss=loss, embedding=encoded[:, self.num_prefix :].detach().mean(1))

    def checkpoint_activations(self) -> None:
        self._masked[0].set_grad_checkpointing(True)

    def random_mask(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Token positions to keep ``[B, prefix + K]`` (prefix tokens always) and to hide ``[B, M]``."""
        kept = max(1, int(self.num_patches * (1 - self.config.mask_ratio)))
        order = batch.draws.uniform("mae_mask", self.num_patches).argsort(dim=1) + self.num_prefix
        prefix = torch.arange(self.num_prefix, device=order.device).expand(len(order), -1)
        return torch.cat([prefix, order[:, :kept]], dim=1), order[:, kept:]

    def decode(self, encoded: Tensor, keep: Tensor, hide: Tensor) -> Tensor:
        """Predicted pixels of the hidden patches, ``[B, M, P*P*C]``."""
        embedded = self.decoder_embed(encoded)
        tokens = repeat_token(self.decoder.mask_token, (len(encoded), self.decoder.sequence_length)).to(embedded.dtype)
        tokens = set_at_index(tokens, keep, embedded)
        return self.decoder_pred(get_at_index(self.decoder(tokens), hide))

    def targets(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches to predict ``[B, N, P*P*C]``, with the mean and deviation that were taken out of each."""
        patches = patchify(images, self.patch_size)
        if not self.config.norm_pixels:
            return patches, torch.zeros_like(patches[..., :1]), torch.ones_like(patches[..., :1])
        mean = patches.mean(-1, keepdim=True)
        std = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        return (patches - mean) / std, mean, std

    @torch.no_grad()
    def pictures(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Original, what the encoder saw, and the reconstruction, with the patch statistics put back."""
        images = views[0]
        keep, hide = self.random_mask(batch)
        predicted = self.decode(self._masked[0].encode(images, idx_keep=keep), keep, hide)
        _, mean, std = self.targets(images)
        hide = hide - self.num_prefix
        patches = patchify(images, self.patch_size)
        seen = set_at_index(patches, hide, torch.zeros_like(predicted))
        predicted = predicted * get_at_index(std, hide) + get_at_index(mean, hide)
        painted = set_at_index(patches, hide, predicted.to(patches.dtype))
        as_images = [unpatchify(p, self.patch_size, self.channels) for p in (patches, seen, painted)]
        return {"reconstruction": torch.stack(as_images, dim=1).flatten(0, 1)}  # [3B, C, H, W], triples
