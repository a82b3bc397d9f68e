"""Series from a bucket: listed page by page, fetched in part or whole, resumed, checked; one bad one ends nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssl_mednet.catalog.fetch import fetch_series, list_objects
from ssl_mednet.catalog.idc import Series, draw_of
from ssl_mednet.errors import DataError

if TYPE_CHECKING:
    from tests.catalog.conftest import Bucket


def series(url: str, take: int, instances: int = 10) -> Series:
    return Series("c", "p", url, "CT", "CC-BY-4.0", url, instances, take, 1.0)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.dcm")}


def test_a_listing_goes_over_all_pages(bucket: Bucket) -> None:
    url = bucket.series("aa-1", 8)
    bucket.series("aa-11", 2)  # a longer name is another series
    objects = list_objects(url)
    assert [o.key for o in objects] == [f"aa-1/{i:04d}.dcm" for i in range(8)]
    assert [o.size for o in objects] == [2000 + i for i in range(8)]
    assert len([a for a in bucket.asked if "list-type" in a]) == 3


@pytest.mark.parametrize(
    "listing",
    [
        "<html>a portal of a hotel</html>",
        "no xml at all",
        "<ListBucketResult><Contents><Key>aa/../../x.dcm</Key><Size>1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>aa/..</Key><Size>1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>other/x.dcm</Key><Size>1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>aa/.x</Key><Size>1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>aa/x.dcm</Key><Size>one</Size></Contents></ListBucketResult>",
    ],
)
def test_what_is_no_listing_of_this_series_is_refused(bucket: Bucket, tmp_path: Path, listing: str) -> None:
    bucket.listing = listing
    with pytest.raises(DataError, match=r"listing|no object of the series"):
        list_objects("s3://open-data/aa/*")
    with pytest.raises(DataError):
        fetch_series([series("s3://open-data/aa/*", 1)], tmp_path / "out", 0, quiet=True)
    assert not list(tmp_path.rglob("*.dcm"))


@pytest.mark.parametrize("url", ["s3://open-data/../x/*", "https://open-data/aa/", "s3://open-data", "s3:///aa/*"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(DataError, match="no address of a series"):
        list_objects(url)


def test_a_part_of_a_series_is_drawn_by_the_seed_and_is_the_same_again(bucket: Bucket, tmp_path: Path) -> None:
    chosen = [series(bucket.series("aa", 9), 4), series(bucket.series("bb", 2), 20)]
    fetched = fetch_series(chosen, tmp_path / "one", 0, quiet=True)
    assert (fetched.series, fetched.files, fetched.failed) == (2, 6, ())
    got = files(tmp_path / "one")
    assert got == {k: bucket.objects[k] for k in got}
    assert sorted(k for k in got if k.startswith("aa/")) == draw_of([f"aa/{i:04d}.dcm" for i in range(9)], 4, 0)
    fetch_series(chosen[::-1], tmp_path / "again", 0, workers=1, quiet=True)
    fetch_series(chosen, tmp_path / "other", 1, quiet=True)
    assert files(tmp_path / "again") == got
    assert files(tmp_path / "other").keys() != got.keys()


def test_nothing_but_images_is_left_for_the_ingest(bucket: Bucket, tmp_path: Path) -> None:
    fetch_series([series(bucket.series("aa", 3), 3)], tmp_path, 0, quiet=True)
    assert {p.name for p in (tmp_path / "aa").iterdir()} == {".complete", "0000.dcm", "0001.dcm", "0002.dcm"}


def test_a_complete_series_is_not_asked_for_again(bucket: Bucket, tmp_path: Path) -> None:
    chosen = [series(bucket.series("aa", 3), 3)]
    fetch_series(chosen, tmp_path, 0, quiet=True)
    bucket.asked.clear()
    assert fetch_series(chosen, tmp_path, 0, quiet=True).files == 3
    assert bucket.asked == []


@pytest.mark.parametrize("mark", ["", "{}", "[]", '{"seed": 0, "take": 3}'])
def test_a_mark_that_says_nothing_is_no_mark(bucket: Bucket, tmp_path: Path, mark: str) -> None:
    chosen = [series(bucket.series("aa", 3), 3)]
    fetch_series(chosen, tmp_path, 0, quiet=True)
    (tmp_path / "aa" / ".complete").write_text(mark)
    assert fetch_series(chosen, tmp_path, 0, quiet=True).files == 3


def test_a_connection_that_was_cut_goes_on_where_it_was(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.series("aa", 2, size=3_000_000)
    bucket.cut = {"aa/0000.dcm": 2_000_000}
    assert fetch_series([series(url, 2)], tmp_path, 0, quiet=True).files == 2
    assert bucket.ranges == ["bytes=2000000-"]
    assert files(tmp_path) == bucket.objects


def test_a_killed_run_goes_on_with_what_is_missing(bucket: Bucket, tmp_path: Path) -> None:
    chosen = [series(bucket.series("aa", 5), 5)]
    bucket.down = {"aa/0003.dcm"}
    with pytest.raises(DataError):
        fetch_series(chosen, tmp_path, 0, quiet=True)
    assert not (tmp_path / "aa" / ".complete").exists()
    bucket.down, bucket.asked = set(), []
    assert fetch_series(chosen, tmp_path, 0, quiet=True).files == 5
    gets = [a for a in bucket.asked if "list-type" not in a]
    assert gets == ["/open-data/aa/0003.dcm", "/open-data/aa/0004.dcm"]


def test_an_object_with_another_content_than_its_checksum_is_not_kept(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.series("aa", 1)
    true = bucket.list("aa/", "")
    bucket.listing, bucket.objects["aa/0000.dcm"] = true, b"x" * 2000  # the size is right
    with pytest.raises(DataError, match="wrong MD5"):
        fetch_series([series(url, 1)], tmp_path, 0, quiet=True)
    assert files(tmp_path) == {}


def test_an_object_of_several_parts_is_checked_by_its_size(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.series("aa", 1)
    bucket.parts = {"aa/0000.dcm"}
    assert fetch_series([series(url, 1)], tmp_path, 0, quiet=True).files == 1
    bucket.listing = bucket.list("aa/", "").replace("<Size>2000<", "<Size>1999<")
    with pytest.raises(DataError, match="wrong size"):
        fetch_series([series(url, 1)], tmp_path / "other", 0, quiet=True)


def test_what_a_server_does_not_have_is_reported_and_left_out_for_good(bucket: Bucket, tmp_path: Path) -> None:
    chosen = [series(bucket.series(f"s{i}", 2), 2) for i in range(12)] + [series("s3://open-data/none/*", 1)]
    bucket.broken = {"s5/0000.dcm"}
    first = fetch_series(chosen, tmp_path, 0, workers=1, quiet=True)
    assert (first.series, first.files) == (12, 23)
    assert dict(first.failed).keys() == {"s3://open-data/s5/*", "s3://open-data/none/*"}
    assert "1 of 2 objects" in dict(first.failed)["s3://open-data/s5/*"]
    assert "404" in dict(first.failed)["s3://open-data/s5/*"]
    before = files(tmp_path)
    bucket.broken, bucket.asked = set(), []
    assert fetch_series(chosen, tmp_path, 0, workers=1, quiet=True) == first
    assert bucket.asked == []
    assert files(tmp_path) == before


def test_a_failure_that_may_pass_ends_the_fetch_and_the_next_run_goes_on(bucket: Bucket, tmp_path: Path) -> None:
    chosen = [series(bucket.series(f"s{i}", 2), 2) for i in range(12)]
    bucket.down, bucket.broken = {"s5/0001.dcm"}, {"s7/0000.dcm"}
    with pytest.raises(DataError, match=r"1 of 12 series cannot be had now.*s5.*503.*run it again"):
        fetch_series(chosen, tmp_path, 0, workers=1, quiet=True)
    bucket.down, bucket.broken, bucket.asked = set(), set(), []
    assert fetch_series(chosen, tmp_path, 0, workers=1, quiet=True).failed == ()
    assert files(tmp_path) == bucket.objects
    assert {a for a in bucket.asked if "list-type" not in a} == {"/open-data/s5/0001.dcm", "/open-data/s7/0000.dcm"}


def test_a_server_that_gives_nothing_stops_soon(bucket: Bucket, tmp_path: Path) -> None:
    chosen = [series(bucket.series(f"s{i}", 1), 1) for i in range(200)]
    bucket.broken = set(bucket.objects)
    with pytest.raises(DataError, match="10 series in a row"):
        fetch_series(chosen, tmp_path, 0, workers=2, quiet=True)
    assert len(bucket.asked) < 80


def test_no_answer_at_all_is_one_error(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_MEDNET_IDC_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="cannot be had"):
        fetch_series([series("s3://open-data/aa/*", 1)], tmp_path, 0, quiet=True)
