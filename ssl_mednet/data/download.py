"""Files over the network: fetched once, resumed where they were cut off, checked before they count.

On urllib: what a data set of several gigabytes needs (resume, checksum, lock) would have to be written around any HTTP
client, and none is a dependency of ours.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException, InvalidURL
from pathlib import Path
from time import sleep
from typing import IO, Any, TypedDict
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from ssl_mednet.errors import DataError
from ssl_mednet.progress import Progress

TIMEOUT = 30.0  # seconds without a connection, or without a byte
_TRIES, _TRIES_UNREACHABLE = 5, 2  # in a row without progress
_BACKOFF, _LONGEST_WAIT = 1.0, 60.0  # seconds; doubled with every failure
_PASSING = frozenset({408, 416, 425, 429, 500, 502, 503, 504})  # HTTP answers after which another try makes sense
_CHUNK = 1 << 20
_MB = 10**6


class _Expected(TypedDict):
    """By what a file is known to be the right one, exactly one of them; see :func:`fetch`."""

    md5: str
    sha256: str
    size: int | None


def fetch(
    url: str,
    target: Path,
    *,
    md5: str = "",
    sha256: str = "",
    size: int | None = None,
    timeout: float = TIMEOUT,
    quiet: bool = False,
) -> Path:
    """``target``, downloaded from ``url`` unless it is there already with the right checksum; another file is replaced.

    The file appears whole and checked, or not at all. Until then it grows in ``target.part``, where the next call goes
    on after an interruption, however it came about (HTTP Range, RFC 9110 section 14; from the start, in another file,
    where the server knows no ranges). A second process waits for the first instead of downloading the same file, too.

    Args:
        url: http or https; so are all that it redirects to.
        md5, sha256: the expected checksum in hexadecimal digits.
        size: the expected length in bytes, where a server publishes no checksum. Exactly one of the three is given.
        timeout: seconds to wait for a connection, and for each next byte.
        quiet: no progress bar.

    Raises:
        DataError: the network or the server does not give the file, it has another checksum, or it cannot be written.
        ValueError: not exactly one of md5, sha256 and size.
    """
    checksum: _Expected = {"md5": md5, "sha256": sha256, "size": size}
    try:
        if has_checksum(target, **checksum):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target, quiet):
            if not has_checksum(target, **checksum):  # another process may have fetched it meanwhile
                _download(url, target, checksum, timeout, quiet)
    except OSError as error:
        raise DataError(f"{target}: cannot be read or written: {error.strerror or error}") from error
    return target


def has_checksum(path: Path, *, md5: str = "", sha256: str = "", size: int | None = None) -> bool:
    """Whether ``path`` is a file with this checksum, or of this many bytes; exactly one of the three is given."""
    if bool(md5) + bool(sha256) + (size is not None) != 1:
        raise ValueError("give md5, sha256 or size, exactly one of them")
    if not path.is_file():
        return False
    if size is not None:
        return path.stat().st_size == size
    with path.open("rb") as file:
        # MD5 is what archives publish; it guards against accidents, so a system that forbids it for security may not.
        digest = hashlib.file_digest(file, lambda: hashlib.new("md5" if md5 else "sha256", usedforsecurity=False))
    return digest.hexdigest() == (md5 or sha256).lower()


def read_url(url: str, *, timeout: float = TIMEOUT, limit: int = 1 << 24) -> bytes:
    """A short answer, such as a listing, into memory; tried again where that makes sense.

    Raises:
        DataError: the network or the server does not give it, or it is longer than ``limit`` bytes.
    """
    failures = 0
    while True:
        try:
            with _open(url, 0, timeout) as response:
                content = _short(response, limit)
            if len(content) > limit:
                raise DataError(f"{url}: the answer is longer than {limit:,} bytes")
            return content
        except _Failed as error:
            failures += 1
            if failures >= error.tries:
                raise DataError(f"{url}: {error}", "run it again later") from error
            sleep(min(max(error.wait, _BACKOFF * 2 ** (failures - 1)), _LONGEST_WAIT))


@contextmanager
def _locked(target: Path, quiet: bool) -> Iterator[None]:
    """One process at a time; the system frees the lock when its holder dies."""
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not quiet:
            print(f"waiting for another process that downloads {target.name}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Failed(Exception):
    """A try that did not work: how many of its kind are worth it, how long the server asks to wait, its answer."""

    def __init__(self, reason: str, tries: int = _TRIES, wait: float = 0.0, status: int = 0) -> None:
        super().__init__(reason)
        self.tries, self.wait, self.status = tries, wait, status


def _download(url: str, target: Path, checksum: _Expected, timeout: float, quiet: bool) -> None:
    part = whole = target.with_name(target.name + ".part")
    by_hand = f"or download it by hand and save it as {target}"
    if not _is_web(url):
        raise DataError(f"{url}: is no http or https address")
    if not has_checksum(part, **checksum):  # it has where a run was killed just before the last step
        try:
            whole = _try_repeatedly(url, part, timeout, quiet)
        except _Failed as error:
            _anew(part).unlink(missing_ok=True)
            raise DataError(f"{url}: {error}", f"run it again later, {by_hand}") from error
        if not has_checksum(whole, **checksum):
            whole.unlink()
            kind = "MD5" if checksum["md5"] else "SHA-256" if checksum["sha256"] else "size"
            message = f"{url}: the downloaded file has the wrong {kind} and was deleted: it is damaged or another one"
            raise DataError(message, f"run it again, {by_hand}")
    whole.replace(target)
    for other in (part, _anew(part)):
        other.unlink(missing_ok=True)


def _anew(part: Path) -> Path:
    """Where a file begins again that a server without ranges sends whole: it may be a page that says "log in"."""
    return part.with_name(part.name + ".new")


def _try_repeatedly(url: str, part: Path, timeout: float, quiet: bool) -> Path:
    """The file in which all has arrived: ``part``, or the one begun anew."""
    longest, failures = _size(part), 0
    while True:
        try:
            if whole := _try(url, part, timeout, quiet):
                return whole
            failures = 0
        except _Failed as error:
            # Against the longest so far: a server without ranges, cut off again and again, makes no progress.
            reached = max(_size(part), _size(_anew(part)))
            failures = 1 if reached >= longest + _CHUNK else failures + 1
            longest = max(longest, reached)
            if failures >= error.tries:
                raise
            sleep(min(max(error.wait, _BACKOFF * 2 ** (failures - 1)), _LONGEST_WAIT))


def _try(url: str, part: Path, timeout: float, quiet: bool) -> Path | None:
    """Append to ``part`` what is missing of it, or begin anew, and force it to the disk.

    Returns:
        The file that is whole; None where the server has sent less than was asked for, as it may, and the rest is next.
    """
    with _resumed(url, part, timeout) as response:
        start = _start(response, part)
        end = None if response.length is None else start + response.length
        total = _total(response) or end
        path = part if start == _size(part) else _anew(part)
        if total is not None:
            _check_room(part.parent, total - start)
        bar = Progress(f"downloading {part.stem}", None if total is None else total // _MB, "MB", quiet)
        with path.open("ab" if start else "wb") as file, bar as progress:
            progress.start_from(start // _MB)
            for chunk in _chunks(response):
                file.write(chunk)
                if more := file.tell() // _MB - progress.done:
                    progress.advance(more)
            file.flush()
            os.fsync(file.fileno())
            reached = file.tell()
            if total is None or reached == total:
                return path
            if start < reached == end:
                return None
            raise _Failed(f"the connection was cut after {reached:,} of {total:,} bytes")


def _resumed(url: str, part: Path, timeout: float) -> Any:
    """The server's answer, asked for what ``part`` does not have yet."""
    try:
        return _open(url, _size(part), timeout)
    except _Failed as error:
        if error.status == 416:  # there is nothing from that byte on: what is on disk is part of another file
            part.unlink(missing_ok=True)
        raise


