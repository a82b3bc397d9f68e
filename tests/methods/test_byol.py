"""The teacher of BYOL: what the moving average touches and what it leaves alone."""

from __future__ import annotations

import torch

from ssl_mednet.backbones import backbone_args, create_backbone
from ssl_mednet.draws import Draws
from ssl_mednet.methods import METHODS, Batch


def make() -> torch.nn.Module:
    cls = METHODS.get("byol")
    return cls(create_backbone("test_resnet", backbone_args("test_resnet", 1, 32)), cls.Config(momentum=0.9))


def test_the_average_moves_parameters_by_the_momentum_and_never_buffers() -> None:
    method = make()
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(1.0)
        for buffer in method.backbone.buffers():
            buffer.add_(1)
    before = {k: v.clone() for k, v in method.teacher_backbone.state_dict().items()}
    method.after_step(0.0)  # at the start of the schedule the momentum is 0.9
    parameters = dict(method.teacher_backbone.named_parameters())
    for name, value in method.teacher_backbone.state_dict().items():
        if name in parameters:
            torch.testing.assert_close(value, before[name] + 0.1)
        else:
            assert torch.equal(value, before[name]), name


def test_the_teacher_follows_its_own_batch_statistics() -> None:
    method = make()
    rows = torch.arange(8)
    views = [torch.randn(8, 1, 32, 32) for _ in range(2)]
    mean = method.teacher_backbone.bn1.running_mean.clone()
    method.training_step(views, Batch(rows, rows * 0, Draws(0, 0, rows), 0, 0.0))
    assert method.teacher_backbone.bn1.training
    assert not torch.equal(method.teacher_backbone.bn1.running_mean, mean)


def test_at_the_end_the_teacher_stands_still() -> None:
    method = make()
    with torch.no_grad():
        next(method.backbone.parameters()).add_(1.0)
    before = next(method.teacher_backbone.parameters()).clone()
    method.after_step(1.0)
    torch.testing.assert_close(next(method.teacher_backbone.parameters()), before)


def test_no_gradient_reaches_the_teacher() -> None:
    method = make()
    assert all(not p.requires_grad for p in method.teacher_backbone.parameters())
    assert all(not p.requires_grad for p in method.teacher_projection_head.parameters())
