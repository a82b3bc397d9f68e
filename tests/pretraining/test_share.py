"""Settings that would leave an image alone in a pass are refused before anything is read."""

from __future__ import annotations

import pytest

from ssl_mednet.errors import RecipeError
from ssl_mednet.pretraining.share import check_share
from ssl_mednet.pretraining.world import own_worlds
from ssl_mednet.recipe import load_recipe


def check(processes: int, *overrides: str) -> None:
    check_share(load_recipe("simclr_gray.yaml", list(overrides)), own_worlds(processes, 1)[0])


@pytest.mark.parametrize(
    ("processes", "overrides", "says"),
    [
        (1, ["optim.batch_size=4", "optim.accumulate=4"], "one image a pass.*batch_size=8 is the least"),
        (2, ["optim.batch_size=2", "train.sync_batchnorm=false"], "one image a process.*batch_size=4 is the least"),
        (1, ["optim.batch_size=9", "optim.cache_chunk=4"], "last chunk of 9 images has one.*cache_chunk=5 can"),
        (1, ["optim.batch_size=8", "optim.cache_chunk=1"], "last chunk of 8 images has one.*cache_chunk=2 can"),
    ],
)
def test_an_image_alone_is_refused_with_what_can_be_done(processes: int, overrides: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        check(processes, *overrides)


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (1, ["optim.batch_size=8", "optim.accumulate=4"]),
        (2, ["optim.batch_size=2"]),  # BatchNorm sees both
        (1, ["optim.batch_size=9", "optim.cache_chunk=5"]),
        (1, ["optim.batch_size=9", "optim.cache_chunk=16"]),
        (2, ["optim.batch_size=18", "optim.cache_chunk=4"]),
    ],
)
def test_two_images_are_enough(processes: int, overrides: list[str]) -> None:
    check(processes, *overrides)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("swin_tiny_patch4_window7_224", r"of 64 pixels.*backbone\.args\.img_size=64 or data\.image_size=224"),
        ("inception_v3", r"of 64 pixels.*\(data\.image_size=299\)"),
    ],
)
def test_a_net_that_cannot_take_the_images_is_refused_with_what_it_takes(name: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("simclr_gray.yaml", [f"backbone.name={name}", "data.image_size=64"])


def test_the_size_that_is_named_works() -> None:
    load_recipe("simclr_gray.yaml", ["backbone.name=swin_tiny_patch4_window7_224", "backbone.args.img_size=64"])
