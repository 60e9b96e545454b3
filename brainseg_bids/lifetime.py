# SPDX-License-Identifier: Apache-2.0
"""How processes end: this one by a signal, and its children with it.

A signal ends the process where it stands. Raising an exception instead, as Python does, is
unsafe at any moment: one that is raised in a callback is swallowed, and one that is raised while
a module is imported leaves half a module. What is written is written whole or not at all, so
there is nothing to unwind.

A child learns from the variable `PARENT` who has started it, and ends when that process is gone,
however it went. On Linux a process could ask for a signal instead (``PR_SET_PDEATHSIG``), but
that comes when the *thread* ends that has started it, and not on other systems.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from brainseg_bids.exit_codes import INTERRUPTED, SAVED, TERMINATED

PARENT = "BRAINSEG_PARENT"
"""Number of the process that a child has to end with."""

LOOK_EVERY_S = 0.5
GRACE_S = 120.0
"""Time to end in order, such as to finish a training step and to save it; then it is killed."""

CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED, signal.SIGUSR1: SAVED}
"""Exit codes. A batch system sends SIGUSR1 before the end of a job's time; the same command goes
on."""

_at_end: list[Callable[[int], None]] = []


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While the block lasts, the signals of `CODES` end this process at once.

    Signals that are ignored stay ignored, as for what a shell has put into the background.
    Nothing is changed outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in CODES}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def at_end(do: Callable[[int], None]) -> Iterator[None]:
    """While the block lasts, ``do`` is called with the signal that ends this process.

    The main thread may be anywhere and hold any lock, so ``do`` must not wait for one.
    """
    _at_end.append(do)
    try:
        yield
    finally:
        _at_end.remove(do)


def _end(number: int, _frame) -> None:
    number = signal.Signals(number)
    for other in CODES:  # again: do not wait for children
        signal.signal(other, lambda *_: os._exit(CODES[number]))
    why = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    with suppress(OSError):
        os.write(2, f"brainseg: ERROR: {why}; run the same command again to go on\n".encode())
    for do in reversed(_at_end):
        with suppress(Exception):
            do(number)
    os._exit(CODES[number])


# -- children -----------------------------------------------------------------------------


def for_children(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a child that shall end with this process.

    >>> for_children({"A": "1"})[PARENT] == str(os.getpid())
    True
    """
    return {**environ, PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """End this process when the one that has started it is gone.

    It is asked by SIGTERM first. Nothing is done unless the parent wished it (`for_children`),
    and started this process itself: what stands in between, such as a container, ends it.
    """
    parent = os.environ.pop(PARENT, "")  # its own children are its own affair
    if parent == str(os.getppid()):
        threading.Thread(target=_watch, args=[int(parent)], daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
