# SPDX-License-Identifier: Apache-2.0
"""Files over HTTP: whole, verified, resumed, several at a time.

A file grows as ``NAME.part`` and gets its name when size and checksum are right, so what bears
its name is whole. urllib3 waits and asks again when a server is busy or cannot be reached; cut
connections are taken up here where they broke off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import requests
import urllib3
from requests.adapters import HTTPAdapter

from brainseg_bids import __version__
from brainseg_bids.fetch.choice import gigabytes
from brainseg_bids.fetch.known import FetchError
from brainseg_bids.locks import Lock, lock_file
from brainseg_bids.pointers import pointer_kind

if TYPE_CHECKING:
    from brainseg_bids.fetch.listing import RemoteFile

BUSY = (408, 429, 500, 502, 503, 504)
CHUNK = 1 << 16
"""Bytes that an interruption may lose."""


@dataclass(frozen=True)
class Patience:
    """How long a bad connection is borne.

    Parameters
    ----------
    attempts : int
        In a row without a byte more than before.
    backoff_s, longest_wait_s : float
        First and longest pause; each is twice the one before. A server that asks for a longer
        one does not get it.
    connect_s, read_s : float
        Silence after which a connection is given up.
    """

    attempts: int = 5
    backoff_s: float = 0.5
    longest_wait_s: float = 30.0
    connect_s: float = 10.0
    read_s: float = 60.0


class _Retry(urllib3.Retry):
    """urllib3's, but a server cannot ask for hours."""

    def get_retry_after(self, response):
        asked_s = super().get_retry_after(response)
        return None if asked_s is None else min(asked_s, self.backoff_max)


class _Adapter(HTTPAdapter):
    """Gives a connection up after some silence; requests would wait for ever."""

    def __init__(self, silence_s: tuple[float, float], **options) -> None:
        self.silence_s = silence_s
        super().__init__(**options)

    def send(self, request, timeout=None, **options):
        return super().send(request, timeout=timeout or self.silence_s, **options)


def open_session(patience: Patience, jobs: int = 4) -> requests.Session:
    """A session that waits for busy servers, for use in ``jobs`` threads."""
    retry = _Retry(
        total=patience.attempts,
        connect=2,  # a name that is not known now will not be in a second
        read=patience.attempts,
        status_forcelist=BUSY,
        backoff_factor=patience.backoff_s,
        backoff_max=patience.longest_wait_s,
        allowed_methods=["GET"],
        raise_on_status=False,
    )
    session = requests.Session()
    session.headers["User-Agent"] = f"brainseg-bids/{__version__}"
    session.headers["Accept-Encoding"] = "identity"  # sizes and checksums are of the plain bytes
    silence_s = (patience.connect_s, patience.read_s)
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(silence_s, max_retries=retry, pool_maxsize=jobs))
    return session


def get_text(session: requests.Session, url: str, query: dict | None = None) -> str:
    """A small text.

    Raises
    ------
    FetchError
        In one line, if there is none to be had.
    """
    with _told(url):
        answer = session.get(url, params=query)
    _check_status(answer, url)
    return answer.content.decode("utf-8", "replace")


@contextlib.contextmanager
def _told(url: str):
    """Failures of a connection in one line."""
    try:
        yield
    except requests.RequestException as error:
        raise FetchError(f"{url}: {_why(error)}. Run the same command again to go on.") from error


def _why(error: Exception) -> str:
    """What is wrong with a connection, in a few words.

    >>> _why(requests.ConnectionError("NameResolutionError: Name or service not known"))
    'no network, or no such server (its name is not known)'
    >>> _why(requests.ReadTimeout("HTTPConnectionPool: Read timed out. (read timeout=60)"))
    'the server does not answer'
    """
    text = str(error)
    for words, meaning in (
        ("NameResolution", "no network, or no such server (its name is not known)"),
        ("Network is unreachable", "no network"),
        ("Connection refused", "the server refuses the connection"),
        ("CERTIFICATE", "the server's certificate is not valid (is there a proxy between?)"),
        ("ProxyError", "the proxy does not answer"),
        ("timed out", "the server does not answer"),
        ("IncompleteRead", "the connection was cut again and again"),
        ("Connection aborted", "the connection was cut again and again"),
        ("Connection reset", "the connection was cut again and again"),
    ):
        if words in text:
            return meaning
    return f"the connection failed ({type(error).__name__})"


