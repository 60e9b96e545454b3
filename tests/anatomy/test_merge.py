# SPDX-License-Identifier: Apache-2.0
"""Two tools' maps become one head: who wins, what is cleaned, what is flagged."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from brainseg_bids.anatomy.cleaning import fill_nearest, fit_sagittal_plane, remove_islands
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, UnknownLabelError
from brainseg_bids.anatomy.merge import Source, merge
from brainseg_bids.anatomy.merge_report import MergeReport
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.anatomy.precedence import CompiledPrecedence, locate
from brainseg_bids.anatomy.rules import LOCATIONS, WHERE, MergeRules, RuleError
from brainseg_bids.images import read_label_map
from tests.phantom.head import phantom_grid, phantom_head, phantom_image

TABLE = LabelTable.packaged("fullhead")
RULES = MergeRules.packaged()
CSF, SKIN, BONE, STEM = 24, 511, 515, 16


def brain_of(head: LabelMap, *, csf: bool = False) -> LabelMap:
    """What a brain tool says of a head."""
    keep = [x.index for x in TABLE if x.is_brain or (csf and x.is_extracerebral_csf)]
    return LabelMap(np.where(np.isin(head.voxels, keep), head.voxels, 0), head.grid, TABLE)


def changed(head: LabelMap, voxels: np.ndarray) -> LabelMap:
    return LabelMap(voxels, head.grid, TABLE)


def painted(head: LabelMap, code: int, where: np.ndarray) -> LabelMap:
    return changed(head, np.where(where, code, head.voxels))


def count(report: MergeReport, rule: str) -> int:
    return next(r.voxels for r in report.rules if r.rule == rule)


def enclosed(voxels: np.ndarray) -> int:
    return int((ndimage.binary_fill_holes(voxels != 0) & (voxels == 0)).sum())


# Precedence


def decide(location: str, brain: int, head: int) -> int:
    compiled = CompiledPrecedence.of(RULES)
    ranks = compiled.indices
    return int(compiled.result[LOCATIONS.index(location), ranks[brain], ranks[head]])


@pytest.mark.parametrize(
    ("location", "brain", "head", "winner"),
    [
        ("inside_hull", 3, 502, 3),  # no vessel cuts the cortex
        ("inside_hull", CSF, 502, 502),
        ("outside_hull", CSF, 514, 514),
        ("outside_hull", CSF, 530, 530),
        ("outside_hull", 42, 530, 42),
        ("inside_hull", CSF, BONE, CSF),
        ("inside_hull", 0, BONE, CSF),
        ("outside_hull", 0, BONE, BONE),
        ("outside_hull", CSF, BONE, BONE),
        ("outside_hull", CSF, 3, CSF),
        ("outside_hull", CSF, 0, CSF),
        ("outside_hull", 0, 3, CSF),  # the brain tool knows where the brain ends
        ("inside_hull", 0, 2, CSF),
        ("enclosed", 0, 2, 2),
        ("below", 0, STEM, STEM),
        ("below", 0, 512, 512),
        ("outside_hull", 0, CSF, CSF),
        ("inside_hull", 0, 31, 31),
        ("inside_hull", 0, 77, 77),
        ("inside_hull", 4, 31, 31),
        ("inside_hull", 2, 25, 25),
        ("outside_hull", 165, SKIN, SKIN),  # a brain tool is not asked about the skull
        ("inside_hull", 10, SKIN, 10),
        ("outside_hull", 0, 0, 0),
        ("unseen", 0, 3, 3),  # the brain tool has not looked there
        ("unseen", 0, BONE, BONE),
        ("unseen", 0, 0, 0),
        ("inside_hull", 41, 25, 41),  # no lesion of the left in the right's white matter
        ("inside_hull", 41, 57, 57),
        ("inside_hull", 4, 63, 4),
        ("inside_hull", 43, 136, 43),
        ("inside_hull", 51, 30, 51),
        ("inside_hull", 51, 62, 62),
        ("inside_hull", 14, 31, 31),  # the third ventricle has no side
        ("inside_hull", 14, 63, 63),
    ],
)
def test_the_first_line_that_fits_decides(location, brain, head, winner):
    assert decide(location, brain, head) == winner


def test_bone_is_nowhere_in_the_hull_and_no_head_code_in_the_ribbon():
    compiled, codes = CompiledPrecedence.of(RULES), TABLE.codes
    bone = sorted(RULES.groups["bone"])
    for location in ("inside_hull", "enclosed"):
        assert not np.isin(compiled.result[LOCATIONS.index(location)], bone).any()
    for code in RULES.groups["cortex"]:
        assert (compiled.result[:, compiled.indices[code]] == code).all()
    assert set(np.unique(compiled.result)) <= set(codes.tolist())


def test_the_compiled_lookup_says_what_the_lines_say():
    compiled = CompiledPrecedence.of(RULES)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        location = LOCATIONS[rng.integers(len(LOCATIONS))]
        brain, head = (int(code) for code in rng.choice(TABLE.codes, 2))
        line = next(
            rule
            for rule in RULES.precedence
            if location in WHERE[rule.where] and brain in rule.brain and head in rule.head
        )
        winner = {"brain": brain, "head": head}.get(line.take, line.take)
        assert decide(location, brain, head) == winner
        index = LOCATIONS.index(location), compiled.indices[brain], compiled.indices[head]
        assert compiled.origin[index] == {"head": 0, "brain": 1}.get(line.take, 2)


def test_no_finer_name_of_the_head_tool_moves_a_structure_to_the_other_side():
    compiled = CompiledPrecedence.of(RULES)
    sides = np.array([{"left": -1, "right": 1, "none": 0}[label.hemisphere] for label in TABLE])
    won = sides[compiled.indices[compiled.result]]
    brain = [compiled.indices[code] for code in sorted(RULES.groups["brain"])]
    assert (won[:, brain] * sides[brain][None, :, None] >= 0).all()


def test_a_table_of_many_labels_does_not_overflow_the_lookup(tmp_path):
    extra = [
        replace(TABLE[0], index=600 + n, name=f"Extra-{n}", mirror=600 + n) for n in range(100)
    ]
    many = LabelTable([*TABLE, *extra])
    folder = resources.files("brainseg_bids") / "data" / "merge"
    compiled = CompiledPrecedence.of(MergeRules.read(folder, many))
    location = np.array([LOCATIONS.index("enclosed")], dtype=np.uint8)
    for code in (3, 699):
        index = compiled.index(location, np.array([699]), np.array([code]))
        line = compiled.indices[699], compiled.indices[code]
        expected = np.ravel_multi_index((location[0], *line), compiled.line.shape)
        assert index.tolist() == [expected]
        counts = compiled.counts(index)
        assert counts[(location[0], *line)] == counts.sum() == 1


def test_rules_treat_both_sides_alike():
    compiled = CompiledPrecedence.of(RULES)
    mirror = np.array([compiled.indices[TABLE[int(code)].mirror] for code in TABLE.codes])
    swapped = compiled.result[:, mirror][:, :, mirror]
    expected = TABLE.codes[mirror][compiled.indices[compiled.result]]
    np.testing.assert_array_equal(swapped, expected)
    for groups in (RULES.resolve, RULES.islands):
        for line in groups:
            partner = {TABLE[code].mirror for code in line.codes}
            assert any(partner == set(other.codes) for other in groups)


def test_places_are_told_apart():
    brain = np.zeros((20, 20, 20), dtype=bool)
    brain[5:15, 5:15, 5:15] = True
    brain[9, 9, 9] = False  # a cavity
    brain[10, 5:15, 12:] = False  # a fissure, 1 mm wide
    brain[17:, 17:, 1] = True  # a stray is not the brain
    found = locate(brain, Grid(brain.shape, np.eye(4)))
    where = {
        name: found[index]
        for name, index in {
            "enclosed": (9, 9, 9),
            "inside_hull": (10, 10, 13),
            "outside_hull": (2, 2, 10),
            "below": (2, 2, 3),
        }.items()
    }
    assert where == {name: LOCATIONS.index(name) for name in where}


def test_below_is_below_in_the_world_whatever_the_axes():
    brain = np.zeros((6, 6, 6), dtype=bool)
    brain[2:4] = True  # this array's first axis points down
    affine = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    found = locate(brain, Grid(brain.shape, affine))
    assert (found[4:] == LOCATIONS.index("below")).all()
    assert not (found[:2] == LOCATIONS.index("below")).any()


# Pairs


def test_two_tools_that_agree_change_nothing(head, head_image):
    for csf in (True, False):
        for image in (None, head_image):
            merged = merge(
                Source("charm", head), Source("synthseg", brain_of(head, csf=csf)), image=image
            )
            np.testing.assert_array_equal(merged.labels.voxels, head.voxels)
            assert all(c.dice == 1 for c in merged.report.conflicts)


def test_a_single_perfect_source_comes_back_unchanged(head, head_image):
    for image in (None, head_image):
        merged = merge(Source("charm", head), image=image)
        np.testing.assert_array_equal(merged.labels.voxels, head.voxels)
        assert sum(rule.voxels for rule in merged.report.rules) == 0
        assert merged.report.conflicts == []


def test_the_brain_tools_brain_wins_and_what_it_leaves_is_fluid(head):
    brain = brain_of(head)
    cortex = np.isin(brain.voxels, (3, 42))
    thin = ndimage.binary_erosion(brain.voxels > 0) | ~cortex
    smaller = changed(head, np.where(thin, brain.voxels, 0))
    merged = merge(Source("charm", head), Source("fastsurfer", smaller))
    gone = (brain.voxels > 0) & (smaller.voxels == 0)
    assert gone.any()
    assert (merged.labels.voxels[gone] == CSF).all()
    assert count(merged.report, "brain-ends") > 0
    np.testing.assert_array_equal(merged.labels.voxels[~gone], head.voxels[~gone])


def test_fluid_around_the_brain_is_the_head_tools_where_the_brain_tool_has_none(head):
    merged = merge(Source("charm", head), Source("fastsurfer", brain_of(head)))
    assert (merged.labels.voxels[head.voxels == CSF] == CSF).all()
    assert count(merged.report, "fluid-fills") == (head.voxels == CSF).sum()


def test_the_stem_below_the_brain_tools_view_stays(head):
    heights = np.arange(head.grid.shape[2])
    lowest = np.flatnonzero((head.voxels == STEM).any(axis=(0, 1)))[0] + 3
    seen = changed(head, np.where(heights < lowest, 0, brain_of(head).voxels))
    merged = merge(Source("charm", head), Source("synthseg", seen))
    np.testing.assert_array_equal(merged.labels.voxels, head.voxels)
    assert count(merged.report, "brain-below-the-brain-tool") > 0


def cut_above(head: LabelMap, share: float, *, csf: bool = False) -> tuple[LabelMap, np.ndarray]:
    """A brain tool's map whose own grid ends below the vertex, and where it has looked."""
    brain = brain_of(head, csf=csf)
    used = np.flatnonzero((brain.voxels > 0).any(axis=(0, 1)))
    seen = np.zeros(head.grid.shape, dtype=bool)
    seen[..., : used[-1] + 1 - round(share * len(used))] = True
    return changed(head, np.where(seen, brain.voxels, 0)), seen


