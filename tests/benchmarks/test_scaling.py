"""The arithmetic behind eval/scaling.md."""

from __future__ import annotations

import pytest
import scaling
from scaling import Counted, Flagship

from ssl_mednet.recipe import load_recipe


def test_hours_are_flops_over_what_the_gpu_gets_done() -> None:
    assert scaling.gpu_hours(3600, 1, scaling.PEAK, utilisation=0.5) == pytest.approx(2.0)  # a peak second an image


def test_a_ring_moves_almost_twice_the_bytes_and_nothing_for_one_gpu() -> None:
    link = scaling.LINK_SHARE * scaling.NVLINK
    assert scaling.all_reduce_seconds(1e9, 1) == 0
    assert scaling.all_reduce_seconds(1e9, 8) == pytest.approx(2 * 7 / 8 * 1e9 / link + scaling.LATENCY)
    assert scaling.all_reduce_seconds(1e9, 64) > 8 * scaling.all_reduce_seconds(1e9, 8)  # out of the node


def test_all_reduce_hides_behind_the_backward_pass_but_for_the_last_bucket() -> None:
    last = scaling.all_reduce_seconds(scaling.BUCKET, 8)
    assert scaling.exposed_seconds(10.0, 4 * scaling.BUCKET, 8) == pytest.approx(last)
    whole = 4 * last
    assert scaling.exposed_seconds(1e-9, 4 * scaling.BUCKET, 8) == pytest.approx(whole, rel=1e-3)  # nothing to hide in


def test_a_fast_loader_costs_nothing_and_a_slow_one_sets_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "JITTER", 1e-9)
    flagship, counted = Flagship("simclr", "resnet50", "cnn", 1024), Counted(flops=25e9, gradients=1e8)
    fast = scaling.simulate(flagship, counted, 1, 0.1, rate=1e9)
    assert fast.whole == pytest.approx(1024 * 25e9 / (0.1 * scaling.PEAK), rel=1e-6)
    assert fast.loader == pytest.approx(0, abs=1e-9)
    slow = scaling.simulate(flagship, counted, 1, 0.1, rate=1.0)
    assert slow.whole == pytest.approx(1024 / scaling.CORES, rel=0.01)
    assert slow.loader == pytest.approx(slow.whole - slow.compute, rel=0.02)


def test_a_share_in_chunks_costs_a_third_more() -> None:
    counted = Counted(flops=25e9, gradients=1e8)
    whole, chunked = (
        scaling.simulate(Flagship("simclr", "resnet50", "cnn", 1024, chunk), counted, 1, 0.1, rate=1e9).compute
        for chunk in (1024, 512)
    )
    assert chunked == pytest.approx(4 / 3 * whole)


def test_what_is_priced_is_what_ships() -> None:
    recipe, priced = load_recipe("mednet/color.yaml"), scaling.flagships()["SimCLR ResNet-50"]
    assert (priced.method, priced.backbone, priced.kind) == (recipe.method.name, recipe.backbone.name, "cnn")
    assert (priced.batch, priced.settings) == (recipe.optim.batch_size, recipe.method.settings)


def test_without_hold_ups_the_price_is_the_gpu_hours() -> None:
    flagship, counted = Flagship("mae", "vit_small_patch16_224", "vit", 4096), Counted(flops=10e9, gradients=1e8)
    row = scaling.price(flagship, counted, images=3e6, epochs=400, rate=1e9)[0]
    high = scaling.UTILISATION["vit"][1]
    assert row["gpu_hours"][0] == pytest.approx(scaling.gpu_hours(3e6, 400, 10e9, high), rel=0.02)
    assert row["dollars"][0] == pytest.approx(row["gpu_hours"][0] * scaling.PRICE[0])
    assert row["days"][0] == pytest.approx(row["gpu_hours"][0] / 24)


def test_counted_flops_are_those_of_the_architecture() -> None:
    """Two views, each forward and about twice that backward."""
    from ssl_mednet.backbones import backbone_args, create_backbone

    one = scaling.count(Flagship("simclr", "test_resnet", "cnn", 2))
    net = create_backbone("test_resnet", backbone_args("test_resnet", 3, scaling.SIDE))
    assert one.gradients > 4 * sum(p.numel() for p in net.parameters())  # and the head's
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        net(torch.randn(1, 3, scaling.SIDE, scaling.SIDE))
    forward = counter.get_total_flops()
    assert 2 * 2.5 * forward < one.flops < 2 * 3.3 * forward


def test_a_grouped_convolution_counts_its_own_channels_only() -> None:
    shapes = [2, 32, 8, 8], [2, 32, 8, 8], [32, 1, 7, 7]
    depthwise = scaling.convolution_backward_flops(*shapes, [True, True, False])
    assert depthwise == 2 * 2 * (2 * 32 * 8 * 8) * 49  # two gradients, 49 multiplications and additions a pixel
    assert scaling.convolution_backward_flops(*shapes, [False, True, False]) == depthwise / 2


def test_mlperf_is_recomputed_from_its_time() -> None:
    assert scaling.mlperf_utilisation(flops=scaling.PEAK * 60 / 1_281_167, minutes=1, gpus=1, epochs=1) == 1.0
