"""Our differentiable JPEG against the real one."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from scipy.fft import dctn

from ssl_mednet.augment.physics.jpeg import JPEG, _cosine, _transform, quantisation_steps
from ssl_mednet.imaging.phantoms import phantom


def pictures(channels: int, height: int = 64, width: int = 64, n: int = 4) -> torch.Tensor:
    stack = []
    for i in range(n):
        pixels = phantom("color" if channels == 3 else "gray", (0, 1, 2, 4)[i % 4] if channels == 3 else 0, 96, i)
        stack.append(torch.tensor(pixels.image.pixels[:height, :width].astype(np.float32)).permute(2, 0, 1) / 255)
    return torch.stack(stack)


def coded(image: torch.Tensor, quality: int) -> torch.Tensor:
    """PIL's own: ``[C, H, W]`` through a file."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(
        buffer, "JPEG", quality=quality, subsampling=0
    )
    back = np.atleast_3d(np.array(Image.open(buffer)))
    return torch.tensor(back).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
@pytest.mark.parametrize("size", [(64, 64), (61, 44)])
def test_it_is_pils(channels: int, quality: int, size: tuple[int, int]) -> None:
    x = pictures(channels, *size)
    ours = JPEG().change(x, {"quality": torch.full((len(x),), float(quality))})
    theirs = torch.stack([coded(i, quality) for i in x])
    damage = (theirs - x).abs().mean()
    assert damage > 1e-3  # coding did something
    # libjpeg also rounds Y, Cb, Cr and the result to 8 bits, which now and then turns a coefficient over.
    assert (ours - theirs).abs().mean() * 255 < (0.5 if channels == 1 else 1.25)
    assert (ours - theirs).abs().mean() < (0.35 if quality <= 75 else 0.55) * damage
    assert (ours - theirs).mean(dim=(0, 2, 3)).abs().max() * 255 < 0.5


def test_tables_are_those_in_pils_files() -> None:
    for quality in (1, 12, 30, 49, 50, 73, 95, 99):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
        opened = Image.open(buffer)
        assert isinstance(opened, JpegImageFile)
        ours = quantisation_steps(torch.tensor([float(quality)]), True)[0]
        for channel, table in ((0, 0), (1, 1), (2, 1)):
            assert ours[channel].flatten().int().tolist() == list(opened.quantization[table])


def test_the_transform_is_scipys_cosine_transform() -> None:
    x = torch.randn(2, 3, 16, 24)
    ours = _transform(x, _cosine(x.device))
    for block_y in range(2):
        for block_x in range(3):
            window = np.s_[:, :, 8 * block_y : 8 * block_y + 8, 8 * block_x : 8 * block_x + 8]
            expected = dctn(x[window].numpy(), axes=(2, 3), norm="ortho")
            np.testing.assert_allclose(ours[window].numpy(), expected, atol=1e-5)


@given(st.integers(9, 30), st.integers(9, 30), st.integers(20, 99), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_each_row_has_its_own_quality(height: int, width: int, quality: int, seed: int) -> None:
    x = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(seed))
    together = JPEG().change(x, {"quality": torch.tensor([float(quality), 30.0, 90.0])})
    alone = JPEG().change(x[:1], {"quality": torch.tensor([float(quality)])})
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)
    assert together.shape == x.shape


def test_worse_quality_does_more_damage() -> None:
    x = pictures(3)
    damage = [
        (JPEG().change(x, {"quality": torch.full((4,), float(q))}) - x).abs().mean().item()
        for q in (95, 80, 60, 40, 20)
    ]
    assert damage == sorted(damage)
    assert damage[-1] > 2.5 * damage[0]


def test_gradients_pass_as_if_nothing_were_rounded() -> None:
    x = (0.3 + 0.4 * torch.rand(2, 3, 16, 16)).requires_grad_()
    weight = torch.randn(2, 3, 16, 16)
    (JPEG().change(x, {"quality": torch.tensor([40.0, 90.0])}) * weight).sum().backward()
    inner = JPEG().change(x.detach(), {"quality": torch.tensor([40.0, 90.0])})
    open_ = ((inner > 0) & (inner < 1)).all()
    assert open_
    torch.testing.assert_close(x.grad, weight, atol=1e-4, rtol=0)


def test_quality_100_and_strength_0_code_nothing() -> None:
    x = torch.rand(3, 3, 20, 20)
    assert torch.equal(JPEG().change(x, {"quality": torch.full((3,), 100.0)}), x)
    still = JPEG(strength=0.0)
    assert torch.equal(still.change(x, still.parameters_from(torch.rand(3, 1))), x)


def test_the_range_of_quality_follows_strength() -> None:
    u = torch.tensor([[0.0], [0.5], [1.0]])
    assert JPEG().parameters_from(u)["quality"].tolist() == [30, 62.5, 95]
    assert JPEG(strength=0.5).parameters_from(u)["quality"].tolist() == [65, 81.25, 97.5]
