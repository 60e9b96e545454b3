# SPDX-License-Identifier: Apache-2.0
"""Files over HTTP into a folder: resumed, verified, and under their names only when whole.

A file is ``NAME.part`` until it is whole and its checksum is right. urllib3 waits and asks again
when a server is busy or cannot be reached; cut connections are taken up here where they broke off.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import requests
import urllib3

from brainseg_bids.fetch.choice import gigabytes
from brainseg_bids.fetch.http import Patience, check_status, failures_in_one_line, reason
from brainseg_bids.fetch.known import FetchError
from brainseg_bids.fetch.listing import RemoteFile
from brainseg_bids.locks import Lock, lock_file
from brainseg_bids.pointers import pointer_kind

CHUNK = 1 << 16
"""Bytes that an interruption may lose."""


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
    patience: Patience = field(default_factory=Patience)
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
        self.on_bytes(part.stat().st_size)
        for _ in range(2):
            self._complete(stream, file)
            stream.flush()
            wrong = why_wrong(part, file)
            if not wrong:
                return
            # The bytes of an earlier run may be of an older version of the file: once anew.
            self._empty(stream)
        raise FetchError(
            f"{file.url}: what came is not what the listing says ({wrong}), twice. "
            "Run the same command later; if it stays so, tell who keeps the dataset."
        )

    def _complete(self, stream, file: RemoteFile) -> None:
        """Ask for what is missing, again after each cut, as long as more comes."""
        best, cuts = stream.seek(0, os.SEEK_END), 0
        while True:
            try:
                with failures_in_one_line(file.url):
                    return self._request(stream, file)
            except urllib3.exceptions.HTTPError as error:  # in mid-file
                cuts = 1 if stream.tell() > best else cuts + 1
                best = max(best, stream.tell())
                if cuts >= self.patience.attempts:
                    raise FetchError(
                        f"{file.url}: {reason(error)}. Run the same command again to go on."
                    ) from error
                wait_s = self.patience.backoff_s * 2 ** (cuts - 1)
                if self.stop.wait(min(wait_s, self.patience.longest_wait_s)):
                    raise Stopped from error

    def _request(self, stream, file: RemoteFile) -> None:
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
            check_status(answer, file.url)
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

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def fetch_files(transfer: Transfer, files: Sequence[RemoteFile], *, jobs: int = 4) -> Outcome:
    """Get files, ``jobs`` at a time; those that cannot be had are told, the others come.

    A disk that is full or cannot be written ends all; what has come by then stays, and the same
    call goes on from there.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    outcome = Outcome()
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(transfer.fetch, file) for file in files]
        try:
            for done in as_completed(running):
                try:
                    outcome.counts[done.result()] += 1
                except FetchError as error:
                    outcome.failures.append(str(error))
        except BaseException:  # the disk, or a fault of ours: all shall end
            transfer.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    outcome.failures.sort()
    return outcome
