"""The collapse alarm: it fires on planted collapses of real runs, says what to try, and can end the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_mednet import pretrain
from ssl_mednet.methods import METHODS
from ssl_mednet.methods.base import Batch, StepOutput
from ssl_mednet.pretraining.alarm import SUSTAINED, Collapsed, CollapseRules

RECIPE: dict[str, Any] = {
    "name": "planted",
    "data": {"source": "phantoms:gray?n=60", "channels": "gray", "image_size": 32},
    "backbone": {"name": "test_resnet"},
    "optim": {"batch_size": 16, "lr": 1e-3},
    "train": {"steps": 48, "device": "cpu", "precision": "float32", "checkpoint_every": 1000},
    "monitor": {"every": 2, "pictures": 0},
}


def without_predictor(self: Any, views: list[torch.Tensor], batch: Batch) -> StepOutput:
    """BYOL that compares the student with itself, with gradients on both sides."""
    h0, h1 = self.backbone(views[0]), self.backbone(views[1])
    z0, z1 = self.projection_head(h0), self.projection_head(h1)
    return StepOutput(loss=-torch.cosine_similarity(z0, z1).mean(), embedding=h0.detach())


def one_point(self: Any, views: list[torch.Tensor], batch: Batch) -> StepOutput:
    """A backbone whose features hardly depend on the image: a thousandth of them is left around their mean."""
    h = self.backbone(views[0])
    h = h.detach().mean(0) + 1e-3 * h
    z = self.projection_head(h)
    return StepOutput(loss=z.pow(2).mean(), embedding=h.detach())


def one_direction(step: Any) -> Any:
    """What ``step`` does, its features losing all directions but one in the course of the run."""

    def training_step(self: Any, views: list[torch.Tensor], batch: Batch) -> StepOutput:
        output = step(self, views, batch)
        assert output.embedding is not None
        h = output.embedding
        mean, lost = h.mean(0), min(1.0, 2 * batch.progress)
        axis = torch.nn.functional.normalize(torch.ones_like(mean), dim=0)
        along = ((h - mean) @ axis)[:, None] * axis
        return StepOutput(output.loss, output.metrics, mean + along + (1 - lost) * (h - mean - along))

    return training_step


def alarms_of(run: Path) -> list[dict[str, Any]]:
    path = run / "alarms.json"
    return json.loads(path.read_text()) if path.exists() else []


def plant(monkeypatch: pytest.MonkeyPatch, name: str, step: Any) -> dict[str, Any]:
    monkeypatch.setattr(METHODS.get(name), "training_step", step)
    return RECIPE | {"method": {"name": name}}


def test_byol_without_predictor_and_stop_gradient_raises_the_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = plant(monkeypatch, "byol", without_predictor)
    pretrain(recipe, out=tmp_path / "run", quiet=True)
    assert [alarm["rule"] for alarm in alarms_of(tmp_path / "run")] == ["head"]
    told = capfd.readouterr().err
    assert told.count("warning: collapse at step") == 1
    assert "stop-gradient" in told


def test_a_backbone_that_gives_one_point_raises_the_alarm_and_stops_where_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = plant(monkeypatch, "simclr", one_point)
    with pytest.raises(Collapsed, match="all images have the same features") as caught:
        pretrain(recipe, out=tmp_path / "run", overrides=["monitor.on_collapse=stop"], quiet=True)
    assert caught.value.exit_code == 5
    (alarm,) = alarms_of(tmp_path / "run")
    assert alarm["rule"] == "point"
    assert 20 <= alarm["step"] < 48
    checkpoint = max((tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    assert torch.load(checkpoint, weights_only=True)["global_step"] == alarm["step"]


def test_features_that_shrink_into_one_direction_raise_the_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = plant(monkeypatch, "byol", one_direction(METHODS.get("byol").training_step))
    pretrain(recipe, out=tmp_path / "run", quiet=True)
    assert [alarm["rule"] for alarm in alarms_of(tmp_path / "run")] == ["directions"]


def test_a_rule_must_hold_for_some_points_after_the_warm_up_and_is_told_once() -> None:
    rules = CollapseRules(warmup=20)
    bad = {"feature_std": 1e-4, "effective_rank": 9.0}
    fine = {"feature_std": 0.8, "effective_rank": 20.0}
    assert rules.judge(1, fine) == {}
    assert all(rules.judge(step, bad) == {} for step in (5, 10, 15))  # warming up
    assert rules.judge(20, bad) == {}
    assert rules.judge(25, fine) == {}  # it recovered
    told = [bool(rules.judge(step, bad)) for step in range(30, 60, 5)]
    assert told == [False] * (SUSTAINED - 1) + [True] + [False] * 3


def test_a_common_mean_or_few_directions_alone_are_no_collapse() -> None:
    healthy = CollapseRules(warmup=20)
    healthy.judge(1, {"feature_std": 0.5, "effective_rank": 16.0})
    mean = {"feature_std": 0.05, "effective_rank": 9.0}  # a masked autoencoder on gray images
    few = {"feature_std": 0.8, "effective_rank": 3.6}  # and on color ones
    assert all(healthy.judge(step, mean) == {} for step in range(20, 60, 5))
    assert all(healthy.judge(step, few) == {} for step in range(60, 100, 5))
    both = [healthy.judge(step, {"feature_std": 0.1, "effective_rank": 2.5}) for step in range(100, 130, 5)]
    assert sum("directions" in told for told in both) == 1
    no_embedding: dict[str, float] = {"loss": 1.0}
    assert healthy.judge(200, no_embedding) == {}


def test_projections_are_judged_against_their_own_start() -> None:
    rest = {"feature_std": 0.8, "effective_rank": 20.0}
    low, fell = CollapseRules(warmup=20), CollapseRules(warmup=20)
    low.judge(1, rest | {"projection_std": 0.4})  # a head that never spread far
    assert all(low.judge(step, rest | {"projection_std": 0.4}) == {} for step in range(20, 60, 5))
    fell.judge(1, rest | {"projection_std": 0.9})
    told = [fell.judge(step, rest | {"projection_std": 0.3}) for step in range(20, 60, 5)]
    assert [list(one) for one in told if one] == [["head"]]


def test_an_alarm_survives_a_checkpoint(tmp_path: Path) -> None:
    from ssl_mednet.pretraining.alarm import CollapseAlarm
    from ssl_mednet.pretraining.curves import Curves

    one = CollapseAlarm(tmp_path, Curves(tmp_path, 2), stop=False)
    one._rules.judge(1, {"feature_std": 0.5, "effective_rank": 16.0})
    one._tell(30, "point", "all images have the same features")
    other = CollapseAlarm(tmp_path, Curves(tmp_path, 2), stop=False)
    other.load_state_dict(one.state_dict())
    other._tell(40, "point", "again")
    assert other.alarms == one.alarms == alarms_of(tmp_path)
    assert other._rules.first == one._rules.first
