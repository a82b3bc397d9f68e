"""What goes wrong inside a run and around it: each is counted, named, and costs as little as it can."""

from __future__ import annotations

import ast
import csv
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from killed import differences
from PIL import Image
from pytorch_lightning.plugins import MixedPrecision
from small import SMALL

import ssl_mednet
from ssl_mednet import ingest, pretrain
from ssl_mednet.data.loader import BatchStream
from ssl_mednet.errors import DataError, Hung, TrainingError
from ssl_mednet.methods import METHODS, Batch, StepOutput
from ssl_mednet.pretraining.build import build_module, recipe_corpus
from ssl_mednet.pretraining.checkpoints import last_checkpoint, write_checkpoint
from ssl_mednet.pretraining.faults import BadSteps
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.replay import replay
from ssl_mednet.recipe import load_recipe


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], factor: float = math.nan) -> None:
    """Batches of these numbers give a loss that is no number."""
    cls = METHODS.get("byol")
    step = cls.training_step

    def spoiled(self: Any, views: list[torch.Tensor], batch: Batch) -> StepOutput:
        output = step(self, views, batch)
        return StepOutput(output.loss * factor if batch.step in steps else output.loss, {}, output.embedding)

    monkeypatch.setattr(cls, "training_step", spoiled)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def everything(module: PretrainModule) -> dict[str, torch.Tensor]:
    """Weights, teacher, buffers, moments."""
    optimizer = module.trainer.optimizers[0]
    moments = {f"{i}.{k}": v for i, s in enumerate(optimizer.state.values()) for k, v in s.items()}
    return {k: v.clone() for k, v in (module.method.state_dict() | moments).items()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_update_without_a_finite_loss_changes_nothing_and_is_counted(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2 * accumulate})  # the first batch of the third update
    states: list[dict[str, torch.Tensor]] = []
    begin = BadSteps.on_train_batch_start

    def watched(self: BadSteps, trainer: pl.Trainer, module: PretrainModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % accumulate == 0:
            states.append(everything(module))
        begin(self, trainer, module, batch, batch_idx)

    monkeypatch.setattr(BadSteps, "on_train_batch_start", watched)
    result = pretrain(SMALL, out=tmp_path / "run", overrides=[f"optim.accumulate={accumulate}"], quiet=True)
    assert result.skipped_steps == 1
    same = [
        one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
        for one, two in itertools.pairwise(states)
    ]
    assert same == [False, False, True, False, False]
    counted = {row["step"]: row["skipped_steps"] for row in rows_of(result.folder)}
    assert [counted[step] for step in "123456"] == ["0", "0", "1", "1", "1", "1"]


def test_a_run_with_a_skipped_update_resumes_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2, 3})
    pretrain(SMALL, out=tmp_path / "whole", quiet=True)
    pretrain(SMALL, out=tmp_path / "parts", quiet=True)
    for path in ("step_000006.ckpt", "step_000006.ckpt.sha256"):  # as if killed between the two, before the last
        (tmp_path / "parts" / "checkpoints" / path).unlink()
    pretrain(out=tmp_path / "parts", resume=True, quiet=True)
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "parts" / "metrics.csv").read_text()
    assert "skipped_steps" in (tmp_path / "whole" / "metrics.csv").read_text()
    kept = [last_checkpoint(tmp_path / run) for run in ("whole", "parts")]
    states = [torch.load(k.path, weights_only=True)["state_dict"] for k in kept if k]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert rows_of(tmp_path / "parts")[-1]["skipped_steps"] == "2"


