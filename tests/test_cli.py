"""The command line as a person meets it: help at once, mistakes in one line, results where they belong."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_mednet.cli import expand_several, main
from ssl_mednet.errors import UserError
from ssl_mednet.listing import listing
from ssl_mednet.recipe import load_recipe

SMALL = [
    "data.source=phantoms:gray?n=60",
    "data.image_size=32",
    "backbone.name=test_resnet",
    "optim.batch_size=8",
    "train.device=cpu",
]


def ssl_mednet(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssl_mednet.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "verb", ["", "pretrain", "evaluate", "finetune", "predict", "export", "ingest", "preview", "list"]
)
def test_every_verb_explains_itself(verb: str) -> None:
    result = ssl_mednet(*filter(None, [verb]), "--help")
    assert result.returncode == 0
    assert "Usage" in result.stdout
    if verb not in ("", "list"):
        assert "Examples" in result.stdout


def test_the_whole_way_from_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = ssl_mednet("pretrain", "--recipe", "simclr_gray.yaml", "--out", str(run), *SMALL, "train.steps=3")
    assert done.returncode == 0, done.stderr
    assert f"ssl-mednet evaluate --weights {run} random:" in done.stdout
    task = "phantoms:gray?n=100&label=modality"
    done = ssl_mednet(
        "evaluate", "--weights", str(run), "random:", "--data", task, "--out", str(tmp_path), "resamples=50"
    )
    assert done.returncode == 0, done.stderr
    assert "AUROC" in done.stdout
    assert len(json.loads((tmp_path / "results.json").read_text())) == 5  # and the largest class


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Runs a verb in this process, which has torch already: what it says on stdout and on stderr."""

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["ssl-mednet", *arguments, "--quiet"])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert end.value.code == (3 if "no/such/set" in arguments else 0), said.err
        return said.out, said.err

    return run


def test_a_folder_of_classes_is_not_tested_on_what_it_trained_on(
    tmp_path: Path, verb: Callable[..., tuple[str, str]]
) -> None:
    """A table before and after, on the training folder itself, whose images are turned to gray for both."""
    folder, rng = tmp_path / "in color", np.random.default_rng(0)
    for i in range(40):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "ab"[i % 2] / f"{i}.png")
    colored = ("--data", str(folder), "--compare", str(folder), "data.convert=true", "data.modality=xray")
    colored = (*colored, 'data.leave_out=["phantoms:gray?n=60&label=modality"]')
    start = ("pretrain", "--recipe", "simclr_gray.yaml", "--out", str(tmp_path / "of color"), *SMALL, "train.steps=2")
    out = verb(*start, *colored)[0]
    assert "pretrained on 28 images" in out  # not on the val and test images of the table
    assert "28 training and 8 test images" in out
    said = load_recipe(tmp_path / "of color" / "recipe.yaml").data.leave_out
    assert said == ["phantoms:gray?n=60&label=modality", str(folder)]


def test_from_images_to_a_classifier_and_its_answers(tmp_path: Path, verb: Callable[..., tuple[str, str]]) -> None:
    """Pretrain with a table before and after, fine-tune, predict: what one verb writes the next one reads."""
    run, model, task = str(tmp_path / "run"), str(tmp_path / "model"), "phantoms:gray?n=100&label=modality&size=32"

    start = ("pretrain", "--recipe", "simclr_gray.yaml", "--out", run, *SMALL, "train.steps=2")
    assert "no/such/set: no such file" in verb(*start, "--compare", "no/such/set")[1]
    assert not (tmp_path / "run").exists()  # told before the training
    assert "vs. 1st" in verb(*start, "--compare", task)[0]
    assert (tmp_path / "run" / "results" / "results.json").is_file()
    assert (
        "on 20 test images"
        in verb("finetune", "-w", run, "-d", task, "-o", model, "--protocol", "linear", "resamples=50")[0]
    )
    assert (tmp_path / "model" / "report.html").is_file()
    out, err = verb("predict", "--model", model, "phantoms:gray?n=10&size=32", "no.png")
    assert out.startswith("file,index,predicted,p_ct,")
    assert "10 images, " in err
    assert "1 refused" in err