@pytest.mark.parametrize("csf", [True, False])
def test_beyond_the_brain_tools_field_of_view_all_is_the_head_tools(head, head_image, csf):
    brain, seen = cut_above(head, 0.2, csf=csf)
    merged = merge(Source("charm", head), Source("synthseg", brain, seen=seen), image=head_image)
    np.testing.assert_array_equal(merged.labels.voxels, head.voxels)
    lost_ml = np.isin(head.voxels, sorted(RULES.groups["brain"]))[~seen].sum() * 0.064
    assert lost_ml > 20
    assert merged.report.flags == [
        f"synthseg's field of view ends inside the brain: charm labels {lost_ml:.0f} mL of brain "
        "beyond it",
        "no air was found inside the head",
    ]
    assert count(merged.report, "unseen-is-the-head-tools") == (head.voxels[~seen] > 0).sum()
    # Where one has not looked the two do not disagree.
    assert all(conflict.dice == 1 for conflict in merged.report.conflicts)


def test_what_the_brain_tool_has_seen_is_its_own_as_before(head):
    everywhere = np.ones(head.grid.shape, dtype=bool)
    moved = changed(head, np.roll(brain_of(head).voxels, 1, 2))
    one = merge(Source("charm", head), Source("synthseg", moved))
    other = merge(
        Source("charm", head, seen=everywhere), Source("synthseg", moved, None, everywhere)
    )
    np.testing.assert_array_equal(one.labels.voxels, other.labels.voxels)
    assert one.report == other.report


