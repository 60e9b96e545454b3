# SPDX-License-Identifier: Apache-2.0
"""What a run says, on the console and in its log file."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from brainseg_bids import __version__
from brainseg_bids.lifetime import at_end

log = logging.getLogger("brainseg")


class Progress:
    """A bar on a terminal; elsewhere a line per image and quarter of the way."""

    def __init__(self, n_images: int) -> None:
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


class _ConsoleHandler(logging.Handler):
    """Lines on stdout that do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
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
        with at_end(note_signal):
            yield
    finally:
        log.handlers[:] = []
        nipype.handlers[:] = []
        with contextlib.suppress(OSError):
            file.close()
