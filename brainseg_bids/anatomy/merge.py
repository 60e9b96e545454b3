# SPDX-License-Identifier: Apache-2.0
"""``merge``: a full-head map and a brain map become one label map, by tables of rules.

Precedence, undecided codes, sides, islands, completion, flags: the steps in their order. Every
step is counted in a `MergeReport`. The rules are in ``data/merge``; why they are as they are is in
``docs/explanation/merging.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import cc3d
import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.cleaning import (
    SagittalPlane,
    code_lookup,
    fit_sagittal_plane,
    remove_islands,
    resolve,
    swap_strays,
)
from brainseg_bids.anatomy.completion import Completed, complete, fill_cavities
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, count_codes
from brainseg_bids.anatomy.membership import Membership
from brainseg_bids.anatomy.plausibility import implausible, limits
from brainseg_bids.anatomy.rules import PLACES, WHERE, MergeRules

HULL_CLOSING_MM = 2.0
"""Sulci up to about twice this wide are inside the brain's hull; the wings of the sphenoid, which
lie between frontal and temporal lobe, are wider and stay outside."""
STRAY_MARGIN_MM = 3.0
"""A sided piece is on the wrong side if all of it is further than this beyond the middle."""
SHELL_SHARE = 0.15
"""A brain with less bone and soft tissue around it than this share of its own volume has been
taken out of its head; around a whole head's brain there is more than half of its volume."""
UNSEEN_BRAIN_ML = 5.0
"""Brain beyond a tool's field of view that is worth a flag; less is the end of the brain stem."""
EDGES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
"""Names of an image's outermost planes, low and high, along R, A, S."""
BRAIN_ON_EDGE_MM2, HEAD_ON_EDGE_MM2 = 25.0, 400.0
"""Areas on an edge of the image from which a cut is worth a flag (the tip of a nose or an ear is
not)."""
LEAST_BRAIN_DICE = 0.9
COUNTERPART_MM3 = 50.0


@dataclass(frozen=True)
class Source:
    """One tool's map, already in codes of ``fullhead`` and on the image's grid.

    Parameters
    ----------
    name : str
        Tool, named in the report and in messages.
    labels : LabelMap
    membership : Membership, optional
        Posteriors of the tool, compressed.
    seen : (X, Y, Z) bool, optional
        Where the tool's own grid covers the image's; everywhere if not given. Elsewhere the tool
        has not looked, and its 0 says nothing.
    """

    name: str
    labels: LabelMap
    membership: Membership | None = None
    seen: np.ndarray | None = None


@dataclass(frozen=True)
class RuleCount:
    """How much one rule did.

    Parameters
    ----------
    rule : str
    voxels : int
        For precedence: voxels that the rule decided and in which the sources differ. For all
        others: voxels that it changed.
    volume_mm3 : float
    reason : str
    """

    rule: str
    voxels: int
    volume_mm3: float
    reason: str


@dataclass(frozen=True)
class Conflict:
    """One structure as both tools see it, where both have looked; ``dice`` is None where neither
    has a voxel of it."""

    structure: str
    head_mm3: float
    brain_mm3: float
    dice: float | None


