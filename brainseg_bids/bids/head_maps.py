# SPDX-License-Identifier: Apache-2.0
"""Label maps of heads to learn from: found, one chosen of each head, some held out."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.inputs import label_error
from brainseg_bids.bids.label_codes import find_label_table
from brainseg_bids.bids.names import Scan, head_name, in_own_space, without_extension
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_grid
from brainseg_bids.training.targets import SOURCE
from brainseg_bids.units import natural_order

log = logging.getLogger("brainseg")

EVERY = 8
"""Of so many participants, one is held out."""
NOT_FINER = 1.01
"""A map counts as no coarser than voxels that are wanted up to this factor."""


@dataclass(frozen=True)
class HeadMap:
    """A label map of a head, at one of the voxel sizes that there are.

    Parameters
    ----------
    path : Path
    subject : str
        Label without ``sub-``.
    voxel_size_mm : tuple of 3 float
    """

    path: Path
    subject: str
    voxel_size_mm: tuple[float, float, float]

    @property
    def head(self) -> str:
        """What the maps of one head at several voxel sizes have in common."""
        return head_name(self.path)

    @property
    def size_mm(self) -> float:
        """Edge of the cube with a voxel's volume."""
        return float(np.prod(self.voxel_size_mm) ** (1 / 3))


class MapOfHead(Protocol):
    """What choosing among the label maps of a head needs: see `HeadMap`."""

    @property
    def head(self) -> str: ...
    @property
    def size_mm(self) -> float: ...


Map = TypeVar("Map", bound=MapOfHead)


def find_head_maps(
    folder: Path, participants: Collection[str] = (), sessions: Collection[str] = ()
) -> list[HeadMap]:
    """Label maps of heads in a BIDS derivative, at every voxel size, by participant.

    Those that this app has merged (``seg-fullhead``) are taken; without any, plain ``dseg``
    files, whose ``dseg.tsv`` has to say that they have codes of ``fullhead``. Of a head that has
    a map in its own space, those in standard spaces are left out.

    Raises
    ------
    InputError
        If there are none, two files have one name, a header cannot be read, or a plain map has no
        or another table.
    """
    every = sorted(folder.glob("sub-*/**/sub-*_dseg.nii*"))
    every += sorted(folder.glob("sub-*_dseg.nii*"))
    every = _without_refused(every, folder)
    scans = [scan for path in every if "desc" not in (scan := Scan.from_path(path)).entities]
    maps = [scan for scan in scans if scan.entities.get("seg") == SOURCE]
    maps = maps or [scan for scan in scans if "seg" not in scan.entities]
    if not maps:
        raise InputError(f"{folder}: no label maps of heads are in it. {_advice(folder, scans)}")
    wanted = [
        scan
        for scan in maps
        if (not participants or scan.subject in participants)
        and (not sessions or scan.session is None or scan.session in sessions)
    ]
    missing = sorted(set(participants) - {scan.subject for scan in wanted}, key=natural_order)
    if missing or not wanted:
        there = ", ".join(sorted({scan.subject for scan in maps}, key=natural_order))
        raise InputError(
            f"{folder}: no label map of participant {', '.join(missing) or 'and session'} that "
            f"was asked for. There are maps of: {there}."
        )
    paths = in_own_space(scan.path for scan in wanted)
    if len(paths) < len(wanted):
        log.info("%d label maps in standard spaces are left out", len(wanted) - len(paths))
    _check_twice(paths)
    for path in paths:
        _check_table(path)
    return [
        HeadMap(path, Scan.from_path(path).subject, read_grid(path).voxel_size_mm)
        for path in paths
    ]


def _check_twice(paths: Iterable[Path]) -> None:
    """Raise `InputError` for two files of one name: the same head would be learned from twice."""
    known: dict[str, Path] = {}
    for path in paths:
        other = known.setdefault(without_extension(path), path)
        if other != path:
            raise InputError(
                f"{other} and {path}: two files of one name count as one head. Rename or remove "
                "one of them."
            )


