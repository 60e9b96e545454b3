# SPDX-License-Identifier: Apache-2.0
"""``.bidsignore``: files of a dataset that its author keeps from the validator."""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from brainseg_bids.documents import InputError, read_text

NAME = ".bidsignore"
_PARTS = re.compile(r"\*\*/|/\*\*$|\*\*|\*|\?|\[!?\]?[^\]]*\]|\\.|.")
_WILD = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}

log = logging.getLogger("brainseg")


@dataclass(frozen=True)
class BidsIgnore:
    """Patterns in the order of the file, as git and the BIDS validator read them.

    Parameters
    ----------
    patterns : tuple of (re.Pattern, bool, bool)
        Fits a path below the root; takes back what earlier lines left out; folders only.

    Examples
    --------
    >>> lines = ["# spoilt by motion", "*_acq-bad_*", "!sub-02_*", "/sub-99/"]
    >>> ignore = BidsIgnore.from_lines(lines)
    >>> [ignore.matches(f"{s}/anat/{s}_acq-bad_T1w.nii.gz") for s in ("sub-01", "sub-02")]
    [True, False]
    >>> ignore.matches("sub-99", folder=True), ignore.matches("sub-01/anat/sub-01_T1w.nii.gz")
    (True, False)
    """

    patterns: tuple[tuple[re.Pattern, bool, bool], ...] = ()

    @classmethod
    def read(cls, bids_dir: Path) -> BidsIgnore:
        """Of a dataset; a missing file leaves nothing out, nor does one that cannot be read."""
        path = bids_dir / NAME
        if not path.exists():
            return cls()
        try:
            return cls.from_lines(read_text(path).splitlines())
        except InputError as error:
            log.warning("%s Nothing is left out for it.", error)
            return cls()

    @classmethod
    def from_lines(cls, lines: list[str]) -> BidsIgnore:
        """Patterns of lines; blank ones and comments say nothing."""
        kept = (re.sub(r"(?<!\\)\s+$", "", line) for line in lines)
        return cls(tuple(_pattern(line) for line in kept if line.strip("!/") and line[0] != "#"))

    def matches(self, path: str | PurePath, *, folder: bool = False) -> bool:
        """Whether a path below the dataset's root, or a folder above it, is left out."""
        parts = PurePath(path).parts
        return any(
            self._leaves_out("/".join(parts[:n]), folder or n < len(parts))
            for n in range(1, len(parts) + 1)
        )

    def _leaves_out(self, path: str, folder: bool) -> bool:
        said = [
            not taken_back
            for pattern, taken_back, folders_only in self.patterns
            if (folder or not folders_only) and pattern.fullmatch(path)
        ]
        return bool(said) and said[-1]


def _pattern(line: str) -> tuple[re.Pattern, bool, bool]:
    taken_back, line = line.startswith("!"), line.removeprefix("!")
    folders_only, line = line.endswith("/"), line.rstrip("/")
    anywhere = "/" not in line
    expression = "".join(_translated(part) for part in _PARTS.findall(line.removeprefix("/")))
    # The validator takes no heed of case.
    pattern = re.compile(("(?:.*/)?" if anywhere else "") + expression, re.IGNORECASE)
    return pattern, taken_back, folders_only


def _translated(part: str) -> str:
    if part in _WILD:
        return _WILD[part]
    if part[0] == "[" and len(part) > 2:
        one_of = part.replace("\\", r"\\").replace("[!", "[^", 1)
        with contextlib.suppress(re.error):  # such as [z-a], which means itself
            return re.compile(one_of).pattern
        return re.escape(part)
    return re.escape(part[-1])
