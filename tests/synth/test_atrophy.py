# SPDX-License-Identifier: Apache-2.0
"""Brains that differ from those of the label maps: ventricles, cortex, lesions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.atrophy import VentricleField, atrophied, widen_ventricles
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.recipe import Atrophy, Recipe, Tissue
from brainseg_bids.synth.space import RecipeSpace

TABLE = LabelTable.packaged("fullhead")
RANK = {label.name: rank for rank, label in enumerate(TABLE)}
CORTEX, FLUID = RANK["Left-Cerebral-Cortex"], RANK["CSF"]
MATTER, LESION = RANK["Left-Cerebral-White-Matter"], RANK["Left-Lesion"]
VENTRICLE = RANK["Left-Lateral-Ventricle"]
RECIPE = Recipe({label.name: Tissue((50.0,), (3.0,)) for label in TABLE})


def ball(radius_mm: float, voxel_size_mm: float = 2.0, edge: int = 48) -> np.ndarray:
    """Ranks: a ventricle in the middle of white matter."""
    axis = (np.arange(edge) - (edge - 1) / 2) * voxel_size_mm
    distance = np.sqrt(sum(x**2 for x in np.meshgrid(axis, axis, axis, indexing="ij")))
    return np.where(distance < radius_mm, VENTRICLE, MATTER).astype(np.uint8)


@pytest.mark.parametrize("shift_mm", [-3.0, 2.0, 4.0])
def test_the_walls_of_a_round_ventricle_move_by_what_was_said(shift_mm):
    ranks = ball(14.0)
    field = VentricleField.of(ranks, TABLE, (2.0, 2.0, 2.0))
    places = torch.stack(torch.meshgrid(*[torch.arange(48.0)] * 3, indexing="ij"))
    moved = widen_ventricles(places, field, Atrophy(ventricles_mm=shift_mm), (2.0, 2.0, 2.0))
    x, y, z = moved.round().long().clamp(0, 47)
    looked_up = torch.from_numpy(ranks)[x, y, z]
    radius_mm = (3 / (4 * np.pi) * 8 * float((looked_up == VENTRICLE).sum())) ** (1 / 3)
    assert radius_mm == pytest.approx(14.0 + shift_mm, abs=1.0)


def test_walls_are_at_the_same_place_whatever_the_voxels():
    coarse = VentricleField.of(ball(14.0), TABLE, (2.0, 2.0, 2.0))
    fine = VentricleField.of(ball(14.0, 1.0, 96), TABLE, (1.0, 1.0, 1.0))
    place_vox = torch.tensor([30.0, 24.0, 20.0]).view(3, 1, 1, 1)
    there = coarse.at(place_vox), fine.at(2 * place_vox + 0.5)
    torch.testing.assert_close(*there, atol=0.02, rtol=0)
    # Towards the ventricle: down the first axis, up the third.
    assert there[0][0] < 0 < there[0][2]


def test_a_head_without_ventricles_keeps_its_places():
    assert VentricleField.of(np.full((9, 9, 9), MATTER, np.uint8), TABLE, (2.0, 2.0, 2.0)) is None
    places = torch.rand(3, 2, 2, 2)
    assert widen_ventricles(places, None, Atrophy(ventricles_mm=5.0), (1.0, 1.0, 1.0)) is places


def layers() -> torch.Tensor:
    """Fluid, three layers of cortex, white matter, along the first axis."""
    ranks = torch.full((64, 64, 64), MATTER, dtype=torch.uint8)
    ranks[:20], ranks[20:23] = FLUID, CORTEX
    return ranks


@pytest.mark.parametrize("share", [0.2, 0.6, -0.4])
def test_that_share_of_the_cortex_loses_or_gains_its_outermost_voxel(share):
    ranks = layers()
    changed = []
    for seed in range(12):
        atrophy = Atrophy(thinning_frac=share, seed=seed)
        aged = atrophied(ranks, atrophy, TABLE, voxel_size_mm=1.0)
        border = 20 if share > 0 else 19
        assert torch.equal(aged[:border], ranks[:border])
        assert torch.equal(aged[border + 1 :], ranks[border + 1 :])
        assert set(aged[border].unique().tolist()) <= {CORTEX, FLUID}
        changed.append(float((aged[border] != ranks[border]).float().mean()))
    assert np.mean(changed) == pytest.approx(abs(share), abs=0.08)


def test_fluid_between_the_hemispheres_goes_to_neither():
    ranks = torch.full((64, 8, 8), FLUID, dtype=torch.uint8)
    ranks[:20], ranks[21:40] = CORTEX, RANK["Right-Cerebral-Cortex"]
    aged = atrophied(ranks, Atrophy(thinning_frac=-1.0), TABLE, voxel_size_mm=1.0)
    assert (aged[20] == FLUID).all()
    assert (aged[40] == RANK["Right-Cerebral-Cortex"]).all()
    assert torch.equal(aged[41:], ranks[41:])


def test_lesions_take_their_share_of_the_white_matter_in_pieces():
    ranks = layers()
    lesion = (
        atrophied(ranks, Atrophy(lesion_frac=0.05, seed=3), TABLE, voxel_size_mm=1.0) == LESION
    )
    assert float(lesion[23:].float().mean()) == pytest.approx(0.05, abs=0.02)
    assert not lesion[:23].any()
    # In patches: a neighbour of a lesion is mostly one, too.
    assert float((lesion[24:] & lesion[23:-1]).sum() / lesion[24:].sum()) > 0.6


def test_nothing_is_done_where_nothing_is_said():
    ranks = layers()
    assert atrophied(ranks, Atrophy(seed=5), TABLE, voxel_size_mm=1.0) is ranks


def test_a_pair_has_the_labels_of_the_aged_brain_and_lesions_are_white_matter(head):
    ready = LabelVolume.from_label_map(head)
    generator = Generator(
        Crosswalk.packaged("fullhead", "brainseg"), TABLE, shape=(96, 112, 104), voxel_size_mm=2.0
    )

    def volumes(atrophy: Atrophy) -> dict[str, int]:
        pair = generator.render(ready, replace(RECIPE, ageing=atrophy))
        counts = torch.bincount(pair.labels.flatten().int(), minlength=len(generator.target))
        return {e.name: int(n) for e, n in zip(generator.target, counts, strict=True)}

    plain = volumes(Atrophy())
    old = volumes(Atrophy(ventricles_mm=4.0, thinning_frac=0.5, lesion_frac=0.05, seed=2))
    for side in ("Left", "Right"):
        assert old[f"{side}-Lateral-Ventricle"] > 1.1 * plain[f"{side}-Lateral-Ventricle"]
        assert old[f"{side}-Cerebral-Cortex"] < plain[f"{side}-Cerebral-Cortex"]
    assert plain == volumes(Atrophy(seed=9))
    spots = Atrophy(lesion_frac=0.05, seed=2)
    assert volumes(spots) == plain
    images = [generator.render(ready, replace(RECIPE, ageing=a)).image for a in (spots, Atrophy())]
    assert torch.equal(*images)  # painted alike here: nothing else has changed


def test_brains_age_as_often_and_as_far_as_the_space_says():
    space = RecipeSpace.packaged("t1w7t")
    drawn = [space.draw(np.random.default_rng(seed)).ageing for seed in range(300)]
    aged = [ageing for ageing in drawn if ageing != Atrophy()]
    assert len(aged) / 300 == pytest.approx(space.ageing.p, abs=0.1)
    for name in ("ventricles_mm", "thinning_frac", "lesion_frac"):
        low, high = getattr(space.ageing, name)
        values = [getattr(ageing, name) for ageing in aged]
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high
    off = space.without("ageing").draw(np.random.default_rng(1))
    assert off.ageing == Atrophy()
    assert replace(space.draw(np.random.default_rng(1)), ageing=Atrophy()) == off
