"""What a recipe may say, section by section: keys, ranges and what each is for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ssl_mednet.errors import did_you_mean
from ssl_mednet.imaging.modality import MODALITIES

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class DataSection(Section):
    source: str = Field("phantoms:gray", description="folder, archive, npz, file, or phantoms:gray|color[?n=N&seed=S]")
    channels: Literal["gray", "color"] = Field("gray", description="one channel or three; other images are skipped")
    image_size: int = Field(64, ge=16, le=1024, description="side of the images the backbone sees, pixels")
    used_size: int = Field(
        0,
        ge=0,
        le=1024,
        description="side of those the finished backbone wants (a CNN's may be larger); 0: image_size; "
        "left out: that of backbone.weights where it is larger",
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
        "all", description="good: no copies, redundant slices and test images, as curate marked them"
    )
    leave_out: list[str] = Field(
        default_factory=list,
        description="labelled sets whose val and test images, or near copies, are not trained on; --compare adds some",
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
    keep_start: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the weights started from in the finished ones, tensor by tensor (arXiv 2109.01903): "
        "less is learnt, and less is lost of what was known",
    )

    last_layer: Literal["trained", "whitened"] = Field(
        "trained",
        description="of an EfficientNet; whitened: made anew from what the trained net says of the images before it, "
        "as the loss leaves less in the trained one; for images of many kinds",
    )

    @model_validator(mode="after")
    def _follows_weights(self) -> BackboneSection:
        if self.keep_start and not self.weights:
            raise ValueError("keep_start goes with weights to start from")
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
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda", "gpu", "mps"] = Field(
        "auto", description="auto (a GPU of CUDA, else the CPU), cpu, cuda (or gpu), mps (Apple's; untested)"
    )
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
        "last",
        description="which weights become the backbone: the last, or those with the best RankMe or probe, as trained "
        "(keep_start and last_layer come after)",
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
