# SPDX-License-Identifier: Apache-2.0
"""Label maps that training has read once, kept for the next process and the next run.

One is kept as class indices that are mapped into memory, beside a JSON of all that checking it has
found. Content decides: an entry is named after the
SHA-256 of its source and of the code that made it, and holds digests of itself. Entries are
written beside and renamed, so any number of processes may make the same one at once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import brainseg_bids
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable, count_codes
from brainseg_bids.anatomy.plausibility import implausible
from brainseg_bids.bids.head_maps import HeadMap
from brainseg_bids.console import one_line
from brainseg_bids.documents import InputError
from brainseg_bids.files import sha256, whole_or_nothing, write_text
from brainseg_bids.images import check_present, read_label_map, voxel_hash
from brainseg_bids.synth.atrophy import VentricleField
from brainseg_bids.synth.generator import LabelVolume
from brainseg_bids.training.probe_cache import code_digest, digest_of
from brainseg_bids.training.targets import SOURCE, MapFacts

log = logging.getLogger("brainseg")

FOLDER = ".brainseg-cache"
MAKERS = (
    "anatomy/grid.py",
    "anatomy/labelmap.py",
    "anatomy/labels.py",
    "anatomy/plausibility.py",
    "programs/map_cache.py",
    "synth/atrophy.py",
    "synth/generator.py",
    "headers.py",
    "images.py",
)
"""Modules that decide what is kept of a label map."""
DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a damaged entry raises."""
READERS = 4
"""Maps that are read at a time, at most: each takes half a gigabyte while it is."""


def cache_folder(maps_dir: Path, training: Path) -> Path:
    """Folder of the cache: in the dataset of the label maps, else in the run's own folder.

    The first serves all runs on these maps; a dataset that cannot be written leaves the second.

    Parameters
    ----------
    maps_dir : Path
        Root of the derivative that holds the label maps.
    training : Path
        ``derivatives/model-NAME/training`` of the output.
    """
    folder = maps_dir / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        # No file of the dataset: neither for git (datalad) nor for backups.
        for name, text in {
            ".gitignore": "*\n",
            "CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n",
        }.items():
            if not (folder / name).exists():
                write_text(folder / name, text)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return training / "cache"


# -- label maps ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckedMap:
    """A label map as training takes it, and what was found by reading it."""

    head: LabelVolume
    facts: MapFacts


def read_facts(
    maps: Sequence[HeadMap], target: LabelTable, cache: Path | None = None, *, readers: int = 1
) -> tuple[dict[Path, MapFacts], list[str]]:
    """Read each label map once, so that what is wrong with it is said before anything is trained.

    Parameters
    ----------
    maps : sequence of HeadMap
    target : LabelTable
        What is to be learned.
    cache : Path, optional
        Where they are kept for training; see `read_checked_map`.
    readers : int
        Threads, at most `READERS`.

    Returns
    -------
    facts : dict of Path to MapFacts
    errors : list of str
        One line for each map that cannot be used.
    """
    source, crosswalk = LabelTable.packaged(SOURCE), Crosswalk.packaged(SOURCE, target.name)

    def read(one: HeadMap) -> MapFacts | str:
        try:
            facts = read_checked_map(one.path, cache).facts
            crosswalk.codes(np.array(sorted(facts.codes)), what=str(one.path))
            if not any(source[code].is_brain for code in facts.codes):
                raise InputError(f"{one.path}: has no structure of the brain. Leave it out.")
        except (OSError, ValueError) as error:
            return str(error)
        return facts

    with ThreadPoolExecutor(max(1, min(readers, READERS))) as pool:
        results = dict(zip([one.path for one in maps], pool.map(read, maps), strict=True))
    facts = {path: one for path, one in results.items() if isinstance(one, MapFacts)}
    return facts, [one for one in results.values() if isinstance(one, str)]


def read_checked_map(path: Path, cache: Path | None = None, *, source: str = SOURCE) -> CheckedMap:
    """A label map: from the cache, else read, checked and kept there.

    Parameters
    ----------
    path : Path
    cache : Path, optional
        Folder; without one nothing is kept.
    source : str
        Packaged table of its codes.

    Raises
    ------
    InputError, UnknownLabelError
        As `brainseg_bids.images.read_label_map`.
    ValueError
        If every voxel is background.
    """
    check_present(path)
    if cache is None:
        return _checked(path, source)[0]
    entry = _Entry(cache, path, sha256(path), source)
    try:
        if (kept := entry.read()) is not None:
            return kept
    except DAMAGED as error:
        log.warning("%s: damaged (%s); made again from %s", entry.facts, one_line(error), path)
    made, warnings = _checked(path, source)
    try:
        entry.write(made, warnings)
        return entry.read(tell=False) or made
    except DAMAGED as error:
        log.warning(
            "%s: cannot be kept (%s), so label maps are read again by each process. Make room "
            "there, or let it be.",
            entry.facts,
            one_line(error),
        )
    return made


