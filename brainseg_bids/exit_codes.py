# SPDX-License-Identifier: Apache-2.0
"""What programs of this package end with: the one table of exit codes and their meanings.

75 is EX_TEMPFAIL of sysexits.h: try again. 126 to 143 are what shells use.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

DONE = 0
FAILED = 1
UNUSABLE = 2
NOT_BUILT = 70
SAVED = 75
NO_LICENCE = 126
NO_PROGRAM = 127
INTERRUPTED = 130
TERMINATED = 143

MEANINGS = {
    DONE: "all done",
    FAILED: "an image failed (the last lines say which and why)",
    UNUSABLE: "the command line or the data it names cannot be used",
    NOT_BUILT: "the workflow could not be built",
    SAVED: "training was stopped and saved, or SIGUSR1 came, and the same command resumes",
    NO_LICENCE: "a tool's licence is missing",
    NO_PROGRAM: "a tool is missing",
    INTERRUPTED: "interrupted",
    TERMINATED: "ended by SIGTERM",
}
"""Of ``brainseg`` itself."""


_TIE = "\N{NO-BREAK SPACE}"


def in_words(meanings: Mapping[int, str] = MEANINGS) -> str:
    """Codes and their meanings as ``--help`` ends with them.

    >>> in_words({DONE: "all done", FAILED: "some image could not be done"})
    'exit codes: 0 all done; 1 some image could not be done.'
    """
    words = "; ".join(f"{code}{_TIE}{meaning}" for code, meaning in meanings.items())
    return textwrap.fill(f"exit codes: {words}.", 95).replace(_TIE, " ")
