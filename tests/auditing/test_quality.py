"""What is worth training on: redundancy, empty frames, copies, and that training honours the marks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from audit_helpers import StackSource, jpeg, picture
from PIL import Image
from test_text import written

from ssl_mednet.auditing import quality
from ssl_mednet.auditing.quality import MARKS, Mark, curate, read_marks, thin
from ssl_mednet.data.corpus import Corpus, CorpusSpec
from ssl_mednet.errors import DataError
from ssl_mednet.ingesting.hashes import perceptual_hash
from ssl_mednet.ingesting.run import ingest, ingest_opened
from ssl_mednet.pretraining.build import recipe_rows
from ssl_mednet.recipe import load_recipe


def slices(count: int, turning_at: int) -> np.ndarray:
    """Hashes of a volume that hardly changes up to a slice and much from there on."""
    still, moving = (np.asarray(picture(i, "mri", 64), dtype=np.float32)[..., None] / 255 for i in (0, 1))
    shares = [0.002 * i if i < turning_at else (i - turning_at + 1) / (count - turning_at) for i in range(count)]
    return np.array([perceptual_hash(still * (1 - s) + moving * s) for s in shares], np.uint64)


def test_slices_that_differ_most_stay() -> None:
    hashes = slices(40, turning_at=28)
    stays = thin(np.full(40, 5), np.arange(40), hashes, 0.25)
    assert stays.sum() == 10
    assert stays[28:].sum() >= 7, "the part that changes has fewer slices, but says more"
    kept = np.bitwise_count(hashes[:, None] ^ hashes[stays][None]).min(axis=1)
    evenly = np.bitwise_count(hashes[:, None] ^ hashes[::4][None]).min(axis=1)
    assert kept.max() < evenly.max(), "no slice is further from what is kept than with every fourth slice"


def test_thinning_knows_volumes_and_leaves_single_images_alone() -> None:
    volume = np.array([7, -1, 3, 7, -1, 3, 7, 7, 3, 3])
    stays = thin(volume, np.arange(10)[::-1], np.zeros(10, np.uint64), 0.5)
    assert stays[volume < 0].all()
    assert (stays[volume == 7].sum(), stays[volume == 3].sum()) == (2, 2)
    assert thin(volume, np.arange(10), np.zeros(10, np.uint64), 1.0).all()
    assert thin(volume, np.arange(10), np.zeros(10, np.uint64), 0.01).sum() == 4, "a volume keeps at least one slice"


def test_marks_name_the_reason(make_corpus) -> None:
    originals = [picture(i, size=128) for i in range(4)]
    text = Image.fromarray((written(Image.new("L", (256, 256), 12), (20, 10)) * 255).astype(np.uint8))
    text.paste(picture(5, size=128), (60, 60))
    corpus = make_corpus([*originals, originals[1], jpeg(originals[2]), Image.new("L", (64, 64), 3), text])
    quality = curate(corpus, quiet=True)
    expected = [0, 0, 0, 0, Mark.EXACT, Mark.NEAR, Mark.EMPTY, Mark.TEXT]
    assert quality.marks.tolist() == expected
    assert quality.keep.tolist() == [True, True, True, True, False, False, False, True]
    assert quality.counts() == {"exact": 1, "near": 1, "empty": 1, "redundant": 0, "text": 1, "held_out": 0}
    assert read_marks(corpus).marks.tolist() == expected


def test_slices_of_a_volume_are_thinned_and_not_called_copies(tmp_path: Path) -> None:
    still, moving = (np.asarray(picture(i, "mri", 64), dtype=np.int16) for i in (0, 1))
    stack = np.stack([still + (moving - still) * i // 60 for i in range(20)]).astype(np.uint8)
    corpus = Corpus(
        ingest_opened([StackSource([stack])], tmp_path / "corpus", CorpusSpec("gray", 64), quiet=True).folder
    )
    assert len(corpus) == 20
    assert not any(curate(corpus, quiet=True).counts().values())
    assert curate(corpus, keep_ratio=0.3, quiet=True).counts()["redundant"] == 14


def test_training_takes_the_good_rows_of_this_very_corpus(make_corpus, tmp_path: Path) -> None:
    pictures = [picture(i) for i in range(6)]
    corpus = make_corpus([*pictures, pictures[0]])
    recipe = load_recipe({"data": {"source": str(corpus.folder), "keep": "good"}})
    with pytest.raises(DataError, match="curate"):
        recipe_rows(recipe, corpus)
    curate(corpus, quiet=True)
    assert recipe_rows(recipe, corpus).tolist() == [0, 1, 2, 3, 4, 5]
    assert len(recipe_rows(load_recipe({"data": {"source": str(corpus.folder)}}), corpus)) == 7
    assert (corpus.folder / MARKS).is_file()
    (tmp_path / "more").mkdir()
    picture(9).save(tmp_path / "more" / "9.png")
    ingest(tmp_path / "more", corpus.folder, workers=1, quiet=True)
    with pytest.raises(DataError, match="another version"):
        recipe_rows(recipe, Corpus(corpus.folder))


def test_embeddings_find_copies_that_a_hash_misses_and_no_different_image(make_corpus) -> None:
    def cut(image: Image.Image) -> Image.Image:
        return jpeg(image.crop((0, 0, image.width - 5, image.height - 5)))

    def darker(image: Image.Image) -> Image.Image:
        return jpeg(Image.fromarray((np.asarray(image) * 0.8).astype(np.uint8)))

    originals = [picture(i, size=96) for i in range(24)]
    corpus = make_corpus([*originals, *map(cut, originals[:12]), *map(darker, originals[12:18])])
    plain, seen = (
        (curate(corpus, weights=weights, quiet=True).marks & Mark.NEAR) > 0 for weights in (None, "baseline:histogram")
    )
    assert not seen[:24].any(), "different images stay"
    assert seen[36:].all()
    assert seen[24:36].sum() >= 9
    assert seen[24:36].sum() >= plain[24:36].sum() + 6
    assert ((read_marks(corpus).marks & Mark.NEAR) > 0).tolist() == seen.tolist()


@pytest.mark.parametrize("ratio", [0, -1, 1.5, float("nan")])
def test_a_ratio_that_is_none_is_refused(ratio: float, make_corpus) -> None:
    with pytest.raises(DataError, match="keep_ratio"):
        curate(make_corpus([picture(0)]), ratio, quiet=True)


def test_text_is_looked_for_once(make_corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours for a million images: a run that is ended keeps what it has, and another ratio asks for nothing new."""
    text = Image.fromarray((written(picture(3, size=256), (20, 10)) * 255).astype(np.uint8))
    corpus, look, looked = make_corpus([picture(0), picture(1), text, picture(2)]), quality.find_text, list[int]()

    def find(gray: np.ndarray) -> object:
        looked.append(1)
        if len(looked) == 4:
            raise KeyboardInterrupt
        return look(gray)

    monkeypatch.setattr(quality, "_PART", 2)
    monkeypatch.setattr(quality, "find_text", find)
    with pytest.raises(KeyboardInterrupt):
        curate(corpus, quiet=True)
    marks = curate(corpus, quiet=True).marks
    assert (len(looked), marks.tolist()) == (6, [0, 0, Mark.TEXT, 0])
    assert curate(corpus, 0.5, quiet=True).marks.tolist() == marks.tolist()
    assert len(looked) == 6
