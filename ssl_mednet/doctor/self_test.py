"""Ten seconds of the real thing: pretrain on phantoms, stop and resume, and find neighbours with the result."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from ssl_mednet.doctor.checks import Check
from ssl_mednet.errors import UserError

STEPS, BATCH, IMAGES = 8, 32, 200
WORST_AUROC = 0.6  # phantoms of five modalities are told apart far better than this, by chance it is 0.5
WORLD = re.compile(r"((LOCAL_|GROUP_|NODE_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT))$|SLURM_|TORCHELASTIC_")
RECIPE: dict[str, Any] = {
    "name": "doctor",
    "data": {"source": f"phantoms:gray?n={IMAGES}", "channels": "gray", "image_size": 32},
    "backbone": {"name": "test_resnet"},
    "method": {"name": "simclr"},
    "optim": {"batch_size": BATCH},
    "train": {"steps": STEPS, "checkpoint_every": 1000},
    "monitor": {"pictures": 0, "every": 1},
}


def self_test() -> list[Check]:
    """Pretraining, resuming and evaluation; a part that fails is named, and those that need it are left out."""
    with tempfile.TemporaryDirectory(prefix="ssl-mednet-doctor-") as work, _alone():
        checks = []
        for part in (_pretraining, _resuming, _evaluation):
            try:
                checks.append(part(Path(work)))
            except UserError as error:
                checks.append(Check(part.__name__[1:], "fail", error.message, error.hint))
            except Exception as error:  # whatever it is, it is what the user came to see
                checks.append(Check(part.__name__[1:], "fail", f"{type(error).__name__}: {error}"))
            if checks[-1].state == "fail":
                break
        return checks


@contextmanager
def _alone() -> Iterator[None]:
    """Without the variables of launchers: within a job of several processes the test is still one process alone."""
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if WORLD.match(name)]:
            del os.environ[name]
        yield


def _pretraining(work: Path) -> Check:
    from ssl_mednet.pretraining.run import pretrain

    began = time.perf_counter()
    result = pretrain(RECIPE, out=work / "whole", quiet=True)
    said = f"{STEPS} steps of SimCLR in {time.perf_counter() - began:.1f} s, {result.images_per_second:.0f} img/s"
    return Check("pretraining", "ok", said)


def _resuming(work: Path) -> Check:
    from ssl_mednet.pretraining.run import pretrain
    from ssl_mednet.pretraining.stopping import Stopped

    if threading.current_thread() is not threading.main_thread():
        return Check("resuming", "note", "not tried: signals reach the main thread only")
    with _signalled_after(STEPS // 2):
        try:
            pretrain(RECIPE, out=work / "parts", quiet=True)
        except Stopped:
            pass
        else:
            return Check("resuming", "fail", "a signal did not stop the run")
    pretrain(out=work / "parts", resume=True, quiet=True)
    whole, parts = ((work / run / "backbone" / "model.safetensors").read_bytes() for run in ("whole", "parts"))
    if whole != parts:
        hint = "this device computes differently from run to run; a resumed run is as good, but not the same"
        return Check("resuming", "note", "a run that was stopped and resumed ended with other bits", hint)
    return Check("resuming", "ok", "a run that was stopped and resumed ended with the same bits")


@contextmanager
def _signalled_after(step: int) -> Iterator[None]:
    """Ctrl-C, as a person would press it, after so many steps of SimCLR."""
    from ssl_mednet.methods.simclr import SimCLR

    after_step = SimCLR.after_step

    def and_signal(self: SimCLR, progress: float) -> None:
        after_step(self, progress)
        if round(progress * STEPS) == step:
            signal.raise_signal(signal.SIGINT)

    with mock.patch.object(SimCLR, "after_step", and_signal):
        yield


def _evaluation(work: Path) -> Check:
    from ssl_mednet.evaluation.run import evaluate

    more = ["protocols=[knn]", "resamples=0", "gallery=0"]
    source = f"phantoms:gray?n={IMAGES}&label=modality"
    rows = evaluate([str(work / "whole")], data=source, out=work / "results", overrides=more, quiet=True).rows
    auroc = next(row for row in rows if row["protocol"] == "knn")["metrics"]["auroc"]["value"]
    said = f"nearest neighbours tell phantoms apart: AUROC {auroc:.2f}"
    if not auroc > WORST_AUROC:
        return Check("evaluation", "fail", said, "features or neighbours are wrong on this machine: please report it")
    return Check("evaluation", "ok", said)
