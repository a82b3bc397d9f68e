"""What a finished run leaves: the net as others will use it, and what is to be known of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from ssl_mednet.augment.views import resize
from ssl_mednet.backbones.artifact import Preprocessing
from ssl_mednet.backbones.start import Start, averaged, with_inherited
from ssl_mednet.backbones.whiten import whitened
from ssl_mednet.catalog.licences import DISCLAIMER, roll_up
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.data.rotten import Replacements
from ssl_mednet.ingesting.names import told_recipe
from ssl_mednet.progress import Progress
from ssl_mednet.schema import Recipe

_LOOKED_AT, _BATCH = 2048, 32  # images for the last layer; their maps give 18,432 points at 96 px


def finished(
    encoder: nn.Module,
    recipe: Recipe,
    begin: Start | None,
    preprocessing: Preprocessing,
    images: Replacements,
    rows: np.ndarray,
    quiet: bool,
) -> nn.Module:
    """The trained net with what ``backbone.keep_start`` and ``backbone.last_layer`` do to it; a copy if anything.

    Args:
        encoder: on the CPU, where the trainer leaves it.
        images: reads the corpus.
        rows: that were trained on; of those some are looked at, in the proportions of the corpus.

    Raises:
        TrainingError: there is nothing that a last layer could be made from.
    """
    backbone = recipe.backbone
    if begin is not None and backbone.keep_start:
        encoder = averaged(encoder, begin, backbone.keep_start)
    if backbone.last_layer == "whitened":
        seed = recipe.train.seed
        some = np.random.default_rng(seed).permutation(rows)[:_LOOKED_AT]

        def batches() -> Iterator[Tensor]:
            with Progress("last layer", len(some), "img", quiet) as progress:
                for part in np.split(some, range(_BATCH, len(some), _BATCH)):
                    batch = images.batch(part, images.fetch(part))
                    yield preprocessing.normalise(resize(batch, preprocessing.image_size))
                    progress.advance(len(part))

        encoder = whitened(encoder.cpu(), batches(), seed)
    return encoder


def provenance(
    recipe: Recipe,
    corpus: Corpus,
    rows: np.ndarray,
    held_out: dict[str, Any],
    begin: Start | None,
    chosen: dict[str, Any],
) -> dict[str, Any]:
    """Recipe, data, licences and parent, as the artifact tells them.

    Args:
        held_out: what is known of the test images of the suite that the recipe names.
        chosen: which step the weights are of, and why.
    """
    licences = Counter(corpus.column("licence").take(rows).to_pylist())
    verdict = roll_up(licences + Counter({} if begin is None else begin.licences))
    said = told_recipe(recipe.model_dump(mode="json"))
    return {
        "recipe": said,
        "steps": recipe.train.steps,
        "chosen": chosen,
        "data": {
            "source": said["data"]["source"],
            "images": len(rows),
            "modalities": corpus.modalities(rows),
            "fingerprint": corpus.meta["fingerprint"],
            "held_out": held_out if begin is None else with_inherited(held_out, begin.held_out),
            "licences": {licence or "not stated": count for licence, count in licences.most_common()},
            "publishing": [verdict.sentence, *verdict.conditions, DISCLAIMER],
        },
        **({} if begin is None else {"parent": begin.record}),
    }