def _without_refused(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Maps of participants who have a BIDS label; of the others each is named once."""
    kept, named = [], set()
    for path in paths:
        first = path.relative_to(folder).parts[0]
        label = first.removeprefix("sub-") if path.parent != folder else _label_of(path)
        if not (fault := label_error(folder, label)):
            kept.append(path)
        elif label not in named:
            log.warning("%s It is left out.", fault)
            named.add(label)
    return kept


def _label_of(path: Path) -> str:
    return Scan.from_path(path).entities.get("sub", "")


def _advice(folder: Path, scans: Sequence[Scan]) -> str:
    """What to do where there are no maps of heads."""
    if scans:
        return (
            "It has segmentations only; training takes merged head label maps: run the "
            "participant level with --stages headlabels first."
        )
    own = sorted(path.parent.parent for path in folder.glob("derivatives/*/sub-*/**/*_dseg.nii*"))
    if own:
        top = folder / Path(*own[0].relative_to(folder).parts[:2])
        return f"Did you mean {top}?"
    return "Run the participant level with --stages headlabels first and give its output here."


def _check_table(path: Path) -> None:
    """Raise `InputError` unless the map's ``dseg.tsv`` means by its codes what ``fullhead`` does.

    Codes that ``fullhead`` lacks are no fault as long as no voxel has them.
    """
    found = find_label_table(path)
    if found is None:
        raise InputError(
            f"{path}: no dseg.tsv beside it or above says what its codes mean. Put one there with "
            f"the columns index and name; names are those of table {SOURCE}."
        )
    try:
        table = LabelTable.read(found)
    except (OSError, ValueError) as error:
        raise InputError(f"{found}: cannot be used ({error}). Correct it.") from error
    known = LabelTable.packaged(SOURCE)
    for label in table:
        if label.index and label.index in known and known[label.index].name != label.name:
            raise InputError(
                f"{found}: code {label.index} is {label.name}, but {known[label.index].name} in "
                f"table {SOURCE}, whose codes training needs. Recode {path.name}, or run --stages "
                "headlabels on it."
            )


def median_voxel_size_mm(maps: Iterable[HeadMap]) -> float:
    """Median over heads of the finest map's voxel size.

    >>> one, two = (HeadMap(Path(f"sub-1_res-{s}_dseg.nii"), "1", (s,) * 3) for s in (1, 2))
    >>> median_voxel_size_mm([one, two])
    1.0
    """
    finest: dict[str, float] = {}
    for one in maps:
        finest[one.head] = min(one.size_mm, finest.get(one.head, np.inf))
    return round(float(np.median(list(finest.values()))), 2)


def choose_maps(maps: Iterable[Map], voxel_size_mm: float) -> list[Map]:
    """One map of each head: the coarsest that is no coarser than wanted, else the finest.

    Finer ones than are needed would only take memory. Of equally fine ones the first is taken
    if none is fine enough.

    >>> maps = [HeadMap(Path(f"sub-1_res-{s}_dseg.nii"), "1", (s / 10,) * 3) for s in (5, 8, 12)]
    >>> [choose_maps(maps, wanted)[0].voxel_size_mm[0] for wanted in (1.0, 0.7, 0.4)]
    [0.8, 0.5, 0.5]
    """
    by_head: dict[str, list[Map]] = {}
    for one in maps:
        by_head.setdefault(one.head, []).append(one)
    chosen = []
    for own in by_head.values():
        own = sorted(own, key=lambda one: one.size_mm)
        enough = [one for one in own if one.size_mm <= voxel_size_mm * NOT_FINER]
        chosen.append(enough[-1] if enough else own[0])
    return chosen


def hold_out(maps: Sequence[HeadMap], wanted: Collection[str] = ()) -> frozenset[str]:
    """Participants to validate on: the wanted, else every eighth, at least one.

    Raises
    ------
    InputError
        If there is one participant only, a wanted one is not there, or nobody would be left.

    Examples
    --------
    >>> maps = [HeadMap(Path(f"sub-{n:02}_dseg.nii"), f"{n:02}", (1, 1, 1)) for n in range(1, 18)]
    >>> sorted(hold_out(maps)), sorted(hold_out(maps[:3])), sorted(hold_out(maps, ["05"]))
    (['08', '16'], ['03'], ['05'])
    """
    there = sorted({one.subject for one in maps})
    if len(there) < 2:
        raise InputError(
            f"only sub-{there[0]} has label maps: nobody is left to validate on. Give label maps "
            "of at least two participants."
        )
    missing = sorted(set(wanted) - set(there))
    if missing:
        raise InputError(
            f"--validation-label {missing[0]}: there is no label map of this participant. There "
            f"are maps of: {', '.join(sorted(there, key=natural_order))}."
        )
    held = frozenset(wanted or there[EVERY - 1 :: EVERY] or there[-1:])
    if len(held) == len(there):
        raise InputError(
            "--validation-label: all participants are held out, nobody is left to learn from. "
            "Name fewer."
        )
    return held
