# SPDX-License-Identifier: Apache-2.0
"""Simultaneous runs: scratch folders of their own, one run for a participant at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from brainseg_bids.documents import InputError
from brainseg_bids.files import DISK_FAULTS
from brainseg_bids.locks import Lock, lock_byte

if TYPE_CHECKING:
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")

LOCK = ".brainseg.lock"
"""File in the scratch folder whose bytes are locked: the first one by all who work there, shared;
one for each participant of a dataset and output, alone."""
ANYONE = 0
OUTPUT_LOCK = Path("logs", "participants.lock")
"""File in the output folder with a byte for each participant and session that is worked on."""

TOO_MANY = {
    errno.EMFILE: (
        "too many files are open",
        "Allow more (ulimit -n), or run fewer at a time with --nprocs",
    ),
    errno.ENFILE: (
        "too many files are open on this machine",
        "Run it again later, or on another one",
    ),
}
"""What is said of errors of the operating system, whichever step meets them."""


def scratch_dir(settings: Settings) -> Path:
    """Where the steps of this dataset into this output work.

    Its name holds the dataset's, and a short hash of where the dataset and the output lie: two
    datasets have participants of the same label.
    """
    places = (settings.bids_dir.resolve(), settings.output_dir.resolve())
    digest = hashlib.sha256("\0".join(map(str, places)).encode(errors="surrogateescape"))
    name = re.sub(r"[^0-9A-Za-z+.-]+", "_", places[0].name)[:40] or "data"
    return settings.work_dir / f"{name}_{digest.hexdigest()[:10]}"


@contextlib.contextmanager
def working_alone(
    settings: Settings, names: Iterable[str], *, sessions: Sequence[str] = ()
) -> Iterator[bool]:
    """Keep other runs from the same results while the block lasts; wait for them first.

    What is locked lies in the output folder: the files of two runs, each with a scratch folder of
    its own, would be mixed there.

    Parameters
    ----------
    settings : Settings
    names : iterable of str
        What is worked on, e.g. ``sub-01``.
    sessions : sequence of str
        The only sessions that are worked on. Runs on other sessions do not wait, unless they
        have the same scratch folder.

    Yields
    ------
    bool
        Whether no other run works on the same; False where the file system cannot tell.

    Raises
    ------
    InputError
        If the scratch folder is to be emptied and another run works in it.
    """
    names = set(names)
    wanted = _to_lock(names, sessions)
    with contextlib.ExitStack() as stack:
        work = _open(settings.work_dir / LOCK, stack)
        if work is not None:
            if settings.clean_workdir:
                _clean(settings.work_dir, work)
            lock_byte(work, ANYONE, wait=True, shared=True)
        path = settings.output_dir / OUTPUT_LOCK
        file = _open(path, stack)
        alone = file is not None and _take_locks(file, wanted, settings.output_dir)
        if not alone:
            log.warning(
                "%s: cannot be locked; do not run two jobs for the same participant into this "
                "output folder at a time",
                path,
            )
        if work is not None:  # steps of all sessions of a participant have one folder there
            inside = f"{scratch_dir(settings).name}/"
            steps = _to_lock([inside + name for name in names], ())
            _take_locks(work, steps, settings.work_dir)
        yield alone


def _open(path: Path, stack: contextlib.ExitStack) -> IO | None:
    """A file to lock bytes of, until the stack unwinds; None if it cannot be opened."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return stack.enter_context(path.open("a+b"))
    except OSError as error:  # full or read-only: the steps themselves will say so
        log.debug("%s: not locked (%s)", path, error)
        return None


def _to_lock(names: Iterable[str], sessions: Sequence[str]) -> dict[str, bool]:
    """What is to be locked, and whether it is shared with runs on other sessions."""
    wanted = dict.fromkeys(names, bool(sessions))
    ends = [f"_ses-{label.removeprefix('ses-')}" for label in sessions]
    return wanted | {name + end: False for name in wanted for end in ends}


def _take_locks(file: IO, wanted: Mapping[str, bool], folder: Path) -> bool:
    """Whether all of it could be locked."""
    # All in the same order: two runs never wait for each other.
    for offset, name in sorted((_offset(name), name) for name in wanted):
        if _wait_for(file, offset, name, folder, shared=wanted[name]) is Lock.UNKNOWN:
            return False
    return True


def participants_of(settings: Settings) -> list[str]:
    """Participants that a run may work on: those asked for, or all of dataset and derivative."""
    wanted = [f"sub-{label.removeprefix('sub-')}" for label in settings.participant_label]
    folders = (settings.bids_dir, settings.output_dir)
    return wanted or [path.name for folder in folders for path in folder.glob("sub-*/")]


def _wait_for(file: IO, offset: int, name: str, folder: Path, *, shared: bool) -> Lock:
    found = lock_byte(file, offset, shared=shared)
    if found is not Lock.BUSY:
        return found
    log.info("%s: another run is at work on it in %s; waiting until it has ended", name, folder)
    return lock_byte(file, offset, wait=True, shared=shared)


def _offset(name: str) -> int:
    return 1 + int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:6])


def _clean(work_dir: Path, file: IO) -> None:
    if lock_byte(file, ANYONE) is Lock.BUSY:
        raise InputError(
            f"--clean-workdir: another run is at work in {work_dir}. Wait for it, or choose "
            "another scratch folder with -w."
        )
    for path in work_dir.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def explain(reason: str, work_dir: Path) -> str:
    """A reason in words of the user, if it is an error of the operating system.

    >>> explain("[Errno 28] No space left on device: '/w/a/_0x1_unfinished.json'", Path("/w"))
    '/w: the disk is full. Make room there, or choose another scratch folder with -w.'
    >>> explain("[Errno 24] Too many open files", Path("/w"))
    'too many files are open. Allow more (ulimit -n), or run fewer at a time with --nprocs.'
    """
    found = re.search(r"\[Errno (\d+)\][^':]*(?:: '([^']+)')?", reason)
    number, path = (int(found[1]), found[2]) if found else (0, None)
    if number in DISK_FAULTS:
        if path and not Path(path).is_relative_to(work_dir.resolve()):
            return f"{path}: {DISK_FAULTS[number]}. Make room there, and run it again."
        fault = DISK_FAULTS[number]
        return f"{work_dir}: {fault}. Make room there, or choose another scratch folder with -w."
    if number in TOO_MANY:
        what, remedy = TOO_MANY[number]
        return f"{what}. {remedy}."
    return reason
