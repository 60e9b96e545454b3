# SPDX-License-Identifier: Apache-2.0
"""The transmit field has the shape of 7T maps, and sequences answer as Bloch's equations say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.recipe import Transmit
from brainseg_bids.synth.relaxation import relaxation
from brainseg_bids.synth.transmit import (
    MP2RAGE,
    MPRAGE,
    Cycle,
    mprage_signal,
    train_signals,
    transmit_field,
    transmit_response,
    uni_of_t1,
)

SHAPE, VOXEL_MM = (49, 57, 53), 4.0
ULTRACORTEX_06 = Cycle(6.0, (0.8, 2.0), (5.0, 9.0), 0.007, before=32, after=64)


def field(transmit: Transmit, center_mm=(0.0, 0.0, 0.0), shape=SHAPE) -> torch.Tensor:
    field = transmit_field(
        transmit,
        shape=shape,
        voxel_size_mm=VOXEL_MM,
        center_mm=center_mm,
        device=torch.device("cpu"),
    )
    return torch.cat([field(x, x + 1) for x in range(shape[0])])


def at(values: torch.Tensor, *place_mm: float) -> float:
    index = [
        round(mm / VOXEL_MM + (n - 1) / 2) for mm, n in zip(place_mm, values.shape, strict=True)
    ]
    return values[tuple(index)].item()


def test_the_field_is_brightest_in_the_middle_and_weak_at_temporal_lobes_and_cerebellum():
    values = field(Transmit("mprage", center=1.2, edge=0.5))
    assert at(values, 0, 0, 0) == pytest.approx(1.2, abs=0.015)
    for side in (-1, 1):
        assert at(values, side * 52, 8, -32) == pytest.approx(0.5, abs=0.03)
        assert at(values, side * 28, -44, -44) == pytest.approx(0.5, abs=0.03)
        assert 0.7 < at(values, side * 40, 0, 40) < 1.1  # parietal: in between
    assert values.max() < 1.25
    assert values.min() > 0.49


def test_the_neck_lies_beyond_the_coil():
    values = field(Transmit("mprage", center=1.2, edge=0.5), center_mm=(0.0, 0.0, 60.0))
    assert at(values, 0, -20, -64) < 0.6


def test_a_flat_field_without_noise_is_flat():
    assert torch.allclose(field(Transmit("mprage")), torch.ones(SHAPE), atol=1e-6)


def test_both_sides_are_alike_without_noise():
    values = field(Transmit("mprage", center=1.2, edge=0.5))
    assert torch.allclose(values, values.flip(0), atol=1e-5)


def test_the_field_moves_with_the_brain():
    still = field(Transmit("mprage", center=1.2, edge=0.5))
    moved = field(Transmit("mprage", center=1.2, edge=0.5), center_mm=(0.0, 16.0, -32.0))
    assert torch.allclose(moved[:, 4:, :-8], still[:, :-4, 8:], atol=0.01)


def test_the_field_has_no_edges():
    values = field(Transmit("mprage", center=1.2, edge=0.5))
    for axis in range(3):
        step = values.diff(dim=axis)
        assert step.abs().max() < 0.08  # per 4 mm
        assert step.diff(dim=axis).abs().max() < 0.03


def test_noise_multiplies_with_the_spread_that_was_asked_for_and_follows_its_seed():
    logs = [
        field(Transmit("mprage", log_sd=0.1, node_spacing_mm=40.0, seed=seed)).log()
        for seed in range(6)
    ]
    assert torch.stack(logs).std().item() == pytest.approx(0.1, rel=0.25)
    again = field(Transmit("mprage", log_sd=0.1, node_spacing_mm=40.0, seed=0)).log()
    assert torch.equal(again, logs[0])
    assert not torch.equal(logs[0], logs[1])


def bloch(cycle: Cycle, t1_s: float, b: float, cycles: int = 12) -> list[float]:
    """One spin after another pulse, as a vector (Mx, My, Mz), until nothing changes."""
    state, events = np.array([0.0, 0.0, 1.0]), []
    for ti_s, flip_deg in zip(cycle.ti_s, cycle.flip_deg, strict=True):
        for k in range(-cycle.before, cycle.after):
            events.append((ti_s + k * cycle.echo_spacing_s, np.deg2rad(flip_deg) * b, k == 0))
    for _ in range(cycles):
        state, read, now_s = np.array([0.0, 0.0, -cycle.efficiency * state[2]]), [], 0.0
        for when_s, angle, is_center in [*events, (cycle.tr_s, 0.0, False)]:
            state[2] = 1 + (state[2] - 1) * np.exp((now_s - when_s) / t1_s)
            now_s = when_s
            turn = [[1, 0, 0], [0, np.cos(angle), np.sin(angle)],
                    [0, -np.sin(angle), np.cos(angle)]]  # fmt: skip
            state = np.array(turn) @ state
            if is_center:
                read.append(state[1])
            state[:2] = 0.0  # spoiled
    return read


@pytest.mark.parametrize("cycle", [MPRAGE, MP2RAGE, ULTRACORTEX_06])
@pytest.mark.parametrize(("t1_s", "b"), [(0.4, 1.0), (1.15, 0.5), (1.94, 1.4), (4.33, 1.0)])
def test_the_formulas_agree_with_a_simulation_of_every_pulse(cycle, t1_s, b):
    assert np.allclose(train_signals(t1_s, b, cycle=cycle), bloch(cycle, t1_s, b), atol=1e-6)


def test_uni_and_mprage_are_what_the_simulated_trains_make():
    (single,) = bloch(MPRAGE, 1.2, 0.8)
    first, second = bloch(MP2RAGE, 1.2, 0.8)
    assert mprage_signal(1.2, 0.8) == pytest.approx(abs(single), abs=1e-6)
    expected = first * second / (first**2 + second**2)
    assert uni_of_t1(1.2, 0.8) == pytest.approx(expected, abs=1e-6)


def test_trains_that_overlap_are_refused():
    with pytest.raises(ValueError, match="overlap"):
        train_signals(1.0, cycle=replace(MP2RAGE, echo_spacing_s=0.05))


def test_uni_falls_with_t1_from_marrow_to_csf():
    assert (np.diff(uni_of_t1(np.linspace(0.3, 4.3, 200))) < 0).all()


def test_mp2rage_minds_the_flip_angle_less_than_mprage_does():
    white, grey = 1.126, 1.939
    contrast_uni = uni_of_t1(white) - uni_of_t1(grey)
    contrast_mprage = mprage_signal(white) - mprage_signal(grey)
    for b in (0.8, 0.9, 1.1, 1.2):
        for t1_s in (white, grey):
            uni = abs(uni_of_t1(t1_s, b) - uni_of_t1(t1_s)) / contrast_uni
            mprage = abs(mprage_signal(t1_s, b) - mprage_signal(t1_s)) / contrast_mprage
            assert uni < mprage / 3


@pytest.mark.parametrize("sequence", ["mprage", "mp2rage"])
@pytest.mark.parametrize("field_t", [3.0, 7.0])
def test_the_fitted_response_follows_the_exact_one(sequence, field_t):
    table = LabelTable.packaged("fullhead")
    response = transmit_response(Transmit(sequence, field_t=field_t), table).numpy()
    b = np.linspace(0.5, 1.4, 19)
    for name in ("Left-Cerebral-White-Matter", "Left-Cerebral-Cortex", "Right-Putamen", "Skin"):
        rank = table.positions()[table[name].index]
        t1_s = relaxation(table, field_t).t1_s[rank]
        if sequence == "mprage":
            exact = mprage_signal(t1_s, b) / mprage_signal(t1_s)
        else:
            exact = uni_of_t1(t1_s, b) - uni_of_t1(t1_s)
        fitted = np.polynomial.polynomial.polyval(b - 1, response[rank])
        assert np.abs(fitted - exact).max() < (0.03 if sequence == "mprage" else 0.01)


@pytest.mark.parametrize(("sequence", "rest"), [("mprage", 1.0), ("mp2rage", 0.0)])
def test_nothing_changes_at_the_flip_angle_asked_for_nor_in_air(sequence, rest):
    table = LabelTable.packaged("fullhead")
    response = transmit_response(Transmit(sequence), table)
    assert response.shape == (len(table), 3)
    assert response.dtype == torch.float32
    assert (response[:, 0] == rest).all()
    assert (response[table.positions()[table["Air-Internal"].index], 1:] == 0).all()
    assert (response[table.positions()[table["Vein"].index], 1:] != 0).all()


@pytest.mark.parametrize("field_t", [3.0, 7.0, 9.4])
def test_no_factor_leaves_the_range_of_a_picture(field_t):
    response = transmit_response(
        Transmit("mprage", field_t=field_t), LabelTable.packaged("fullhead")
    )
    for b in (0.4, 0.7, 1.2, 1.5):
        factor = response @ torch.tensor([1.0, b - 1, (b - 1) ** 2])
        assert factor.min() > 0
        assert factor.max() < 2


def test_a_sequence_without_response_is_refused():
    with pytest.raises(ValueError, match="mprage, mp2rage"):
        transmit_response(Transmit("none"), LabelTable.packaged("tissue"))