def test_every_verb_takes_the_weights_of_the_package_by_name(tmp_path: Path) -> None:
    name, data = "gray-mednet-tiny", "phantoms:gray?n=40&size=96"
    few = ("--out", str(tmp_path / "run"), "train.steps=1", "optim.batch_size=8", "train.device=cpu", "--no-report")
    corpus, model = str(tmp_path / "corpus"), str(tmp_path / "model")
    for arguments, says in (
        (("pretrain", "--recipe", "continue_gray.yaml", "--data", data, f"backbone.weights={name}", *few), "run"),
        (("evaluate", "--weights", str(tmp_path / "run"), name, "--data", data, "gallery=0", "resamples=50"), name),
        (("finetune", "--weights", name, "--data", data, "--out", model, "gallery=0", "resamples=50"), "model:"),
        (("export", name, "--format", "hf", "--out", str(tmp_path / "hf")), "may not be published before"),
        (("ingest", data, "--out", corpus), "ingested: 40 images"),
        (("curate", corpus, "--weights", name), "40"),
        (("audit", corpus, "--against", data, "--weights", name), "exact"),
    ):
        done = ssl_mednet(*arguments)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout
    record = json.loads((tmp_path / "run" / "backbone" / "config.json").read_text())["ssl_mednet"]
    assert record["parent"]["weights"] == name


def test_a_corpus_is_made_added_to_and_pretrained_on(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    out = str(tmp_path / "corpus")
    first = ("ingest", "phantoms:gray?n=40", str(tmp_path / "*.png"), "--out", out, "--size", "32", "--licence")
    done = ssl_mednet(*first, "CC-BY-4.0")
    assert done.returncode == 0, done.stderr
    assert "ingested: 40 images, 40 in all" in done.stdout
    assert "quarantined 1 files" in done.stdout
    again = ssl_mednet(*first, "cc by 4.0")
    assert "was there already: 40 images" in again.stdout
    more = ssl_mednet("ingest", "phantoms:gray?n=9&seed=1", "--out", out, "--source", "more", "--licence", "cc-by")
    assert "ingested: 9 images, 49 in all" in more.stdout
    assert "warning: --licence 'cc-by' is no licence" in more.stderr
    recipe = ("--recipe", "simclr_gray.yaml", "--out", str(tmp_path / "run"), *SMALL[1:], "train.steps=2")
    run = ssl_mednet("pretrain", *recipe, "--data", out, "data.sampling=balanced")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "quarantine.csv").read_text().count("broken.png") == 1
    assert "sampling: balanced" in (tmp_path / "run" / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["pretrain", "--recipe", "mae_gray.yaml", "optim.lrr=1"], 2, "did you mean 'lr'"),
        (["pretrain", "--recipe", "mae_grey.yaml"], 2, "did you mean 'mae_gray.yaml'"),
        (["pretrain", "--recipe", "mae_gray.yaml", "--data", "no/such/folder"], 3, "no/such/folder: no such file"),
        (["pretrain", "--recipe", "mae_gray.yaml", "--data", "a", "b"], 2, "one --data"),
        (["pretrain"], 2, "no recipe given"),
        (["evaluate", "--weights", "nowhere", "--data", "phantoms:gray"], 4, "nowhere: no such folder"),
        (["evaluate", "--data", "phantoms:gray"], 2, "nothing to evaluate"),
        (["evaluate", "--weights", "random:test_resnet", "--data", "no.zip"], 3, "error: no.zip: no such file"),
        (["evaluate", "--suite", "gray.yaml", "--weights", "baseline:pixels", "root=x"], 3, "set $SSL_MEDNET_DATA to"),
        (["evaluate", "--weights", "nowhere", "--data", "phantoms:gray"], 4, "error: nowhere: "),
        (["pretrain", "--resume", "--out", "nowhere"], 2, "nowhere: there is no run, recipe.yaml is missing"),
        (["finetune", "--data", "phantoms:gray"], 2, "takes one --weights"),
        (["predict", "--model", "nowhere", "x.png"], 4, "nowhere: no such folder"),
        (["export", "nowhere", "--format", "timm", "--out", "x"], 4, "nowhere: no such folder"),
        (["list", "backbones", "*nothing*"], 2, "matches"),
        (["list", "recipe"], 2, "there is no list of recipe (did you mean 'recipes'?)"),
        (["ingest", "no/such/folder", "--out", "corpus"], 3, "no/such/folder: no such file"),
        (["ingest", "phantoms:gray?n=3", "--out", "corpus", "--engine", "rey"], 3, "did you mean 'ray'"),
        (["ingest", ".", "--out", "corpus", "--per-patient", "1"], 2, "--per-patient is for catalog:ID"),
        (["ingest", ".", "--out", "corpus", "--from", "."], 2, "--from is for catalog:ID"),
        (["ingest", ".", "--out", "corpus", "--seed", "3"], 2, "--seed is for catalog:ID"),
        (["pretrain", "--recipe", "x" * 300], 3, "File name too long (a shorter name is needed)"),
        (["pretrain", "--recipe", "mae_gray.yaml", "--out", "x" * 300], 3, "File name too long (a shorter name"),
        (["evaluate", "--data", "phantoms:gray", "--weights", "x" * 300], 3, "File name too long (a shorter name"),
        (["predict", "--model", "x" * 300, "x.png"], 3, "File name too long (a shorter name is needed)"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(arguments: list[str], code: int, says: str) -> None:
    result = ssl_mednet(*arguments)
    assert result.returncode == code
    assert says in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "error: /data/big.npz: No space left on device (make room on that disk)\n"),
        (errno.EACCES, "error: /data/big.npz: Permission denied (name another place, or change its permissions)\n"),
    ],
)
def test_what_the_system_refuses_is_a_line(
    number: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**_: object) -> None:
        raise OSError(number, os.strerror(number), "/data/big.npz")

    monkeypatch.setattr("ssl_mednet.cli.app", refused)
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().err) == (3, says)


