# SPDX-License-Identifier: Apache-2.0
"""A web server on this machine that lists a bucket as S3 does, and breaks when told to."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Server:
    """What it has and how it behaves.

    Parameters
    ----------
    files : dict of str to bytes
        By path below ``/BUCKET/``.
    faults : dict of str to list
        By path, one per request, then none: an int is a status; ``cut``: the connection ends in
        mid-file; ``spoil``: other bytes; ``slow``: waits until the test ends.
    knows_ranges : bool
    page : int
        Entries on one page of a listing.
    """

    files: dict[str, bytes]
    faults: dict[str, list] = field(default_factory=dict)
    knows_ranges: bool = True
    page: int = 3
    etags: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def etag(self, path: str) -> str:
        return self.etags.get(path, hashlib.md5(self.files[path]).hexdigest())

    def ranges(self, path: str) -> list[str]:
        """The Range of each request for a file."""
        return [asked for what, asked in self.asked if what == path]


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve on a free port of this machine."""
    handler = type("Handler", (_Handler,), {"told": server})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        http.block_on_close = False
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, args=[0.02], daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            http.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told: Server

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        _, _, path = unquote(parts.path).lstrip("/").partition("/")
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        asked = query.get("prefix", path) if parts.query else path
        self.told.asked.append((asked, self.headers.get("Range", "")))
        waiting = self.told.faults.get(asked, [])
        fault = waiting.pop(0) if waiting else ""
        if isinstance(fault, int):
            self._send(fault, b"no", {"Retry-After": "0"} if fault == 503 else {})
        elif parts.query:
            self._send(200, self._listing(query).encode(), {"Content-Type": "application/xml"})
        elif path not in self.told.files:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", {})
        else:
            self._file(path, fault)

    def _file(self, path: str, fault: str) -> None:
        body = self.told.files[path]
        etag = f'"{self.told.etag(path)}"'
        status, headers, start = 200, {"ETag": etag}, 0
        wanted = self.headers.get("Range", "")
        same = self.headers.get("If-Range", etag) == etag
        if wanted and self.told.knows_ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self._send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        rest = body[start:]
        if fault == "spoil":
            rest = bytes(255 - byte for byte in rest)
        if fault == "slow":
            self._send(status, rest[: len(rest) // 2], headers, length=len(rest))
            self.told.over.wait(10)
        elif fault == "cut":
            self._send(status, rest[: len(rest) // 2], headers, length=len(rest))
            self.close_connection = True
            self.connection.shutdown(2)
        else:
            self._send(status, rest, headers)

    def _send(self, status: int, body: bytes, headers: dict, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)
            self.wfile.flush()

    def _listing(self, query: dict) -> str:
        """ListObjectsV2: keys and folders in one order, by pages."""
        prefix, flat = query["prefix"], query.get("delimiter") == "/"
        entries: dict[str, bool] = {}
        for path in sorted(self.told.files):
            if path.startswith(prefix):
                head, slash, _ = path[len(prefix) :].partition("/")
                folder = flat and slash
                entries[prefix + head + "/" if folder else path] = bool(folder)
        start = int(query.get("continuation-token", "0"))
        names = list(entries)
        page = names[start : start + self.told.page]
        more = start + self.told.page < len(names)
        lines = ['<?xml version="1.0" encoding="UTF-8"?>']
        lines.append('<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">')
        lines.append(f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>")
        if more:
            token = start + self.told.page
            lines.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
        for name in page:
            if entries[name]:
                lines.append(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>")
                continue
            lines.append(
                f"<Contents><Key>{escape(name)}</Key>"
                f"<Size>{len(self.told.files[name])}</Size>"
                f"<ETag>&quot;{self.told.etag(name)}&quot;</ETag></Contents>"
            )
        return "\n".join([*lines, "</ListBucketResult>"])
