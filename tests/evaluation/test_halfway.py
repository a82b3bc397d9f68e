"""A long fine-tuning run that is killed goes on, to the same scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from finetuning import probe_of, run, several_findings, weights_of

from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.evaluation import finetune as module
from ssl_mednet.evaluation import halfway

OPTIONS = {"epochs": 4, "lr": [1e-3, 3e-3]}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where states are kept, from the first epoch on."""
    monkeypatch.setattr(halfway, "EVERY", 0.0)
    monkeypatch.setattr(halfway, "cache_folder", lambda: tmp_path)
    return tmp_path / "finetuning"


def steps(monkeypatch: pytest.MonkeyPatch, last: int = 10**9) -> list[int]:
    """Note the steps that are done, and be killed at one."""
    done: list[int] = []
    step = STEP

    def counted(self: module.Run, number: int, rows: np.ndarray) -> float:
        if len(done) == last:
            raise KeyboardInterrupt
        done.append(number)
        return step(self, number, rows)

    monkeypatch.setattr(module.Run, "_step", counted)
    return done


STEP = module.Run._step


@pytest.mark.parametrize("net", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("epoch", [1, 2, 4, 6])
def test_a_killed_run_goes_on_to_the_same_scores(
    net: str, epoch: int, kept: Path, task: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of(f"random:{net}")
    for block in weights.model.modules():
        if isinstance(block, torch.nn.Dropout):
            block.p = 0.1  # what is drawn in between must be the same, too
    head = probe_of(weights, task)[0]
    whole_steps = steps(monkeypatch)
    whole = run(weights, task, head=head, or_start=True, **OPTIONS)
    assert not any(kept.iterdir())
    an_epoch = len(whole_steps) // 8
    steps(monkeypatch, last=epoch * an_epoch + 1)
    with pytest.raises(KeyboardInterrupt):
        run(weights, task, head=head, or_start=True, **OPTIONS)
    assert len(list(kept.iterdir())) == (1 if epoch <= 4 else 2)
    again = steps(monkeypatch)
    resumed = run(weights, task, head=head, or_start=True, **OPTIONS)
    assert len(again) == len(whole_steps) - epoch * an_epoch
    assert resumed.history == whole.history
    assert (resumed.best_epoch, resumed.lr) == (whole.best_epoch, whole.lr)
    for split, scores in whole.scores.items():
        assert np.array_equal(resumed.scores[split], scores)
    assert not any(kept.iterdir())


def test_another_run_begins_at_its_beginning(kept: Path, task: LabelledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of("random:test_resnet")
    steps(monkeypatch, last=len(task.splits["train"]) // 32 + 2)
    with pytest.raises(KeyboardInterrupt):
        run(weights, task, epochs=4)
    (state,) = kept.iterdir()
    for number, other in enumerate(
        [
            lambda: run(weights, task, epochs=4, seed=1),
            lambda: run(weights, task, epochs=4, strength=0.1),
            lambda: run(weights, several_findings(task), epochs=4),
            lambda: run(weights_of("random:test_vit"), task, epochs=4),
            lambda: run(weights, task, epochs=4, head=probe_of(weights, task)[0]),
            lambda: run(weights, task, epochs=4, rows=task.splits | {"train": task.splits["train"][1:]}),
        ]
    ):
        done = steps(monkeypatch)
        other()
        assert done[0] == 0, number
    assert [*kept.iterdir()] == [state]
    state.write_bytes(b"damaged")
    done = steps(monkeypatch)
    run(weights, task, epochs=4)
    assert done[0] == 0
    assert not any(kept.iterdir())


def test_a_short_run_writes_nothing(tmp_path: Path, task: LabelledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halfway, "cache_folder", lambda: tmp_path)
    run(weights_of("random:test_resnet"), task)
    assert not any(tmp_path.iterdir())
