"""What a recipe may say: a strict schema, read from YAML, overridden from the command line, checked as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from yaml import YAMLError

from ssl_mednet.errors import RecipeError, UserError, did_you_mean
from ssl_mednet.imaging.modality import MODALITIES
from ssl_mednet.shipped import find_shipped

Share = Annotated[float, Field(ge=0, le=1)]
B = TypeVar("B", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class DataSection(Section):
    source: str = Field("phantoms:gray", description="folder, archive, npz, file, or phantoms:gray|color[?n=N&seed=S]")
    channels: Literal["gray", "color"] = Field("gray", description="one channel or three; other images are skipped")
    image_size: int = Field(64, ge=16, le=1024, description="side of the images the backbone sees, pixels")
    used_size: int = Field(
        0, ge=0, le=1024, description="side of those the finished backbone wants (a CNN's may be larger); 0: image_size"
    )
    store_size: int = Field(0, ge=0, description="longest side kept in the cache, pixels; 0: twice image_size")
    modality: str = Field("", description="modality of images that do not say it themselves")
    convert: bool = Field(False, description="turn images of the other kind (gray, color) into this one")
    sampling: Literal["proportional", "sqrt", "balanced", "weights"] = Field(
        "proportional",
        description="how often modalities, and sources within them, come: as n, as its root, alike; weights: stated",
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="share of each modality in the draws, with sampling=weights; those of the corpus when left out",
    )
    split: Literal["train", "all"] = Field("train", description="where the source has splits: what to pretrain on")
    keep: Literal["all", "good"] = Field(
        "all", description="good: no copies and redundant slices, as curate marked them"
    )
    held_out: str = Field("", description="suite whose test images must not be trained on, as gray.yaml")
    allow_contamination: bool = Field(False, description="train although they are there; the weights say so")
    timeout: float = Field(300.0, gt=0, description="seconds to wait for a batch before the run ends and says so")

    @model_validator(mode="after")
    def _weights_fit(self) -> DataSection:
        if self.weights and self.sampling != "weights":
            raise ValueError("weights go with sampling=weights")
        for name in self.weights:
            if name not in MODALITIES:
                raise ValueError(f"weights: {name!r} is no modality; {did_you_mean(name, MODALITIES)}".rstrip("; "))
        return self


class BackboneSection(Section):
    name: str = Field("resnet18", description="any timm model")
    patch_size: int | None = Field(None, gt=0, description="of a ViT; timm's own when left out")
    stem: Literal["auto", "standard", "small"] = Field("auto", description="of a CNN; auto: small below 96 px")
    args: dict[str, Any] = Field({}, description="more arguments for timm.create_model")
    checkpoint: bool = Field(False, description="keep no activations inside blocks: less memory, a third more time")
    weights: str = Field(
        "",
        description="start from these: a run, a name of `list weights`, imagenet[:NAME]; name, patches and stem follow",
    )

    @model_validator(mode="after")
    def _follows_weights(self) -> BackboneSection:
        if self.weights and (self.patch_size is not None or self.stem != "auto"):
            raise ValueError("patch_size and stem are those of the weights; leave them out")
        return self


class MethodSection(BaseModel):
    """The method's name and, beside it, the method's own settings."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "simclr"

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class AugmentSection(Section):
    policy: str = Field(
        "by_modality", description="by_modality: each image by its own; natural: the common set; or a policy's name"
    )
    strength: float = Field(
        0.5, ge=0, le=2, description="0: crop only; 1: the policy as it is; the default is what eval/README.md measured"
    )
    min_crop: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="smallest share of the image a crop keeps; the method's own when left out"
    )
    override: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="what single policies do differently: {xray: {ops: {gamma: {p: 0.5}}}}"
    )