def test_a_label_on_the_border_of_the_brain_tools_grid_is_still_its_own(head):
    brain = brain_of(head)
    recoloured = changed(head, np.where(brain.voxels == 3, 2, brain.voxels))
    nowhere = np.zeros(head.grid.shape, dtype=bool)
    merged = merge(Source("charm", head), Source("synthseg", recoloured, seen=nowhere))
    assert (merged.labels.voxels[brain.voxels == 3] == 2).all()
    assert merged.report.conflicts[0].dice == 1
    assert not any("field of view" in flag for flag in merged.report.flags)


def test_a_head_tool_whose_field_of_view_cuts_the_brain_is_flagged(head):
    cut, seen = cut_above(head, 0.2)
    half = changed(head, np.where(seen, head.voxels, 0))
    flags = merge(
        Source("charm", half, seen=seen), Source("synthseg", brain_of(head))
    ).report.flags
    assert any(flag.startswith("charm's field of view ends inside the brain") for flag in flags)
    flags = merge(
        Source("charm", half, seen=seen), Source("synthseg", cut, seen=seen)
    ).report.flags
    assert not any("field of view" in flag for flag in flags)


def test_a_brain_source_without_brain_is_left_aside_and_flagged(head):
    empty = changed(head, np.zeros_like(head.voxels))
    merged = merge(Source("charm", head), Source("synthseg", empty))
    np.testing.assert_array_equal(merged.labels.voxels, head.voxels)
    assert "charm was used" in " ".join(merged.report.flags)


