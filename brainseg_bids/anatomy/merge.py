# SPDX-License-Identifier: Apache-2.0
"""``merge``: combine a full-head map and a brain map into one label map, by tables of rules.

The steps in their order: precedence, undecided codes, sides, islands, completion, flags. A
`MergeReport` counts the changes of each step. The rules are in ``data/merge``, and
``docs/explanation/merging.md`` gives the reasons for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from brainseg_bids.anatomy.cleaning import (
    code_lookup,
    correct_sides,
    fit_sagittal_plane,
    remove_islands,
    resolve,
)
from brainseg_bids.anatomy.coarse import refine
from brainseg_bids.anatomy.completion import Completed, complete
from brainseg_bids.anatomy.grid import Grid, triple
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.merge_flags import (
    flag_disagreement,
    flag_result,
    flag_sides,
    flag_unseen,
)
from brainseg_bids.anatomy.merge_report import Conflict, MergeReport
from brainseg_bids.anatomy.plausibility import implausible
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.anatomy.precedence import CompiledPrecedence, locate, occupied_box
from brainseg_bids.anatomy.rules import LOCATIONS, MergeRules


@dataclass(frozen=True)
class Source:
    """Label map of one tool, in codes of ``fullhead`` and on the grid of the image.

    Parameters
    ----------
    name : str
        Name of the tool in the report and in messages.
    labels : LabelMap
    posteriors : TopPosteriors, optional
        Top-k posteriors of the tool.
    seen : (X, Y, Z) bool, optional
        Voxels within the field of view of the tool's own grid; default: all. Code 0 outside of it
        means unknown, not background.
    coarse : mapping of int to frozenset of int
        Ambiguous codes of a brain map, for instance of a tool without left and right, and the
        codes that each may stand for. The head map decides between them.
    """

    name: str
    labels: LabelMap
    posteriors: TopPosteriors | None = None
    seen: np.ndarray | None = None
    coarse: Mapping[int, frozenset[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """Result of `merge`.

    Parameters
    ----------
    labels : LabelMap
        Codes of ``fullhead``, int16, on the grid of the head map.
    posteriors : TopPosteriors or None
        None if no source has posteriors. Those of the source whose most probable label was taken;
        certain (probability 1) in all other voxels.
    report : MergeReport
    """

    labels: LabelMap
    posteriors: TopPosteriors | None
    report: MergeReport


def merge(
    head: Source,
    brain: Source | None = None,
    *,
    image: np.ndarray | None = None,
    rules: MergeRules | None = None,
) -> Merged:
    """Label map of the whole head without holes, and a report of all changes.

    Parameters
    ----------
    head : Source
        Map of the full head, or the only map.
    brain : Source, optional
        Map of the brain on the same grid. A map without any brain is ignored, with a flag.
    image : (X, Y, Z) float, optional
        Image on the same grid, to separate tissue from air where no tool gives a label. It may be
        defaced or have a noisy background.
    rules : MergeRules, optional
        Default: the rules of the package.

    Raises
    ------
    ValueError
        If grids or shapes differ; the message names the source.
    UnknownLabelError
        If a source, which the message names, has codes that are not in the table of the rules.

    Examples
    --------
    >>> table, grid = LabelTable.packaged("fullhead"), Grid((5, 5, 5), np.eye(4))
    >>> voxels = np.full((5, 5, 5), 515); voxels[2, 2, 2] = 0
    >>> merged = merge(Source("charm", LabelMap(voxels, grid, table)))
    >>> int(merged.labels.voxels[2, 2, 2]), merged.report.holes["after_voxels"]
    (515, 0)
    """
    rules = rules or MergeRules.packaged()
    sources = [source for source in (head, brain) if source is not None]
    _check(sources, image, rules.table)
    grid = head.labels.grid
    turned, ras = grid.array_to_ras, grid.to_ras()
    report = MergeReport(head.name, brain.name if brain else None, grid.voxel_volume_mm3)
    head_voxels, *rest = [_plain(turned(source.labels.voxels)) for source in sources]
    seen = [None if source.seen is None else turned(source.seen) for source in sources]
    brain_voxels = rest[0] if rest else None
    _drop_background(head_voxels, brain_voxels, rules, report)
    if brain is not None and brain_voxels is not None and brain.coarse:
        _refine(brain_voxels, brain, head_voxels, ras, rules, report)
    origin = None
    if any(source.posteriors is not None for source in sources):
        origin = np.zeros(ras.shape, dtype=np.uint8)
    voxels = _win(head_voxels, brain_voxels, seen, ras, rules, report, origin)
    _clean(voxels, ras, rules, report)
    seen_as = None if image is None else turned(image)
    _complete(voxels, ras, seen_as, rules, report)
    flag_result(voxels, ras, seen_as, rules, report)
    labels = LabelMap(np.ascontiguousarray(grid.array_from_ras(voxels)), grid, rules.table)
    report.implausible = implausible(labels, image)
    of_winner = None if origin is None else grid.array_from_ras(origin)
    return Merged(labels, _posteriors(labels, sources, of_winner), report)


def _check(sources: list[Source], image: np.ndarray | None, table: LabelTable) -> None:
    head = sources[0]
    for source in sources:
        table.check(source.labels.voxels, what=source.name)
        if not source.labels.grid.is_close(head.labels.grid, tolerance_mm=0.01):
            raise ValueError(
                f"{source.name}: its grid is not that of {head.name}. "
                "Bring both to the image's grid first (anatomy.upsample.regrid)."
            )
        soft = source.posteriors
        if soft is not None and soft.grid.shape != source.labels.grid.shape:
            raise ValueError(f"{source.name}: labels and posteriors are on different grids.")
        if source.seen is not None and source.seen.shape != source.labels.grid.shape:
            raise ValueError(
                f"{source.name}: seen of shape {source.seen.shape} is not on the labels' grid, "
                f"{source.labels.grid.shape}."
            )
    if image is not None and image.shape != head.labels.grid.shape:
        raise ValueError(
            f"image of shape {image.shape} is not on the grid of {head.name}, "
            f"{head.labels.grid.shape}. Give the image that was labelled."
        )


def _plain(voxels: np.ndarray) -> np.ndarray:
    """Copy as int16 in C order, whatever the axes and the byte order were."""
    return np.array(voxels, dtype=np.int16, order="C")


def _cropped(grid: Grid, box: tuple[slice, ...]) -> Grid:
    return grid.crop(triple(b.start for b in box), triple(b.stop - b.start for b in box))


def _drop_background(
    head: np.ndarray, brain: np.ndarray | None, rules: MergeRules, report: MergeReport
) -> None:
    changed = 0
    other = code_lookup(rules.groups["unlabelled"] - {0}, rules.table)
    for voxels in (head, brain):
        if voxels is not None:
            outside = other[voxels]
            changed += int(np.count_nonzero(outside))
            voxels[outside] = 0
    report.count("background", changed, "a tool's own code for outside air is 0")


def _refine(
    brain: np.ndarray,
    source: Source,
    head: np.ndarray,
    grid: Grid,
    rules: MergeRules,
    report: MergeReport,
) -> None:
    """Labels that the brain tool does not tell apart, told apart by the head's, in place."""
    changed, left = refine(brain, source.coarse, head, grid, rules.table)
    report.count("coarse", changed, "the brain tool has one label for several of the head's")
    for code, voxels in left.items():
        name = rules.table[code].name
        report.flags.append(
            f"{source.name}: {voxels} voxels of {name} are ambiguous and keep this label: "
            f"{report.head} has none of the candidates"
        )


