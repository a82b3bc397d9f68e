"""A server that speaks as much of Amazon S3 as a public bucket needs, and a small index of series."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import pytest

from ssl_mednet.catalog import fetch


class Bucket(http.server.ThreadingHTTPServer):
    """``objects[key]`` at ``/BUCKET/key``, listed by ListObjectsV2 at ``/BUCKET?list-type=2&prefix=...``.

    Attributes:
        page: keys a page of a listing.
        asked: every path and query, as they came; ranges: the Range headers.
        broken: keys that answer 404; down: keys that answer 503; cut: keys whose first answer ends after so many bytes.
        parts: keys that were uploaded in several parts, so that their ETag is no MD5.
        listing: an answer to every listing instead of the true one.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.page = 3
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.broken: set[str] = set()
        self.down: set[str] = set()
        self.cut: dict[str, int] = {}
        self.parts: set[str] = set()
        self.listing = ""
        self.url = f"http://127.0.0.1:{self.server_port}"

    def series(self, name: str, count: int, size: int = 2000) -> str:
        """Put a series of random objects there; its address, as the index has it."""
        for i in range(count):
            self.objects[f"{name}/{i:04d}.dcm"] = np.random.default_rng([len(self.objects), i]).bytes(size + i)
        return f"s3://open-data/{name}/*"

    def list(self, prefix: str, after: str) -> str:
        keys = sorted(k for k in self.objects if k.startswith(prefix) and k > after)
        shown, more = keys[: self.page], len(keys) > self.page
        nodes = "".join(
            f"<Contents><Key>{escape(k)}</Key><ETag>&quot;{self.etag(k)}&quot;</ETag>"
            f"<Size>{len(self.objects[k])}</Size></Contents>"
            for k in shown
        )
        token = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{nodes}</ListBucketResult>"
        )

    def etag(self, key: str) -> str:
        return hashlib.md5(self.objects[key]).hexdigest() + ("-2" if key in self.parts else "")

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Bucket

    def do_GET(self) -> None:
        server, parts = self.server, urlsplit(self.path)
        server.asked.append(self.path)
        if parts.query:
            query = parse_qs(parts.query)
            assert query["list-type"] == ["2"]
            after = query.get("continuation-token", [""])[0]
            self.answer(200, (server.listing or server.list(query["prefix"][0], after)).encode())
            return
        key = unquote(parts.path).removeprefix("/open-data/")
        if key in server.down:
            self.answer(503, b"")
            return
        if key in server.broken or key not in server.objects:
            self.answer(404, b"")
            return
        first = int(re.findall(r"\d+", self.headers.get("Range") or "0")[0])
        if "Range" in self.headers:
            server.ranges.append(self.headers["Range"])
        content = server.objects[key][first:]
        whole = len(server.objects[key])
        headers = {"Content-Range": f"bytes {first}-{whole - 1}/{whole}"} if first else {}
        self.answer(206 if first else 200, content, headers, server.cut.pop(key, None))

    def answer(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, end: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:end])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the test's stderr."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    running = Bucket()
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv(fetch.URL, running.url)
    monkeypatch.setattr("ssl_mednet.data.download._BACKOFF", 0.0)
    yield running
    running.shutdown()
    thread.join()
    running.server_close()
