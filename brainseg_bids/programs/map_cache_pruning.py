# SPDX-License-Identifier: Apache-2.0
"""Removes entries of the cache of label maps that no run will use again.

It lies beside `map_cache`, whose own code decides what an entry is called: a change here leaves
entries valid.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from brainseg_bids.documents import read_object
from brainseg_bids.files import DAY_S, remove_unfinished, sha256

log = logging.getLogger("brainseg")

ARRAYS = ("_indices.npy", "_walls.npy")
OTHER_CODE_S = 30 * DAY_S
"""Age at which an entry goes that other code made of the same content: another installed version
of the app may use it."""


def prune(cache: Path, maps_dir: Path, read: Iterable[Path]) -> int:
    """Remove entries whose label map is gone or has changed; how many label maps that were.

    Processes that have an entry mapped into memory keep it until they end.

    Parameters
    ----------
    cache : Path
        Folder of the cache.
    maps_dir : Path
        Root of the dataset of the label maps.
    read : iterable of Path
        Label maps that this run has read: of these the content is known.
    """
    current = {path.name: sha256(path) for path in read}
    # A link whose content is elsewhere (git-annex) is there.
    names = {path.name for path in maps_dir.glob("sub-*/**/*_dseg.nii*")} | current.keys()
    removed = 0
    newest: set[str] = set()
    entries = [(path, read_object(path)) for path in _by_age(cache.glob("*.json"))]
    for path, said in entries:
        source, content = said.get("source"), said.get("source_sha256")
        if not (isinstance(source, str) and isinstance(content, str)):
            continue  # what trying a step measured, or damaged: it is made again under its name
        is_used = content in current.values()
        outdated = source not in names or source in current
        other_code = content in newest and _age_s(path) > OTHER_CODE_S
        newest.add(content)
        if (outdated and not is_used) or other_code:
            removed += _remove(path)
    _remove_parts(cache)
    remove_unfinished(cache.glob(".*"), older_than_s=DAY_S)
    if removed:
        log.info("%s: %d entries of label maps that changed or are gone: removed", cache, removed)
    return removed


def _by_age(paths: Iterable[Path]) -> list[Path]:
    """The newest first; those that another process has just removed are left out."""
    return sorted((path for path in paths if path.exists()), key=_age_s)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(facts: Path) -> bool:
    """Remove an entry, its JSON first: without it nothing is there."""
    try:
        facts.unlink()
    except OSError as error:  # a cache that others own
        log.debug("%s: not removed (%s)", facts, error.strerror)
        return False
    for end in ARRAYS:
        with contextlib.suppress(OSError):
            facts.with_name(f"{facts.stem}{end}").unlink()
    return True


def _remove_parts(cache: Path) -> None:
    """Remove arrays whose JSON was never written, unless a process may be about to write it."""
    for path, facts in _arrays(cache):
        if not facts.exists() and _age_s(path) > DAY_S:
            with contextlib.suppress(OSError):
                path.unlink()


def _arrays(cache: Path) -> Iterator[tuple[Path, Path]]:
    """Arrays of the cache, and the JSON that each belongs to."""
    for end in ARRAYS:
        for path in cache.glob(f"*{end}"):
            yield path, path.with_name(f"{path.name.removesuffix(end)}.json")
