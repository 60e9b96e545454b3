# SPDX-License-Identifier: Apache-2.0
"""Label maps of raters, read into the labels that they have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable, UnknownLabelError
from brainseg_bids.bids.adapters import Adapter
from brainseg_bids.bids.label_codes import common_labels, find_label_table, read_names
from brainseg_bids.documents import InputError
from brainseg_bids.evaluation.ratings import (
    LARGEST_CODE,
    Rating,
    Targets,
    merge_sides,
    reoriented,
    resampled,
    translate,
)
from brainseg_bids.images import noting, read_grid, read_label_map, voxel_hash

ON_OTHER_GRID = ("resample", "refuse")
LEAST_OUTSIDE = 1e-3
"""Share of a reference outside of a map's field of view below which nothing is said."""


def read_rating(
    path: str | Path,
    adapter: Adapter,
    *,
    grid: Grid | None = None,
    on_other_grid: str = "resample",
) -> tuple[Rating, str]:
    """Read one label map into the labels that raters have in common.

    Parameters
    ----------
    path : path
    adapter : Adapter
    grid : Grid, optional
        Of the reference.
    on_other_grid : {"resample", "refuse"}
        What to do with a map on another grid than that.

    Returns
    -------
    rating : Rating
    note : str
        Whether it was resampled and from what, one line; empty if not.

    Raises
    ------
    InputError
        If the file cannot be read, has codes without a meaning, has labels but none in the
        reference's box, or lies on another grid and that is refused.

    Notes
    -----
    The same voxels in another order of axes are the same grid. Resampling takes the label with
    the largest trilinear weight (`upsample.regrid`).
    """
    if on_other_grid not in ON_OTHER_GRID:
        raise ValueError(f"on_other_grid is one of {', '.join(ON_OTHER_GRID)}")
    meaning, unknown = _meaning(Path(path), adapter)
    codes = _read_codes(path, adapter, meaning, unknown)
    labels, void = translate(codes.voxels, codes.grid, meaning)
    rating, note = Rating(labels, void, voxel_hash(codes.voxels, codes.grid)), ""
    if grid is not None and grid.to_ras().is_close(codes.grid.to_ras()):
        rating = reoriented(rating, grid)
    elif grid is not None:
        _check_place(path, rating, grid)
        if on_other_grid == "refuse":
            raise InputError(
                f"{path}: lies on another grid ({_size(codes.grid)}) than the reference "
                f"({_size(grid)}). Resample it, or allow that it is resampled."
            )
        note = f"{path}: resampled from {_size(codes.grid)} to {_size(grid)}, label by label."
        rating = resampled(rating, grid)
    return (rating if adapter.sides else merge_sides(rating)), note


class Ratings(NamedTuple):
    """What several raters say about one image.

    Parameters
    ----------
    ratings : dict of str to Rating
        By rater.
    notes : list of str
        Which maps were resampled.
    errors : dict of str to str
        Why a rater's map cannot be used.
    """

    ratings: dict[str, Rating]
    notes: list[str]
    errors: dict[str, str]


def read_ratings(
    maps: Mapping[str, tuple[Path, Adapter]], grid: Grid, on_other_grid: str
) -> Ratings:
    """Read each rater's map on the reference's grid; one that cannot be read is a fault."""
    result = Ratings({}, [], {})
    for name, (path, adapter) in maps.items():
        try:
            result.ratings[name], note = read_rating(
                path, adapter, grid=grid, on_other_grid=on_other_grid
            )
        except ValueError as error:
            result.errors[name] = str(error)
        else:
            result.notes.extend([note] if note else [])
    return result


def _check_place(path: str | Path, rating: Rating, grid: Grid) -> None:
    """Refuse a map that has labels, but none of them in the reference's box."""
    labelled = rating.labels.voxels > 0
    if rating.void is not None:
        labelled |= rating.void
    if labelled.any() and not (labelled & grid.covers(rating.labels.grid)).any():
        where = np.argwhere(labelled).mean(0)
        affine = rating.labels.grid.affine
        middle = ", ".join(f"{x:.0f}" for x in affine[:3, :3] @ where + affine[:3, 3])
        wanted = ", ".join(f"{x:.0f}" for x in grid.center_mm)
        raise InputError(
            f"{path}: lies elsewhere than the reference: its labels are around ({middle}) mm, "
            f"the reference's box around ({wanted}) mm, and they do not meet. Give the map in "
            "the space of that image, or repair its header."
        )


