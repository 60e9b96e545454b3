# SPDX-License-Identifier: Apache-2.0
"""Raters: label maps of anybody, read into common labels and made ready to be compared.

`find_adapter` says how a rater is read, `find_rated` finds its maps of a reference's images,
`read_rating` reads one, `comparison` says what of two can be judged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable, UnknownLabelError
from brainseg_bids.anatomy.upsample import regrid
from brainseg_bids.bids.adapters import (
    LARGEST_CODE,
    Adapter,
    Targets,
    common_labels,
    crosswalk_labels,
    find_label_table,
    fullhead,
    named_structures,
    packaged_adapters,
    plain_adapter,
    read_adapter,
    read_names,
)
from brainseg_bids.bids.names import Scan
from brainseg_bids.bids.references import Case, find_cases, match_cases, partners, scan_of
from brainseg_bids.interfaces.tools import find_existing, find_tool, tool_names
from brainseg_bids.volumes import InputError, read_label_map, voxel_hash

ON_OTHER_GRID = ("resample", "refuse")
PROTOCOLS = ("label-restricted", "within-evaluable")
"""All voxels count, with all labels that are not judged as background; or those voxels are left
out that the reference leaves at 0 and somebody calls tissue that the reference does not label."""

MEDIAL_TEMPORAL = ("Hippocampus", "Amygdala")
MERGED = "merged sides"
"""Name of the table in which left and right are one."""
MARGIN_VOX = 8
"""Of the box in which the nearest label is first looked for."""


@dataclass(frozen=True, eq=False)
class Rating:
    """What one rater says about one image.

    Parameters
    ----------
    labels : LabelMap
        Codes of ``fullhead``; its table holds what the rater can say. A rater without sides has
        the table of `merge_sides`.
    void : (X, Y, Z) bool or None
        Where the rater's labels mean nothing that others have; 0 in ``labels``.
    raw_hash : str
        `volumes.voxel_hash` of the codes in the file, before anything was done to them; empty if
        it was not read from one.
    """

    labels: LabelMap
    void: np.ndarray | None
    raw_hash: str = ""

    @property
    def has_sides(self) -> bool:
        """Whether left and right are told apart."""
        return self.labels.table.name != MERGED


@dataclass(frozen=True, eq=False)
class JudgedMaps:
    """Two label maps that can be judged, and what of them: arguments of `agreement.compare`.

    Parameters
    ----------
    prediction, reference : LabelMap
        On one grid, in one table, with nothing in it but what is judged.
    within : (X, Y, Z) bool or None
        Voxels that count; None: all.
    groups : mapping of str to tuple of str
        Structures of several labels, by the names of ``structures.tsv``.
    protocol : {"label-restricted", "within-evaluable"}
    excluded_mm3 : float
        Volume that does not count.
    notes : tuple of str
        What is not judged, and how hippocampus and amygdala were taken.
    """

    prediction: LabelMap
    reference: LabelMap
    within: np.ndarray | None
    groups: Mapping[str, tuple[str, ...]]
    protocol: str
    excluded_mm3: float
    notes: tuple[str, ...]


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
            tool.name, tool.about, tool.licence, {}, crosswalk_labels(tool.name), tool=tool.name
        )
    return plain_adapter(str(name))


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
        if labels is not None and (_is_only(scan) or _says_all(labels, root, scan)):
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


def _says_all(labels: Path, root: str | Path, scan: Scan) -> bool:
    """Whether a result's path repeats all of a scan's entities but the subject."""
    said = labels.relative_to(root).as_posix()
    return all(
        f"{k}-{v}" in re.split(r"[/_]", said) for k, v in scan.entities.items() if k != "sub"
    )


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
        rating = _turned(rating, grid)
    elif grid is not None:
        _check_place(path, rating, grid)
        if on_other_grid == "refuse":
            raise InputError(
                f"{path}: lies on another grid ({_size(codes.grid)}) than the reference "
                f"({_size(grid)}). Resample it, or allow that it is resampled."
            )
        note = f"{path}: resampled from {_size(codes.grid)} to {_size(grid)}, label by label."
        void = _regrid_mask(void, codes.grid, grid)
        rating = replace(rating, labels=regrid(labels, grid), void=void)
    return (rating if adapter.sides else merge_sides(rating)), note


def _turned(rating: Rating, grid: Grid) -> Rating:
    """The same voxels with their axes in the order of another grid."""
    source = rating.labels.grid

    def turn(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(grid.array_from_ras(source.array_to_ras(array)))

    return replace(
        rating,
        labels=replace(rating.labels, voxels=turn(rating.labels.voxels), grid=grid),
        void=None if rating.void is None else turn(rating.void),
    )


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
    said = {
        "meaning": sorted((code, list(targets)) for code, targets in meaning.items()),
        "unknown": sorted(unknown.items()),
        "sides": adapter.sides,
        "evaluable": None if adapter.evaluable is None else list(adapter.evaluable),
        "unlabelled": list(adapter.unlabelled),
        "hippocampus_amygdala": adapter.hippocampus_amygdala,
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _size(grid: Grid) -> str:
    sizes = " x ".join(f"{size:.3g}" for size in grid.voxel_size_mm)
    return f"{' x '.join(map(str, grid.shape))} voxels of {sizes} mm"


def _regrid_mask(mask: np.ndarray | None, source: Grid, target: Grid) -> np.ndarray | None:
    if mask is None:
        return None
    table = LabelTable([Label(0, "No"), Label(1, "Yes")])
    return regrid(LabelMap(mask.astype(np.int16), source, table), target).voxels == 1


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


def translate(
    codes: np.ndarray, grid: Grid, meaning: Mapping[int, Targets]
) -> tuple[LabelMap, np.ndarray | None]:
    """Codes of a rater in those of ``fullhead``.

    Parameters
    ----------
    codes : (X, Y, Z) int
        All of them in ``meaning``.
    grid : Grid
    meaning : mapping of int to tuple of int
        One code: that label; several: the nearest voxel's of these; none: void.

    Returns
    -------
    labels : LabelMap
        Its table holds the labels that ``meaning`` can give.
    void : (X, Y, Z) bool or None

    Examples
    --------
    >>> codes = np.array([7, 9, 9, 9, 8, 5]).reshape(6, 1, 1)
    >>> labels, void = translate(codes, Grid((6, 1, 1), np.eye(4)),
    ...     {7: (2,), 8: (41,), 9: (2, 41), 5: ()})
    >>> labels.voxels.ravel().tolist(), void.ravel().tolist()
    ([2, 2, 2, 41, 41, 0], [False, False, False, False, False, True])
    """
    # A code that no label map holds must not decide the size of an array.
    meaning = {code: told for code, told in meaning.items() if 0 <= code <= LARGEST_CODE}
    lookup = np.zeros(max(meaning, default=0) + 1, dtype=np.int16)
    for code, targets in meaning.items():
        lookup[code] = targets[0] if len(targets) == 1 else 0
    out = lookup[codes]
    void = np.isin(codes, [code for code, targets in meaning.items() if not targets])
    choices: dict[Targets, list[int]] = {}
    for code, targets in meaning.items():
        if len(targets) > 1:
            choices.setdefault(targets, []).append(code)
    settled = {targets: np.isin(codes, sources) for targets, sources in choices.items()}
    for targets, where in settled.items():
        labels = nearest_labels(out, where, targets, grid.voxel_size_mm)
        if labels is None:
            void |= where  # there is nothing to be near to
        else:
            out[where] = labels
    said = {code for targets in meaning.values() for code in targets} | {0}
    table = fullhead().subset(said)
    return LabelMap(out, grid, table), void if void.any() else None


def nearest_labels(
    labels: np.ndarray,
    where: np.ndarray,
    wanted: Sequence[int],
    voxel_size_mm: tuple[float, float, float],
) -> np.ndarray | None:
    """Label of the nearest voxel that has one of the wanted labels.

    Parameters
    ----------
    labels : (X, Y, Z) int
    where : (X, Y, Z) bool
        Voxels that need a label.
    wanted : sequence of int
    voxel_size_mm : tuple of 3 float
        Distances are along the voxels' axes: on a sheared grid they are not exact.

    Returns
    -------
    (n,) int or None
        In the order of ``labels[where]``; None if no voxel has any of them.

    Notes
    -----
    Exact Euclidean distance transform (Maurer, Qi and Raghavan 2003, as in scipy) in a box around
    ``where``. A box is large enough if no distance found in it exceeds the way out of it.
    """
    if not where.any():
        return labels[where]
    extent = ndimage.find_objects(where.astype(np.uint8))[0]
    margin_vox = MARGIN_VOX
    while True:
        box = tuple(
            slice(max(0, side.start - margin_vox), min(n, side.stop + margin_vox))
            for side, n in zip(extent, labels.shape, strict=True)
        )
        is_whole = all(b == slice(0, n) for b, n in zip(box, labels.shape, strict=True))
        inside, open_ = labels[box], where[box]
        candidates = np.isin(inside, wanted) & ~open_
        if candidates.any():
            distance_mm, place = ndimage.distance_transform_edt(
                ~candidates, sampling=voxel_size_mm, return_indices=True
            )
            if is_whole or distance_mm[open_].max() <= margin_vox * min(voxel_size_mm):
                return inside[tuple(axis[open_] for axis in place)]
        elif is_whole:
            return None
        margin_vox *= 4


# ---- what two raters have in common


def merge_sides(rating: Rating) -> Rating:
    """The same with left and right as one, under the code of the left.

    Labels are named as in ``structures.tsv`` where the two sides are a structure there.

    Examples
    --------
    >>> table = fullhead().subset([0, 10, 16, 49])
    >>> codes = np.array([0, 10, 16, 49]).reshape(4, 1, 1)
    >>> both = LabelMap(codes, Grid((4, 1, 1), np.eye(4)), table)
    >>> merged = merge_sides(Rating(both, None)).labels
    >>> merged.voxels.ravel().tolist(), merged.table[10].name
    ([0, 10, 16, 10], 'Thalamus')
    """
    if not rating.has_sides:
        return rating
    full = fullhead()
    table = rating.labels.table
    lookup = np.zeros(int(table.codes[-1]) + 1, dtype=rating.labels.voxels.dtype)
    kept = {}
    for label in table:
        one = full[_without_side(label.name)]
        lookup[label.index] = one.index
        kept[one.index] = Label(
            one.index, _merged_name(one.name), one.color, one.mapping, notes=one.notes
        )
    merged = LabelTable(kept.values(), name=MERGED)
    return replace(
        rating, labels=LabelMap(lookup[rating.labels.voxels], rating.labels.grid, merged)
    )


def _without_side(name: str) -> str:
    """Label that stands for both sides: one that has no side if there is one, else the left.

    >>> _without_side("Right-Thalamus"), _without_side("Right-WM-hypointensities")
    ('Left-Thalamus', 'WM-hypointensities')
    """
    left = _left_of(name)
    plain = left.removeprefix("Left-")
    return plain if plain in fullhead() else left


def _left_of(name: str) -> str:
    """Name of the same label on the left."""
    return name.replace("Right-", "Left-", 1) if name.startswith("Right-") else name


def _merged_name(name: str) -> str:
    """What a label and its counterpart are called together."""
    if not name.startswith("Left-"):
        return name
    pair = {name, name.replace("Left-", "Right-", 1)}
    for structure in named_structures().values():
        if set(structure.members) == pair:
            return structure.name
    return name.removeprefix("Left-")


def within_evaluable(
    reference: LabelMap, predictions: Sequence[LabelMap], unlabelled: Iterable[str]
) -> np.ndarray:
    """Voxels that count under the protocol ``within-evaluable``.

    A voxel does not count if the reference leaves it at 0 and any of the predictions calls it one
    of the structures that the reference does not label. With all raters' predictions the mask
    is the same for all of them, which a fair comparison needs. With the judged prediction alone
    it changes no row: where that prediction says cerebellum, it has no cortex to be wrong about.

    Parameters
    ----------
    reference : LabelMap
    predictions : sequence of LabelMap
        On the same grid, codes of ``fullhead`` or of `merge_sides`.
    unlabelled : iterable of str
        Names of ``fullhead``.

    Returns
    -------
    (X, Y, Z) bool
    """
    table = fullhead()
    codes = [table[name].index for name in unlabelled]
    called = np.zeros(reference.grid.shape, dtype=bool)
    for prediction in predictions:
        called |= np.isin(prediction.voxels, codes)
    return ~(called & (reference.voxels == 0))


def comparison(
    reference: Rating,
    rater: Rating,
    adapter: Adapter,
    *,
    name: str,
    protocol: str = "label-restricted",
    others: Sequence[Rating] = (),
) -> JudgedMaps:
    """What of two ratings is judged, and how.

    Parameters
    ----------
    reference, rater : Rating
        On one grid. Voxels that are void to the reference do not count; those that are void to
        the rater are wrong where the reference has a label.
    adapter : Adapter
        The reference's.
    name : str
        Of the rater, for notes.
    protocol : {"label-restricted", "within-evaluable"}
    others : sequence of Rating
        All raters of this image, for ``within-evaluable``; see there.

    Raises
    ------
    InputError
        If the reference knows no unlabelled tissue, so that ``within-evaluable`` means nothing, or
        the two have no label in common.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is one of {', '.join(PROTOCOLS)}")
    notes: list[str] = []
    unlabelled = _unlabelled(adapter)
    within = None if reference.void is None else ~reference.void
    if protocol == "within-evaluable":
        if not unlabelled:
            raise InputError(
                f"{adapter.name}: its adapter names no unlabelled tissue, so there is no protocol "
                "within-evaluable. Use label-restricted."
            )
        maps = [one.labels for one in (rater, *others)]
        evaluable = within_evaluable(reference.labels, maps, unlabelled)
        within = evaluable if within is None else within & evaluable
    if adapter.unlabelled:
        rater = _treat_medial_temporal(rater, adapter, name, notes)
    if not (reference.has_sides and rater.has_sides):
        reference, rater = merge_sides(reference), merge_sides(rater)
        notes.append(f"{name}: left and right are judged as one.")
    judged = _judged(reference, rater, adapter, name, notes)
    outside = 0 if within is None else within.size - int(np.count_nonzero(within))
    return JudgedMaps(
        _restricted(rater.labels, judged),
        _restricted(reference.labels, judged),
        within,
        _groups([reference.labels.table[code].name for code in judged]),
        protocol,
        outside * reference.labels.grid.voxel_volume_mm3,
        tuple(notes),
    )


