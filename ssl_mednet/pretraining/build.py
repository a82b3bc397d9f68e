"""From a recipe to what it names: images, rows, views, backbone and method, precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ssl_mednet.augment.views import ViewMaker
from ssl_mednet.backbones.factory import backbone_kind, create_backbone
from ssl_mednet.backbones.norm import repeat_without_trace, synchronise
from ssl_mednet.backbones.start import Start, load_start
from ssl_mednet.data.corpus import Corpus, CorpusSpec, open_corpus
from ssl_mednet.errors import ArtifactError, DataError, RecipeError
from ssl_mednet.evaluation.suite import SetSection
from ssl_mednet.methods import METHODS, Method, View
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.strategy import is_sharded
from ssl_mednet.pretraining.world import World
from ssl_mednet.recipe import model_args
from ssl_mednet.schema import DataSection, Recipe

ALONE = World()
DEFAULT_EPOCHS = 100.0


def build_module(
    recipe: Recipe, steps: int, mean: tuple[float, ...], std: tuple[float, ...], world: World = ALONE
) -> PretrainModule:
    """Backbone, method and views of a recipe, with weights that depend on the seed only."""
    torch.manual_seed(recipe.train.seed)
    cls = METHODS.get(recipe.method.name)
    backbone, start = create_backbone(recipe.backbone.name, model_args(recipe)), recipe_start(recipe)
    if start is not None:
        backbone.load_state_dict(start.state)  # before the method, which may copy it into a teacher
    method: Method = cls(backbone, cls.Config(**recipe.method.settings))
    if start is not None:
        backbone.load_state_dict(start.state)  # and after it: lightly's masked ViT initialises it anew
    if recipe.backbone.checkpoint:
        method.checkpoint_activations()
    if world.size > 1 and recipe.train.sync_batchnorm:
        synchronise(method, device_kind(recipe))
    if recipe.backbone.checkpoint or recipe.optim.cache_chunk:
        repeat_without_trace(method)  # after other layers have taken the place of those that it watches
    views = build_views(recipe, method.views, mean, std)
    sharded = is_sharded(recipe, world)
    channels_last = backbone_kind(recipe.backbone.name) == "cnn" and not sharded  # only contiguous weights are sharded
    return PretrainModule(recipe, method, views, steps, channels_last, sharded)


def build_views(recipe: Recipe, specs: Sequence[View], mean: tuple[float, ...], std: tuple[float, ...]) -> ViewMaker:
    """What makes the views of a recipe for a method that wants ``specs``."""
    augment = recipe.augment
    if augment.min_crop is not None:
        least = augment.min_crop  # of whole views: small crops of a method that wants some are what they are
        specs = [replace(v, scale=(least, v.scale[1])) if v.size == 1 and least <= v.scale[1] else v for v in specs]
    return ViewMaker(specs, augment.policy, augment.strength, recipe.data.image_size, mean, std, augment.override)


def recipe_start(recipe: Recipe) -> Start | None:
    """The weights that a recipe starts from; None where it starts from random ones."""
    if not recipe.backbone.weights:
        return None
    weights, channels = recipe.backbone.weights, recipe.data.channels
    try:
        return load_start(weights, channels, recipe.backbone.name, model_args(recipe))
    except ArtifactError as error:
        if weights.startswith("imagenet"):
            error.hint += f"; or backbone.weights={channels}-mednet-tiny, which is here"
        raise


def view_statistics(
    corpus: Corpus, rows: np.ndarray, start: Start | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that views are normalised by: those of the images, or those that the first weights know."""
    return corpus.statistics(rows) if start is None else (start.mean, start.std)


def recipe_corpus(recipe: Recipe, quiet: bool) -> Corpus:
    """The images that a recipe pretrains on."""
    data = recipe.data
    spec = CorpusSpec(data.channels, data.store_size or 2 * data.image_size, data.modality, data.convert)
    return open_corpus(data.source, spec, quiet)


def recipe_rows(recipe: Recipe, corpus: Corpus) -> np.ndarray:
    """The rows of its corpus that a recipe pretrains on, in the order of the corpus.

    Raises:
        DataError: only good rows are wanted and nobody has marked them, a set that is to be left out cannot be opened,
            or no row is left.
    """
    rows = corpus.rows(recipe.data.split)
    if recipe.data.keep == "good":
        from ssl_mednet.auditing.quality import read_marks

        rows = rows[read_marks(corpus).keep[rows]]
        if not len(rows):
            raise DataError(f"{corpus.folder}: none of its rows is good", "data.keep=all trains on all of them")
    if recipe.data.leave_out:
        from ssl_mednet.auditing.audit import left_out

        rows = left_out(corpus, labelled_sets(recipe.data, recipe.data.leave_out), rows, quiet=True)
    return rows


def labelled_sets(data: DataSection, sources: Sequence[str]) -> list[SetSection]:
    """Labelled sets whose images are read as those of a recipe's corpus."""
    return [SetSection(source=source, convert=data.convert, modality=data.modality) for source in sources]


def with_weights(recipe: Recipe, corpus: Corpus) -> Recipe:
    """The recipe with the shares of the modalities stated, where it draws by them.

    Raises:
        RecipeError: neither the recipe nor the corpus states them.
    """
    if recipe.data.sampling != "weights" or recipe.data.weights:
        return recipe
    if not corpus.meta["weights"]:
        hint = "data.weights.ct=0.6 data.weights.xray=0.4; or make the corpus with: ssl-mednet ingest --recipe"
        raise RecipeError(f"data.sampling=weights: {corpus.folder} states none", hint)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"weights": corpus.meta["weights"]})})


def with_length(recipe: Recipe, images: int) -> Recipe:
    """The recipe with the number of steps stated."""
    if recipe.train.steps is not None:
        return recipe
    epochs = recipe.train.epochs or DEFAULT_EPOCHS
    steps = max(1, round(epochs * images / recipe.optim.batch_size))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps, "epochs": None})})


def device_kind(recipe: Recipe) -> str:
    """Where a recipe trains: ``"cuda"``, ``"mps"`` or ``"cpu"``; ``auto`` is a GPU of CUDA where there is one.

    Raises:
        RecipeError: this machine does not have it.
    """
    wanted = {"gpu": "cuda"}.get(recipe.train.device, recipe.train.device)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(wanted, True):
        raise RecipeError(f"train.device={recipe.train.device}: torch finds none here", "train.device=auto or cpu")
    if wanted != "auto":
        return wanted
    return "cuda" if there["cuda"] else "cpu"


def processes_wanted(recipe: Recipe) -> int:
    """How many processes a recipe wants on each node.

    Raises:
        RecipeError: more than there are GPUs, or several on a device that only one can use.
    """
    kind, wanted = device_kind(recipe), recipe.train.devices
    there = torch.cuda.device_count() if kind == "cuda" else 1
    if wanted == "auto":
        return there
    if wanted > there and kind != "cpu":
        raise RecipeError(
            f"train.devices={wanted}: there are {there} devices of kind {kind}", "train.device=cpu has more"
        )
    return wanted


def resolve_precision(recipe: Recipe) -> str:
    """Lightning's name of the precision; ``auto`` is bfloat16 where the hardware multiplies it natively."""
    names = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    chosen = recipe.train.precision
    if chosen != "auto":
        return names[chosen]
    device = device_kind(recipe)
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return names["bf16"]
        return names["float32" if recipe.train.strategy == "fsdp" else "fp16"]  # Lightning scales no shared gradients
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return names["bf16" if device == "cpu" and native else "float32"]