class OptimSection(Section):
    name: str = Field("adamw", description="any optimizer of timm")
    lr: float = Field(1e-3, gt=0, description="peak learning rate, of the whole batch_size unless lr_scaling is given")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none", description="linear: lr * batch_size / base_batch; sqrt: its root; none: lr as it is"
    )
    base_batch: int = Field(256, ge=1, description="batch size that lr is meant for, where lr_scaling is given")
    weight_decay: float = Field(0.05, ge=0, description="not on norms, biases, tokens and positions")
    batch_size: int = Field(256, ge=2, description="images per update, over all processes and accumulation steps")
    accumulate: int = Field(
        1, ge=1, description="passes per update; negatives and BatchNorm see the images of one pass only"
    )
    cache_chunk: int = Field(
        0, ge=0, description="images a forward pass and process; the loss sees the whole batch (GradCache); 0: all"
    )
    warmup: Share = Field(0.05, description="share of the steps in which the rate rises")
    min_lr: Share = Field(0.0, description="share of the peak rate left at the end")
    clip: float = Field(3.0, ge=0, description="largest norm of the gradient; 0: no clipping")
    options: dict[str, Any] = Field({}, description="more arguments for the optimizer")

    @model_validator(mode="after")
    def _divisible(self) -> OptimSection:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}")
        if self.cache_chunk and self.accumulate > 1:
            raise ValueError("give accumulate or cache_chunk, not both: each of them splits the batch")
        return self

    @property
    def peak_lr(self) -> float:
        """The learning rate after scaling (linear: Goyal et al. 2017, arXiv 1706.02677, section 2.1)."""
        power = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[self.lr_scaling]
        return self.lr * (self.batch_size / self.base_batch) ** power


class TrainSection(Section):
    steps: int | None = Field(None, ge=1, description="updates of the weights; give this or epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the data; give this or steps")
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field("auto", description="auto: bf16 where it is fast")
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="auto, cpu, cuda, mps")
    devices: int | Literal["auto"] = Field(
        "auto", description="processes on each node; auto: a process a GPU, one on the CPU"
    )
    nodes: int = Field(1, ge=1, description="machines; started by torchrun, srun, or with MASTER_ADDR and NODE_RANK")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto", description="of several processes; auto: ddp, every process holds all weights; fsdp: a share of them"
    )
    sync_batchnorm: bool = Field(True, description="BatchNorm over all processes, as one process would do it")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    choose: Literal["last", "rank_me", "probe"] = Field(
        "last", description="which weights become the backbone: the last, or those with the best RankMe or probe"
    )
    keep_checkpoints: int = Field(2, ge=1, description="how many of the newest stay")
    max_bad_steps: int = Field(10, ge=1, description="updates in a row without a finite loss that end the run")

    @field_validator("devices", mode="plain")
    @classmethod
    def _number_or_auto(cls, value: Any) -> int | str:
        if value == "auto":
            return "auto"
        if not str(value).isdecimal() or int(value) < 1:
            raise ValueError("must be a number of processes, 1 or more, or auto")
        return int(value)

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self


class MonitorSection(Section):
    every: int = Field(50, ge=1, description="steps between points of the curves")
    pictures: int = Field(8, ge=0, description="images in the pictures (views, reconstructions); 0: none")
    probe: str = Field("", description="labelled set whose train and val rows the frozen encoder is tried on")
    probe_every: int = Field(500, ge=1, description="steps between looks at the frozen encoder (probe, RankMe)")
    probe_images: int = Field(2000, ge=4, description="train rows of the probe at most; half as many val rows")
    probe_kind: Literal["knn", "linear"] = Field("knn", description="20 nearest neighbours, or a linear probe")
    on_collapse: Literal["warn", "stop"] = Field("warn", description="when features collapse; stop keeps a checkpoint")


class Recipe(Section):
    """Everything a pretraining run depends on besides the data itself."""

    name: str = Field("pretraining", pattern=r"^[\w.-]+$")
    data: DataSection = DataSection()
    backbone: BackboneSection = BackboneSection()
    method: MethodSection = MethodSection()
    augment: AugmentSection = AugmentSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    monitor: MonitorSection = MonitorSection()

    @field_validator("method", mode="before")
    @classmethod
    def _method_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def to_yaml(self) -> str:
        """The complete recipe as YAML, as it is written into the run folder; it reads back as the same recipe."""
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json")))


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
        except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
            raise RecipeError(f"{where}: is not YAML: {' '.join(str(error).split())}") from error
    if not OmegaConf.is_dict(config):
        raise RecipeError(f"{where}: must hold keys and values, not a {type(config).__name__}")
    try:
        config = OmegaConf.merge(config, OmegaConf.from_dotlist(_check_overrides(overrides or [])))
        content = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from error
    assert isinstance(content, dict)
    return where, {str(k): v for k, v in content.items()}


