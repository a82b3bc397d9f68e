"""Methods of someone's own that do not keep to the contract: what they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import SMALL

from ssl_mednet import pretrain
from ssl_mednet.errors import TrainingError
from ssl_mednet.methods import METHODS, Batch, StepOutput


def test_what_a_method_gives_wrongly_is_said_in_its_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = METHODS.get("byol")
    step, init = cls.training_step, cls.__init__

    def grown(self: Any, views: list[torch.Tensor], batch: Batch) -> StepOutput:
        self.queue = torch.cat([self.queue, views[0].new_ones(8)])
        return step(self, views, batch)

    def queued(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self.register_buffer("queue", torch.zeros(0))

    one = torch.ones(())
    for says, wrong in {
        "a Tensor, not a StepOutput": lambda self, views, batch: step(self, views, batch).loss,
        "a loss that is no scalar": lambda self, views, batch: StepOutput(torch.ones(8, requires_grad=True)),
        "a metric 'loss'": lambda self, views, batch: StepOutput(step(self, views, batch).loss, {"loss": one}),
        "the metric 'seen', which": lambda self, views, batch: StepOutput(step(self, views, batch).loss, {"seen": 1.0}),
        r"its buffer 'queue' has the shape \[0\] at the first step and \[8\] now": grown,
    }.items():
        monkeypatch.setattr(cls, "training_step", wrong)
        monkeypatch.setattr(cls, "__init__", queued if wrong is grown else init)
        with pytest.raises(TrainingError, match=says) as caught:
            pretrain(SMALL, out=tmp_path / says[:6], quiet=True)
        assert cls.__name__ in str(caught.value)