def _unlabelled(adapter: Adapter) -> list[str]:
    """Unlabelled tissue; what counts as cortex is none of it."""
    if adapter.hippocampus_amygdala == "left out":
        return list(adapter.unlabelled)
    return [name for name in adapter.unlabelled if not name.endswith(MEDIAL_TEMPORAL)]


def _treat_medial_temporal(rater: Rating, adapter: Adapter, name: str, notes: list[str]) -> Rating:
    """Predicted hippocampus and amygdala as the adapter wants them, and a note that says how."""
    if adapter.hippocampus_amygdala == "left out":
        notes.append(f"{name}: hippocampus and amygdala are left out of the cortex.")
        return rater
    notes.append(f"{name}: hippocampus and amygdala count as cortex.")
    full, labels = fullhead(), rater.labels
    lookup = np.arange(int(labels.table.codes[-1]) + 1, dtype=labels.voxels.dtype)
    for side in ("Left", "Right"):
        for part in MEDIAL_TEMPORAL:
            code = full[f"{side}-{part}"].index
            if code in labels.table:
                lookup[code] = full[f"{side}-Cerebral-Cortex"].index
    return replace(rater, labels=replace(labels, voxels=lookup[labels.voxels]))


def _judged(
    reference: Rating, rater: Rating, adapter: Adapter, name: str, notes: list[str]
) -> list[int]:
    """Codes that the reference labels and the rater can say."""
    full = fullhead()
    wanted = {label.index for label in reference.labels.table} - {0}
    if adapter.evaluable is not None:
        names = (n if reference.has_sides else _left_of(n) for n in adapter.evaluable)
        wanted &= {full[n].index for n in names}
    lacking = sorted(code for code in wanted if code not in rater.labels.table)
    if lacking:
        shown = ", ".join(reference.labels.table[code].name for code in lacking)
        notes.append(f"{name}: has no label for {shown}; not judged.")
    judged = sorted(wanted - set(lacking))
    if not judged:
        raise InputError(f"{name}: has no label that {adapter.name} is a reference for.")
    return judged


def _restricted(labels: LabelMap, codes: Sequence[int]) -> LabelMap:
    """Label map with everything but some labels as background."""
    table = labels.table
    lookup = np.zeros(int(table.codes[-1]) + 1, dtype=labels.voxels.dtype)
    lookup[codes] = codes
    return LabelMap(lookup[labels.voxels], labels.grid, table.subset([0, *codes]))


def _groups(judged: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Structures all of whose members are judged, and that are more than one label.

    >>> _groups(["Left-Thalamus", "Right-Thalamus"])
    {'Thalamus': ('Left-Thalamus', 'Right-Thalamus')}
    >>> _groups(["Cerebral-GM", "Cerebral-WM"])
    {'Cerebrum': ('Cerebral-GM', 'Cerebral-WM')}
    """
    there = set(judged)
    found = {}
    for structure in named_structures().values():
        merged = tuple(dict.fromkeys(_merged_name(_left_of(m)) for m in structure.members))
        for members in (structure.members, merged):
            if len(members) > 1 and there.issuperset(members):
                found[structure.name] = members
    return found
