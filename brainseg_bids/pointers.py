# SPDX-License-Identifier: Apache-2.0
"""Files whose content is elsewhere: git-annex and git-LFS leave links or small texts for them.

Told from a name and at most 200 bytes, so that a dataset of thousands is looked through at once,
before any work starts. The command that gets the content is the one that can be run here.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from brainseg_bids.units import natural_order

ANNEX, LFS, EMPTY = "git-annex", "git-LFS", "empty"
MOST = 8
"""Paths that a command names one by one."""

LONGEST_POINTER = 32_768
"""Bytes; git-annex takes a longer file for content."""

_LFS_START = b"version https://git-lfs.github.com/spec/"
_PARTICIPANT = re.compile(r"(?:.*/)?sub-([0-9A-Za-z+]+)(?=[_/])")
_ANNEX_TEXT = re.compile(rb"[./]*(?:\.git)?/annex/objects/\S+")


def pointer_kind(path: str | Path) -> str:
    """What keeps a file's content elsewhere: ``git-annex``, ``git-LFS``, ``empty``, or nothing.

    An empty file is one only in a dataset of OpenNeuro, from where it can be had again.

    Raises
    ------
    OSError
        If a small file cannot be read.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        return ANNEX if "annex/objects" in os.readlink(path).replace("\\", "/") else ""
    if not path.is_file() or path.stat().st_size > LONGEST_POINTER:
        return ""
    if path.stat().st_size == 0:
        return EMPTY if openneuro_accession(repository_of(path)) else ""
    with path.open("rb") as file:
        start = file.read(200)
    if start.startswith(_LFS_START):
        return LFS
    # An unlocked file, or a link on a disk that knows none, is a text with the name of the link.
    return ANNEX if _ANNEX_TEXT.match(start) else ""


def fetch_command(
    paths: Sequence[Path], kind: str, *, which: Callable[[str], str | None] = shutil.which
) -> str:
    """The command that gets the content of files of one repository, for a shell.

    Parameters
    ----------
    paths : sequence of Path
        At least one; of more than `MOST` their folders are named, of more folders a pattern.
    kind : {"git-annex", "git-LFS", "empty"}
    which : callable
        Tells where a program is, or None.
    """
    root = repository_of(paths[0])
    everything = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    inside = _shortened(everything)
    place = shlex.quote(str(root))
    if kind == LFS:
        return f"git -C {place} lfs pull --include={shlex.quote(','.join(inside))}"
    by_annex = which("datalad") or which("git-annex")
    accession = openneuro_accession(root)
    if accession and (kind == EMPTY or not by_annex):
        named = {found[1] for path in everything if (found := _PARTICIPANT.match(path))}
        labels = sorted(named, key=natural_order)
        few = 0 < len(labels) <= MOST
        chosen = f" --participant-label {' '.join(labels)}" if few else ""
        what = " --what derivatives" if inside[0].startswith("derivatives/") else ""
        return f"brainseg fetch {accession} {place}{chosen}{what}"
    # From the root: both programs take a relative path from the folder one is in.
    files = " ".join(f"{place}/{_quoted(path)}" for path in inside)
    if which("git-annex") and not which("datalad"):
        return f"git -C {place} annex get {files}"
    return f"datalad get -d {place} {files}"


def _shortened(paths: Sequence[str]) -> list[str]:
    """Files, or their folders, or patterns of these if there are too many.

    >>> _shortened([f"sub-{n}/anat/sub-{n}_T1w.nii" for n in range(100)])
    ['sub-*/anat']
    """
    if len(paths) > MOST:
        paths = list(dict.fromkeys(path.rpartition("/")[0] or path for path in paths))
    if len(paths) > MOST:
        paths = [re.sub(r"(^|/)(sub|ses)-[^/_]+(?=/)", r"\1\2-*", path) for path in paths]
    return list(dict.fromkeys(paths))


def _quoted(path: str) -> str:
    """For a shell, which shall still see the stars of `_shortened`."""
    return path if re.fullmatch(r"[\w./+*-]+", path) else shlex.quote(path)


def openneuro_accession(root: Path) -> str:
    """Accession number if a dataset says that it is of OpenNeuro, or nothing."""
    try:
        said = (root / "dataset_description.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    found = re.search(r"10\.18112/openneuro\.(ds[0-9]{6})\b", said)
    return found[1] if found else ""


def why_unfetched(path: str | Path) -> str:
    """One line with the remedy if a file's content is elsewhere, or nothing.

    Raises
    ------
    OSError
        If a small file cannot be read.
    """
    path = Path(path)
    kind = pointer_kind(path)
    if not kind:
        return ""
    command = fetch_command([path], kind)
    if kind == EMPTY:
        return f"{path}: the file is empty. Fetch it with: {command}"
    return f"{path}: the file's content is not here ({kind}). Fetch it with: {command}"


def fetch_all(paths: Iterable[Path]) -> list[str]:
    """One command per repository and kind, for all of these that are not here."""
    together: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            kind = pointer_kind(path)
            if kind:
                together.setdefault((repository_of(path), kind), []).append(path)
    return [fetch_command(found, kind) for (_, kind), found in together.items()]


def repository_of(path: str | Path) -> Path:
    """The nearest folder above with ``.git``; without one the dataset's root, or the folder."""
    path = Path(os.path.abspath(path))  # links are not followed: they lead into .git
    for folder in path.parents:
        if (folder / ".git").exists():
            return folder
    for folder in path.parents:
        if (folder / "dataset_description.json").is_file():
            return folder
    return path.parent
