"""Names, nearest names, plug-ins that load and plug-ins that do not."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssl_mednet.augment.ops import MASKS, OPS
from ssl_mednet.augment.policy import POLICIES
from ssl_mednet.backbones import factory
from ssl_mednet.backbones.factory import create_backbone
from ssl_mednet.errors import RecipeError
from ssl_mednet.evaluation.bench import PROTOCOLS
from ssl_mednet.methods import METHODS
from ssl_mednet.registry import Registry


def test_the_decorator_registers_and_returns_the_thing_itself() -> None:
    things: Registry[type] = Registry("thing")

    @things.register("one")
    class One: ...

    assert things.get("one") is One
    assert list(things) == ["one"]
    assert "one" in things


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    things: Registry[int] = Registry("thing")
    things.register("simclr")(1)
    things.register("byol")(2)
    with pytest.raises(RecipeError, match=r"unknown thing 'simcrl' \(did you mean 'simclr'\? known: byol, simclr\)"):
        things.get("simcrl")


def test_a_name_is_taken_once() -> None:
    things: Registry[object] = Registry("thing")

    @things.register("one")
    def first() -> None: ...

    things.register("one")(first)  # the same again is fine
    with pytest.raises(ValueError, match="already registered"):

        @things.register("one")
        def second() -> None: ...


def test_an_entry_point_that_does_not_load_is_named_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        importlib.metadata.EntryPoint("good", "math:pi", "ssl_mednet.things"),
        importlib.metadata.EntryPoint("bad", "no_such_module_here:x", "ssl_mednet.things"),
    ]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: points if group == "ssl_mednet.things" else []
    )
    things: Registry[float] = Registry("thing")
    assert things.get("good") == pytest.approx(3.14159, abs=1e-4)
    assert "no_such_module_here" in things.broken["bad"]
    with pytest.raises(RecipeError, match="does not load"):
        things.get("bad")


def plugins(monkeypatch: pytest.MonkeyPatch, folder: Path, group: str, things: object = None, **modules: str) -> None:
    """Modules, each named by an entry point ``NAME = MODULE:Thing``, ``_`` and what follows left out of the name.

    They import ``things`` from ``registry_of_test``.
    """
    monkeypatch.setitem(sys.modules, "registry_of_test", SimpleNamespace(things=things))
    monkeypatch.syspath_prepend(str(folder))
    points = []
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
        points.append(importlib.metadata.EntryPoint(module.partition("_")[0], f"{module}:Thing", group))
    found = importlib.metadata.EntryPoints(points)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found.select(group=group))


def test_a_name_that_is_taken_and_what_a_failed_module_registered_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    things: Registry[type] = Registry("thing", wanted=lambda item: isinstance(item, type))
    decorated = 'from registry_of_test import things\n@things.register("{}")\nclass Thing: ...\n'
    plugins(
        monkeypatch,
        tmp_path,
        things.group,
        things,
        own="class Thing: ...\n",
        twin_a=decorated.format("twin") + "undefined\n",
        twin_b=decorated.format("twin"),
        licensed="raise SystemExit('no licence')\n",
        module="Thing = 3\n",
    )

    @things.register("own")
    class Own: ...

    assert list(things) == ["own", "twin"]
    assert things.get("own") is Own
    assert things.get("twin").__module__ == "twin_b"
    assert "already registered by" in things.broken["own"]
    assert "twin_a.py:4" in things.broken["twin"]
    assert "no licence" in things.broken["licensed"]
    assert "is no thing" in things.broken["module"]


def test_a_function_whose_decorator_registers_what_it_makes_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    things: Registry[int] = Registry("bound", wanted=lambda item: isinstance(item, int), plural="bounds_of_all")
    text = "from registry_of_test import things\ndef Thing(): ...\nthings.register('{}')(7)\n"
    plugins(
        monkeypatch,
        tmp_path,
        "ssl_mednet.bounds_of_all",
        things,
        seven=text.format("seven"),
        other=text.format("third"),
        eight="def Thing(): ...\n",
    )
    things.register("eight")(8)
    assert things.get("seven") == 7
    assert list(things) == ["eight", "seven", "third"]
    assert "already registered" in things.broken["eight"]
    assert "name the entry point so" in things.broken["other"]
    things._loaded = False  # imported before: the decorator does not come again
    assert things.get("seven") == 7
    assert "seven" not in things.broken


@pytest.mark.parametrize(
    ("registry", "group"),
    [(METHODS, "methods"), (OPS, "augmentations"), (POLICIES, "policies"), (MASKS, "masks"), (PROTOCOLS, "protocols")],
)
def test_groups_are_those_that_contributing_names(registry: Registry[Any], group: str) -> None:
    assert registry.group == f"ssl_mednet.{group}"
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    assert f"ssl_mednet.{group}`" in text or f"`.{group}`" in text


def test_a_backbone_of_another_package_is_found_and_one_that_fails_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    net = (
        "import timm, torch\nfrom timm.models import register_model\nThing = 1\n"
        "class Net(torch.nn.Module):\n"
        "    num_features = 4\n"
        "    def __init__(self, in_chans):\n        super().__init__()\n"
        "        self.c = torch.nn.Conv2d(in_chans, 4, 3)\n"
        "    def forward(self, x):\n        return self.c(x).mean((2, 3))\n"
        "@register_model\ndef net_of_a_test(pretrained=False, num_classes=0, in_chans=3, **more):\n"
        "    return Net(in_chans)\n"
    )
    plugins(monkeypatch, tmp_path, "ssl_mednet.backbones", nets=net, broken="undefined\n")
    with pytest.raises(RecipeError, match="no backbone 'net_of_no_one'"):
        create_backbone("net_of_no_one", {})
    factory.import_plugins.cache_clear()
    assert create_backbone("net_of_a_test", {"in_chans": 1})(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    factory.check_size("net_of_a_test", {"in_chans": 1}, 32)
    assert "broken:Thing" in caplog.text
