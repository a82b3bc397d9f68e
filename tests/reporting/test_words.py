"""One wording for page and tables."""

from __future__ import annotations

import pytest

from ssl_mednet.reporting import words
from ssl_mednet.reporting.rows import source_name, without_home

NAN = float("nan")


def test_numbers() -> None:
    assert [words.number(v) for v in (0.91249, 1.0, NAN, None)] == ["0.912", "1.000", "n/a", "n/a"]
    assert [words.signed(v) for v in (0.02, -0.1, NAN)] == ["+0.020", "−0.100", "n/a"]
    assert [words.share(v) for v in (0.01, 0.125, 1.0, NAN)] == ["1\u00a0%", "12.5\u00a0%", "100\u00a0%", "n/a"]
    assert [words.p_value(p) for p in (0.0002, 0.012, 0.5)] == ["p < 0.001", "p = 0.012", "p = 0.50"]
    assert [words.labels_used(*x) for x in ((1.0, None), (0.1, None), (None, 5), (None, None))] == [
        "all",
        "10\u00a0%",
        "5 a class",
        "n/a",
    ]
    assert [words.join(x) for x in ((), ("a",), ("a", "b"), "abc")] == ["", "a", "a and b", "a, b and c"]
    assert words.count(1, "image") == "1 image"
    assert words.count(1092, "class", "classes") == "1,092 classes"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("evaluate --weights /home/anna/runs/gray", "evaluate --weights ~/runs/gray"),
        ("/Users/bob/x /root/y", "~/x ~/y"),
        ("C:\\Users\\eve\\x", "~\\x"),
        ("/data/home/anna", "/data/home/anna"),
    ],
)
def test_nobody_is_named_by_a_path(said: str, shown: str) -> None:
    assert without_home(said) == shown


def test_sources_are_named_without_their_place() -> None:
    assert source_name("/data/brain.zip") == "brain.zip"
    assert source_name("medmnist:bloodmnist?size=64&root=/home/anna") == "medmnist:bloodmnist?size=64"
    assert source_name("phantoms:gray") == "phantoms:gray"