def test_a_head_source_without_brain_takes_the_brain_tools(head):
    shell = changed(head, np.where(brain_of(head).voxels > 0, 0, head.voxels))
    merged = merge(Source("grace", shell), Source("synthseg", brain_of(head)))
    np.testing.assert_array_equal(merged.labels.voxels, head.voxels)
    assert not any("disagree" in flag for flag in merged.report.flags)


def test_an_empty_head_is_no_crash(head):
    empty = changed(head, np.zeros_like(head.voxels))
    report = merge(Source("charm", empty)).report
    assert any("voxel is labelled" in flag for flag in report.flags)


# Regressions: earlier scripts failed here


def test_outside_air_is_0_and_never_a_label(head):
    """S6: CHARM's 517 survived as foreground."""
    with_517 = painted(head, 517, head.voxels == 0)
    merged = merge(Source("charm", with_517), Source("synthseg", brain_of(head)))
    np.testing.assert_array_equal(merged.labels.voxels, head.voxels)
    assert count(merged.report, "background") == (head.voxels == 0).sum()


def test_codes_that_the_brain_tool_does_not_know_leave_no_hole(head):
    """S7: choroid, vessel, fluid and chiasm of the head tool fell out at the brain's border."""
    rng = np.random.default_rng(5)
    border = ndimage.binary_dilation(brain_of(head).voxels > 0) & (head.voxels == CSF)
    odd = rng.choice([31, 30, 77, 85, 502, 530, CSF], head.grid.shape)
    merged = merge(Source("charm", painted(head, 0, border)), Source("synthseg", brain_of(head)))
    assert merged.report.holes["before_voxels"] == enclosed(
        np.where(border, 0, head.voxels)
    ) - count(merged.report, "no-head-in-hull")
    for labels in (
        merged.labels,
        merge(
            Source("charm", changed(head, np.where(border, odd, head.voxels))),
            Source("synthseg", brain_of(head)),
        ).labels,
    ):
        assert enclosed(labels.voxels) == 0
        assert (labels.voxels[border] > 0).all()


def test_a_label_at_the_edge_does_not_reach_the_opposite_face():
    """S12: filters in Fourier space wrapped around the volume's edge."""
    voxels = np.zeros((30, 30, 30), dtype=np.int16)
    voxels[0, 5:25, 5:25] = BONE
    voxels[0, 10, 10] = 77
    merged = merge(Source("charm", LabelMap(voxels, Grid(voxels.shape, np.eye(4)), TABLE)))
    assert not merged.labels.voxels[1:].any()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
