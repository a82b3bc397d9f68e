"""Licences: the most restrictive wins, and no row more ever loosens what may be published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_mednet.catalog.licences import CLASSES, Level, Verdict, classify, doubt, roll_up

KNOWN = [
    "CC0-1.0", "PDDL-1.0", "MIT", "Apache-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "ODbL-1.0",
    "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0", "custom:own terms",
    "custom:research only", "", "WTFPL-maybe",
]  # fmt: skip
COUNTS = st.dictionaries(st.sampled_from(KNOWN), st.integers(0, 10**6))


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC0-1.0", "permissive"),
        ("MIT", "permissive"),
        ("CC-BY-3.0", "permissive"),
        ("CC-BY-SA-4.0", "share-alike"),
        ("ODbL-1.0", "share-alike"),
        ("CC-BY-NC-4.0", "nc"),
        ("CC-BY-NC-ND-4.0", "nc"),
        ("CC-BY-ND-4.0", "custom"),
        ("custom:BIMCV-DUA", "custom"),
        ("custom:SUN research DUA", "nc"),
        ("custom:", "unknown"),
        ("", "unknown"),
        ("cc-by-4.0", "permissive"),
        ("CC BY 4.0", "permissive"),
        ("CC0", "permissive"),
        ("odbl-1.0", "share-alike"),
        ("cc-by", "unknown"),
    ],
)
def test_a_licence_has_the_strictest_class_that_fits(licence: str, expected: str) -> None:
    assert classify(licence) == expected


@pytest.mark.parametrize(
    ("counts", "publish"),
    [
        ({}, "any licence"),
        ({"CC0-1.0": 5}, "any licence"),
        ({"CC0-1.0": 5, "CC-BY-3.0": 1}, "CC-BY-4.0"),
        ({"MIT": 1}, "CC-BY-4.0"),
        ({"CC-BY-4.0": 10**6, "CC-BY-SA-3.0": 1}, "CC-BY-SA-4.0"),
        ({"CC-BY-4.0": 10**6, "CC-BY-NC-4.0": 1}, "CC-BY-NC-4.0"),
        ({"CC-BY-4.0": 10**6, "CC-BY-NC-SA-3.0": 1}, "CC-BY-NC-SA-4.0"),
        ({"CC-BY-4.0": 10**6, "CC-BY-NC-ND-4.0": 1}, None),
        ({"CC-BY-SA-4.0": 1, "ODbL-1.0": 1}, None),
        ({"CC-BY-4.0": 1, "ODbL-1.0": 1}, "ODbL-1.0"),
        ({"CC-BY-4.0": 10**6, "": 1}, None),
        ({"CC-BY-4.0": 10**6, "custom:x": 1}, None),
        ({"CC-BY-4.0": 10**6, "custom:x": 0}, "CC-BY-4.0"),
    ],
)
def test_one_row_decides(counts: dict[str, int], publish: str | None) -> None:
    assert roll_up(counts).publish == publish


def test_share_alike_and_non_commercial_cannot_be_satisfied_together() -> None:
    verdict = roll_up({"CC-BY-SA-4.0": 2, "CC-BY-NC-SA-4.0": 3})
    assert verdict.publish is None
    assert "CC-BY-SA-4.0" in verdict.conditions[0]
    assert "CC-BY-NC-SA-4.0" in verdict.conditions[0]


def test_the_rows_that_forbid_something_are_named_with_their_number() -> None:
    verdict = roll_up({"CC-BY-4.0": 7, "CC-BY-NC-4.0": 1200, "custom:BIMCV-DUA": 30, "": 4})
    text = "\n".join(verdict.conditions)
    assert "no commercial use (1,200 images: CC-BY-NC-4.0)" in text
    assert "custom:BIMCV-DUA" in text
    assert "unknown licence: find it before publishing (4 images: none stated)" in text
    assert verdict.rows == {"permissive": 7, "share-alike": 0, "nc": 1200, "custom": 30, "unknown": 4}


def test_spellings_of_one_licence_are_one() -> None:
    verdict = roll_up({"CC-BY-SA-4.0": 2, "cc by-sa 4.0": 3, "odbl-1.0": 0})
    assert verdict.publish == "CC-BY-SA-4.0"
    assert "share alike (5 images: CC-BY-SA-4.0)" in verdict.conditions


def test_a_licence_that_says_nothing_is_doubted() -> None:
    assert [doubt(known) for known in ("", "mit", "custom:own words", "CC BY 4.0")] == [""] * 4
    assert "did you mean 'CC-BY-NC-4.0'?" in doubt("cc-by-nc")
    assert "did you mean 'Apache-2.0'?" in doubt("Apache 2")
    assert "custom:WORDS" in doubt("zzz")


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        roll_up({"MIT": -1})


def words(verdict: Verdict) -> set[str]:
    """Kinds of conditions, without numbers and names of licences."""
    return {c.partition(" (")[0].partition(" of ")[0] for c in verdict.conditions}


@given(COUNTS, COUNTS)
def test_more_rows_never_loosen_a_verdict(first: dict[str, int], more: dict[str, int]) -> None:
    both = {k: first.get(k, 0) + more.get(k, 0) for k in first.keys() | more.keys()}
    before, after = roll_up(first), roll_up(both)
    assert after.level >= before.level
    assert words(before) <= words(after)
    assert before.publish is not None or after.publish is None
    assert all(after.rows[c] >= before.rows[c] for c in CLASSES)


@given(COUNTS)
def test_a_verdict_counts_every_row_once_and_forgets_no_order(counts: dict[str, int]) -> None:
    verdict = roll_up(counts)
    assert sum(verdict.rows.values()) == sum(counts.values())
    assert verdict == roll_up(dict(reversed(counts.items())))
    assert (verdict.level is Level.ASK) == (verdict.publish is None)