def _check_status(answer: requests.Response, url: str) -> None:
    status = answer.status_code
    if status < 400:
        return
    if status in (404, 410):
        raise FetchError(f"{url}: it is not there (HTTP {status}). Is the name right?")
    if status in (401, 403):
        raise FetchError(f"{url}: the server does not give it to everybody (HTTP {status}).")
    if status in BUSY:
        raise FetchError(
            f"{url}: the server is busy or broken (HTTP {status}). "
            "Run the same command again later to go on."
        )
    raise FetchError(f"{url}: the server says HTTP {status} {answer.reason}.")


# ---- one file


class Stopped(Exception):
    """Somebody else has ended the work."""


class _Again(urllib3.exceptions.HTTPError):
    """An answer that is of no use, like a cut connection."""


@dataclass
class Transfer:
    """Files on their way into a folder.

    Parameters
    ----------
    root : Path
    session : requests.Session
    patience : Patience
    on_bytes : callable
        Told how many more bytes are here; less than 0 if some had to be thrown away.
    """

    root: Path
    session: requests.Session
    patience: Patience = Patience()
    on_bytes: Callable[[int], None] = lambda count: None
    stop: threading.Event = field(default_factory=threading.Event)

    def fetch(self, file: RemoteFile) -> str:
        """Get one file.

        Returns
        -------
        str
            ``fetched`` or ``there already``.

        Raises
        ------
        FetchError
            If it cannot be had, or another file is in its place.
        OSError
            If it cannot be written.
        """
        target = self.root / file.path
        if holds_content(target) or (file.size == 0 and target.is_file()):
            if not why_wrong(target, file):
                self.on_bytes(target.stat().st_size)
                return "there already"
            raise FetchError(
                f"{target}: a file with other content is there. Move it away, "
                "or fetch into another folder."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with part.open("ab") as stream:
            _lock(stream, part)
            try:
                self._fill(stream, part, file)
            except BaseException:
                if not stream.tell():
                    part.unlink(missing_ok=True)
                raise
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(part, target)
        return "fetched"

    def _fill(self, stream, part: Path, file: RemoteFile) -> None:
        """Let a part grow until it is whole and right."""
        best = begun = part.stat().st_size
        self.on_bytes(begun)
        cut, spoilt = 0, 0
        while True:
            try:
                with _told(file.url):
                    self._go_on(stream, file)
            except urllib3.exceptions.HTTPError as error:  # in mid-file
                reached = stream.tell()
                cut = 1 if reached > best else cut + 1
                best = max(best, reached)
                if cut >= self.patience.attempts:
                    raise FetchError(
                        f"{file.url}: {_why(error)}. Run the same command again to go on."
                    ) from error
                wait_s = self.patience.backoff_s * 2 ** (cut - 1)
                if self.stop.wait(min(wait_s, self.patience.longest_wait_s)):
                    raise Stopped from error
                continue
            stream.flush()
            wrong = why_wrong(part, file)
            if not wrong:
                return
            # The bytes of an earlier run may be of an older version of the file: once anew.
            self._empty(stream)
            spoilt += 1
            best = 0
            if spoilt >= 2:
                raise FetchError(
                    f"{file.url}: what came is not what the listing says ({wrong}), twice. "
                    "Run the same command later; if it stays so, tell who keeps the dataset."
                )

    def _go_on(self, stream, file: RemoteFile) -> None:
        """One request for what is missing."""
        have = stream.seek(0, os.SEEK_END)
        if file.size is not None and have > file.size:
            have = self._empty(stream)
        if have and have == file.size:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and file.etag and not file.etag.startswith("W/"):
            headers["If-Range"] = file.etag  # of another version the server sends the whole
        with self.session.get(file.url, headers=headers, stream=True) as answer:
            if answer.status_code == 416:  # nothing comes after that: whole, or not its beginning
                if _length_of_416(answer) != have:
                    self._empty(stream)
                    raise _Again("the server has less of it than is here")
                return
            _check_status(answer, file.url)
            if have and not (answer.status_code == 206 and _starts_at(answer, have)):
                if answer.status_code == 206:
                    raise _Again("another range came than was asked for")
                self._empty(stream)  # the server knows no ranges: from the beginning
            for block in answer.raw.stream(CHUNK, decode_content=False):
                if self.stop.is_set():
                    raise Stopped
                stream.write(block)
                self.on_bytes(len(block))
        stream.flush()

    def _empty(self, stream) -> int:
        self.on_bytes(-stream.seek(0, os.SEEK_END))
        stream.truncate(0)
        return stream.seek(0)


def _starts_at(answer: requests.Response, have: int) -> bool:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return bool(found) and int(found[1]) == have


def _length_of_416(answer: requests.Response) -> int | None:
    found = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def holds_content(path: Path) -> bool:
    """Whether a file is there that is neither empty nor a pointer to content elsewhere."""
    return path.exists() and path.stat().st_size > 0 and not pointer_kind(path)


def why_wrong(path: Path, file: RemoteFile) -> str:
    """How a file on disk differs from what the listing says, or nothing."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size} bytes instead of {file.size}"
    if not file.algorithm:
        return ""
    with path.open("rb") as stream:
        # Not for secrecy: some machines refuse MD5 otherwise.
        found = hashlib.file_digest(
            stream, lambda: hashlib.new(file.algorithm, usedforsecurity=False)
        )
    return "" if found.hexdigest() == file.digest else f"the {file.algorithm.upper()} differs"


def _lock(stream, part: Path) -> None:
    """Two runs must not write one part; where a disk knows no locks, checksums have to do."""
    if lock_file(stream) is Lock.BUSY:
        raise FetchError(f"{part}: another fetch is writing it. Wait for that one, or end it.")


# ---- all of them


def check_space(root: Path, files: Sequence[RemoteFile]) -> None:
    """Refuse what cannot fit.

    Raises
    ------
    FetchError
    """
    missing = 0
    for file in files:
        target = root / file.path
        here = [target, target.with_name(f"{target.name}.part")]
        missing += max(0, (file.size or 0) - sum(p.stat().st_size for p in here if p.is_file()))
    folder = root
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise FetchError(
            f"{root}: {gigabytes(missing)} are to come, {gigabytes(free)} are free. "
            "Make room, choose another folder, or fewer participants."
        )


@dataclass
class Outcome:
    """What became of the files: how often each word of `Transfer.fetch`, and what failed."""

    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def fetch_files(transfer: Transfer, files: Sequence[RemoteFile], *, jobs: int = 4) -> Outcome:
    """Get files, ``jobs`` at a time; those that cannot be had are told, the others come.

    A disk that is full or cannot be written ends all; so does Ctrl-C. What has come by then
    stays, and the same call goes on from there.

    Raises
    ------
    OSError
        If a file cannot be written.
    KeyboardInterrupt
    """
    outcome = Outcome()
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for file in files:
        waiting.put(file)
    broken: list[BaseException] = []
    lock = threading.Lock()

    def work() -> None:
        while not transfer.stop.is_set():
            try:
                file = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                word = transfer.fetch(file)
                with lock:
                    outcome.counts[word] = outcome.counts.get(word, 0) + 1
            except FetchError as error:
                with lock:
                    outcome.failures.append(str(error))
            except Stopped:
                return
            except BaseException as error:  # the disk, or a fault of ours: all shall end
                broken.append(error)
                transfer.stop.set()

    # Daemons: one that waits for a silent server does not keep an interrupted program alive.
    threads = [
        threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(files)) or 1)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    except KeyboardInterrupt:
        transfer.stop.set()
        for thread in threads:
            thread.join(0.5)
        raise
    if broken:
        raise broken[0]
    outcome.failures.sort()
    return outcome
