# SPDX-License-Identifier: Apache-2.0
"""The inside of the skull is counted, whatever the brain has lost; without a skull nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.intracranial import STRIPPED, intracranial
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable

TABLE = LabelTable.packaged("brainseg")
CODE = {label.name: label.index for label in TABLE}
SIZE_MM = 3.0
TOP = 44 + 18
"""Planes below a cut, 18 of 24 voxels above the middle of the skull."""


@pytest.fixture
def skull():
    """A ball of brain and fluid in bone and skin, with a cord in its canal that runs down."""
    x, y, z = (np.indices((70, 70, 80)) - np.array([34.5, 34.5, 44.5])[:, None, None, None]) * (
        SIZE_MM
    )
    away = np.sqrt(x**2 + y**2 + z**2)
    shells = ("Left-Cerebral-White-Matter", "CSF", "Bone-Cortical", "Skin")
    voxels = np.select([away < 66, away < 72, away < 80, away < 88], [CODE[n] for n in shells])
    axis = np.sqrt(x**2 + y**2)
    voxels[(axis < 30) & (z < -75)] = CODE["Other-Tissues"]
    voxels[(axis < 22) & (z < -75)] = CODE["Bone-Cortical"]
    voxels[(axis < 12) & (z < -66)] = CODE["CSF"]
    voxels[(axis < 6) & (z < 0)] = CODE["Brain-Stem"]
    voxels[(axis < 6) & (z < -78)] = CODE["Spinal-Cord"]
    return LabelMap(voxels, Grid(voxels.shape, np.diag([SIZE_MM] * 3 + [1.0])), TABLE)


def changed(labels, where, name):
    return replace(labels, voxels=np.where(where, CODE[name], labels.voxels))


def test_all_within_the_skull_counts_and_the_spinal_canal_does_not(skull):
    inside = intracranial(skull)
    assert inside.why_none == ""
    mask_mm = np.linalg.norm(np.indices((70, 70, 80)).T - [34.5, 34.5, 44.5], axis=-1).T * SIZE_MM
    ball = np.count_nonzero(mask_mm < 72)
    assert abs(inside.n_voxels / ball - 1) < 0.01
    assert CODE["Spinal-Cord"] not in inside.voxels


def test_a_longer_neck_changes_nothing(skull):
    shorter = skull.voxels[:, :, 6:]
    cut = LabelMap(shorter, Grid(shorter.shape, skull.grid.affine), TABLE)
    assert intracranial(cut).n_voxels == intracranial(skull).n_voxels


def test_fluid_in_the_place_of_brain_changes_nothing(skull):
    brain = skull.voxels == CODE["Left-Cerebral-White-Matter"]
    lost = brain & (np.arange(80) % 4 == 0)
    atrophy = changed(skull, lost, "CSF")
    assert np.count_nonzero(lost) > 0.2 * np.count_nonzero(brain)
    assert intracranial(atrophy).n_voxels == intracranial(skull).n_voxels


def test_vessels_count_at_the_brain_and_not_in_the_neck(skull):
    sinus = (skull.voxels == CODE["CSF"]) & (np.arange(80) > 60)
    assert intracranial(changed(skull, sinus, "Vein")).n_voxels == intracranial(skull).n_voxels
    neck = (skull.voxels == CODE["Other-Tissues"]) & (np.arange(80) < 10)
    assert neck.any()
    assert intracranial(changed(skull, neck, "Artery")).n_voxels == intracranial(skull).n_voxels


def test_soft_volume_shares_the_border(skull):
    inside = intracranial(skull)
    codes, counts = np.unique(skull.voxels, return_counts=True)
    counts = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    soft = {code: n + 100.5 * (code == CODE["CSF"]) for code, n in counts.items()}
    assert inside.soft_voxels(soft, counts) == pytest.approx(inside.n_voxels + 100.5)
    assert CODE["Left-Thalamus"] not in counts  # a label that is nowhere the most probable one
    soft[CODE["Left-Thalamus"]] = 20.0
    assert inside.soft_voxels(soft, counts) == pytest.approx(inside.n_voxels + 120.5)
    assert intracranial(skull, stripped=True).soft_voxels(soft, counts) is None


def test_other_axis_orders_give_the_same(skull):
    turned = np.ascontiguousarray(skull.voxels.transpose(2, 0, 1)[:, ::-1])
    affine = np.zeros((4, 4))
    affine[[2, 0, 1, 3], [0, 1, 2, 3]] = [SIZE_MM, -SIZE_MM, SIZE_MM, 1]
    other = LabelMap(turned, Grid(turned.shape, affine), TABLE)
    assert intracranial(other).voxels == intracranial(skull).voxels


def test_a_stripped_image_has_no_volume_by_image_metadata_or_labels(skull):
    brain = np.isin(skull.voxels, [CODE["Left-Cerebral-White-Matter"], CODE["CSF"]])
    image = np.where(brain, 100.0, 0.0)
    # The labels may have a skull that the image has not.
    assert intracranial(skull, image).why_none == STRIPPED
    assert intracranial(skull, stripped=True).why_none == STRIPPED
    assert intracranial(skull, image, stripped=True).why_none == STRIPPED
    alone = replace(skull, voxels=np.where(brain, skull.voxels, 0))
    found = intracranial(alone)
    assert "skull" in found.why_none
    assert found.n_voxels is None


@pytest.mark.parametrize("padded", [False, True])
def test_a_field_of_view_that_cuts_the_skull_has_no_volume(skull, padded):
    voxels = skull.voxels[:, :, :TOP]
    if padded:
        voxels = np.pad(voxels, ((0, 0), (0, 0), (0, 9)))
    cut = LabelMap(voxels, Grid(voxels.shape, skull.grid.affine), TABLE)
    found = intracranial(cut)
    assert found.n_voxels is None
    assert "field of view" in found.why_none


def test_labels_that_go_on_where_the_image_ends_have_no_volume(skull):
    image = np.where(np.arange(80) < TOP, 50.0 + skull.voxels, 0.0)
    assert "field of view" in intracranial(skull, image).why_none


def test_nothing_is_counted_without_a_brain_or_a_table_of_the_head(skull):
    empty = replace(skull, voxels=np.zeros_like(skull.voxels))
    assert intracranial(empty).why_none == "no brain was found"
    known = [label.index for label in TABLE if label.is_brain or label.index == 0]
    brain = TABLE.subset(known)
    alone = LabelMap(np.where(np.isin(skull.voxels, known), skull.voxels, 0), skull.grid, brain)
    assert intracranial(alone).n_voxels is None


def test_the_phantom_has_an_intracranial_volume(head):
    labels = Crosswalk.packaged("fullhead", "brainseg").translate(head)
    inside, own = intracranial(labels), intracranial(head)
    assert inside.why_none == own.why_none == ""
    assert inside.n_voxels == own.n_voxels
    brain = sum(n for code, n in inside.voxels.items() if TABLE[code].is_brain)
    assert brain < inside.n_voxels
