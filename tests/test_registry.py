"""Names, nearest names, plug-ins that load and plug-ins that do not."""

from __future__ import annotations

import importlib.metadata

import pytest

from ssl_mednet.errors import RecipeError
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