def test_too_many_in_a_row_stop_with_a_bundle_that_shows_the_first_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {5, 7, 9, 10, 11})  # with two batches an update: the second batch of the third, and so on
    overrides = ["optim.accumulate=2", "train.max_bad_steps=3", "train.steps=8", "train.checkpoint_every=1"]
    with pytest.raises(TrainingError, match=r"3 steps in a row, from step 3 on.*--replay \S+step_3`") as caught:
        pretrain(SMALL, out=tmp_path / "run", overrides=overrides, quiet=True)
    assert caught.value.exit_code == 5
    bundle = tmp_path / "run" / "replay" / "step_3"
    about = json.loads((bundle / "step.json").read_text())
    assert [batch["number"] for batch in about["batches"]] == [4, 5]
    assert [len(batch["rows"]) for batch in about["batches"]] == [4, 4]
    again = replay(bundle, quiet=True)
    assert again.same
    assert math.isfinite(again.then[0])
    assert again.now[0] == again.then[0]  # bit for bit
    assert math.isnan(again.now[1])
    assert len(again.gradients) > 10
    at = last_checkpoint(tmp_path / "run")
    assert at is not None
    assert at.step == 4  # within the bad steps, with the weights from before them: the count goes on from here
    with pytest.raises(TrainingError, match="3 steps in a row, from step 3 on"):
        pretrain(out=tmp_path / "run", resume=True, quiet=True)


def test_a_step_of_a_run_that_began_from_weights_is_shown_as_they_know_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SMALL | {"data": SMALL["data"] | {"source": "phantoms:gray?n=60&seed=5"}}  # images of another mean
    parent = pretrain(other, out=tmp_path / "parent", overrides=["train.steps=1"], quiet=True).folder
    spoil(monkeypatch, {1})  # the second batch of the first update
    overrides = [f"backbone.weights={parent}", "optim.accumulate=2", "train.max_bad_steps=1"]
    with pytest.raises(TrainingError, match="--replay"):
        pretrain(SMALL, out=tmp_path / "run", overrides=overrides, quiet=True)
    again = replay(tmp_path / "run" / "replay" / "step_1", quiet=True)
    assert math.isfinite(again.then[0])
    assert again.now[0] == again.then[0]  # bit for bit


def test_weights_that_blew_up_are_named_where_the_first_number_is_lost(tmp_path: Path) -> None:
    overrides = ["optim.lr=1e30", "optim.warmup=0", "train.max_bad_steps=2"]
    with pytest.raises(TrainingError, match="--replay"):
        pretrain(SMALL, out=tmp_path / "run", overrides=overrides, quiet=True)
    (bundle,) = (tmp_path / "run" / "replay").iterdir()
    again = replay(bundle, quiet=True)
    assert again.same
    assert again.layer.startswith("backbone")
    assert again.layer in str(again)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ssl_mednet.errors.UserError, match="RUN/replay/step_N"):
        replay(tmp_path / "empty")


def test_in_fp16_the_scalers_own_skips_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {2})
    recipe = load_recipe(SMALL)
    corpus = recipe_corpus(recipe, quiet=True)
    module = build_module(recipe, 6, *corpus.statistics(corpus.rows()))
    for parameter in module.method.teacher_backbone.parameters():
        parameter.data.add_(1)  # away from the student, so that a step towards it would be seen
    before = [parameter.detach().clone() for parameter in module.method.parameters()]
    guard = BadSteps(tmp_path, 3, {})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)  # beyond what a gradient of float16 can hold
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        callbacks=[guard],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, BatchStream(corpus, corpus.rows(), 8, seed=0))
    assert trainer.global_step == 4
    assert guard.skipped == 1
    assert scaler.get_scale() == 2.0**56  # halved at all four
    assert all(torch.equal(one, other) for one, other in zip(module.method.parameters(), before, strict=True))


def test_out_of_memory_says_what_takes_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(self: Any, views: list[torch.Tensor], batch: Batch) -> StepOutput:
        return StepOutput(torch.empty(1 << 50).sum())  # 4 PiB: the allocator itself refuses

    monkeypatch.setattr(METHODS.get("byol"), "training_step", greedy)
    with pytest.raises(TrainingError, match=r"out of memory with optim.batch_size=8 .*optim.accumulate=2") as caught:
        pretrain(SMALL, out=tmp_path / "run", quiet=True)
    assert all(knob in caught.value.hint for knob in ("optim.batch_size=4", "train.precision", "data.image_size"))


