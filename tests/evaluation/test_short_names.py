"""Names for tables: short, and never two alike."""

from __future__ import annotations

from ssl_mednet.evaluation.names import short_names


def test_names_are_short_where_that_is_clear() -> None:
    assert short_names(["runs/gray", "random:resnet10t", "other/ct/backbone", "runs/x [out/b]"]) == {
        "runs/gray": "gray",
        "random:resnet10t": "random:resnet10t",
        "other/ct/backbone": "ct",
        "runs/x [out/b]": "x [out/b]",
    }


def test_names_that_end_alike_are_as_long_as_it_takes() -> None:
    assert list(short_names(["a/gray", "b/gray"]).values()) == ["a/gray", "b/gray"]
    assert list(short_names(["/data/runs/a/backbone", "/data/runs/b/backbone"]).values()) == ["a", "b"]
    assert list(short_names(["/x/1/gray", "/x/2/gray", "/x/ct"]).values()) == ["1/gray", "2/gray", "ct"]
    same = ["runs/gray", "runs/gray/backbone", "./runs/gray"]  # which is one folder, but not one name
    assert list(short_names(same).values()) == same
