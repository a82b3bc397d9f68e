"""Plans: the two corpora of three million, what of them was read, their licences; and recipes that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_mednet.catalog.corpus_recipe import Part, Store, read_corpus_recipe
from ssl_mednet.catalog.entries import find_entry
from ssl_mednet.catalog.plan import Plan, expected_images, plan, stored_bytes
from ssl_mednet.catalog.table import plan_lines
from ssl_mednet.errors import RecipeError, UserError
from ssl_mednet.listing import listing
from ssl_mednet.shipped import CORPORA, list_shipped, shipped_folder

SMALL = """
name: small
channels: gray
store: {size: 100}
weights: {xray: 0.5, pet: 0.5}
parts:
  - {catalog: mura}
  - {catalog: kermany_cxr}
  - {catalog: rsna_bone_age}
  - {catalog: idc_naf_prostate_pt, per_patient: 10}
"""


@pytest.fixture(scope="module")
def gray() -> Plan:
    return plan("corpus_gray.yaml")


@pytest.fixture(scope="module")
def color() -> Plan:
    return plan("recipes/mednet/corpus_color.yaml")


@pytest.fixture
def small(tmp_path: Path) -> Plan:
    (tmp_path / "small.yaml").write_text(SMALL)
    return plan(tmp_path / "small.yaml")


def test_gray_reaches_three_million_as_surveyed(gray: Plan) -> None:
    """About 2.98 million in the survey, which reckoned some 20,000 tomosynthesis volumes among the X-rays."""
    assert gray.images == 2_969_623
    by = gray.by(lambda row: row.modality)
    surveyed = {"ct": 0.76, "mri": 0.99, "pet": 0.37, "xray": 0.63, "oct": 0.11, "ultrasound": 0.12}
    assert {m: n / 1e6 for m, n in by.items()} == pytest.approx(surveyed, abs=0.025)


def test_color_reaches_three_million_as_surveyed(color: Plan) -> None:
    assert round(color.images, -4) == 3_360_000
    by = color.by(lambda row: row.modality)
    assert by["histopathology"] == 74_947 * 20 + 107_180
    assert by["endoscopy"] / 1e6 == pytest.approx(0.73, abs=0.005)
    assert by["dermatology"] / 1e6 == pytest.approx(0.48, abs=0.005)
    assert by["blood"] + by["cytology"] == 330_016


def test_every_modality_is_drawn_and_none_more_than_four_times_as_often_as_it_has_images(
    gray: Plan, color: Plan
) -> None:
    for one in (gray, color):
        held = one.by(lambda row: row.modality)
        assert held.keys() == one.recipe.weights.keys()
        assert all(3e6 * one.recipe.weights[m] / n < 4 for m, n in held.items())


def test_no_set_comes_twice(gray: Plan, color: Plan) -> None:
    for one in (gray, color):
        assert one.overlaps == ()
        assert len({row.name for row in one.rows}) == len(one.rows)


def test_all_of_a_plan_is_in_its_totals(small: Plan) -> None:
    assert [r.images for r in small.rows[:3]] == [40_561, 5_856, 14_236]
    assert small.rows[3].images == 9 * 10
    assert small.rows[3].patients == 9
    assert small.images == 40_561 + 5_856 + 14_236 + 90
    assert small.patients == 12_173 + 9
    assert small.by(lambda r: r.count) == {"read": 46_417, "memory": 14_236, "counted": 90}
    assert small.of_classes(["permissive"]) == 5_856 + 90
    assert small.evaluation == ("pneumoniamnist",)
    assert small.verdict.publish is None
    assert small.size == sum(r.size for r in small.rows)


def test_sizes_follow_the_stated_formula() -> None:
    assert stored_bytes(1000, "gray", False, Store(size=100)) == 1000 * (100 * 100 * 5 // 8 + 200)
    assert stored_bytes(1000, "gray", True, Store(size=100)) == 1000 * (100 * 100 * 7 // 8 + 200)
    assert stored_bytes(1000, "gray", True, Store(size=100, quality=90)) == 1000 * (100 * 100 * 7 // 8 + 200)
    assert stored_bytes(1000, "color", False, Store(size=100, quality=90)) == 1000 * (100 * 100 * 4 // 8 + 200)


def test_the_printed_plan_says_what_is_memory_and_fits_a_terminal(gray: Plan, color: Plan, small: Plan) -> None:
    for one in (gray, color, small):
        lines = plan_lines(one)
        assert max(map(len, lines)) <= 80
        text = "\n".join(lines)
        for row in one.rows:
            assert any(line.startswith(row.name[:24]) and f"{row.images:,}" in line for line in lines)
        for part in (f"{one.images:,}", "not legal advice", "bytes = images x", "permissive only", "idc-index-data"):
            assert part in text
    lines = plan_lines(small)
    (bone_age,) = (line for line in lines if line.startswith("rsna_bone_age"))
    assert bone_age.split()[-3:] == ["memory", "nc?", "sign"]
    (chest,) = (line for line in lines if line.startswith("kermany_cxr"))
    assert chest.split()[-3:] == ["read", "permissive", "open"]
    assert any("may not be published before" in line for line in lines)
    assert any("pneumoniamnist" in line for line in lines)


def test_a_free_plan_names_the_licence_for_the_weights(tmp_path: Path) -> None:
    free = SMALL.replace("  - {catalog: mura}\n", "").replace("  - {catalog: rsna_bone_age}\n", "")
    (tmp_path / "free.yaml").write_text(free)
    lines = plan_lines(plan(tmp_path / "free.yaml"))
    assert "Trained weights may be published under CC-BY-4.0, under these conditions." in lines


def test_sets_that_share_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text(SMALL + "  - {catalog: rsna_pneumonia}\n  - {catalog: nih_chestxray14}\n")
    twice = plan(tmp_path / "twice.yaml")
    assert twice.overlaps == (("rsna_pneumonia", "nih_chestxray14"),)
    assert any("rsna_pneumonia holds images of nih_chestxray14" in line for line in plan_lines(twice))


@pytest.mark.parametrize(
    ("name", "part", "images"),
    [
        ("echonet_dynamic", {"per_volume": 8}, 80_240),
        ("hyperkvasir", {"beside_images": 300}, 110_079 + 374 * 300),
        ("camelyon16", {"tiles": 20}, 7_980),
        ("sun_colonoscopy", {"limit": 25_000}, 25_000),
        ("sun_colonoscopy", {"limit": 10**9}, 158_690),
        ("openmind", {"per_volume": 3}, 342_000),
        ("openmind", {"per_volume": 3, "limit": 10}, 10),
        ("kvasir_capsule", {"per_volume": 10**6}, 4_741_504),
    ],
)
def test_caps_take_at_most_what_is_there(name: str, part: dict, images: int) -> None:
    assert expected_images(find_entry(name), Part(catalog=name, **part)) == images


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("{catalog: mura}", "{catalog: murra}", "did you mean 'mura'"),
        ("{catalog: mura}", "{catalogue: mura}", "did you mean 'catalog'"),
        ("{catalog: mura}", "{catalog: mura, idc: nlst}", "either catalog or idc"),
        ("{catalog: mura}", "{catalog: mura, modality: [CT]}", "are for idc"),
        ("{catalog: mura}", "{catalog: mura, per_patient: 3}", "per_patient is for IDC"),
        ("{catalog: mura}", "{catalog: mura, per_volume: 3}", "does not know its volumes"),
        ("{catalog: mura}", "{catalog: mura, tiles: 3}", "tiles are of slides"),
        ("{catalog: mura}", "{catalog: openmind}", "no count of its images"),
        ("{catalog: mura}", "{catalog: rfmid}", "rfmid is color"),
        ("{catalog: mura}", "{idc: nlst}", "needs its modality"),
        ("{catalog: mura}", "{idc: nlst, modality: [SM], tiles: 3}", "is not gray"),
        ("{catalog: mura}", "{idc: nlst, modality: [CT, PT]}", "not one modality"),
        ("{catalog: mura}", "{idc: naf_prostate, modality: [PT], tiles: 3}", "tiles go with slides"),
        ("{catalog: mura}", "{idc: naf_prostate, modality: [PT], limit: 3}", "no caps but per_patient"),
        ("pet: 0.5", "pet: 0.6", "add up to 1.1"),
        ("pet: 0.5", "fundus: 0.5", "'fundus' is no gray modality"),
        ("name: small", "nam: small", "did you mean 'name'"),
        ("name: small", "name: [", "is not YAML"),
        ("name: small", "name: &x {a: *x}", "an alias"),
        ("parts:", "parts: [{catalog: busi}]\nparts:", "duplicate key parts"),
        ("{catalog: mura}", "{catalog: kermany_cxr}", "parts.1: kermany_cxr is listed twice"),
        ("{catalog: mura}", "{catalog: kermany_cxr, limit: 9}", "parts.1: kermany_cxr is listed twice"),
        ("size: 100", "size: 0", "store.size"),
    ],
)
def test_a_wrong_recipe_is_answered_in_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "wrong.yaml").write_text(SMALL.replace(old, new))
    with pytest.raises(UserError, match=says) as caught:
        plan(tmp_path / "wrong.yaml")
    assert "\n" not in str(caught.value)


def test_a_name_that_is_none_is_answered_with_those_that_are() -> None:
    with pytest.raises(RecipeError, match=r"corpus_gray\.yaml"):
        read_corpus_recipe("corpus_grey.yaml")


def test_corpora_are_shipped_but_are_no_recipes_for_pretraining() -> None:
    assert all((shipped_folder("recipes") / name).is_file() for name in CORPORA)
    assert not [name for name in list_shipped("recipes") if "corpus" in name]
    assert not [line for line in listing("recipes") if "corpus" in line]
