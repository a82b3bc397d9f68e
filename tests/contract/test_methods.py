"""Every registered method, on gray and color, with a CNN and a ViT where it allows: the contract of an objective."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from ssl_mednet.augment.views import ViewMaker
from ssl_mednet.backbones import backbone_args, create_backbone, load_backbone
from ssl_mednet.draws import Draws
from ssl_mednet.imaging.modality import CHANNEL_COUNT
from ssl_mednet.methods import METHODS, Batch, Method
from ssl_mednet.pretraining.run import pretrain
from ssl_mednet.pretraining.stopping import Stopped

NETS = {"cnn": ("test_resnet", None), "vit": ("test_vit", 8)}
SIZE = 32


def _sweep() -> Iterator[tuple[str, str, str]]:
    for name in METHODS:
        for channels in CHANNEL_COUNT:
            for kind in sorted(METHODS.get(name).backbone_kinds):
                yield name, channels, kind


every = pytest.mark.parametrize(("name", "channels", "kind"), list(_sweep()))


def build(name: str, channels: str, kind: str) -> Method:
    torch.manual_seed(1)
    net, patch = NETS[kind]
    cls = METHODS.get(name)
    return cls(create_backbone(net, backbone_args(net, CHANNEL_COUNT[channels], SIZE, patch)), cls.Config())


def batch(n: int) -> Batch:
    rows = torch.arange(n)
    return Batch(rows, torch.zeros(n, dtype=torch.int64), Draws(0, 0, rows), step=0, progress=0.0)


def views_of(method: Method, channels: str, n: int) -> list[torch.Tensor]:
    return [torch.randn(n, CHANNEL_COUNT[channels], round(SIZE * v.size), round(SIZE * v.size)) for v in method.views]


@every
def test_one_step_gives_a_finite_loss_and_a_gradient_to_every_trainable_parameter(
    name: str, channels: str, kind: str
) -> None:
    method = build(name, channels, kind)
    output = method.training_step(views_of(method, channels, 8), batch(8))
    assert output.loss.ndim == 0
    assert torch.isfinite(output.loss)
    output.loss.backward()
    trainable = {n: p for n, p in method.named_parameters() if p.requires_grad}
    assert trainable
    assert [n for n, p in trainable.items() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in trainable.values())
    assert output.embedding is not None
    assert output.embedding.shape[0] == 8
    assert not output.embedding.requires_grad


@every
def test_it_can_overfit_eight_images(name: str, channels: str, kind: str) -> None:
    method = build(name, channels, kind)
    views, info = views_of(method, channels, 8), batch(8)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss = method.training_step(views, info).loss
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / 40)
        losses.append(loss.item())
    assert min(losses[-5:]) < losses[0] - 0.15 * abs(losses[0])


@every
def test_the_step_does_not_depend_on_the_order_of_its_rows(name: str, channels: str, kind: str) -> None:
    method = build(name, channels, kind)
    views, n = views_of(method, channels, 8), 8
    order = torch.randperm(n)
    rows = torch.arange(n)
    shuffled = Batch(rows[order], torch.zeros(n, dtype=torch.int64), Draws(0, 0, rows[order]), 0, 0.0)
    one = method.training_step(views, batch(n)).loss
    other = method.training_step([v[order] for v in views], shuffled).loss
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@every
def test_a_run_stopped_in_the_middle_ends_with_the_same_bits_and_loads_into_plain_timm(
    name: str, channels: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, patch = NETS[kind]
    recipe = {
        "name": "contract",
        "data": {"source": f"phantoms:{channels}?n=60", "channels": channels, "image_size": SIZE},
        "backbone": {"name": net} | ({"patch_size": patch} if patch else {}),
        "method": {"name": name},
        "optim": {"batch_size": 8, "lr": 1e-3},
        "train": {"steps": 6, "checkpoint_every": 100, "device": "cpu", "precision": "float32"},
        "monitor": {"every": 1, "pictures": 2},
    }
    pretrain(recipe, out=tmp_path / "whole", quiet=True)

    cls = METHODS.get(name)
    after_step = cls.after_step

    def stop_after_three(self: Method, progress: float) -> None:
        after_step(self, progress)
        if abs(progress - 0.5) < 1e-6:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cls, "after_step", stop_after_three)
    with pytest.raises(Stopped, match="step 3 of 6"):
        pretrain(recipe, out=tmp_path / "parts", quiet=True)
    monkeypatch.setattr(cls, "after_step", after_step)
    pretrain(out=tmp_path / "parts", resume=True, quiet=True)

    whole, parts = (load_file(tmp_path / run / "backbone" / "model.safetensors") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    curves = [(tmp_path / run / "metrics.csv").read_text() for run in ("whole", "parts")]
    assert curves[0] == curves[1]
    assert len(curves[0].splitlines()) == 7  # a header and six steps

    plain = timm.create_model(f"local-dir:{tmp_path / 'whole' / 'backbone'}", pretrained=True).eval()
    ours = load_backbone(tmp_path / "whole")
    assert plain.state_dict().keys() == whole.keys()
    images = torch.rand(2, CHANNEL_COUNT[channels], SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(plain(images), ours(images))


@every
def test_a_healthy_run_raises_no_alarm_of_collapse(name: str, channels: str, kind: str, tmp_path: Path) -> None:
    net, patch = NETS[kind]
    recipe = {
        "name": "healthy",
        "data": {"source": f"phantoms:{channels}?n=60", "channels": channels, "image_size": SIZE},
        "backbone": {"name": net} | ({"patch_size": patch} if patch else {}),
        "method": {"name": name},
        "optim": {"batch_size": 16, "lr": 1e-3},
        "train": {"steps": 40, "checkpoint_every": 100, "device": "cpu", "precision": "float32"},
        "monitor": {"every": 2, "pictures": 0},
    }
    pretrain(recipe, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "alarms.json").exists()


@every
def test_views_from_the_view_maker_fit(name: str, channels: str, kind: str) -> None:
    method = build(name, channels, kind)
    count = CHANNEL_COUNT[channels]
    maker = ViewMaker(method.views, "by_modality", 1.0, SIZE, [0.5] * count, [0.25] * count)
    assert len(maker.views) == len(method.views)
    assert method.paper or method.__doc__


def test_the_sweep_is_not_empty() -> None:
    assert {"simclr", "byol", "mae"} <= {name for name, _, _ in _sweep()}
