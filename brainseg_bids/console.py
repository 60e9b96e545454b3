# SPDX-License-Identifier: Apache-2.0
"""What a run says, on the console and in its log file."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.exit_codes import UNUSABLE
from brainseg_bids.lifetime import at_end
from brainseg_bids.units import duration

log = logging.getLogger("brainseg")

MOST_NAMED = 3
"""Steps at work that a line names."""


class OneLineParser(argparse.ArgumentParser):
    """What is wrong in one line: two dozen lines of usage would hide it."""

    def error(self, message: str):
        text = f"{self.prog}: error: {message} ({self.prog} --help lists all flags)\n"
        self.exit(UNUSABLE, text)


class Progress:
    """A bar on a terminal; elsewhere a line per image and quarter of the way."""

    def __init__(self, n_images: int) -> None:
        from tqdm import tqdm  # late: ``--help`` shall not wait for it

        self.percent: dict[str, int] = {}
        self.bar = tqdm(
            total=100 * n_images,
            disable=not sys.stderr.isatty(),
            bar_format="{percentage:3.0f} %|{bar}| {elapsed}{postfix}",
        )

    def __call__(self, title: str, percent: int) -> None:
        before = self.percent.get(title, 0)
        if percent <= before:
            return
        self.percent[title] = percent
        self.bar.update(percent - before)
        self.bar.set_postfix_str(title)
        if self.bar.disable and percent < 100 and percent // 25 > before // 25:
            log.info("%s: %d %%", title, percent)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()


class AtWork:
    """What is being done, and since when; said where nothing else was said for a while.

    Parameters
    ----------
    silence_s : float
        Longest time without a line while something is at work.
    """

    def __init__(self, silence_s: float = 60.0) -> None:
        self.silence_s = silence_s
        self.began_s: dict[str, float] = {}
        self.percent: dict[str, int] = {}
        self.spoke_s = time.monotonic()

    def begin(self, what: str) -> None:
        """Something is begun; the same again is not."""
        self.began_s.setdefault(what, time.monotonic())

    def end(self, what: str) -> None:
        """It is done, or has failed."""
        self.began_s.pop(what, None)
        self.percent.pop(what, None)

    def line(self) -> str:
        """What is at work, the longest first."""
        now_s = time.monotonic()
        words = []
        for what, began_s in list(self.began_s.items()):
            percent = f"{self.percent[what]} %, " if what in self.percent else ""
            words.append(f"{what} ({percent}{duration(now_s - began_s)})")
        more = f"; {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
        return f"at work: {'; '.join(words[:MOST_NAMED])}{more}"

    def watch(self, ended: threading.Event) -> None:
        """Say the line whenever it is due, until ``ended``; for a thread of its own."""
        while not ended.wait(min(1.0, self.silence_s)):
            if self.began_s and time.monotonic() - self.spoke_s >= self.silence_s:
                log.info("%s", self.line())


def one_line(error: BaseException) -> str:
    """What an error says, in one line that is not too long.

    >>> one_line(ValueError("no \\n such thing")), one_line(EOFError())
    ('no such thing', 'EOFError')
    """
    return " ".join(str(error).split())[:300] or type(error).__name__


at_work = AtWork()
"""Of this process."""


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """While the block lasts it is said now and then that ``what`` is at work."""
    at_work.begin(what)
    try:
        yield
    finally:
        at_work.end(what)


class _ConsoleHandler(logging.Handler):
    """Lines on stdout that do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        at_work.spoke_s = time.monotonic()
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _FileHandler(logging.FileHandler):
    """A log on a disk that is full shall not hide what went wrong under tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        return f"{clock} {level}{record.getMessage()}"


@contextlib.contextmanager
def in_thread(watch: Callable[[threading.Event], None]) -> Iterator[None]:
    """While the block lasts, ``watch`` runs in a thread; its argument is set when it has ended."""
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=[ended], daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@contextlib.contextmanager
def logging_to(path: Path, *, verbose: int, debug: bool) -> Iterator[None]:
    """Console and file handlers on our logger; Nipype's goes to the file, or with -v to both."""
    console = _ConsoleHandler()
    console.setFormatter(_ConsoleFormatter())
    file = _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    log.setLevel(logging.DEBUG if verbose or debug else logging.INFO)
    log.propagate = False
    log.handlers[:] = [console, file]
    os.environ.setdefault("NIPYPE_NO_ET", "1")
    nipype = logging.getLogger("nipype")
    nipype.handlers[:] = [file, console] if verbose else [file]
    nipype.propagate = False

    def note_signal(number: int) -> None:
        # Not by the logger, whose lock somebody may hold.
        with path.open("a", encoding="utf-8") as record:
            record.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} ended by signal {number}\n")

    try:
        log.info("brainseg-bids %s, log: %s", __version__, path)
        at_work.began_s.clear()
        with at_end(note_signal), in_thread(at_work.watch):
            yield
    finally:
        log.handlers[:] = []
        nipype.handlers[:] = []
        with contextlib.suppress(OSError):
            file.close()