def test_the_axis_order_of_the_files_does_not_matter(order, signs):
    """S1: one head in LAS, RAS or any other order merges identically."""
    rng = np.random.default_rng(8)
    truth = phantom_head(grid=phantom_grid((40, 47, 43), 5.0))
    noise = rng.random(truth.grid.shape)
    damaged = changed(truth, np.where(noise < 0.05, 0, np.where(noise > 0.98, 3, truth.voxels)))
    image = phantom_image(truth, rng)

    def turn(array):
        return np.ascontiguousarray(
            array.transpose(order)[tuple(slice(None, None, s) for s in signs)]
        )

    turned = np.zeros((4, 4))
    turned[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        turned[old, new] = sign
        turned[old, 3] = truth.grid.shape[old] - 1 if sign < 0 else 0
    shape = tuple(truth.grid.shape[old] for old in order)
    grid = Grid(shape, truth.grid.affine @ turned)
    brain, seen = cut_above(truth, 0.1)
    one = merge(Source("charm", damaged), Source("synthseg", brain, seen=seen), image=image)
    other = merge(
        Source("charm", LabelMap(turn(damaged.voxels), grid, TABLE)),
        Source("synthseg", LabelMap(turn(brain.voxels), grid, TABLE), seen=turn(seen)),
        image=turn(image),
    )
    np.testing.assert_array_equal(turn(one.labels.voxels), other.labels.voxels)
    assert one.report == other.report


def test_unknown_codes_and_other_grids_are_errors_that_name_the_source(head):
    other = LabelTable([*TABLE, replace(TABLE[0], index=9999, name="Odd", mirror=9999)])
    odd = LabelMap(np.where(head.voxels == SKIN, 9999, head.voxels), head.grid, other)
    with pytest.raises(UnknownLabelError, match=r"synthseg: .* 9999"):
        merge(Source("charm", head), Source("synthseg", odd))
    moved = LabelMap(head.voxels, head.grid.crop((1, 0, 0), head.grid.shape), TABLE)
    with pytest.raises(ValueError, match=r"grid .* charm"):
        merge(Source("charm", head), Source("synthseg", moved))
    with pytest.raises(ValueError, match="synthseg: "):
        merge(Source("charm", head), Source("synthseg", head, seen=np.ones((2, 2, 2), bool)))
    with pytest.raises(ValueError, match="image of shape"):
        merge(Source("charm", head), image=np.zeros((2, 2, 2)))


# Cleaning


def test_undecided_codes_become_the_nearest_candidate(head):
    for code, allowed in ((77, {2, 41}), (192, {2, 41}), (253, {2, 41}), (81, {3, 12, 10})):
        inside = ndimage.binary_erosion(head.voxels == 2, iterations=2)
        marked = painted(head, code, inside)
        merged = merge(Source("aseg", marked))
        assert inside.any()
        assert set(np.unique(merged.labels.voxels[inside]).tolist()) <= allowed
        assert code not in merged.labels.voxels


def test_a_code_without_any_candidate_stays_and_is_flagged():
    voxels = np.zeros((6, 6, 6), dtype=np.int16)
    voxels[2:4, 2:4, 2:4] = 77
    merged = merge(Source("aseg", LabelMap(voxels, Grid(voxels.shape, np.eye(4)), TABLE)))
    np.testing.assert_array_equal(merged.labels.voxels, voxels)
    assert any("WM-hypointensities: 8 voxels" in flag for flag in merged.report.flags)


def test_labels_grow_around_what_may_not_grow():
    row = np.array([[[2, 0, 5, 0, 3]]], dtype=np.int16)
    allowed = np.isin(np.arange(531), (2, 3))
    grid = Grid(row.shape, np.eye(4))
    assert fill_nearest(row, np.array([1, 3]), allowed, grid, TABLE) == 0
    assert row.ravel().tolist() == [2, 2, 5, 3, 3]
    lone = np.array([[[2, 5, 0, 5, 5, 5, 3]]], dtype=np.int16)
    assert fill_nearest(lone, np.array([2]), allowed, Grid(lone.shape, np.eye(4)), TABLE) == 0
    assert lone.ravel().tolist() == [2, 5, 2, 5, 5, 5, 3]
    none = np.array([[[5, 0, 5]]], dtype=np.int16)
    assert fill_nearest(none, np.array([1]), allowed, Grid(none.shape, np.eye(4)), TABLE) == 1
    assert none.ravel().tolist() == [5, 0, 5]


def test_growing_knows_that_voxels_are_longer_than_wide():
    plane = np.array([[[3, 0, 3], [0, 0, 0], [3, 2, 3]]], dtype=np.int16)
    plane[0, 1] = (2, 0, 2)
    grid = Grid(plane.shape, np.diag([1, 5.0, 0.5, 1]))
    fill_nearest(plane, np.flatnonzero(plane == 0), np.arange(531) > 0, grid, TABLE)
    assert plane[0, 1, 1] == 2


def test_a_stray_on_the_wrong_side_changes_sides(head):
    stray = np.zeros(head.grid.shape, dtype=bool)
    x, y, z = np.rint(np.linalg.inv(head.grid.affine) @ [34, 30, 20, 1])[:3].astype(int)
    stray[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = True
    assert (head.voxels[stray] == 41).all()
    merged = merge(Source("charm", painted(head, 2, stray)))
    np.testing.assert_array_equal(merged.labels.voxels, head.voxels)
    assert count(merged.report, "sides") == stray.sum()


@pytest.mark.parametrize(("beyond_mm", "swapped"), [(2.5, 0), (3.5, 1)])
def test_a_piece_is_a_stray_from_3_mm_beyond_the_middle(beyond_mm, swapped):
    thin = phantom_head(grid=phantom_grid((160, 56, 52), (1.0, 4.0, 4.0)))
    spot = np.rint(np.linalg.inv(thin.grid.affine) @ [beyond_mm, 2, 42, 1])[:3].astype(int)
    voxels = thin.voxels.copy()
    voxels[tuple(spot)] = 4  # of the left ventricle, on the right
    merged = merge(Source("charm", changed(thin, voxels)))
    assert count(merged.report, "sides") == swapped
    assert (merged.labels.voxels[tuple(spot)] == 4) == (not swapped)


def test_a_flipped_head_is_flagged_loudly_and_not_touched(head):
    lopsided = changed(head, np.where(np.indices(head.grid.shape)[1] < 10, 0, head.voxels))
    flipped = changed(head, np.flip(lopsided.voxels, 0).copy())
    merged = merge(Source("charm", flipped))
    assert any(
        flag.startswith("LEFT AND RIGHT LOOK SWAPPED in charm") for flag in merged.report.flags
    )
    assert count(merged.report, "sides") == 0
    both = merge(Source("charm", head), Source("synthseg", brain_of(flipped)))
    assert any("SWAPPED in synthseg" in flag for flag in both.report.flags)
    assert not any("SWAPPED in charm" in flag for flag in both.report.flags)


def test_the_middle_plane_is_found_in_a_tilted_head():
    angle = np.radians(20)
    affine = phantom_grid().affine.copy()
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = (7, -3, 2)
    voxels = phantom_head().voxels
    plane = fit_sagittal_plane(voxels, TABLE, Grid(voxels.shape, turn @ affine))
    np.testing.assert_allclose(plane.normal, turn[:3, 0], atol=0.02)
    assert plane.offset_mm == pytest.approx(plane.normal @ turn[:3, 3], abs=0.5)
    assert plane.tilt_deg == pytest.approx(20, abs=1)


def test_islands_become_what_is_around_them_and_the_largest_piece_stays():
    fine = phantom_head(grid=phantom_grid((96, 112, 104), 2.0))
    rng = np.random.default_rng(2)
    away = ndimage.binary_erosion(fine.voxels == 2, iterations=3)
    spot = np.flatnonzero(away)[rng.integers(away.sum())]
    voxels = fine.voxels.copy()
    voxels.flat[spot] = 10
    merged = merge(Source("charm", changed(fine, voxels)))
    np.testing.assert_array_equal(merged.labels.voxels, fine.voxels)
    assert count(merged.report, "islands compact") == 1
    lone = fine.voxels.copy()
    lone.flat[spot] = 72  # a cavum of one voxel is all there is of it
    assert (merge(Source("charm", changed(fine, lone))).labels.voxels == 72).sum() == 1


@pytest.mark.parametrize("code", [3, 41])
def test_islands_of_the_ribbon_and_of_white_matter_stay_from_5_mm3_on(code):
    around = 41 if code == 3 else 3
    voxels = np.full((20, 20, 20), around, dtype=np.int16)
    voxels[:6, :6, :6] = code
    voxels[10, 10, 10:14] = voxels[15, 15, 10:15] = code
    removed = remove_islands(voxels, RULES.islands, TABLE, Grid(voxels.shape, np.eye(4)))
    assert sum(removed) == 4
    assert (voxels[10, 10, 10:14] == around).all()
    assert (voxels[15, 15, 10:15] == code).all()


# Flags


STRIPPED = (
    "nearly no bone and soft tissue around the brain: is the image skull-stripped? "
    "Label maps of whole heads need whole heads"
)


def test_a_brain_without_a_head_around_it_is_flagged(head):
    bare = brain_of(head, csf=True)
    shell = np.isin(head.voxels, (SKIN, 507, BONE))
    inside_ml = (np.isin(head.voxels, sorted(RULES.groups["brain"]))).sum() * 0.064
    at = np.flatnonzero(shell)
    for share, stripped in ((0, True), (0.1, True), (0.2, False), (1, False)):
        voxels = bare.voxels.copy()
        kept = at[: int(share * inside_ml / 0.064)]
        voxels.flat[kept] = head.voxels.flat[kept]
        flags = merge(Source("samseg", changed(head, voxels))).report.flags
        assert (STRIPPED in flags) == stripped
    for blank in (0, np.nan):  # a tool whose atlas has a skull finds one in a stripped image too
        image = np.where(bare.voxels > 0, 100.0, blank)
        assert STRIPPED in merge(Source("samseg", head), image=image).report.flags
    # A brain far too small is another fault.
    tiny = Grid(head.grid.shape, head.grid.affine @ np.diag([0.5, 0.5, 0.5, 1]))
    flags = merge(Source("samseg", LabelMap(bare.voxels, tiny, TABLE))).report.flags
    assert STRIPPED not in flags


def test_a_head_cut_through_the_brain_is_flagged_by_edge_and_a_neck_is_not(head):
    top = head.grid.shape[2] - 18
    grid = head.grid.crop((0, 0, 0), (*head.grid.shape[:2], top))
    report = merge(Source("charm", LabelMap(head.voxels[..., :top], grid, TABLE))).report
    assert "superior edge" in " ".join(report.flags)
    side = head.grid.crop((5, 0, 0), (head.grid.shape[0] - 5, *head.grid.shape[1:]))
    report = merge(Source("charm", LabelMap(head.voxels[5:], side, TABLE))).report
    assert "left edge" in " ".join(report.flags)
    low = np.flatnonzero((head.voxels != 0).any(axis=(0, 1)))[0] + 1
    neck = head.grid.crop((0, 0, low), (*head.grid.shape[:2], head.grid.shape[2] - low))
    report = merge(Source("charm", LabelMap(head.voxels[..., low:], neck, TABLE))).report
    assert not any("cut" in flag for flag in report.flags)


def test_missing_sides_odd_volumes_and_quarrels_are_flagged(head):
    report = merge(Source("charm", painted(head, 2, head.voxels == 49))).report
    assert "Left-Thalamus is" in " ".join(report.flags)
    assert "no air" in " ".join(report.flags)
    tiny = LabelMap(
        head.voxels, Grid(head.grid.shape, head.grid.affine @ np.diag([0.5, 0.5, 0.5, 1])), TABLE
    )
    assert any("expected 600" in flag for flag in merge(Source("a", tiny)).report.implausible)
    small = ndimage.binary_erosion(brain_of(head).voxels > 0, iterations=3)
    half = changed(head, np.where(small, head.voxels, 0))
    flags = merge(Source("charm", head), Source("gouhfi", half)).report.flags
    assert any("Dice 0." in flag for flag in flags)


# Posteriors


def test_the_first_label_of_each_voxel_is_the_merged_one(head, rng):
    brain = brain_of(head)
    blurred = np.roll(brain.voxels, 1, 1)
    soft = TopPosteriors.from_posteriors(
        (
            (int(code), 0.6 * (brain.voxels == code) + 0.4 * (blurred == code))
            for code in np.unique(brain.voxels)
        ),
        head.grid,
        TABLE,
        k=3,
    )
    odd = painted(head, 0, rng.random(head.grid.shape) < 0.03)
    merged = merge(Source("charm", odd), Source("synthseg", brain, soft))
    assert merged.posteriors.k == 3
    np.testing.assert_array_equal(merged.posteriors.hard().voxels, merged.labels.voxels)
    assert (merged.posteriors.weights[0] > 0).all()
    kept = brain.voxels > 0
    np.testing.assert_array_equal(merged.posteriors.codes[:, kept], soft.codes[:, kept])
    np.testing.assert_array_equal(merged.posteriors.weights[:, kept], soft.weights[:, kept])
    assert (merged.posteriors.weights[0][head.voxels == SKIN] == 255).all()


def test_without_posteriors_none_are_made(head):
    assert merge(Source("charm", head)).posteriors is None


# The report


def test_every_rule_is_in_the_report_in_order_whether_it_did_something_or_not(head):
    one = merge(Source("charm", head)).report
    two = merge(Source("charm", head), Source("synthseg", brain_of(head))).report
    names = [rule.rule for rule in two.rules]
    assert [rule.rule for rule in one.rules] == names
    assert len(set(names)) == len(names)
    assert names[1 : 1 + len(RULES.precedence)] == [line.rule for line in RULES.precedence]
    assert all(len(rule.reason) > 10 for rule in two.rules)


def test_the_report_survives_json(head):
    report = merge(Source("charm", head), Source("synthseg", brain_of(head))).report
    facts = json.loads(json.dumps(report.to_json()))
    assert MergeReport.from_json(facts) == report
    assert facts["brain"] == "synthseg"
    assert facts["conflicts"][0]["structure"] == "Brain"


def test_conflicts_are_the_dice_of_what_both_know(head):
    brain = brain_of(head)
    moved = changed(head, np.roll(brain.voxels, 1, 0))
    report = merge(Source("charm", head), Source("synthseg", moved)).report
    for conflict in report.conflicts[1:]:
        code = TABLE[conflict.structure].index
        a, b = head.voxels == code, moved.voxels == code
        assert conflict.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-4)
        assert conflict.head_mm3 == pytest.approx(a.sum() * 64)


# Rule tables


def test_rule_tables_that_cannot_be_used_name_file_and_line(tmp_path):
    source = resources.files("brainseg_bids") / "data" / "merge"

    def broken(name: str, old: str, new: str):
        for file in source.iterdir():
            text = file.read_text()
            (tmp_path / file.name).write_text(
                text.replace(old, new) if file.name == name else text
            )
        return pytest.raises(RuleError, match=name)

    with broken("groups.tsv", "Spinal-Cord", "Spinal-Chord") as error:
        MergeRules.read(tmp_path, TABLE)
    assert "'Spinal-Chord'" in str(error.value)
    with broken("precedence.tsv", "inside_hull", "within"):
        MergeRules.read(tmp_path, TABLE)
    with broken(
        "precedence.tsv", "head-is-the-head-tools\tanywhere\t*", "last\tanywhere\tcsf"
    ) as e:
        MergeRules.read(tmp_path, TABLE)
    assert "no line decides" in str(e.value)
    with broken("islands.tsv", "\t0.1\t", "\tmany\t"):
        MergeRules.read(tmp_path, TABLE)
    with broken("completion.tsv", "Other-Tissues\t*", "Other-Tissues\tSkull"):
        MergeRules.read(tmp_path, TABLE)
    with broken("resolve.tsv", "candidates", "choices"):
        MergeRules.read(tmp_path, TABLE)


# Properties

COARSE = phantom_grid((24, 28, 26), 8.0)


def damaged(seed: int, share: float) -> LabelMap:
    """A head with noise from its own labels, and holes."""
    rng = np.random.default_rng(seed)
    truth = phantom_head(grid=COARSE)
    noise = rng.random(COARSE.shape)
    other = rng.choice(np.unique(truth.voxels), COARSE.shape)
    voxels = np.where(noise < share, other, truth.voxels)
    return LabelMap(voxels.astype(np.int16), COARSE, TABLE)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.5), st.booleans())
