"""Recipes: read from YAML, overridden from the command line, checked section by section and as a whole."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from ssl_mednet.errors import RecipeError, UserError, did_you_mean
from ssl_mednet.schema import BackboneSection, DataSection, MethodSection, Recipe
from ssl_mednet.shipped import find_shipped

B = TypeVar("B", bound=BaseModel)


def load_recipe(source: str | Path | dict[str, Any], overrides: list[str] | None = None) -> Recipe:
    """Read, override and check a recipe.

    Args:
        source: a path, the name of a shipped recipe, or the recipe itself as a dictionary.
        overrides: ``key=value`` with dotted keys, as on the command line; values are YAML.

    Returns:
        The recipe, complete and frozen, with the settings of its method filled in.

    Raises:
        RecipeError: naming the file, the key, what is allowed and the nearest right spelling.
    """
    where, recipe = read_recipe(source, overrides)
    try:
        return _check_together(recipe)
    except UserError as error:
        raise RecipeError(f"{where}: {error.message}", error.hint) from error


def read_recipe(source: str | Path | dict[str, Any], overrides: list[str] | None = None) -> tuple[str, Recipe]:
    """What can be checked of a recipe without importing torch, so that a slip of the pen is told at once.

    Returns:
        The name to call it by, and the recipe section by section; see :func:`load_recipe`.
    """
    where, content = read_yaml(source, "recipes", overrides)
    _let_override_win(content, overrides or [])
    return where, parse(Recipe, content, where)


def _let_override_win(content: dict[str, Any], overrides: list[str]) -> None:
    """The length given on the command line replaces the one in the file, whichever of the two ways it is said."""
    said = {o.partition("=")[0] for o in overrides}
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if f"train.{key}" in said and f"train.{other}" not in said and isinstance(content.get("train"), dict):
            content["train"].pop(other, None)


def read_yaml(
    source: str | Path | dict[str, Any], kind: Literal["recipes", "eval"], overrides: list[str] | None = None
) -> tuple[str, dict[str, Any]]:
    """A YAML file as a dictionary, with interpolations resolved and overrides merged, and the name to call it by."""
    if isinstance(source, dict):
        where = "recipe"
        config: Any = OmegaConf.create(source)
    else:
        path = find_shipped(source, kind)
        where = str(source)
        try:
            config = OmegaConf.load(path)
        except RecursionError as error:
            raise RecipeError(f"{where}: an alias (*NAME) lies within what it stands for, or it is too deep") from error
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            raise RecipeError(f"{where}: is not YAML: {' '.join(str(error).split())}") from error
    if not OmegaConf.is_dict(config):
        raise RecipeError(f"{where}: must hold keys and values, not a {type(config).__name__}")
    try:
        given = OmegaConf.from_dotlist(_check_overrides(overrides or []))
        if kind == "recipes":
            _forget_other_method(config, given)
        config = OmegaConf.merge(config, given)
        content = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, ValueError, YAMLError) as error:
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from error
    assert isinstance(content, dict)
    for key, value in content.items():
        _refuse_non_finite(value, f"{where}: {key!s}")
    return where, {str(k): v for k, v in content.items()}


def _forget_other_method(config: Any, given: Any) -> None:
    """Another method than that of the file begins with its own settings, not those in the file."""
    if isinstance(config.get("method"), str):  # else a setting on the command line would take the place of the name
        config.method = {"name": config.method}
    was, named = (one.get("method") for one in (config, given))
    if OmegaConf.is_dict(was) and OmegaConf.is_dict(named) and named.get("name", was.get("name")) != was.get("name"):
        config.method = {}


def _refuse_non_finite(value: Any, where: str) -> None:
    """No key of a recipe or suite means anything with .inf or .nan, those that are passed on to others included."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where}: must be a finite number, not {value!r}")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        _refuse_non_finite(one, f"{where}.{key}")


def _check_overrides(overrides: list[str]) -> list[str]:
    for text in overrides:
        if "=" not in text or text.startswith("="):
            raise RecipeError(f"{text!r} is no override", "write key=value, for example train.steps=200")
    # A word would take the place of ``method.KEY=VALUE`` before it, and one after it that of the word.
    return [re.sub(r"^method=(?=[\w.-]+$)", "method.name=", text) for text in overrides]