@dataclass
class MergeReport:
    """What the merge did, for a human and for JSON.

    Parameters
    ----------
    head, brain : str
        Names of the sources; ``brain`` is None with one tool.
    voxel_volume_mm3 : float
    rules : list of RuleCount
        Every rule and every cleaning step, in order, those that did nothing too.
    conflicts : list of Conflict
        The brain as a whole and each structure both know; empty with one tool.
    holes : dict
        ``before_voxels``, ``before_mm3`` and ``after_voxels``: 0-voxels enclosed by the head.
    flags : list of str
        Sentences for a human.
    implausible : list of str
        What cannot be right about the result, see `brainseg_bids.anatomy.plausibility`.

    Examples
    --------
    >>> report = MergeReport("charm", None, 1.0)
    >>> MergeReport.from_json(report.to_json()) == report
    True
    """

    head: str
    brain: str | None
    voxel_volume_mm3: float
    rules: list[RuleCount] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    holes: dict[str, float] = field(
        default_factory=lambda: {"before_voxels": 0, "before_mm3": 0.0, "after_voxels": 0}
    )
    flags: list[str] = field(default_factory=list)
    implausible: list[str] = field(default_factory=list)

    def count(self, rule: str, voxels: int, reason: str) -> None:
        """Add a rule at the end."""
        volume = round(int(voxels) * self.voxel_volume_mm3, 3)
        self.rules.append(RuleCount(rule, int(voxels), volume, reason))

    def to_json(self) -> dict:
        """As plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict) -> MergeReport:
        """Undo `to_json`."""
        return cls(
            **facts
            | {
                "rules": [RuleCount(**rule) for rule in facts["rules"]],
                "conflicts": [Conflict(**conflict) for conflict in facts["conflicts"]],
            }
        )


@dataclass(frozen=True)
class Merged:
    """The merged map.

    Parameters
    ----------
    labels : LabelMap
        Codes of ``fullhead``, int16, on the head source's grid.
    membership : Membership or None
        Where any source had one: its own where its most probable label won, else certain.
    report : MergeReport
    """

    labels: LabelMap
    membership: Membership | None
    report: MergeReport


def merge(
    head: Source,
    brain: Source | None = None,
    *,
    image: np.ndarray | None = None,
    rules: MergeRules | None = None,
) -> Merged:
    """One label map of the whole head, without holes, with all that was done to it.

    Parameters
    ----------
    head : Source
        Full head, or whatever is the only map.
    brain : Source, optional
        Brain map on the same grid; a map without brain is left aside and flagged.
    image : (X, Y, Z) float, optional
        On the same grid; tells tissue from air where no tool labelled. Defaced images and images
        with a noisy background are allowed for.
    rules : MergeRules, optional
        The packaged ones if not given.

    Raises
    ------
    ValueError
        If grids or shapes differ; the message names the source.
    UnknownLabelError
        If a source has codes that the rules' table does not know; the message names the source.

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
    turned, ras = (lambda array: grid.array_to_ras(array)), grid.to_ras()
    report = MergeReport(head.name, brain and brain.name, grid.voxel_volume_mm3)
    head_voxels, *rest = [_plain(turned(source.labels.voxels)) for source in sources]
    seen = [None if source.seen is None else turned(source.seen) for source in sources]
    brain_voxels = rest[0] if rest else None
    _drop_background(head_voxels, brain_voxels, rules, report)
    origin = None
    if any(source.membership is not None for source in sources):
        origin = np.zeros(ras.shape, dtype=np.uint8)
    voxels = _win(head_voxels, brain_voxels, seen, ras, rules, report, origin)
    box = _box(voxels)
    if box is not None:
        inside = np.ascontiguousarray(voxels[box])
        _clean(inside, _cropped(ras, box), rules, report)
        voxels[box] = inside
    seen_as = None if image is None else turned(image)
    _complete(voxels, ras, seen_as, rules, report)
    _flag_result(voxels, ras, seen_as, rules, report)
    labels = LabelMap(np.ascontiguousarray(grid.array_from_ras(voxels)), grid, rules.table)
    report.implausible = implausible(labels, image)
    if origin is None:
        return Merged(labels, None, report)
    return Merged(labels, _membership(labels, sources, grid.array_from_ras(origin)), report)


def _check(sources: list[Source], image: np.ndarray | None, table: LabelTable) -> None:
    head = sources[0]
    for source in sources:
        table.check(source.labels.voxels, what=source.name)
        if not source.labels.grid.is_close(head.labels.grid, tolerance_mm=0.01):
            raise ValueError(
                f"{source.name}: its grid is not that of {head.name}. "
                "Bring both to the image's grid first (anatomy.upsample.regrid)."
            )
        soft = source.membership
        if soft is not None and soft.grid.shape != source.labels.grid.shape:
            raise ValueError(f"{source.name}: labels and memberships are on different grids.")
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
    return grid.crop(tuple(b.start for b in box), tuple(b.stop - b.start for b in box))


