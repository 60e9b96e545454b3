# SPDX-License-Identifier: Apache-2.0
"""Standard input, output and error that may be closed, full, or read by nobody.

What is said there is in the log file, too, so work goes on when it cannot be said.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class SafeStream:
    """A text stream whose writing never fails: what cannot be written is dropped from then on.

    Parameters
    ----------
    stream : text file

    Attributes
    ----------
    fault : OSError or None
        Why nothing is written any more.
    """

    def __init__(self, stream) -> None:
        self._stream = stream
        self.fault: OSError | None = None
        if getattr(stream, "errors", "") == "strict" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # letters that a terminal does not have

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or do as if."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Write what is still kept."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        self.fault = self.fault or error
        # What is kept, what Python writes when it ends, and what children write goes there, too.
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def protect() -> tuple[SafeStream, SafeStream]:
    """Put safe streams in place of standard output and error; whatever is closed is opened.

    A file that is opened later would else get the number of a closed stream, and with it what
    others say.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    streams = []
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        streams.append(SafeStream(stream or open(number, "w", closefd=False)))  # noqa: SIM115
    sys.stdout, sys.stderr = streams
    return tuple(streams)


@contextmanager
def protected() -> Iterator[SafeStream]:
    """Standard streams as of `protect` while the block lasts; standard output is handed out.

    A reader that has seen enough (``| head``) is no fault; any other is told in one line.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    output, messages = protect()
    try:
        yield output
    finally:
        output.flush()
        if is_lost(output):
            messages.write(
                f"brainseg: ERROR: standard output: {output.fault.strerror}. What was done is in "
                "the log file, if there is one.\n"
            )
        messages.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def is_lost(output: SafeStream) -> bool:
    """Whether something was not written that somebody waits for."""
    return output.fault is not None and output.fault.errno != errno.EPIPE