def parse(model: type[B], content: dict[str, Any], where: str, prefix: str = "") -> B:
    """Validate against a schema; the first problem becomes one line that says what is allowed.

    Args:
        where: what to call the file in the message; nothing is said of it where it is empty.
        prefix: the key under which ``content`` stands in the file.

    Raises:
        RecipeError: see above.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _explain(error, model, where, prefix) from error


def _explain(error: ValidationError, model: type[BaseModel], where: str, prefix: str) -> RecipeError:
    # An unknown key is most often the reason for the other problems, so it comes first.
    problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    loc = [str(part) for part in problem["loc"]]
    key = ".".join([prefix, *loc] if prefix else loc)
    where = f"{where}: " if where else ""
    if problem["type"] == "extra_forbidden":
        known = list(_section(model, loc[:-1]).model_fields)
        return RecipeError(
            f"{where}unknown key {key!r}", f"{did_you_mean(loc[-1], known)} allowed: {', '.join(known)}".strip()
        )
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = f", not {problem['input']!r}" if not isinstance(problem["input"], dict) else ""
    hint = ""
    if problem["type"] in ("model_type", "dict_type"):
        message = "must hold keys and values"
    if problem["type"] == "literal_error":
        options = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        hint = did_you_mean(str(problem["input"]).lower(), options)
    return RecipeError(f"{where}{key or 'recipe'}: {message}{given}", hint)


def _section(model: type[BaseModel], loc: list[str]) -> type[BaseModel]:
    for part in loc:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return model


def _check_together(recipe: Recipe) -> Recipe:
    """What no single section can know: that method, backbone, data and augmentation fit each other."""
    from ssl_mednet.augment.policy import check_augment
    from ssl_mednet.backbones.factory import backbone_kind, can_checkpoint, check_size, create_backbone, takes
    from ssl_mednet.backbones.optim import check_optimizer
    from ssl_mednet.backbones.whiten import can_whiten
    from ssl_mednet.imaging.modality import CHANNEL_COUNT, modality
    from ssl_mednet.methods import METHODS

    data, backbone = recipe.data, recipe.backbone
    if recipe.train.choose == "probe" and not recipe.monitor.probe:
        raise RecipeError("train.choose 'probe' wants a labelled set", "monitor.probe=SET, or train.choose=rank_me")
    method = METHODS.get(recipe.method.name)
    recipe = with_all_settings(recipe)
    channels = CHANNEL_COUNT[data.channels]
    family = data.source.partition(":")[2].partition("?")[0]
    if data.source.startswith("phantoms:") and family in CHANNEL_COUNT and family != data.channels:
        raise RecipeError(f"data.source {data.source!r} makes {family} images, data.channels is {data.channels!r}")
    if backbone.args.get("in_chans", channels) != channels:
        raise RecipeError(f"backbone.args.in_chans must be {channels}: data.channels is {data.channels!r}")
    if data.modality and modality(data.modality).channels != data.channels and not data.convert:
        raise RecipeError(f"data.modality {data.modality!r} is {modality(data.modality).channels}, not {data.channels}")
    if backbone.weights:
        backbone, data = _started(backbone, data)
    kind = backbone_kind(backbone.name)
    if kind not in method.backbone_kinds:
        wanted = " or ".join(sorted(method.backbone_kinds))
        hint = "for example backbone.name=vit_tiny_patch16_224" if wanted == "vit" else ""
        raise RecipeError(
            f"method {recipe.method.name!r} trains a {wanted}, backbone.name {backbone.name!r} is a {kind}", hint
        )
    if kind == "vit" and data.used_size not in (0, data.image_size):
        raise RecipeError(f"data.used_size is for CNNs; {backbone.name!r} is built for {data.image_size} pixels")
    args = model_args(recipe.model_copy(update={"backbone": backbone}))
    net = create_backbone(backbone.name, args, meta=True)
    for size in (data.image_size, data.used_size or data.image_size):
        check_size(backbone.name, args, size, fixed=bool(backbone.weights))
    for size in {round(data.image_size * view.size) for view in method.views if view.size != 1}:
        if why := takes(net, channels, size):
            said = f"method {recipe.method.name!r}: its views of {size} pixels are not for {backbone.name!r}: {why}"
            raise RecipeError(said, "backbone.args.dynamic_img_size=true where it is a ViT of timm, or a CNN")
    if recipe.optim.cache_chunk and not method.can_split():
        able = ", ".join(name for name in METHODS if METHODS.get(name).can_split())
        raise RecipeError(
            f"optim.cache_chunk: the loss of {recipe.method.name!r} cannot be split", f"it can for: {able}"
        )
    if backbone.checkpoint and not can_checkpoint(net):
        raise RecipeError(f"backbone.checkpoint: timm cannot checkpoint {backbone.name!r}", "leave it out")
    if backbone.last_layer == "whitened" and not can_whiten(net):
        hint = "most EfficientNets, MobileNetV2 and MnasNet do; leave it out"
        said = (
            f"backbone.last_layer: {backbone.name!r} does not end in a pointwise convolution with batch normalisation"
        )
        raise RecipeError(said, hint)
    if recipe.train.strategy == "fsdp" and recipe.optim.cache_chunk:
        raise RecipeError("optim.cache_chunk does not go with train.strategy=fsdp", "use train.strategy=ddp")
    if recipe.train.strategy == "fsdp" and recipe.train.precision == "fp16":
        raise RecipeError("train.precision=fp16 does not go with train.strategy=fsdp", "use bf16 or float32")
    check_optimizer(recipe.optim.name)
    augment = recipe.augment
    check_augment(augment.policy, data.channels, augment.strength, augment.override)
    return recipe.model_copy(update={"backbone": backbone, "data": data})


def with_all_settings(recipe: Recipe) -> Recipe:
    """The same recipe, which also says what its method's settings are where it left them out.

    Raises:
        RecipeError: no such method, or not with these settings.
    """
    from ssl_mednet.methods import METHODS

    config = METHODS.get(recipe.method.name).Config
    if "name" in config.model_fields:
        raise RecipeError(f"method {recipe.method.name!r} has a setting 'name': that is the method's own key")
    settings = parse(config, recipe.method.settings, "", prefix="method")
    _refuse_non_finite(settings.model_dump(), "method")  # its own defaults too: a recipe could not be read again
    filled = {"name": recipe.method.name} | settings.model_dump(mode="json")
    return recipe.model_copy(update={"method": MethodSection.model_validate(filled)})


def _started(backbone: BackboneSection, data: DataSection) -> tuple[BackboneSection, DataSection]:
    """The sections with what the weights bring along: their architecture, and the size at which a CNN of ours is used.

    A larger size than that of the views stays what it was, unless the recipe says another.
    """
    from ssl_mednet.backbones.factory import backbone_kind
    from ssl_mednet.backbones.start import IMAGENET, start_net, used_size

    named = "name" in backbone.model_fields_set or backbone.weights == IMAGENET
    name = backbone.name if named else ""
    own, _ = start_net(backbone.weights, data.channels, data.image_size, name, dict(backbone.args))
    size = used_size(backbone.weights) if backbone_kind(own) == "cnn" else 0
    if size > data.image_size and "used_size" not in data.model_fields_set:
        data = data.model_copy(update={"used_size": size})
    return backbone.model_copy(update={"name": own}), data


def model_args(recipe: Recipe) -> dict[str, Any]:
    """Arguments that make timm build the backbone of a recipe whose backbone is named."""
    from ssl_mednet.backbones.factory import backbone_args
    from ssl_mednet.backbones.start import start_net
    from ssl_mednet.imaging.modality import CHANNEL_COUNT

    backbone, data = recipe.backbone, recipe.data
    extra = dict(backbone.args)
    if backbone.weights:
        return start_net(backbone.weights, data.channels, data.image_size, backbone.name, extra)[1]
    channels = CHANNEL_COUNT[data.channels]
    return backbone_args(backbone.name, channels, data.image_size, backbone.patch_size, backbone.stem, extra)