def _box(*arrays: np.ndarray) -> tuple[slice, ...] | None:
    """Box around all that is not 0, with a margin of one voxel; None if all is 0."""
    box = []
    for axis, n in enumerate(arrays[0].shape):
        others = tuple(a for a in range(3) if a != axis)
        used = np.flatnonzero(np.any([array.any(axis=others) for array in arrays], axis=0))
        if not len(used):
            return None
        box.append(slice(max(int(used[0]) - 1, 0), min(int(used[-1]) + 2, n)))
    return tuple(box)


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
    if brain is None:
        for line in rules.precedence:
            report.count(line.rule, 0, line.reason)
        _flag_sides(report.head, head, grid, rules, report)
        return head
    box = _box(head, brain)
    inside = _cropped(grid, box)
    head_in, brain_in = np.ascontiguousarray(head[box]), np.ascontiguousarray(brain[box])
    for name, voxels in ((report.head, head_in), (report.brain, brain_in)):
        _flag_sides(name, voxels, inside, rules, report)
    # A label is proof that the tool has looked (voxels on the border of its grid).
    seen_in = [
        None if mask is None else mask[box] | (own != 0)
        for mask, own in zip(seen, (head_in, brain_in), strict=True)
    ]
    place = places(is_brain[brain_in], inside)
    if seen_in[1] is not None:
        place[~seen_in[1]] = PLACES.index("unseen")
    compiled = CompiledPrecedence.of(rules)
    index = compiled.index(place, brain_in, head_in)
    counts = compiled.counts(index)
    for line, voxels in zip(rules.precedence, compiled.decided(counts), strict=True):
        report.count(line.rule, voxels, line.reason)
    looked = np.array([place != "unseen" for place in PLACES])
    report.conflicts += _conflicts(counts[looked].sum(axis=0), rules, grid.voxel_volume_mm3)
    _flag_disagreement(report)
    _flag_unseen(report, is_brain, (head_in, brain_in), seen_in)
    if origin is not None:
        origin[box] = compiled.origin.ravel()[index]
    head[box] = compiled.result.ravel()[index]
    return head


def places(brain: np.ndarray, grid: Grid) -> np.ndarray:
    """Where each voxel lies as seen from the brain tool's brain: rank in `rules.PLACES`.

    The brain's largest piece counts. Its hull is closed over sulci and filled. Where the tool has
    not looked (``unseen``) is not known here.

    Parameters
    ----------
    brain : (X, Y, Z) bool
        With at least one voxel.
    grid : Grid

    Returns
    -------
    (X, Y, Z) uint8
    """
    numbers, _ = cc3d.connected_components(brain, connectivity=26, return_N=True)
    body = numbers == 1 + np.argmax(np.bincount(numbers.ravel())[1:])
    found = np.full(brain.shape, PLACES.index("outside_hull"), dtype=np.uint8)
    # Heights in the world, so that an oblique head has the same lowest voxel.
    height = sum(
        (grid.affine[2, axis] * np.arange(n, dtype=np.float32)).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
        for axis, n in enumerate(grid.shape)
    )
    found[height < height[body].min() - 1e-3] = PLACES.index("below")
    box = _box(body)
    margin = [1 + int(np.ceil(HULL_CLOSING_MM / size)) for size in grid.voxel_size_mm]
    padded = np.pad(body[box], [(m, m) for m in margin])
    filled = fill_cavities(padded)
    hull = fill_cavities(_close_by_box(filled, HULL_CLOSING_MM, grid))
    inner = tuple(slice(m, -m) for m in margin)
    part = found[box]
    part[hull[inner]] = PLACES.index("inside_hull")
    part[(filled & ~padded)[inner]] = PLACES.index("enclosed")
    return found


def _close_by_box(mask: np.ndarray, reach_mm: float, grid: Grid) -> np.ndarray:
    """Closing with a box: three passes along the axes instead of a distance transform."""
    out = mask.view(np.uint8)
    for pick in (ndimage.maximum_filter1d, ndimage.minimum_filter1d):
        for axis, size in enumerate(grid.voxel_size_mm):
            reach = round(reach_mm / size)
            if reach:
                out = pick(out, 2 * reach + 1, axis=axis, mode="constant")
    return out.view(bool) | mask