def _check_overrides(overrides: list[str]) -> list[str]:
    for text in overrides:
        if "=" not in text or text.startswith("="):
            raise RecipeError(f"{text!r} is no override", "write key=value, for example train.steps=200")
    return overrides


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
        hint = did_you_mean(str(problem["input"]), options)
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
    from ssl_mednet.backbones.factory import backbone_kind, can_checkpoint, create_backbone
    from ssl_mednet.backbones.optim import check_optimizer
    from ssl_mednet.imaging.modality import CHANNEL_COUNT, modality
    from ssl_mednet.methods import METHODS

    data, backbone = recipe.data, recipe.backbone
    if recipe.train.choose == "probe" and not recipe.monitor.probe:
        raise RecipeError("train.choose 'probe' wants a labelled set", "monitor.probe=SET, or train.choose=rank_me")
    method = METHODS.get(recipe.method.name)
    settings = parse(method.Config, recipe.method.settings, "", prefix="method")
    channels = CHANNEL_COUNT[data.channels]
    family = data.source.partition(":")[2].partition("?")[0]
    if data.source.startswith("phantoms:") and family in CHANNEL_COUNT and family != data.channels:
        raise RecipeError(f"data.source {data.source!r} makes {family} images, data.channels is {data.channels!r}")
    if backbone.args.get("in_chans", channels) != channels:
        raise RecipeError(f"backbone.args.in_chans must be {channels}: data.channels is {data.channels!r}")
    if data.modality and modality(data.modality).channels != data.channels and not data.convert:
        raise RecipeError(f"data.modality {data.modality!r} is {modality(data.modality).channels}, not {data.channels}")
    if backbone.weights:
        backbone = _started(backbone, data)
    kind = backbone_kind(backbone.name)
    if kind not in method.backbone_kinds:
        wanted = " or ".join(sorted(method.backbone_kinds))
        hint = "for example backbone.name=vit_tiny_patch16_224" if wanted == "vit" else ""
        raise RecipeError(
            f"method {recipe.method.name!r} trains a {wanted}, backbone.name {backbone.name!r} is a {kind}", hint
        )
    if kind == "vit" and data.used_size not in (0, data.image_size):
        raise RecipeError(f"data.used_size is for CNNs; {backbone.name!r} is built for {data.image_size} pixels")
    net = create_backbone(backbone.name, model_args(recipe.model_copy(update={"backbone": backbone})), meta=True)
    if recipe.optim.cache_chunk and not method.can_split():
        able = ", ".join(name for name in METHODS if METHODS.get(name).can_split())
        raise RecipeError(
            f"optim.cache_chunk: the loss of {recipe.method.name!r} cannot be split", f"it can for: {able}"
        )
    if backbone.checkpoint and not can_checkpoint(net):
        raise RecipeError(f"backbone.checkpoint: timm cannot checkpoint {backbone.name!r}", "leave it out")
    if recipe.train.strategy == "fsdp" and recipe.optim.cache_chunk:
        raise RecipeError("optim.cache_chunk does not go with train.strategy=fsdp", "use train.strategy=ddp")
    if recipe.train.strategy == "fsdp" and recipe.train.precision == "fp16":
        raise RecipeError("train.precision=fp16 does not go with train.strategy=fsdp", "use bf16 or float32")
    check_optimizer(recipe.optim.name)
    augment = recipe.augment
    check_augment(augment.policy, data.channels, augment.strength, augment.override)
    filled = {"name": recipe.method.name} | settings.model_dump(mode="json")
    return recipe.model_copy(update={"method": MethodSection.model_validate(filled), "backbone": backbone})


def _started(backbone: BackboneSection, data: DataSection) -> BackboneSection:
    """The section with the architecture of the weights that it starts from."""
    from ssl_mednet.backbones.start import IMAGENET, start_net

    named = "name" in backbone.model_fields_set or backbone.weights == IMAGENET
    name = backbone.name if named else ""
    own, _ = start_net(backbone.weights, data.channels, data.image_size, name, dict(backbone.args))
    return backbone.model_copy(update={"name": own})


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
