# SPDX-License-Identifier: Apache-2.0
"""Cache of memory measurements; they are repeated only if their conditions have changed."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import brainseg_bids
from brainseg_bids.console import one_line
from brainseg_bids.documents import read_object
from brainseg_bids.files import write_text

log = logging.getLogger("brainseg")

PROBED = ("nets", "training/losses.py", "training/probe.py")
"""Modules and packages that determine time and memory of a step."""
ALLOCATORS = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "MALLOC_ARENA_MAX",
    "LD_PRELOAD",
)
"""Environment variables that change the memory of a step."""


@functools.cache
def code_digest(modules: Iterable[str]) -> str:
    """SHA-256 of the source code of modules or packages, given by paths within this package."""
    root = Path(brainseg_bids.__file__).parent
    digest = hashlib.sha256()
    for name in modules:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def digest_of(content: object) -> str:
    """SHA-256 of a value that consists of JSON types."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def probe_once(
    cache: Path, decides: Mapping[str, object], probe: Callable[[], float | None]
) -> tuple[float | None, bool]:
    """Result of a memory measurement, from the cache if the conditions are the same.

    The result that a step did not fit is not stored, since other programs may have used the
    memory.

    Parameters
    ----------
    cache : Path
        JSON file.
    decides : mapping
        Conditions of the measurement as JSON types. Source code and environment are added here.
    probe : callable
        Returns GiB, or None if the step did not fit.

    Returns
    -------
    gib : float or None
    is_kept : bool
        Whether it comes from the cache.
    """
    decides = json.loads(json.dumps(dict(decides))) | {
        "code": code_digest(PROBED),
        "environment": {name: os.environ[name] for name in ALLOCATORS if name in os.environ},
    }
    path = cache / f"probe_{digest_of(decides)[:32]}.json"
    kept = read_object(path)
    if path.exists():
        gib = kept.get("probed_gib")
        if kept.get("decided_by") == decides and isinstance(gib, float) and 0 < gib < 1e6:
            return gib, True
        log.warning("%s: damaged; memory is measured anew", path)
    gib = probe()
    if gib is not None:
        content = {"probed_gib": float(gib), "decided_by": decides}
        try:
            write_text(path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            log.debug("%s: cannot be kept (%s)", path, one_line(error))
    return gib, False
