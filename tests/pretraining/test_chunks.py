"""Large batches in small memory: the same loss and gradients, chunk by chunk or without activations."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from ssl_mednet.backbones import backbone_args, create_backbone
from ssl_mednet.backbones.norm import SyncedBatchNorm, repeat_without_trace
from ssl_mednet.draws import Draws
from ssl_mednet.errors import RecipeError
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.modality import modality
from ssl_mednet.methods import METHODS, Batch, Method, StepOutput
from ssl_mednet.pretraining.build import build_module
from ssl_mednet.pretraining.chunks import step_in_chunks
from ssl_mednet.pretraining.world import World
from ssl_mednet.recipe import load_recipe

IMAGES, CHUNK = 24, 7  # the last chunk is smaller


def build(name: str, net: str, **extra: object) -> Method:
    torch.manual_seed(1)
    patch = 8 if "vit" in net else None
    cls = METHODS.get(name)
    return cls(create_backbone(net, backbone_args(net, 1, 32, patch, extra=extra)), cls.Config())


def info(rows: torch.Tensor) -> Batch:
    return Batch(rows, torch.zeros_like(rows), Draws(0, 0, rows), 0, 0.0)


def stored(count: int) -> ImageBatch:
    pixels = torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8)
    window = torch.tensor([[0.0, 255.0]]).repeat(count, 1)
    codes = torch.full((count,), modality("xray").code)
    return ImageBatch(pixels, torch.full((count, 2), 32), window, codes, torch.arange(count))


def chunked(method: Method, views: list[torch.Tensor]) -> StepOutput:
    def prepare(images: ImageBatch) -> tuple[list[torch.Tensor], Batch]:
        return [view[images.rows] for view in views], info(images.rows)

    return step_in_chunks(method, stored(IMAGES), CHUNK, prepare, info(torch.arange(IMAGES)))


def gradient(method: Method) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def without_batch_norm(method: Method) -> Method:
    """Its heads normalise images, not batches."""
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d):
                setattr(module, name, nn.LayerNorm(child.num_features))
    return method


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS.get(n).can_split()])
def test_chunks_give_the_loss_and_gradients_of_the_whole_batch(name: str) -> None:
    whole = without_batch_norm(build(name, "test_vit"))
    parts = copy.deepcopy(whole)
    views = [torch.randn(IMAGES, 1, 32, 32) for _ in whole.views]
    expected = whole.training_step(views, info(torch.arange(IMAGES)))
    expected.loss.backward()
    found = chunked(parts, views)
    found.loss.backward()
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=0)
    assert apart(gradient(parts), gradient(whole)) < 1e-5
    torch.testing.assert_close(found.embedding, expected.embedding)


def test_dropped_units_are_the_same_ones_the_second_time() -> None:
    """A finite difference of the loss with its random numbers fixed."""
    method = without_batch_norm(build("simclr", "test_vit", drop_path_rate=0.3)).double()
    views = [torch.randn(IMAGES, 1, 32, 32, dtype=torch.float64) for _ in method.views]

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return chunked(method, views).loss

    loss().backward()
    weight = method.projection_head.layers[0].weight
    direction = torch.randn_like(weight)
    slope = float((weight.grad * direction).sum())
    step = 1e-6
    with torch.no_grad():
        weight.add_(step * direction)
        above = float(loss())
        weight.sub_(2 * step * direction)
        below = float(loss())
    assert slope == pytest.approx((above - below) / (2 * step), rel=1e-5)


def test_with_batch_norm_statistics_are_of_a_chunk_and_move_once_a_chunk() -> None:
    method = build("simclr", "test_resnet")
    reference = copy.deepcopy(method)
    repeat_without_trace(method)
    views = [torch.randn(IMAGES, 1, 32, 32) for _ in method.views]
    chunked(method, views).loss.backward()
    embedded = [reference.embed([v[p] for v in views], info(p)) for p in torch.arange(IMAGES).split(CHUNK)]
    reference.compare(tuple(map(torch.cat, zip(*embedded, strict=True))), info(torch.arange(IMAGES))).loss.backward()
    assert apart(gradient(method), gradient(reference)) < 1e-5
    for (name, ours), theirs in zip(method.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


@pytest.mark.parametrize("setting", [f"optim.cache_chunk={CHUNK}", "backbone.checkpoint=true"])
def test_statistics_move_once_where_they_are_of_several_processes_too(setting: str) -> None:
    keys = ["data.image_size=32", "train.device=cpu", "backbone.name=resnet10t", setting]
    recipe = load_recipe("simclr_gray.yaml", keys)
    one, shared = (build_module(recipe, 100, (0.5,), (0.25,), world) for world in (World(), World(0, 2, 0, 2)))
    images = stored(IMAGES)
    for module in (one, shared):
        module.training_step((0, images), 0).backward()
    assert any(isinstance(layer, SyncedBatchNorm) for layer in shared.modules())
    for (name, ours), theirs in zip(shared.named_buffers(), one.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_views_are_made_when_a_chunk_needs_them_and_are_the_same_both_times(precision: str) -> None:
    keys = ["backbone.name=test_vit", "backbone.patch_size=8", "data.image_size=32", f"optim.cache_chunk={CHUNK}"]
    module = build_module(load_recipe("simclr_gray.yaml", [*keys, "train.device=cpu"]), 100, (0.5,), (0.25,))
    made: dict[tuple[int, ...], list[list[torch.Tensor]]] = {}
    held: list[int] = []  # chunks whose views were alive when the next ones were made
    alive: list[weakref.ref[torch.Tensor]] = []

    def remember(maker: nn.Module, inputs: tuple[ImageBatch, Draws], views: list[torch.Tensor]) -> None:
        made.setdefault(tuple(inputs[0].rows.tolist()), []).append([view.clone() for view in views])
        held.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(views[0]))

    module.views.register_forward_hook(remember)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss = module.training_step((3, stored(IMAGES)), 0)
    loss.backward()
    assert [len(times) for times in made.values()] == [2] * len(torch.arange(IMAGES).split(CHUNK))
    assert all(
        torch.equal(one, other) for first, second in made.values() for one, other in zip(first, second, strict=True)
    )
    assert max(held) <= 1


@pytest.mark.parametrize(("name", "net"), [("simclr", "test_resnet"), ("byol", "test_vit"), ("mae", "test_vit")])
def test_without_activations_gradients_and_statistics_are_the_same(name: str, net: str) -> None:
    method = build(name, net)
    reference = copy.deepcopy(method) if name != "mae" else build(name, net)
    method.checkpoint_activations()
    repeat_without_trace(method)
    views, batch = [torch.randn(8, 1, 32, 32) for _ in method.views], info(torch.arange(8))
    kept: dict[str, int] = {}
    for key, one in (("less", method), ("all", reference)):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = one.training_step(views, batch).loss
        kept[key] = sum(sizes)
        loss.backward()
    assert kept["less"] < 0.75 * kept["all"]
    assert apart(gradient(method), gradient(reference)) < 1e-6
    for (buffer, ours), theirs in zip(method.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=buffer)


@pytest.mark.parametrize(
    ("recipe", "overrides", "says"),
    [
        ("byol_gray.yaml", ["optim.cache_chunk=8"], "'byol' cannot be split (it can for: simclr)"),
        ("simclr_gray.yaml", ["optim.cache_chunk=8", "optim.accumulate=2"], "not both"),
        ("simclr_gray.yaml", ["optim.cache_chunk=8", "train.strategy=fsdp"], "does not go with"),
        ("simclr_gray.yaml", ["backbone.name=dla34", "backbone.checkpoint=true"], "timm cannot checkpoint 'dla34'"),
    ],
)
def test_what_does_not_go_together_is_refused(recipe: str, overrides: list[str], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    assert says in str(caught.value)


def test_the_rate_of_a_large_batch() -> None:
    base = ["optim.lr=1e-3", "optim.batch_size=1024", "optim.base_batch=256"]
    scaled = {s: load_recipe("simclr_gray.yaml", [*base, f"optim.lr_scaling={s}"]) for s in ("none", "linear", "sqrt")}
    assert {s: r.optim.peak_lr for s, r in scaled.items()} == pytest.approx(
        {"none": 1e-3, "linear": 4e-3, "sqrt": 2e-3}
    )