def _open(url: str, have: int, timeout: float) -> Any:
    """The server's answer from byte ``have`` on."""
    headers = {"User-Agent": "ssl_mednet"} | ({"Range": f"bytes={have}-"} if have else {})
    opener = urllib.request.build_opener(_WebOnly)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        tries = _TRIES if error.code in _PASSING else 1
        wait = error.headers.get("Retry-After", "")  # seconds; a date is not worth the trouble
        reason = f"the server answers {error.code} {error.reason}"
        raise _Failed(reason, tries, float(wait) if wait.isdecimal() else 0.0, error.code) from error
    except URLError as error:
        raise _Failed(f"the network cannot be reached: {_said(error.reason)}", _TRIES_UNREACHABLE) from error
    except (InvalidURL, ValueError) as error:  # of the address, or of one that it redirects to
        raise _Failed(f"is no address on the web, or leads to one that is none: {error}", tries=1) from error
    except (OSError, HTTPException) as error:
        raise _Failed(f"the server does not answer: {_said(error)}") from error


def _is_web(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https")
    except ValueError:
        return False


class _WebOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if not _is_web(newurl):
            raise DataError(f"{req.full_url}: redirects to {newurl}, which is no http or https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _start(response: Any, part: Path) -> int:
    """The byte at which the answer begins: the first one that is missing, or 0 from a server without ranges."""
    if response.status != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != _size(part):
        part.unlink(missing_ok=True)
        raise _Failed("the server sends another part of the file than it was asked for")
    return int(match[1])


def _total(response: Any) -> int | None:
    """The length of the whole file, where an answer with a part of it says so."""
    match = re.match(r"bytes \d+-\d+/(\d+)$", response.headers.get("Content-Range", ""))
    return int(match[1]) if match and response.status == 206 else None


def _check_room(folder: Path, missing: int) -> None:
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise DataError(f"{folder}: {missing / _MB:,.0f} MB are to be downloaded, {free / _MB:,.0f} MB are free")


def _chunks(response: Any) -> Iterator[bytes]:
    """Whatever has arrived, as it arrives, so that nothing is lost when the connection is."""
    try:
        while chunk := response.read1(_CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _Failed(f"the connection was lost: {_said(error)}") from error


def _short(response: Any, limit: int) -> bytes:
    """All of an answer, or one byte more than ``limit``."""
    content = b""
    for chunk in _chunks(response):
        content += chunk
        if len(content) > limit:
            return content[: limit + 1]
    if response.length:
        raise _Failed(f"the connection was cut {response.length:,} bytes before the end")
    return content


def _said(error: object) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
