# SPDX-License-Identifier: Apache-2.0
"""Raters: label maps of anybody, found and read into common labels.

`find_adapter` says how a rater is read, `find_rated` finds its maps of a reference's images,
`read_rating` reads one. What of two can be judged says `evaluation.protocols`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable, UnknownLabelError
from brainseg_bids.bids.adapters import Adapter, packaged_adapters, read_adapter
from brainseg_bids.bids.label_codes import (
    common_labels,
    crosswalk_labels,
    find_label_table,
    read_names,
)
from brainseg_bids.bids.matching import match_cases, partners
from brainseg_bids.bids.names import Scan
from brainseg_bids.bids.references import Case, find_cases, scan_of
from brainseg_bids.evaluation.ratings import (
    LARGEST_CODE,
    Rating,
    Targets,
    merge_sides,
    reoriented,
    resampled,
    translate,
)
from brainseg_bids.interfaces.tools import find_existing, find_tool, tool_names
from brainseg_bids.volumes import InputError, read_label_map, voxel_hash

ON_OTHER_GRID = ("resample", "refuse")

# ---- who


def find_adapter(name: str | Path) -> Adapter:
    """How a rater is read, from the NAME of ``NAME=PATH``.

    Parameters
    ----------
    name : str or path
        A packaged adapter, a file that ends in ``.toml``, a tool, or any other name: a BIDS
        derivative whose ``dseg.tsv`` explains its codes.

    Raises
    ------
    InputError
        If the file cannot be used.

    Examples
    --------
    >>> [bool(find_adapter(n).patterns) for n in ("ultracortex", "samseg", "mine")]
    [True, False, False]
    >>> find_adapter("samseg").tool, find_adapter("mine").tool
    ('samseg', '')
    """
    if Path(name).suffix == ".toml" or str(name) in packaged_adapters():
        return read_adapter(name)
    if str(name) in tool_names():
        tool = find_tool(str(name))
        return Adapter(
            tool.name,
            citation=tool.about,
            licence=tool.licence,
            labels=crosswalk_labels(tool.name),
            tool=tool.name,
        )
    return Adapter(str(name))


def find_rated(
    adapter: Adapter,
    root: str | Path,
    reference: Mapping[str, Case],
    *,
    all_reference_keys: Collection[str] = (),
) -> tuple[dict[str, Case], list[str]]:
    """A rater's maps of the images of a reference.

    Parameters
    ----------
    adapter : Adapter
    root : path
    reference : mapping of str to Case
        From `find_cases`, or from `tool_cases`.
    all_reference_keys : collection of str
        Keys that the reference has without a choice of participants: labels of these are not
        said to be without a reference.

    Returns
    -------
    cases : dict of str to Case
        By the reference's key, with the reference's subject, stratum and image.
    notes : list of str
        Labels that were taken for others, images without a rating and the reverse.

    Raises
    ------
    InputError
        As `find_cases` and `match_cases`, and as the tool's own search.
    """
    if adapter.tool:
        scans = {key: scan_of(case) for key, case in reference.items()}
        found, notes = tool_cases(adapter, root, scans)
        missing = [key for key in reference if key not in found]
        extra: Sequence[str] = ()
    else:
        there, notes = find_cases(adapter, root)
        matching = match_cases(reference, there, name=adapter.name)
        notes += matching.notes
        found = {key: there[other] for key, other in matching.pairs.items()}
        known = partners([*reference, *all_reference_keys], there, name=adapter.name)
        missing = matching.missing
        extra = [key for key in matching.extra if key not in known]
    if missing:
        notes.append(f"{adapter.name}: no labels of {', '.join(missing)} in {root}.")
    if extra:
        notes.append(f"{adapter.name}: labels without a reference: {', '.join(extra)}.")
    return {
        key: replace(
            found[key], key=key, subject=case.subject, stratum=case.stratum, image=case.image
        )
        for key, case in reference.items()
        if key in found
    }, notes


def tool_cases(
    adapter: Adapter, root: str | Path, scans: Mapping[str, Scan]
) -> tuple[dict[str, Case], list[str]]:
    """What a tool has written earlier of some images, in its own layout or as a derivative.

    Parameters
    ----------
    adapter : Adapter
        With a tool.
    root : path
    scans : mapping of str to Scan
        Images by key.

    Returns
    -------
    cases : dict of str to Case
    notes : list of str

    Raises
    ------
    InputError
        If there is no such folder, or two results could be meant.
    """
    tool = find_tool(adapter.tool)
    cases, notes = {}, []
    for key, scan in scans.items():
        labels = find_existing(tool, root, scan)
        if labels is None:
            labels = _under_another_label(adapter, root, scan, notes)
        if labels is not None:
            cases[key] = Case(key, scan.subject, "", scan.path, labels)
    return cases, notes


def _under_another_label(
    adapter: Adapter, root: str | Path, scan: Scan, notes: list[str]
) -> Path | None:
    """Result for the same subject with another number of leading zeros in its label."""
    number = scan.subject.lstrip("0") or "0"
    if not number.isdigit():
        return None
    widths = {f"{int(number):0{width}d}" for width in (1, 2, 3, 4)} - {scan.subject}
    tool = find_tool(adapter.tool)
    found = {}
    for label in sorted(widths, key=len):
        labels = find_existing(tool, root, _renamed(scan, label))
        # Without the files of that other subject the search cannot know of other sessions.
        if labels is not None and (_is_only(scan) or _names_all(labels, root, scan)):
            found[label] = labels
    if len(found) > 1:
        both = " and ".join(map(str, list(found.values())[:2]))
        raise InputError(
            f"{both}: both may be {adapter.name}'s labels of sub-{scan.subject}. Leave one."
        )
    for label, labels in found.items():
        notes.append(f"{adapter.name}: sub-{label} is taken as sub-{scan.subject}.")
        return labels
    return None


def _renamed(scan: Scan, label: str) -> Scan:
    """The scan of a subject of another label."""
    name = scan.path.name.replace(f"sub-{scan.subject}", f"sub-{label}", 1)
    return Scan(scan.path.with_name(name), scan.entities | {"sub": label}, scan.suffix)


def _is_only(scan: Scan) -> bool:
    """Whether a subject has no other image of the scan's suffix on disk."""
    home = next((p for p in scan.path.parents if p.name == f"sub-{scan.subject}"), None)
    return home is None or len(list(home.glob(f"**/*_{scan.suffix}.nii*"))) <= 1


def _names_all(labels: Path, root: str | Path, scan: Scan) -> bool:
    """Whether a result's path repeats all of a scan's entities but the subject."""
    parts = re.split(r"[/_]", labels.relative_to(root).as_posix())
    return all(f"{k}-{v}" in parts for k, v in scan.entities.items() if k != "sub")


# ---- reading


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