def _win(
    head: np.ndarray,
    brain: np.ndarray | None,
    seen: list[np.ndarray | None],
    grid: Grid,
    rules: MergeRules,
    report: MergeReport,
    origin: np.ndarray | None,
) -> np.ndarray:
    """Precedence: the winner of each voxel; ``origin`` gets 0 head, 1 brain, 2 neither.

    ``seen`` is the head's and the brain's.
    """
    is_brain = code_lookup(rules.groups["brain"], rules.table)
    if brain is not None and not is_brain[brain].any():
        report.flags.append(f"{report.brain} labels no brain: {report.head} was used alone")
        brain = None
    box = None if brain is None else occupied_box(head, brain)
    if brain is None or report.brain is None or box is None:
        for line in rules.precedence:
            report.count(line.rule, 0, line.reason)
        flag_sides(report.head, head, grid, rules, report)
        return head
    inside = _cropped(grid, box)
    head_in, brain_in = np.ascontiguousarray(head[box]), np.ascontiguousarray(brain[box])
    for name, voxels in ((report.head, head_in), (report.brain, brain_in)):
        flag_sides(name, voxels, inside, rules, report)
    # A label is proof that the tool has looked (voxels on the border of its grid).
    seen_in = [
        None if mask is None else mask[box] | (own != 0)
        for mask, own in zip(seen, (head_in, brain_in), strict=True)
    ]
    location = locate(is_brain[brain_in], inside)
    if seen_in[1] is not None:
        location[~seen_in[1]] = LOCATIONS.index("unseen")
    compiled = CompiledPrecedence.of(rules)
    index = compiled.index(location, brain_in, head_in)
    counts = compiled.counts(index)
    for line, voxels in zip(rules.precedence, compiled.decided(counts), strict=True):
        report.count(line.rule, voxels, line.reason)
    looked = np.array([location != "unseen" for location in LOCATIONS])
    report.conflicts += _conflicts(counts[looked].sum(axis=0), rules, grid.voxel_volume_mm3)
    flag_disagreement(report)
    flag_unseen(report, is_brain, (head_in, brain_in), seen_in)
    if origin is not None:
        origin[box] = compiled.origin.ravel()[index]
    head[box] = compiled.result.ravel()[index]
    return head