def _checked(path: Path, source: str) -> tuple[CheckedMap, list[str]]:
    """The map as read from its file, and the warnings that reading gave."""
    table = LabelTable.packaged(source)
    with _noted_warnings() as warnings:
        labels = read_label_map(path, table)
        if faults := implausible(labels):
            log.warning("%s: look at it: %s", path, "; ".join(faults))
    facts = MapFacts(voxel_hash(labels.voxels, labels.grid), frozenset(count_codes(labels.voxels)))
    try:
        head = LabelVolume.from_label_map(labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}. Leave it out.") from error
    return CheckedMap(head, facts), warnings


@contextmanager
def _noted_warnings() -> Iterator[list[str]]:
    """What this thread logs as a warning while the block lasts."""
    noted, thread = [], threading.get_ident()

    def note(record: logging.LogRecord) -> bool:
        if record.thread == thread and record.levelno == logging.WARNING:
            noted.append(record.getMessage())
        return True

    log.addFilter(note)
    try:
        yield noted
    finally:
        log.removeFilter(note)


@dataclass(frozen=True)
class _Entry:
    """Files of one label map in the cache.

    Parameters
    ----------
    folder : Path
    path : Path
    sha256 : str
        Of the label map's file.
    table : str
        Packaged table of its codes.
    """

    folder: Path
    path: Path
    sha256: str
    table: str

    @property
    def _key(self) -> str:
        parts = f"{self.sha256} {code_digest(MAKERS)} {_table_digest(self.table)}"
        return hashlib.sha256(parts.encode()).hexdigest()[:32]

    @property
    def facts(self) -> Path:
        return self.folder / f"{self._key}.json"

    @property
    def indices(self) -> Path:
        return self.folder / f"{self._key}_indices.npy"

    @property
    def ventricles(self) -> Path:
        return self.folder / f"{self._key}_walls.npy"

    def read(self, *, tell: bool = True) -> CheckedMap | None:
        """What is kept; None if nothing is. Warnings that reading the map gave are given again.

        Raises
        ------
        `DAMAGED`
            If it is.
        """
        if not self.facts.exists():
            return None
        said = json.loads(self.facts.read_text(encoding="utf-8"))
        if said.pop("self_sha256") != digest_of(said):
            raise ValueError("its facts are not those that were written")
        indices = _mapped(self.indices, said["indices"])
        ventricles = None
        if said["walls"]:
            vectors = np.array(_mapped(self.ventricles, said["walls"]))
            ventricles = VentricleField(
                torch.from_numpy(vectors), tuple(said["walls_spacing_vox"])
            )
        head = LabelVolume(
            torch.from_numpy(indices),
            tuple(said["voxel_size_mm"]),
            np.array(said["box_vox"]),
            np.array(said["brain_box_vox"]),
            ventricles,
        )
        for warning in said["warnings"] if tell else ():
            log.warning("%s", warning)
        return CheckedMap(head, MapFacts(said["voxel_hash"], frozenset(said["codes"])))

    def write(self, made: CheckedMap, warnings: list[str]) -> None:
        """Keep it. The JSON comes last: without it nothing is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        head, ventricles = made.head, made.head.ventricles
        said = {
            "source": self.path.name,
            "source_sha256": self.sha256,
            "brainseg_version": brainseg_bids.__version__,
            "voxel_hash": made.facts.digest,
            "codes": sorted(made.facts.codes),
            "voxel_size_mm": head.voxel_size_mm,
            "box_vox": head.box_vox.tolist(),
            "brain_box_vox": head.brain_box_vox.tolist(),
            "indices": _written(self.indices, head.indices.numpy()),
            "walls": _written(self.ventricles, ventricles.vectors.numpy()) if ventricles else None,
            "walls_spacing_vox": ventricles.spacing_vox if ventricles else None,
            "warnings": warnings,
        }
        said = json.loads(json.dumps(said))
        said["self_sha256"] = digest_of(said)
        write_text(self.facts, json.dumps(said, indent=1) + "\n")


@functools.cache
def _table_digest(name: str) -> str:
    return digest_of([asdict(label) for label in LabelTable.packaged(name)])


def _written(path: Path, array: np.ndarray) -> dict:
    """Write an array, whole or not at all; how to know it again."""
    array = np.ascontiguousarray(array)
    with whole_or_nothing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
    return {
        "shape": array.shape,
        "dtype": array.dtype.str,
        "sha256": hashlib.sha256(array).hexdigest(),
    }


def _mapped(path: Path, said: Mapping) -> np.ndarray:
    """An array, its pages shared by all processes that have it; what is changed stays here."""
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if list(array.shape) != list(said["shape"]) or array.dtype.str != said["dtype"]:
        raise ValueError(f"{path.name} has another shape or type than was written")
    # Every byte is read here, so pages are in memory before memory is measured.
    if hashlib.sha256(array).hexdigest() != said["sha256"]:
        raise ValueError(f"{path.name} has another content than was written")
    return array