def test_other_faults_of_the_system_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("ssl_mednet.cli.app", broken)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main()


def test_options_take_several_values_and_leave_overrides_alone() -> None:
    given = ["evaluate", "--weights", "a", "random:", "-d", "x", "y.zip", "seed=1", "--quiet"]
    assert expand_several(given) == [
        "evaluate", "--weights", "a", "--weights", "random:", "-d", "x", "--data", "y.zip", "seed=1", "--quiet",
    ]  # fmt: skip
    assert expand_several(["list", "backbones", "*x*"]) == ["list", "backbones", "*x*"]
    phantom = ["pretrain", "--data", "phantoms:gray?n=3", "train.steps=1"]
    assert expand_several(phantom) == phantom


def test_help_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = ssl_mednet("list", "--help").stdout
    assert all(re.search(rf"\b{what}\b", said) for what in ("protocols", "augmentations", "datasets"))
    said = ssl_mednet("finetune", "--help").stdout
    assert said.count("Required: ") == 3
    assert "train.steps" not in said
    paragraph = said.partition("By default")[2].partition("seed=1")[0]
    assert min(len(line.rstrip()) for line in paragraph.strip().splitlines()[:-1]) > 60  # no line stops early


def test_lists_are_plain_sentences_and_heed_a_pattern() -> None:
    for what in ("recipes", "suites", "protocols", "augmentations"):
        text = "\n".join(listing(what))
        assert not re.search(r"(First|Before it):$", text, re.MULTILINE)
    assert "`" not in "\n".join(listing("protocols") + listing("augmentations"))
    assert "on 8 H100s (eval/scaling.md)." in listing("recipes", "mednet/gray_vit*")[0]
    for pattern in ("sim*", "simc"):
        assert [line.split()[0] for line in listing("methods", pattern)] == ["simclr"]
    assert any(line.startswith("resnet50") for line in listing("backbones", "resnet50"))
    with pytest.raises(UserError, match="none of the methods matches 'x'"):
        listing("methods", "x")


@pytest.mark.parametrize("what", ["recipes", "suites", "methods", "policies", "modalities", "backbones", "datasets"])
def test_lists_have_a_line_on_each(what: str) -> None:
    lines = listing(what)
    assert len(lines) >= 2
    if what != "backbones":
        assert all(len(line.split("  ", 1)[-1].strip()) > 10 for line in lines)