def _conflicts(counts: np.ndarray, rules: MergeRules, volume_mm3: float) -> list[Conflict]:
    """Agreement on the brain as a whole, then on each structure that both sources hold."""
    table = rules.table
    in_brain = code_lookup(rules.groups["brain"], table)[table.codes]
    found = [_conflict("Brain", counts, in_brain, volume_mm3)]
    for index, label in enumerate(table):
        both = counts[index, :].sum() and counts[:, index].sum()
        if label.index and both:
            found.append(_conflict(label.name, counts, np.arange(len(table)) == index, volume_mm3))
    return found


def _conflict(name: str, counts: np.ndarray, indices: np.ndarray, volume_mm3: float) -> Conflict:
    brain, head = counts[indices].sum(), counts[:, indices].sum()
    both = counts[np.ix_(indices, indices)].sum()
    dice = round(float(2 * both / (brain + head)), 4) if brain + head else None
    return Conflict(
        name, round(float(head) * volume_mm3, 3), round(float(brain) * volume_mm3, 3), dice
    )


def _clean(whole: np.ndarray, whole_grid: Grid, rules: MergeRules, report: MergeReport) -> None:
    """Undecided codes, sides and islands, in place."""
    box = occupied_box(whole)
    if box is None:
        return
    voxels, grid, table = np.ascontiguousarray(whole[box]), _cropped(whole_grid, box), rules.table
    for line in rules.resolve:
        changed, left = resolve(voxels, line, table, grid)
        report.count(line.rule, changed, line.reason)
        if left:
            names = ", ".join(table[code].name for code in sorted(line.codes))
            report.flags.append(
                f"{names}: {left} voxels keep this code, since no candidate is in the map"
            )
    plane = fit_sagittal_plane(voxels, table, grid)
    changed = 0
    wrong: list[str] = []
    if plane is not None:
        changed, wrong = correct_sides(voxels, plane, table, grid)
    report.count("sides", changed, "components of a sided label that lie wholly on the other side")
    report.flags += [f"{name} lies on the wrong side of the middle" for name in wrong]
    removed = remove_islands(voxels, rules.islands, table, grid)
    for rule, n_removed in zip(rules.islands, removed, strict=True):
        report.count(rule.rule, n_removed, rule.reason)
    whole[box] = voxels


def _complete(
    voxels: np.ndarray,
    grid: Grid,
    image: np.ndarray | None,
    rules: MergeRules,
    report: MergeReport,
) -> None:
    done: Completed = complete(voxels, grid, rules, image=image)
    for kind in ("tissue", "air"):
        reasons = [line.reason for line in rules.completion if line.kind == kind]
        report.count(f"completion {kind}", getattr(done, kind), "; ".join(reasons))
    report.count(
        "completion nearest", done.nearest, "pinholes, and gaps with brain all around them"
    )
    report.holes = {
        "before_voxels": done.holes_before,
        "before_mm3": round(done.holes_before * grid.voxel_volume_mm3, 3),
        "after_voxels": done.holes_after,
    }
    report.flags += done.flags


def _posteriors(
    labels: LabelMap, sources: list[Source], origin: np.ndarray | None
) -> TopPosteriors | None:
    """The winner's posteriors where its first label is the merged one, else certainty."""
    if origin is None:
        return None
    k = max(source.posteriors.k for source in sources if source.posteriors is not None)
    merged = TopPosteriors.certain(labels, k=k)
    for number, source in enumerate(sources):
        soft = source.posteriors
        if soft is None:
            continue
        for x in range(labels.grid.shape[0]):  # plane by plane: masks of a volume are large
            keep = (origin[x] == number) & (soft.codes[0, x] == labels.voxels[x])
            np.copyto(merged.codes[: soft.k, x], soft.codes[:, x], where=keep)
            np.copyto(merged.weights[: soft.k, x], soft.weights[:, x], where=keep)
    return merged
