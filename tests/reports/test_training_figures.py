# SPDX-License-Identifier: Apache-2.0
"""Pictures of a training run, by their pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.reports import training_figures
from brainseg_bids.reports.training_figures import (
    draw_classes,
    draw_learning,
    draw_samples,
    draw_speed,
    label_order,
    rank_colors,
    spark_points,
)
from brainseg_bids.reports.training_log import Curve, Sample, TrainingLog, read_log, read_samples
from tests.reports import training_jobs as jobs

BLUE = (138, 180, 248)
RED = (242, 139, 130)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(image: np.ndarray, color, far: int = 12) -> np.ndarray:
    """Where a picture has a colour, (h, w) bool."""
    return (np.abs(image - np.array(color)) <= far).all(axis=2)


def log_of(tmp_path: Path, rows: list[dict], *later: tuple[int, list[dict]]) -> TrainingLog:
    jobs.write_log(tmp_path, 0, rows)
    for start, more in later:
        jobs.write_log(tmp_path, start, more)
    return read_log(tmp_path)


def few_classes(rows: list[dict]) -> list[dict]:
    """Rows with four labels alone: quicker to draw."""
    kept = {f"dice/{name}" for name in ("Left-Caudate", "Right-Caudate", "CSF", "Vein")}
    return [{k: v for k, v in row.items() if k[:5] != "dice/" or k in kept} for row in rows]


# -- curves -------------------------------------------------------------------------------


def test_the_loss_falls_from_the_left_to_the_right_of_its_plot(tmp_path):
    log = log_of(tmp_path / "log", jobs.log_rows(0, 2000))
    image = pixels(draw_learning(tmp_path / "curves.png", log, total_steps=2000))
    line = near(image, BLUE)[:, 60:620]
    columns = [np.flatnonzero(line[:, k]).mean() for k in (40, 500)]
    assert columns[1] > columns[0] + 100


def test_a_resumed_run_has_a_line_where_it_went_on(tmp_path):
    rows = jobs.log_rows(0, 1000)
    straight = pixels(draw_learning(tmp_path / "a.png", log_of(tmp_path / "one", rows)))
    first = jobs.log_rows(0, 500)
    log = log_of(tmp_path / "two", first, (500, rows[len(first) :]))
    resumed = pixels(draw_learning(tmp_path / "b.png", log))
    grey = near(resumed, (154, 160, 166), 30) & ~near(straight, (154, 160, 166), 30)
    tall = grey[90:].sum(axis=0)
    assert (tall > 60).sum() in (3, 4, 5, 6)  # a dashed line in each of three plots


def test_axes_reach_to_the_end_of_the_plan_if_that_is_not_far(tmp_path):
    log = log_of(tmp_path / "log", jobs.log_rows(0, 1000))
    ends = []
    for total in (1000, 2000, 100_000):
        image = pixels(draw_learning(tmp_path / "curves.png", log, total_steps=total))
        ends.append(np.flatnonzero(near(image, BLUE)[90:, 78:620].any(axis=0)).max())
    assert ends[1] / ends[0] == pytest.approx(1 / 2, abs=0.06)
    assert ends[2] / ends[0] == pytest.approx(1 / 3, abs=0.06)


def test_time_lost_waiting_is_drawn_beside_the_most_that_is_allowed(tmp_path):
    def above(share: float) -> float:
        rows = [row | {"waiting_frac": share} for row in jobs.log_rows(0, 200)]
        folder = tmp_path / f"{share}"
        image = pixels(draw_speed(tmp_path / "speed.png", log_of(folder, rows)))[90:, 800:1160]
        line, level = (np.flatnonzero(near(image, c).any(axis=1)).mean() for c in (BLUE, RED))
        return level - line

    assert above(0.2) > 20
    assert above(0.01) < -20


def test_predicted_memory_stands_beside_what_was_used(tmp_path):
    log = log_of(tmp_path / "log", jobs.log_rows(0, 200))
    bare = pixels(draw_speed(tmp_path / "a.png", log))
    with_plan = pixels(draw_speed(tmp_path / "b.png", log, jobs.MEMORY["plans"][0]))
    yellow = [near(image, (253, 214, 99), 25)[:, 1200:].sum() for image in (bare, with_plan)]
    assert yellow[0] == 0
    assert yellow[1] > 50


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, None])
def test_curves_without_numbers_are_drawn_and_say_so(tmp_path, value, monkeypatch):
    said: list[str] = []
    plain = training_figures.no_data
    monkeypatch.setattr(
        training_figures, "no_data", lambda axes, words: (said.append(words), plain(axes, words))
    )
    rows = [
        {name: cell if name == "step" else value for name, cell in row.items()}
        for row in few_classes(jobs.log_rows(0, 250))
    ]
    log = log_of(tmp_path / "log", rows)
    for draw in (draw_learning, draw_speed):
        assert pixels(draw(tmp_path / "one.png", log)).std() > 0
    assert pixels(draw_classes(tmp_path / "classes.png", log, jobs.TABLE)).std() > 0
    assert ("no validation yet" in said) == (value != 0)
    assert said.count("not logged") == (0 if value == 0 else 5)


def test_one_point_is_seen(tmp_path):
    log = log_of(tmp_path / "log", [{"step": 24, "loss": 2.0, "lr": 0.001}])
    assert near(pixels(draw_learning(tmp_path / "one.png", log)), BLUE).sum() > 15


# -- classes ------------------------------------------------------------------------------


def test_a_label_gets_greener_as_it_is_learned_and_one_that_none_has_is_grey(tmp_path):
    rows = [
        {"step": step, "dice/Left-Caudate": dice, "dice/Vein": math.nan}
        for step, dice in ((250, 0.02), (500, 0.5), (750, 0.97))
    ]
    image = pixels(
        draw_classes(tmp_path / "classes.png", log_of(tmp_path / "log", rows), jobs.TABLE)
    )
    row = 66 + 9
    left, right = image[row, 360], image[row, 1500]
    assert left[0] > left[1] + 25  # dark red
    assert right[1] > right[0] + 60  # green
    grey = image[66 + 19 + 12 + 9, 360]
    assert np.ptp(grey) < 10
    assert near(image, (122, 186, 220), 3).sum() > 50  # the caudate's swatch


def test_groups_are_in_order_and_sides_are_neighbours():
    names = ["Vein", "CSF", "Right-Caudate", "Right-Thalamus", "Left-Caudate", "Left-Thalamus"]
    assert label_order(names, jobs.TABLE) == [
        ("Brain", ["Left-Thalamus", "Right-Thalamus", "Left-Caudate", "Right-Caudate"]),
        ("CSF", ["CSF"]),
        ("Head", ["Vein"]),
    ]
    assert label_order(["b", "a"], None) == [("Other", ["a", "b"])]


# -- samples ------------------------------------------------------------------------------


def test_what_is_wrong_gets_less_and_has_the_colour_of_the_table(tmp_path, head, head_image):
    jobs.write_samples(tmp_path, head, head_image, [250, 3000])
    samples, _ = read_samples(sorted((tmp_path / "samples").iterdir()))

    def wrong(sample: Sample) -> tuple[int, np.ndarray]:
        image = pixels(draw_samples(tmp_path / "slice_row.png", [sample], jobs.TABLE))
        return int(near(image[92:, 1215:], (255, 64, 51), 2).sum()), image

    (many, _), (few, image) = wrong(samples[0]), wrong(samples[1])
    assert many > 20 * few
    cortex = 0.75 * np.array([0xCD, 0x3E, 0x4E])
    truth = image[92:, 440:820] - cortex
    assert ((truth >= -3) & (truth <= 64)).all(axis=2).sum() > 500


def test_padding_is_cut_away_so_that_planes_fill_their_tiles(tmp_path):
    image = np.zeros((3, 60, 60), np.float32)
    image[:, :30, :20] = 1 + np.arange(20)
    truth = np.zeros(image.shape, int)
    truth[:, 5:10, 5:10] = 1
    sample = Sample(1, image, truth, truth)
    slice_row = pixels(draw_samples(tmp_path / "slice_row.png", [sample], jobs.TABLE))
    bright = np.flatnonzero(near(slice_row[100:200, 44:430], (255, 255, 255), 60).any(axis=0))
    assert bright.size > 10
    # 20 voxels at four pixels each: padding would make the tile three times as wide.
    assert slice_row.shape[0] == 92 + 3 * (4 * 30 + 8)


def test_samples_that_are_empty_or_not_finite_are_drawn(tmp_path):
    empty = np.zeros((3, 8, 8), np.float32)
    ranks = empty.astype(int)
    for image in (empty, empty + np.nan, empty + np.inf):
        path = draw_samples(tmp_path / "slice_row.png", [Sample(1, image, ranks, ranks)], None)
        assert pixels(path).shape[1] == 1600


def test_ranks_beyond_the_table_have_a_grey_of_their_own():
    colors = rank_colors(jobs.TABLE, len(jobs.NAMES) + 3)
    assert np.ptp(colors[-1]) == 0
    assert tuple(colors[1]) == jobs.TABLE["Left-Cerebral-White-Matter"].rgb


def test_a_spark_line_has_no_place_for_what_is_not_a_number():
    curve = Curve(np.array([1, 2, 3]), np.array([0.5, np.nan, 2.0]))
    assert spark_points(curve, 3) == "30.0,8.0 90.0,1.0"
    assert spark_points(Curve(np.array([1]), np.array([0.5])), 1) == ""
