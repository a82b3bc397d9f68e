"""The cache: exact pixels in any order, keyed by content, whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_mednet.data.corpus import CorpusSpec, open_corpus
from ssl_mednet.data.schema import is_corpus
from ssl_mednet.files import cache_folder
from ssl_mednet.ingesting import run

GRAY = CorpusSpec("gray", 64)


def pictures(root: Path, sizes: list[tuple[int, int]], bits: int = 8) -> list[np.ndarray]:
    root.mkdir(exist_ok=True)
    generator = np.random.default_rng(1)
    arrays = []
    for i, size in enumerate(sizes):
        kind = np.uint8 if bits == 8 else np.uint16
        array = generator.integers(0, np.iinfo(kind).max, size, dtype=kind)
        Image.fromarray(array).save(root / f"{i}.png")
        arrays.append(array)
    return arrays


def test_pixels_come_back_exactly_in_any_order(tmp_path: Path) -> None:
    arrays = pictures(tmp_path / "set", [(30, 30)] * 7)
    corpus = open_corpus(tmp_path / "set", GRAY, quiet=True)
    order = np.array([6, 0, 3, 3])
    batch = corpus.batch(order)
    assert batch.pixels.dtype == torch.uint8
    assert np.array_equal(batch.pixels.numpy()[:, 0], np.stack([arrays[i] for i in order]))
    assert batch.rows.tolist() == order.tolist()


def test_images_of_several_sizes_lie_on_one_canvas_with_their_border_repeated(tmp_path: Path) -> None:
    arrays = pictures(tmp_path / "set", [(20, 31), (40, 17), (5, 5)])
    corpus = open_corpus(tmp_path / "set", GRAY, quiet=True)
    batch = corpus.batch(np.array([2, 0, 1]))
    assert batch.pixels.shape == (3, 1, 40, 31)
    assert batch.sizes.tolist() == [[5, 5], [20, 31], [40, 17]]
    small = batch.pixels[0, 0].numpy()
    assert np.array_equal(small[:5, :5], arrays[2])
    assert (small[5:, 2] == arrays[2][4, 2]).all()
    assert (small[3, 5:] == arrays[2][3, 4]).all()
    assert corpus.batch(np.array([2])).pixels.shape == (1, 1, 40, 31)  # the canvas does not depend on the batch


def test_sixteen_bits_stay_sixteen_bits_beside_eight(tmp_path: Path) -> None:
    arrays = pictures(tmp_path / "set", [(16, 15), (9, 9)], bits=16)
    Image.fromarray(np.full((7, 7), 200, np.uint8)).save(tmp_path / "set" / "9.png")
    corpus = open_corpus(tmp_path / "set", GRAY, quiet=True)
    batch = corpus.batch(np.arange(3))
    assert np.array_equal(batch.pixels[0, 0, :16, :15].numpy(), arrays[0])
    assert np.array_equal(batch.pixels[1, 0, :9, :9].numpy(), arrays[1])
    torch.testing.assert_close(batch.unit()[2, 0, 0, 0], torch.tensor(200 / 255))
    torch.testing.assert_close(batch.unit()[0, 0, 3, 3], torch.tensor(arrays[0][3, 3] / 65535, dtype=torch.float32))


def test_large_images_are_averaged_down_and_keep_their_shape(tmp_path: Path) -> None:
    pictures(tmp_path / "set", [(200, 100)])
    corpus = open_corpus(tmp_path / "set", GRAY, quiet=True)
    assert corpus.batch(np.array([0])).sizes.tolist() == [[64, 32]]


def test_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    arrays = pictures(tmp_path / "set", [(30, 30), (30, 30), (30, 30)])
    corpus = open_corpus(tmp_path / "set", GRAY, quiet=True)
    mean, std = corpus.statistics(np.array([0, 2]))
    values = np.stack([arrays[0], arrays[2]]) / 255
    assert mean[0] == pytest.approx(values.mean(), abs=1e-4)
    assert std[0] == pytest.approx(values.std(), abs=1e-4)


def test_decoding_happens_once_until_the_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "set", [(8, 8)] * 2)
    first = open_corpus(tmp_path / "set", GRAY, quiet=True)
    monkeypatch.setattr(run, "ingest_opened", lambda *a, **k: pytest.fail("decoded again"))
    assert open_corpus(tmp_path / "set", GRAY, quiet=True).folder == first.folder
    monkeypatch.undo()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "set" / "7.png")
    assert len(open_corpus(tmp_path / "set", GRAY, quiet=True)) == 3
    assert open_corpus(tmp_path / "set", CorpusSpec("gray", 4), quiet=True).folder != first.folder


def test_a_run_stopped_before_its_commit_leaves_no_corpus_and_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "set", [(8, 8)] * 2)
    before = set(filter(is_corpus, (cache_folder() / "corpora").glob("*")))

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_corpus(tmp_path / "set", GRAY, quiet=True)
    assert set(filter(is_corpus, (cache_folder() / "corpora").glob("*"))) == before
    monkeypatch.undo()
    assert len(open_corpus(tmp_path / "set", GRAY, quiet=True)) == 2


@pytest.mark.parametrize("channels", ["gray", "color"])
def test_phantoms_are_a_source_like_any_other(channels: str) -> None:
    corpus = open_corpus(f"phantoms:{channels}?n=60&label=finding", CorpusSpec(channels, 128), quiet=True)
    assert len(corpus) == 60
    assert len(corpus.classes) == 10
    assert {s: len(corpus.rows(s)) for s in ("train", "val", "test")} == {"train": 45, "val": 5, "test": 10}
    assert len(corpus.modalities(corpus.rows())) == 5


def test_pretraining_and_evaluation_share_the_phantoms_they_read() -> None:
    small, large = (open_corpus("phantoms:gray?n=20", CorpusSpec("gray", side), quiet=True) for side in (128, 256))
    assert small.folder == large.folder
    assert open_corpus("phantoms:gray?n=20", CorpusSpec("gray", 32), quiet=True).folder != small.folder


def test_images_without_a_split_are_trained_on_beside_sets_that_have_splits(tmp_path: Path) -> None:
    pictures(tmp_path / "labelled", [(9, 9)] * 3)
    table = "path,label,split\n0.png,a,train\n1.png,b,val\n2.png,b,test\n"
    (tmp_path / "labelled" / "labels.csv").write_text(table)
    pictures(tmp_path / "scans", [(8, 8)] * 2)
    run.ingest([tmp_path / "labelled", tmp_path / "scans"], tmp_path / "corpus", quiet=True)
    corpus = open_corpus(tmp_path / "corpus", GRAY, quiet=True)
    assert [len(corpus.rows(split)) for split in ("train", "val", "test", "all")] == [3, 1, 1, 5]
    assert set(corpus.split[corpus.rows("train")]) == {0, -1}