def test_no_hole_is_left_and_no_label_is_invented(seed, share, with_brain):
    labels, brain = damaged(seed, share), brain_of(damaged(seed + 1, share / 2))
    merged = merge(Source("a", labels), Source("b", brain) if with_brain else None)
    assert enclosed(merged.labels.voxels) == merged.report.holes["after_voxels"] == 0
    given_codes = set(np.unique(labels.voxels)) | (
        set(np.unique(brain.voxels)) if with_brain else set()
    )
    documented = {CSF, 501, 507} | {TABLE[int(code)].mirror for code in given_codes}
    assert set(np.unique(merged.labels.voxels).tolist()) <= given_codes | documented


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.1))
def test_a_mirrored_head_gives_the_mirrored_result(seed, share):
    labels = damaged(seed, share)
    # On the middle plane left and right may tie, and a tie has no mirror image.
    far = np.abs(np.arange(24) - 11.5)[:, None, None] > 2
    labels = changed(labels, np.where(far, labels.voxels, phantom_head(grid=COARSE).voxels))
    brain = brain_of(phantom_head(grid=COARSE))
    one = merge(Source("a", labels), Source("b", brain)).labels.mirrored()
    other = merge(Source("a", labels.mirrored()), Source("b", brain.mirrored())).labels
    np.testing.assert_array_equal(one.voxels, other.voxels)