@dataclass(frozen=True, eq=False)
class CompiledPrecedence:
    """All lines of the precedence table as lookups, so that merging is one gather.

    Parameters
    ----------
    ranks : (largest code + 1,) int32
        Rank of each code.
    codes : (n,) int
        Code of each rank.
    line, result, origin : (places, n, n) int
        By place, rank of the brain's code and of the head's: the line that decides, the code
        that it gives, and whose it is (0 head, 1 brain, 2 neither).
    """

    ranks: np.ndarray
    codes: np.ndarray
    line: np.ndarray
    result: np.ndarray
    origin: np.ndarray

    @classmethod
    def of(cls, rules: MergeRules) -> CompiledPrecedence:
        """Write the lines out, the last first, so that the first that fits stands."""
        codes, ranks = rules.table.codes, rules.table.positions()
        shape = (len(PLACES), len(codes), len(codes))
        line, result = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
        origin = np.zeros(shape, np.uint8)
        sources = {"head": codes[None, None, :], "brain": codes[None, :, None]}
        for number, rule in reversed(list(enumerate(rules.precedence))):
            block = np.ix_(
                [rank for rank, place in enumerate(PLACES) if place in WHERE[rule.where]],
                ranks[sorted(rule.brain)],
                ranks[sorted(rule.head)],
            )
            line[block] = number
            given = sources.get(rule.take, np.full((1, 1, 1), rule.take))
            result[block] = np.broadcast_to(given, shape)[block]
            origin[block] = {"head": 0, "brain": 1}.get(rule.take, 2)
        return cls(ranks, codes, line, result, origin)

    def index(self, place: np.ndarray, brain: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Flat index into the lookups for each voxel, in the smallest type that holds it."""
        small = np.promote_types(np.uint16, np.min_scalar_type(self.line.size - 1))
        n, ranks = small.type(len(self.codes)), self.ranks.astype(small)
        index = ranks[brain]
        index += place * n
        index *= n
        index += ranks[head]
        return index

    def counts(self, index: np.ndarray) -> np.ndarray:
        """Voxels by place, brain's and head's rank."""
        # Slab by slab: bincount widens its input to 8 bytes.
        size = self.line.size
        found = sum(np.bincount(slab.ravel(), minlength=size) for slab in index)
        return found.reshape(self.line.shape)

    def decided(self, counts: np.ndarray) -> np.ndarray:
        """For each line the voxels that it decided and in which the sources differ."""
        differ = ~np.eye(len(self.codes), dtype=bool)
        n_lines = int(self.line.max()) + 1
        return np.bincount(
            self.line.ravel(), weights=(counts * differ).ravel(), minlength=n_lines
        ).astype(np.int64)


def _conflicts(counts: np.ndarray, rules: MergeRules, volume_mm3: float) -> list[Conflict]:
    """Agreement on the brain as a whole, then on each structure that both sources hold."""
    table = rules.table
    in_brain = code_lookup(rules.groups["brain"], table)[table.codes]
    found = [_conflict("Brain", counts, in_brain, volume_mm3)]
    for rank, label in enumerate(table):
        both = counts[rank, :].sum() and counts[:, rank].sum()
        if label.index and both:
            found.append(_conflict(label.name, counts, np.arange(len(table)) == rank, volume_mm3))
    return found


def _conflict(name: str, counts: np.ndarray, ranks: np.ndarray, volume_mm3: float) -> Conflict:
    brain, head = counts[ranks].sum(), counts[:, ranks].sum()
    both = counts[np.ix_(ranks, ranks)].sum()
    dice = round(float(2 * both / (brain + head)), 4) if brain + head else None
    return Conflict(
        name, round(float(head) * volume_mm3, 3), round(float(brain) * volume_mm3, 3), dice
    )


def _clean(voxels: np.ndarray, grid: Grid, rules: MergeRules, report: MergeReport) -> None:
    """Undecided codes, sides and islands, in place."""
    table = rules.table
    for line in rules.resolve:
        changed, left = resolve(voxels, line, table, grid)
        report.count(line.rule, changed, line.reason)
        if left:
            names = ", ".join(table[code].name for code in sorted(line.codes))
            report.flags.append(f"{names}: {left} voxels stay, nothing near could replace them")
    plane = fit_sagittal_plane(voxels, table, grid)
    changed, wrong = 0, []
    if plane is not None:
        changed, wrong = swap_strays(voxels, plane, table, grid, margin_mm=STRAY_MARGIN_MM)
    report.count("sides", changed, "pieces of a sided label that lie wholly on the other side")
    report.flags += [f"{name} lies on the wrong side of the middle" for name in wrong]
    removed = remove_islands(voxels, rules.islands, table, grid)
    for line, changed in zip(rules.islands, removed, strict=True):
        report.count(line.rule, changed, line.reason)


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


def _flag_sides(
    name: str, voxels: np.ndarray, grid: Grid, rules: MergeRules, report: MergeReport
) -> None:
    plane: SagittalPlane | None = fit_sagittal_plane(voxels, rules.table, grid)
    if plane is None:
        return
    if plane.tilt_deg > 90:
        report.flags.append(
            f"LEFT AND RIGHT LOOK SWAPPED in {name}: its left labels lie on the world's right. "
            "Check the image's orientation before anything is made of this subject"
        )
    elif plane.tilt_deg > 45:
        report.flags.append(
            f"{name}: left to right of its labels is turned by {plane.tilt_deg:.0f} degrees "
            "against the world; check the image's orientation"
        )


def _flag_disagreement(report: MergeReport) -> None:
    dice = report.conflicts[0].dice
    if dice is not None and report.conflicts[0].head_mm3 and dice < LEAST_BRAIN_DICE:
        report.flags.append(
            f"{report.head} and {report.brain} disagree about the brain: Dice {dice:.2f}"
        )


def _flag_unseen(
    report: MergeReport,
    is_brain: np.ndarray,
    voxels: tuple[np.ndarray, np.ndarray],
    seen: list[np.ndarray | None],
) -> None:
    """Brain that one tool labels where the other has not looked."""
    names = (report.head, report.brain)
    for number, mask in enumerate(seen):
        if mask is None:
            continue
        beyond = np.count_nonzero(is_brain[voxels[1 - number]] & ~mask)
        beyond_ml = beyond * report.voxel_volume_mm3 / 1000
        if beyond_ml > UNSEEN_BRAIN_ML:
            report.flags.append(
                f"{names[number]}'s field of view ends inside the brain: {names[1 - number]} "
                f"labels {beyond_ml:.0f} mL of brain beyond it"
            )


def _flag_result(
    voxels: np.ndarray,
    grid: Grid,
    image: np.ndarray | None,
    rules: MergeRules,
    report: MergeReport,
) -> None:
    """What a human should look at in the finished map."""
    counts = count_codes(voxels)
    volume = {code: n * grid.voxel_volume_mm3 for code, n in counts.items()}
    brain_ml = sum(volume.get(code, 0) for code in rules.groups["brain"]) / 1000
    shell_ml = _shell_voxels(voxels, image, rules) * grid.voxel_volume_mm3 / 1000
    if brain_ml >= limits()["Brain", "ml"].low and shell_ml < SHELL_SHARE * brain_ml:
        report.flags.append(
            "nearly no bone and soft tissue around the brain: is the image skull-stripped? "
            "Label maps of whole heads need whole heads"
        )
    if not rules.groups["air"] & set(counts):
        report.flags.append("no air was found inside the head")
    for label in rules.table:
        lone = volume.get(label.index, 0) >= COUNTERPART_MM3 and label.mirror not in counts
        if lone and label.index not in rules.groups["one_sided"]:
            missing = rules.table[label.mirror].name
            report.flags.append(f"{label.name} is there and {missing} is not")
    report.flags += _cuts(voxels, grid, code_lookup(rules.groups["brain"], rules.table))


def _shell_voxels(voxels: np.ndarray, image: np.ndarray | None, rules: MergeRules) -> int:
    """Voxels of bone and soft tissue, but for those that the image leaves blank: a tool whose
    atlas has a skull may find one around a stripped brain."""
    shell = code_lookup(rules.groups["bone"] | rules.groups["soft"], rules.table)[voxels]
    if image is not None:
        shell &= image != 0
        shell &= np.isfinite(image)
    return np.count_nonzero(shell)


def _cuts(voxels: np.ndarray, grid: Grid, is_brain: np.ndarray) -> Iterator[str]:
    """Sentences about edges of the image that cut brain or head."""
    sizes = grid.voxel_size_mm
    for axis, names in enumerate(EDGES):
        area_mm2 = float(np.prod([size for a, size in enumerate(sizes) if a != axis]))
        for end, name in zip((0, -1), names, strict=True):
            edge = np.take(voxels, end, axis)
            brain = np.count_nonzero(is_brain[edge]) * area_mm2
            if brain >= BRAIN_ON_EDGE_MM2:
                yield f"the head is cut at the {name} edge of the image: brain labels touch it"
            # Every field of view ends somewhere in the neck.
            elif name != "inferior" and np.count_nonzero(edge) * area_mm2 >= HEAD_ON_EDGE_MM2:
                yield f"the head is cut at the {name} edge of the image"


def _membership(labels: LabelMap, sources: list[Source], origin: np.ndarray) -> Membership:
    """The winner's membership where its first label is the merged one, else certainty."""
    k = max(source.membership.k for source in sources if source.membership is not None)
    merged = Membership.certain(labels, k=k)
    for number, source in enumerate(sources):
        soft = source.membership
        if soft is None:
            continue
        for x in range(labels.grid.shape[0]):  # plane by plane: masks of a volume are large
            keep = (origin[x] == number) & (soft.codes[0, x] == labels.voxels[x])
            np.copyto(merged.codes[: soft.k, x], soft.codes[:, x], where=keep)
            np.copyto(merged.weights[: soft.k, x], soft.weights[:, x], where=keep)
    return merged
