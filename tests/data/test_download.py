"""Downloads: what a network does to them, and that a file counts only when it is whole and the right one."""

from __future__ import annotations

import hashlib
import http.server
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_mednet.data import download
from ssl_mednet.data.download import fetch, has_checksum, read_url
from ssl_mednet.errors import DataError
from ssl_mednet.progress import Progress

CONTENT = np.random.default_rng(0).bytes(3_500_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves one content at every path, each request as the next step of ``plan`` says.

    Steps: ``("cut", n)`` closes the connection after n bytes, ``("stall", n)`` goes silent after them, ``("status",
    code)``, ``("redirect", url)``, ``("short", n)`` sends n bytes of the range that
    was asked for and says so, ``("late", event)`` answers when the event is set; without a step: as it should be.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges = CONTENT, True
        self.plan: list[tuple] = []
        self.retry_after = "7"
        self.asked: list[str | None] = []  # the Range header of each request
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/file.npz"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, content = self.server, self.server.content
        server.asked.append(self.headers.get("Range"))
        step, value = server.plan.pop(0) if server.plan else ("whole", None)
        if step == "late":
            value.wait(20)
        if step in ("status", "redirect"):
            self.send_response(value if step == "status" else 302)
            self.send_header(
                "Retry-After" if step == "status" else "Location", server.retry_after if step == "status" else value
            )
            self.end_headers()
            return
        if step == "stall" and value == 0:
            server.over.wait(20)
            return
        first = int(re.findall(r"\d+", server.asked[-1] or "0")[0]) if server.ranges else 0
        if step == "shift":
            first += value
        if first >= len(content):
            self.send_response(416)
            self.end_headers()
            return
        end = first + value if step == "short" else len(content)
        self.send_response(206 if server.ranges and server.asked[-1] else 200)
        self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        self.wfile.write(content[first : first + value] if step in ("cut", "stall") else content[first:end])
        if step == "stall":
            self.wfile.flush()
            server.over.wait(20)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the test's stderr."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.over.set()
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, noted and not waited for; no proxy between the test and its server."""
    noted: list[float] = []
    monkeypatch.setattr(download, "sleep", noted.append)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return noted


class Noted(Progress):
    """A progress bar that remembers where it began."""

    begun = -1

    def start_from(self, done: int) -> None:
        super().start_from(done)
        self.begun = done


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Noted]:
    made: list[Noted] = []

    def bar(*args: Any) -> Noted:
        made.append(Noted(*args))
        return made[-1]

    monkeypatch.setattr(download, "Progress", bar)
    return made


def left(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {"file.npz.lock"}


def test_a_file_arrives_whole_and_only_once(server: Server, tmp_path: Path, bars: list[Noted]) -> None:
    target = tmp_path / "deep" / "file.npz"
    assert fetch(server.url, target, md5=MD5, quiet=True) == target
    assert target.read_bytes() == CONTENT
    assert left(target.parent) == {"file.npz"}
    assert [(b.total, b.done, b.unit, b.quiet) for b in bars] == [(3, 3, "MB", True)]
    fetch(server.url, target, sha256=hashlib.sha256(CONTENT).hexdigest().upper(), quiet=True)
    assert server.asked == [None]
    target.write_bytes(CONTENT[:-1])
    fetch(server.url, target, md5=MD5, quiet=True)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, None]


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_lost_connection_is_resumed_at_the_byte_it_reached(
    how: str, server: Server, tmp_path: Path, bars: list[Noted], waits: list[float]
) -> None:
    server.plan = [(how, 2_345_678)]
    target = fetch(server.url, tmp_path / "file.npz", md5=MD5, timeout=0.5, quiet=True)
    assert server.asked == [None, "bytes=2345678-"]
    assert target.read_bytes() == CONTENT
    assert [(b.total, b.begun, b.done) for b in bars] == [(3, 0, 2), (3, 2, 3)]
    assert waits == [1.0]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.plan = [("cut", 1_000_000)]
    target = fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True)
    assert server.asked == [None, "bytes=1000000-"]
    assert target.read_bytes() == CONTENT


def test_a_server_may_send_shorter_ranges_than_it_is_asked_for(server: Server, tmp_path: Path) -> None:
    server.plan = [("cut", 1_000_000)] + [("short", 200_000)] * 8
    target = fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True)
    assert server.asked == [None, *(f"bytes={n}-" for n in range(1_000_000, 2_800_000, 200_000))]
    assert target.read_bytes() == CONTENT
    assert left(tmp_path) == {"file.npz"}


def test_a_page_in_place_of_the_rest_costs_nothing(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "file.npz.part"
    part.write_bytes(CONTENT[:2_000_000])
    server.content, server.ranges = b"<html>log in</html>", False
    with pytest.raises(DataError, match="wrong MD5"):
        fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True)
    server.plan = [("cut", 5)] * 9
    with pytest.raises(DataError, match="cut after"):
        fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True)
    assert left(tmp_path) == {"file.npz.part"}
    server.content, server.ranges, server.plan = CONTENT, True, []
    assert fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=2000000-"
    assert left(tmp_path) == {"file.npz"}


@pytest.mark.parametrize("url", ["http://h/données", "http://[::1", "http://a..b/x", "http://h:x/"])
def test_an_address_that_is_none_is_told(url: str, server: Server, tmp_path: Path) -> None:
    for ask in (lambda: fetch(url, tmp_path / "x", md5=MD5, quiet=True), lambda: read_url(url)):
        with pytest.raises(DataError, match="is no "):
            ask()
    if url.isascii():
        server.plan = [("redirect", url)]
        with pytest.raises(DataError, match="is no "):
            fetch(server.url, tmp_path / "x", md5=MD5, quiet=True)


def test_a_wait_that_is_no_number_is_not_heeded(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.plan, server.retry_after = [("status", 503)], "²"
    assert fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True).read_bytes() == CONTENT
    assert waits == [1.0]


@pytest.mark.parametrize(
    ("step", "requests", "says"),
    [
        (("stall", 0), 5, "the server does not answer: timed out"),
        (("cut", 1000), 5, "cut after .* of 3,500,000 bytes"),
        (("status", 503), 5, "the server answers 503 Service Unavailable"),
        (("status", 404), 1, "the server answers 404 Not Found"),
    ],
)
def test_a_server_that_does_not_give_the_file_is_given_up(
    step: tuple, requests: int, says: str, server: Server, tmp_path: Path, waits: list[float]
) -> None:
    server.plan = [step] * 9
    begun = time.monotonic()
    with pytest.raises(DataError, match=says) as error:
        fetch(server.url, tmp_path / "file.npz", md5=MD5, timeout=0.2, quiet=True)
    assert time.monotonic() - begun < 10  # five times 0.2 s of silence, and a slow machine
    assert len(server.asked) == requests
    assert server.url in str(error.value)
    assert str(tmp_path / "file.npz") in error.value.hint
    assert waits == ([7, 7, 7, 8] if step[0] == "status" else [1, 2, 4, 8])[: requests - 1]
    assert not (tmp_path / "file.npz").exists()


def test_progress_earns_new_tries_and_going_in_circles_does_not(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT * 3
    server.plan = [("cut", 1_100_000)] * 9
    fetch(server.url, tmp_path / "file.npz", md5=hashlib.md5(server.content).hexdigest(), quiet=True)
    assert len(server.asked) == 10
    server.ranges, server.asked, server.plan = False, [], [("cut", 1_100_000)] * 20
    with pytest.raises(DataError, match="was cut"):
        fetch(server.url, tmp_path / "other.npz", md5=MD5, quiet=True)
    assert len(server.asked) == 5


def test_another_file_is_deleted_and_said_to_be_another(server: Server, tmp_path: Path) -> None:
    for checksum in ({"md5": "0" * 32}, {"sha256": "0" * 64}):
        name = "MD5" if "md5" in checksum else "SHA-256"
        with pytest.raises(DataError, match=f"wrong {name} and was deleted"):
            fetch(server.url, tmp_path / "file.npz", quiet=True, **checksum)
        assert left(tmp_path) == set()


def test_a_partial_file_of_another_version_does_not_stay_in_the_way(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "file.npz.part"
    part.write_bytes(CONTENT + b"more than there is")
    fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True)
    assert server.asked == [f"bytes={len(CONTENT) + 18}-", None]
    (tmp_path / "file.npz").unlink()
    part.write_bytes(CONTENT[:1000])
    server.plan, server.asked = [("shift", 5)], []
    target = fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True)
    assert server.asked == ["bytes=1000-", None]
    assert target.read_bytes() == CONTENT


def test_a_complete_partial_file_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "file.npz.part").write_bytes(CONTENT)
    fetch("http://127.0.0.1:1/file.npz", tmp_path / "file.npz", md5=MD5, quiet=True)
    assert left(tmp_path) == {"file.npz"}


def test_without_a_network_one_error_says_what_to_do(tmp_path: Path, waits: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file.npz"
    target = tmp_path / "file.npz"
    with pytest.raises(DataError, match="the network cannot be reached: Connection refused") as error:
        fetch(url, target, md5=MD5, quiet=True)
    assert url in error.value.message
    assert f"by hand and save it as {target}" in error.value.hint
    assert waits == [1.0]  # an offline machine is not kept waiting for long


def test_redirects_stay_on_the_web(server: Server, tmp_path: Path) -> None:
    server.plan = [("redirect", server.url + "?elsewhere"), ("cut", 1000), ("redirect", "/elsewhere")]
    fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True)
    assert server.asked == [None, None, "bytes=1000-", "bytes=1000-"]
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    for url in (secret.as_uri(), "ftp://127.0.0.1/file.npz", "data:,x"):
        server.plan = [("redirect", url)]
        with pytest.raises(DataError, match=r"redirects to|Redirection to"):
            fetch(server.url, tmp_path / "stolen.npz", md5=MD5, quiet=True)
    with pytest.raises(DataError, match="is no http or https address"):
        fetch(secret.as_uri(), tmp_path / "stolen.npz", md5=MD5, quiet=True)
    assert not (tmp_path / "stolen.npz").exists()


def test_a_full_disk_is_told_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"4 MB are to be downloaded, 2 MB are free"):
        fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True)
    (tmp_path / "file.npz.part").write_bytes(CONTENT[:2_000_000])
    fetch(server.url, tmp_path / "file.npz", md5=MD5, quiet=True)  # what is there already needs no room


def test_a_place_that_cannot_be_written_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be read or written"):
        fetch(server.url, tmp_path / "file" / "file.npz", md5=MD5, quiet=True)


def test_exactly_one_checksum_is_given(tmp_path: Path) -> None:
    for checksum in ({}, {"md5": MD5, "sha256": "0" * 64}):
        with pytest.raises(ValueError, match="exactly one"):
            fetch("http://127.0.0.1:1/", tmp_path / "file.npz", **checksum)
        with pytest.raises(ValueError, match="exactly one"):
            has_checksum(tmp_path, **checksum)


def started(url: str, target: Path, log: Path) -> subprocess.Popen:
    """A process of its own that fetches; what it says goes to ``log``."""
    code = (
        "import sys, pathlib; from ssl_mednet.data.download import fetch;"
        "fetch(sys.argv[1], pathlib.Path(sys.argv[2]), md5=sys.argv[3])"
    )
    with log.open("w") as file:
        return subprocess.Popen([sys.executable, "-c", code, url, str(target), MD5], stderr=file)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.02)


def test_two_processes_share_one_download(server: Server, tmp_path: Path) -> None:
    released = threading.Event()
    server.plan = [("late", released)]
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    processes = [started(server.url, tmp_path / "file.npz", log) for log in logs]
    try:
        says = "waiting for another process that downloads file.npz\n"
        wait_for(lambda: says in [log.read_text() for log in logs] and server.asked == [None])
    finally:
        released.set()
        codes = [p.wait(30) for p in processes]
    assert codes == [0, 0]
    assert server.asked == [None]
    assert (tmp_path / "file.npz").read_bytes() == CONTENT


def test_a_killed_download_is_resumed_and_leaves_no_lock_behind(server: Server, tmp_path: Path) -> None:
    server.plan = [("stall", 1_500_000)]
    target, part = tmp_path / "file.npz", tmp_path / "file.npz.part"
    process = started(server.url, target, tmp_path / "log")
    wait_for(lambda: part.exists() and part.stat().st_size > 1_400_000)
    process.kill()
    process.wait()
    reached = part.stat().st_size
    fetch(server.url, target, md5=MD5, quiet=True)
    assert server.asked == [None, f"bytes={reached}-"]
    assert target.read_bytes() == CONTENT


def test_a_file_without_checksum_is_known_by_its_size(server: Server, tmp_path: Path) -> None:
    server.plan = [("cut", 2_000_000)]
    target = fetch(server.url, tmp_path / "x", size=len(CONTENT), quiet=True)
    assert target.read_bytes() == CONTENT
    asked = len(server.asked)
    assert fetch(server.url, target, size=len(CONTENT), quiet=True) == target
    assert len(server.asked) == asked
    with pytest.raises(DataError, match="wrong size"):
        fetch(server.url, tmp_path / "y", size=len(CONTENT) + 1, quiet=True)
    with pytest.raises(ValueError, match="exactly one"):
        fetch(server.url, tmp_path / "z", size=1, md5=MD5)


def test_a_short_answer_is_read_again_after_a_failure_and_never_in_part(server: Server) -> None:
    server.plan = [("status", 503), ("cut", 1000)]
    assert read_url(server.url) == CONTENT
    with pytest.raises(DataError, match="longer than 1,000 bytes"):
        read_url(server.url, limit=1000)
    server.plan = [("status", 404)]
    with pytest.raises(DataError, match="404"):
        read_url(server.url)
    assert len(server.asked) == 5