@pytest.fixture
def corpus_of_pngs(tmp_path: Path) -> Path:
    """A corpus whose rows are PNGs: raw pixels have nothing that could fail to decode."""
    folder = tmp_path / "scans"
    folder.mkdir()
    y, x = np.mgrid[:96, :96]
    for i in range(16):
        picture = (127 + 100 * np.sin(x / (3 + i)) * np.cos(y / 7)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
    return ingest(folder, tmp_path / "corpus", modality="xray", quiet=True).folder


def rot(corpus: Path, count: int) -> None:
    """Overwrite the middle of the first ``count`` PNGs in the corpus' data file."""
    (path,) = (corpus / "data").glob("*.lance")
    content = bytearray(path.read_bytes())
    place = -1
    for _ in range(count):
        place = content.index(b"\x89PNG\r\n\x1a\n", place + 1)
        content[place + 8 : place + 60] = bytes(52)
    path.write_bytes(content)


def test_rows_that_have_rotted_are_stood_in_for_named_and_counted(
    corpus_of_pngs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rot(corpus_of_pngs, 2)
    whole = pretrain(SMALL, corpus_of_pngs, tmp_path / "whole", quiet=True)
    assert whole.rotten == 2
    assert "row 0 cannot be read any more, row 2 stands in for it" in capsys.readouterr().err
    with (whole.folder / "quarantine.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert sorted(row["path"] for row in listed) == [f"{corpus_of_pngs}!row {n}" for n in (0, 1)]
    assert all("row 2 stands in for it" in row["reason"] for row in listed)

    pretrain(SMALL, corpus_of_pngs, tmp_path / "parts", quiet=True)
    for path in ("step_000006.ckpt", "step_000006.ckpt.sha256"):
        (tmp_path / "parts" / "checkpoints" / path).unlink()
    pretrain(out=tmp_path / "parts", resume=True, quiet=True)
    assert differences(whole.folder, tmp_path / "parts") == []
    with (tmp_path / "parts" / "quarantine.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2  # a resumed run names none twice


def test_a_corpus_that_has_rotted_as_a_whole_is_an_error(corpus_of_pngs: Path, tmp_path: Path) -> None:
    rot(corpus_of_pngs, 16)
    with pytest.raises(DataError, match="those after it cannot be read"):
        pretrain(SMALL, corpus_of_pngs, tmp_path / "run", quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to."""
    return pretrain(SMALL, out=tmp_path_factory.mktemp("whole") / "run", quiet=True).folder


@pytest.fixture
def small_disk(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk that takes three checkpoints of the small run and the rest of it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 4 * (whole / "checkpoints" / "step_000006.ckpt").stat().st_size + 2**20
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that takes all the room of a disk but ``leave`` bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, free - leave)))
    return filler


def at_update(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Any]) -> None:
    after_step = METHODS.get("byol").after_step

    def acting(self: Any, progress: float) -> None:
        after_step(self, progress)
        actions.get(round(progress * 6), lambda: None)()

    monkeypatch.setattr(METHODS.get("byol"), "after_step", acting)


@pytest.mark.parametrize("leave", [0, 200_000])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    leave: int, small_disk: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_update(monkeypatch, {3: lambda: fill(small_disk, leave), 5: (small_disk / "filler").unlink})
    run = small_disk / "run"
    pretrain(SMALL, out=run, quiet=True)
    said = capsys.readouterr().err
    assert "checkpoint of step 4 not written: No space left on device" in said
    assert f"the last good one is {run / 'checkpoints' / 'step_000002.ckpt'}" in said
    names = [path.name for path in sorted((run / "checkpoints").glob("*.ckpt"))]
    assert names == ["step_000002.ckpt", "step_000006.ckpt"]
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert (run / "backbone" / "model.safetensors").read_bytes() == (
        whole / "backbone" / "model.safetensors"
    ).read_bytes()


def test_a_disk_still_full_at_the_end_is_an_error_that_says_where_the_state_is(
    small_disk: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_disk / "run"
    with monkeypatch.context() as patch:
        at_update(patch, {3: lambda: fill(small_disk)})
        with pytest.raises(TrainingError, match=r"checkpoint of step 6 not .*the last good one is \S+step_000002"):
            pretrain(SMALL, out=run, quiet=True)
    assert not (run / "backbone").exists()
    (small_disk / "filler").unlink()
    pretrain(out=run, resume=True, quiet=True)
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert not list(run.rglob(".*.partial"))


def test_where_there_is_no_room_for_three_checkpoints_the_oldest_makes_room(small_disk: Path) -> None:
    content = {"tensor": torch.zeros(100_000)}  # 0.4 MB
    for step in (1, 2):
        write_checkpoint(content, small_disk / "checkpoints" / f"step_{step:06d}.ckpt")
    fill(small_disk, leave=200_000)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(content, small_disk / "checkpoints" / "step_000003.ckpt")
    from ssl_mednet.pretraining.checkpoints import WholeFiles

    WholeFiles().save_checkpoint(content, small_disk / "checkpoints" / "step_000003.ckpt")
    names = sorted(path.name for path in (small_disk / "checkpoints").glob("*.ckpt"))
    assert names == ["step_000002.ckpt", "step_000003.ckpt"]


def test_a_loader_that_hangs_ends_the_run_by_name_and_the_run_goes_on_later(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, answer = BatchStream.fetch, threading.Event()

    def hanging(self: BatchStream, step: int, ahead: bool = False) -> Any:
        if step == 4:
            answer.wait()
        return fetch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(BatchStream, "fetch", hanging)
        began = time.monotonic()
        with pytest.raises(Hung, match=r"batch 4 \(rows \d+, .*\) did not come within 1 s.*--resume") as caught:
            pretrain(SMALL, out=tmp_path / "run", overrides=["data.timeout=1"], quiet=True)
        assert time.monotonic() - began < 20
        answer.set()
    assert caught.value.exit_code == 75
    at = last_checkpoint(tmp_path / "run")
    assert at is not None
    assert at.step == 2  # the trainer asks for a batch while the one before waits for its update
    pretrain(out=tmp_path / "run", resume=True, overrides=["data.timeout=300"], quiet=True)
    assert (whole / "metrics.csv").read_text() == (tmp_path / "run" / "metrics.csv").read_text()


def _hang_in_a_decoder(folder: str) -> None:
    """A process whose decoding threads never come back: an ordinary exit would wait for them for ever."""
    import sys

    from ssl_mednet.cli import main
    from ssl_mednet.data.corpus import Corpus

    Corpus.batch = lambda self, rows, fetched=None: self._threads.submit(threading.Event().wait).result()  # type: ignore[method-assign]
    recipe = Path(folder) / "small.json"
    recipe.write_text(json.dumps(SMALL))
    sys.argv = ["ssl-mednet", "pretrain", "-r", str(recipe), "-o", f"{folder}/run", "-q", "data.timeout=1"]
    main()


def test_a_process_whose_threads_hang_still_ends(tmp_path: Path) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=_hang_in_a_decoder, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == 75


def test_a_clock_that_jumps_changes_neither_the_run_nor_its_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(SMALL, out=tmp_path / "whole", quiet=True)
    jumps = itertools.cycle([0.0, 9e8, -9e8, 5.0])
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + next(jumps))
    jumped = pretrain(SMALL, out=tmp_path / "jumped", quiet=True)
    assert (whole.folder / "metrics.csv").read_text() == (jumped.folder / "metrics.csv").read_text()
    assert 0.05 < jumped.images_per_second / whole.images_per_second < 20


def test_rates_and_remaining_times_never_read_the_clock_of_the_wall() -> None:
    package = Path(ssl_mednet.__file__).parent
    sources = [*(package / "pretraining").glob("*.py"), package / "progress.py", package / "data" / "loader.py"]
    assert len(sources) > 10
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            wall = isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "datetime.now")
            assert not wall, f"{source.name}:{node.lineno} reads the time of day"  # type: ignore[attr-defined]
