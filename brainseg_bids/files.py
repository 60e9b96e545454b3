# SPDX-License-Identifier: Apache-2.0
"""Files: written whole or not at all, told apart by content; words for a disk that is full."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from brainseg_bids.lifetime import at_end


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FRESH_S = 2.0
"""A file that was changed so lately may change again without its times telling."""


def file_state(path: Path) -> str:
    """Hash of where a file lies, its inode, size, and times in nanoseconds; empty if it is fresh.

    While the state is the same, so is the content: a file that is replaced has another inode, and
    one that is written in place another time of change, which nobody can set.
    """
    stat = path.stat()
    if time.time() - stat.st_ctime < FRESH_S:
        return ""
    facts = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    digest = hashlib.sha256(os.fsencode(path.resolve()) + repr(facts).encode())
    return digest.hexdigest()[:16]


READ_BYTES = 1 << 20


def read_ahead(path: str | Path) -> None:
    """Read a file into the cache of the system, for the process that reads it next.

    Not every file system heeds ``posix_fadvise``. Errors are left to that process.
    """
    buffer = bytearray(READ_BYTES)
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


@contextmanager
def whole_or_nothing(path: Path):
    """Write to a temporary name beside ``path``; rename when done, remove when it fails."""
    endings = "".join(path.suffixes[-2:]) if path.name.endswith(".nii.gz") else path.suffix
    # Not the process number: in containers on two nodes it is often the same.
    temporary = path.with_name(f".{path.name.removesuffix(endings)}.{uuid4().hex}{endings}")
    try:
        with at_end(lambda _: temporary.unlink(missing_ok=True)):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}(\.[^.]+){0,2}")
"""Names of `whole_or_nothing`: they stay where a process was killed (SIGKILL) while it wrote."""
DAY_S = 86400.0


def remove_unfinished(paths: Iterable[Path], *, older_than_s: float = 0.0) -> None:
    """Remove those of some files that `whole_or_nothing` has left; what cannot be removed stays.

    Parameters
    ----------
    paths : iterable of Path
        Others among them stay.
    older_than_s : float
        Younger files stay, where another process may be writing them.
    """
    for path in paths:
        if not UNFINISHED.fullmatch(path.name):
            continue
        with suppress(OSError):
            if not older_than_s or time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()


def write_text(path: str | Path, text: str) -> Path:
    """Write text whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


DISK_FAULTS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.EFBIG: "the disk is full",
    errno.EROFS: "the disk is read-only",
}
"""What is said of the operating system's errors about disks, whichever step meets them."""


def save_fault(path: Path, error: OSError) -> str:
    """One line for a file that could not be written.

    >>> save_fault(Path("seg.nii.gz"), OSError(errno.ENOSPC, "No space left on device"))
    'seg.nii.gz: the disk is full. Free some space and run it again.'
    """
    fault, remedy = DISK_FAULTS.get(error.errno), "Free some space and run it again"
    if error.errno == errno.EACCES:
        fault = "there is no permission to write"
    if error.errno in (errno.EACCES, errno.EROFS):
        remedy = "Choose another output_dir"
    if fault is None:
        return f"{path}: it cannot be written ({error.strerror or error})."
    return f"{path}: {fault}. {remedy}."
