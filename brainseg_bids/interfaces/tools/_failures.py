# SPDX-License-Identifier: Apache-2.0
"""What a tool that failed is reported as: one line from how it ended and from its log."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from brainseg_bids import exit_codes
from brainseg_bids.interfaces.tools._process import Ended
from brainseg_bids.units import duration

LOG_TAIL_BYTES = 64 * 1024


class ToolError(RuntimeError):
    """A tool did not do its work; the message is one line for the user.

    ``exit_code`` is what the app ends with; a failed step is known by the name of its error.
    """

    exit_code = exit_codes.FAILED


class LicenceError(ToolError):
    """A tool found no licence."""

    exit_code = exit_codes.NO_LICENCE


class MissingToolError(ToolError):
    """There is no such program."""

    exit_code = exit_codes.NO_PROGRAM


class Failed(Protocol):
    """What is told of the tool that failed."""

    @property
    def name(self) -> str: ...

    @property
    def how_to_get(self) -> str: ...


def failure(
    tool: Failed, image: str | Path, ended: Ended, log: Path, *, limit_s: float | None = None
) -> ToolError:
    """One line from how a tool ended and what it said.

    ``limit_s`` is the time that it was given; it takes some more to end.
    """
    where = f" Its log: {log}"
    number = -ended.code if ended.code < 0 else ended.code - 128  # shells say 128 + n
    tail = log_tail(log)
    if ended.timed_out:
        return ToolError(
            f"{image}: {tool.name} was ended because it took longer than "
            f"{duration(limit_s or ended.seconds)}. Give it longer with --tool-timeout.{where}"
        )
    if any(NO_KEY.search(line) for line in tail):
        return LicenceError(
            f"{image}: {tool.name} found no valid FreeSurfer licence key. Give yours with "
            "--fs-license-file FILE or FS_LICENSE=FILE; it is free: "
            f"https://surfer.nmr.mgh.harvard.edu/registration.html.{where}"
        )
    if number == signal.SIGKILL or any(NO_MEMORY.search(line) for line in tail):
        how = (
            "was killed, most likely because memory ran out"
            if number == signal.SIGKILL
            else (f"ran out of memory{error_in(log)}")
        )
        return ToolError(
            f"{image}: {tool.name} {how}. Give the job more memory, or run fewer at a time with "
            f"--nprocs or --mem.{where}"
        )
    if ended.code in (126, 127):
        return MissingToolError(
            f"{image}: {tool.name} could not be started{error_in(log)}. {tool.how_to_get}{where}"
        )
    if number > 0 and number in set(signal.Signals):
        name = signal.Signals(number).name
        return ToolError(
            f"{image}: {tool.name} was ended by signal {name}{error_in(log)}. Run it again.{where}"
        )
    return ToolError(
        f"{image}: {tool.name} failed with exit code {ended.code}{error_in(log)}.{where}"
    )


NO_KEY = re.compile(
    r"(?i)licen[cs]e (key|file)\b.*(not found|missing|invalid|required|does not exist)"
    r"|\b(no|invalid|missing) (valid )?(free ?surfer )?licen[cs]e"
)
"""FreeSurfer says ``ERROR: FreeSurfer license file .../license.txt not found.``"""
NO_MEMORY = re.compile(
    r"MemoryError|bad_alloc|Unable to allocate|[Oo]ut of memory|[Cc]annot allocate memory"
    r"|OutOfMemoryError|^Killed$|: Killed$"
)
ERROR_WORDS = re.compile(r"(?i)\b\w*(error|exception|fatal|critical|abort(ed)?|no space left)\b")


def log_tail(log: Path) -> list[str]:
    """Last lines of a log, without blank ones and terminal colours."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def error_line(lines: Sequence[str]) -> str:
    """The line that says most likely what went wrong: the last one with an error, or the last.

    >>> error_line(["Traceback", "ValueError: no atlas", "cleaning up"])
    'ValueError: no atlas'
    >>> error_line(["reading", "gave up"])
    'gave up'
    """
    if not lines:
        return ""
    line = next((line for line in reversed(lines) if ERROR_WORDS.search(line)), lines[-1])
    return line if len(line) <= 300 else f"{line[:300]} ..."


def error_in(log: Path) -> str:
    """The error that a log names, in brackets; nothing if it is empty."""
    line = error_line(log_tail(log)).rstrip(".")
    return f" ({line})" if line else ""