# Real heads


@pytest.mark.shared_data
@pytest.mark.parametrize("number", [1, 9, 10])
def test_real_full_head_maps_keep_their_labels(shared_data, number):
    path = shared_data / "synthseg_training_labels" / f"training_seg_{number:02d}.nii.gz"
    labels = read_label_map(path, TABLE)
    merged = merge(Source("charm", labels))
    was = labels.voxels != 0
    assert (merged.labels.voxels != labels.voxels)[was].mean() < 1e-3
    assert merged.report.holes["after_voxels"] == enclosed(merged.labels.voxels) == 0
    assert merged.report.flags == []


@pytest.mark.shared_data
def test_samsegs_zeros_are_told_apart(shared_data):
    from brainseg_bids.images import read_volume

    labels = read_label_map(shared_data / "samseg_output_example" / "seg.mgz", TABLE)
    image, _ = read_volume(shared_data / "colin27" / "ch2.nii.gz")
    merged = merge(Source("samseg", labels), image=image)
    volumes = merged.labels.volumes_mm3()
    assert 40e3 < volumes[501] < 90e3
    assert 50e3 < volumes[258] - labels.volumes_mm3()[258] < 150e3
    assert volumes[507] == 0
    assert merged.report.holes["before_voxels"] > 15000
    assert enclosed(merged.labels.voxels) == 0
    cut = "the head is cut at the inferior edge of the image: brain labels touch it"
    assert cut in merged.report.flags
