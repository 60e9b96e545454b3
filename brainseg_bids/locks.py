# SPDX-License-Identifier: Apache-2.0
"""Locks on files: one process at a time, where the file system can tell."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import IO

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None


class Lock(enum.Enum):
    """What came of asking for a lock."""

    HELD = "ours"
    BUSY = "another process has it"
    UNKNOWN = "the file system has no locks"


def lock_file(file: IO | int, *, wait: bool = False) -> Lock:
    """Lock a whole file, or a folder by its descriptor, until it is closed.

    The lock belongs to the open file: a child process that is handed the descriptor keeps it.

    Parameters
    ----------
    file : file object or int
    wait : bool
        Wait until it is free.
    """
    return _ask(lambda flags: fcntl.flock(file, flags), wait=wait, shared=False)


def lock_byte(file: IO, offset: int, *, wait: bool = False, shared: bool = False) -> Lock:
    """Lock one byte of a file that is open for reading and writing, until it is closed.

    Many bytes can stand for many things, with one open file. The lock belongs to this process,
    and goes when it closes the file, however often it had opened it.

    Parameters
    ----------
    file : file object
    offset : int
        Of the byte; the file need not be that long.
    wait : bool
        Wait until it is free.
    shared : bool
        Leave it to others who ask for it shared, too.
    """
    return _ask(lambda flags: fcntl.lockf(file, flags, 1, offset), wait=wait, shared=shared)


def _ask(lock: Callable[[int], None], *, wait: bool, shared: bool) -> Lock:
    if fcntl is None:
        return Lock.UNKNOWN
    try:
        lock((fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return Lock.BUSY
    except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP, ...: NFS and Lustre without locks
        return Lock.UNKNOWN
    return Lock.HELD
