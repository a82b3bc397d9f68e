"""Chosen series of IDC from its public buckets, over plain HTTPS: listed, fetched in part or whole, resumed.

No credentials and no client of a cloud: a listing is one GET (Amazon S3 API, ListObjectsV2), an object another.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from ssl_mednet.catalog.idc import Series, draw_of
from ssl_mednet.data.download import fetch, read_url
from ssl_mednet.errors import DataError
from ssl_mednet.files import write_json
from ssl_mednet.progress import Progress

URL = "SSL_MEDNET_IDC_URL"  # environment: another server that holds the buckets as folders, such as a mirror
PUBLIC = "https://s3.amazonaws.com"
_DONE = ".complete"
_S3_URL = re.compile(r"s3://(?P<bucket>[\w.-]+)/(?P<folder>[\w-]+)/\*?")
_NAME = re.compile(r"[\w-][\w.-]*")
_MD5 = re.compile(r"[0-9a-f]{32}")  # an ETag of an object that came in several parts has "-N" behind and is none
_GONE = frozenset({403, 404, 410})  # HTTP answers that another try does not change
_State = dict[str, Any]  # what the mark of a series holds: seed, take, files, and what is left out for good
_FAILURES_IN_A_ROW = 10  # then it is the network or the server, and no single series


@dataclass(frozen=True)
class Object:
    """An object of a bucket: its key, size in bytes, and MD5 where the bucket states one."""

    key: str
    size: int
    md5: str


@dataclass(frozen=True)
class Fetched:
    """What is on this machine now.

    Args:
        series, files: those of which there is something.
        failed: address of each series of which something is left out for good, and why.
    """

    series: int
    files: int
    failed: tuple[tuple[str, str], ...]


def fetch_series(
    series: Sequence[Series], folder: Path, seed: int, *, workers: int = 8, quiet: bool = False
) -> Fetched:
    """Have each series in a folder of its own below ``folder``; what is complete there is not asked for again.

    Killed at any point and called again it goes on where it was. What a server says that it does not have or give is
    reported and left out for good, so that the set of files stays the same from then on.

    Args:
        seed: which instances of a series are taken where not all are wanted.
        workers: series at a time.

    Raises:
        DataError: the server cannot be reached, gives nothing, or fails at some series in a way that may pass.
    """
    done, files, failed, gone, in_a_row = 0, 0, [], [], 0
    with Progress("fetching series", len(series), "series", quiet) as progress:
        for one, result in _in_parallel(series, lambda s: _one(s, folder / _parse(s.url)[1], seed), workers):
            if isinstance(result, DataError):
                failed.append((one.url, result.message))
            else:
                done, files = done + (result["files"] > 0), files + result["files"]
                if result["gone"]:
                    gone.append((one.url, result))
            nothing = isinstance(result, DataError) or not result["files"]
            in_a_row = in_a_row + 1 if nothing else 0
            if in_a_row == min(_FAILURES_IN_A_ROW, len(series)):
                said = result if isinstance(result, DataError) else result["gone"]
                raise DataError(f"{in_a_row} series in a row cannot be had, the last: {said}", "run it again later")
            progress.advance(1)
    if failed:
        address, reason = failed[0]
        message = f"{len(failed)} of {len(series)} series cannot be had now, for example {address}: {reason}"
        raise DataError(message, "run it again: it goes on where it was")
    for url, state in gone:  # only now, because a server that gives nothing at all has not said what it has
        write_json(folder / _parse(url)[1] / _DONE, state)
    return Fetched(done, files, tuple((url, state["gone"]) for url, state in gone))


def _in_parallel(
    series: Sequence[Series], work: Callable[[Series], _State], workers: int
) -> Iterator[tuple[Series, _State | DataError]]:
    """Results as they come; few are in flight, so that stopping does not wait for a queue."""
    waiting = iter(series)
    with ThreadPoolExecutor(workers) as pool:
        flying = {pool.submit(work, s): s for s in islice(waiting, 2 * workers)}
        try:
            while flying:
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    one = flying.pop(future)
                    error = future.exception()
                    if error is not None and not isinstance(error, DataError):
                        raise error
                    yield one, error or future.result()
                    flying |= {pool.submit(work, s): s for s in islice(waiting, 1)}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one(series: Series, folder: Path, seed: int) -> _State:
    """Fetch what is wanted of one series; the mark of a complete one is written here.

    Raises:
        DataError: for a reason that may pass.
    """
    wanted = {"seed": seed, "take": series.take}
    done = folder / _DONE
    with suppress(OSError, ValueError, TypeError):  # not there, or not ours: what is fetched is looked at again
        state: _State = {"gone": ""} | json.loads(done.read_text())
        if {k: state.get(k) for k in wanted} == wanted and "files" in state:
            return state
    try:
        listed = {o.key: o for o in list_objects(series.url)}
    except DataError as error:
        return {**wanted, "files": 0, "gone": _gone(error)}
    chosen = draw_of(list(listed), series.take, seed)
    if not chosen:
        return {**wanted, "files": 0, "gone": "the bucket has nothing there: the index may be of another release"}
    missing: list[str] = []
    for key in chosen:
        target = folder / key.rpartition("/")[2]
        one = listed[key]
        size = None if one.md5 else one.size
        try:
            fetch(_address(series.url, key), target, md5=one.md5, size=size, quiet=True)
        except DataError as error:
            missing.append(_gone(error))
        Path(f"{target}.lock").unlink(missing_ok=True)
    state = {**wanted, "files": len(chosen) - len(missing), "gone": ""}
    if missing:
        return state | {"gone": f"{len(missing)} of {len(chosen)} objects, {missing[0]}"}
    write_json(done, state)
    return state


def _gone(error: DataError) -> str:
    """What is said of something that the server does not have or give; an error that may pass is raised again."""
    if getattr(error.__cause__, "status", 0) not in _GONE:
        raise error
    return error.message


def list_objects(url: str) -> list[Object]:
    """All objects of a series, ``s3://BUCKET/FOLDER/*``, by their keys.

    Raises:
        DataError: the server does not list them, or lists something that is no object of this folder.
    """
    bucket, folder = _parse(url)
    query = {"list-type": "2", "prefix": f"{folder}/"}
    objects: list[Object] = []
    while True:
        address = f"{_base()}/{bucket}?{urlencode(query)}"
        page = _page(address)
        objects += [_object(node, folder, address) for node in page.iterfind("{*}Contents")]
        token = page.findtext("{*}NextContinuationToken")
        if page.findtext("{*}IsTruncated") != "true" or not token:
            return sorted(objects, key=lambda o: o.key)
        query["continuation-token"] = token


def _page(address: str) -> ElementTree.Element:
    try:
        page = ElementTree.fromstring(read_url(address))
    except ElementTree.ParseError as error:
        raise DataError(f"{address}: the answer is no listing of a bucket: {error}") from error
    if not page.tag.endswith("ListBucketResult"):
        raise DataError(f"{address}: the answer is no listing of a bucket")
    return page


def _object(node: ElementTree.Element, folder: str, address: str) -> Object:
    """One object; its name becomes a file name, so it has to look like one."""
    key, size = node.findtext("{*}Key") or "", node.findtext("{*}Size") or ""
    head, _, name = key.rpartition("/")
    if head != folder or not _NAME.fullmatch(name) or not size.isdigit():
        raise DataError(f"{address}: lists {key!r}, which is no object of the series")
    etag = (node.findtext("{*}ETag") or "").strip('"').lower()
    return Object(key, int(size), etag if _MD5.fullmatch(etag) else "")


def _parse(url: str) -> tuple[str, str]:
    match = _S3_URL.fullmatch(url)
    if match is None:
        raise DataError(f"{url}: is no address of a series as s3://BUCKET/SERIES/*")
    return match["bucket"], match["folder"]


def _address(url: str, key: str) -> str:
    return f"{_base()}/{_parse(url)[0]}/{quote(key)}"


def _base() -> str:
    return (os.environ.get(URL) or PUBLIC).rstrip("/")