def outside_note(path: str | Path, reference: LabelMap) -> str:
    """How much of a reference lies where a map has no voxels, in a sentence; empty if hardly any.

    Parameters
    ----------
    path : path
        Of the map, as it was before it was resampled.
    reference : LabelMap
        With the labels that are compared only.
    """
    with noting():  # reading it has told it
        grid = read_grid(path)
    if grid.to_ras().is_close(reference.grid.to_ras()):
        return ""
    labelled = reference.voxels > 0
    beyond = np.count_nonzero(labelled & ~grid.covers(reference.grid))
    if beyond <= LEAST_OUTSIDE * np.count_nonzero(labelled):
        return ""
    share = 100 * beyond / np.count_nonzero(labelled)
    return (
        f"{path}: {share:.2g} % of the reference's voxels that are compared lie outside of its "
        "field of view. They count as missed."
    )


def meaning_digest(path: str | Path, adapter: Adapter) -> str:
    """Digest of all that decides how a label map is read, but for the map itself.

    Parameters
    ----------
    path : path
        Of the label map: the ``dseg.tsv`` that explains a derivative's is looked for beside it.
    adapter : Adapter

    Returns
    -------
    str
        SHA-256, hex. If the meaning cannot be had, that of the error, so that it changes once
        the error is mended.
    """
    try:
        meaning, unknown = _meaning(Path(path), adapter)
    except InputError as error:
        return hashlib.sha256(str(error).encode(errors="surrogateescape")).hexdigest()
    decisive = {
        "meaning": sorted((code, list(targets)) for code, targets in meaning.items()),
        "unknown": sorted(unknown.items()),
        "sides": adapter.sides,
        "evaluable": None if adapter.evaluable is None else list(adapter.evaluable),
        "unlabelled": list(adapter.unlabelled),
        "hippocampus_amygdala": adapter.hippocampus_amygdala,
    }
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def _size(grid: Grid) -> str:
    sizes = " x ".join(f"{size:.3g}" for size in grid.voxel_size_mm)
    return f"{' x '.join(map(str, grid.shape))} voxels of {sizes} mm"


def _meaning(path: Path, adapter: Adapter) -> tuple[dict[int, Targets], dict[int, str]]:
    """Common targets of the codes of a file, and names that are not known."""
    labels, unknown = adapter.labels, {}
    if labels is None:
        table = find_label_table(path)
        if table is None:
            raise InputError(
                f"{path}: no dseg.tsv beside it or above says what its codes mean. Add one with "
                "the columns index and name, or give an adapter."
            )
        labels, unknown = read_names(table)
    common = common_labels()
    return {
        code: common[targets[0]] if len(targets) == 1 else targets
        for code, targets in labels.items()
    }, unknown


def _read_codes(
    path: str | Path, adapter: Adapter, meaning: Mapping[int, Targets], unknown: Mapping[int, str]
) -> LabelMap:
    """Label map in the rater's own codes; a code without a meaning is an error."""
    known = LabelTable(
        [Label(code, f"code-{code}") for code in meaning if 0 <= code <= LARGEST_CODE],
        name=adapter.name,
    )
    try:
        return read_label_map(path, known)
    except UnknownLabelError as error:
        _, _, listed = str(error).rpartition(": ")
        used = {code: name for code, name in unknown.items() if f" {code} (" in f" {listed}"}
        named = [f"{name} ({code})" for code, name in used.items()]
        if any(code > LARGEST_CODE for code in used):
            raise InputError(
                f"{path}: has codes above {LARGEST_CODE}: {', '.join(named)}. Renumber them."
            ) from error
        if named:
            raise InputError(
                f"{path}: its dseg.tsv has names that table fullhead has not: "
                f"{', '.join(named)}. Rename them, or give an adapter."
            ) from error
        raise InputError(
            f"{path}: codes that {adapter.name} does not explain: {listed}. Add them to its "
            "labels, or give another adapter."
        ) from error
