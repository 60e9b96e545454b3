# SPDX-License-Identifier: Apache-2.0
"""The page of a training run: true of good runs, and still a page of those that went wrong."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.reports.training import loss_falls, warnings, write_training_page
from brainseg_bids.reports.training_facts import class_rows, memory_rows, plan_words
from brainseg_bids.reports.training_log import Curve, read_job, read_log, read_samples
from tests.reports import training_jobs as jobs
from tests.reports.test_in_browser import needs_browser, screenshot
from tests.reports.test_page import cells, read

EVIL = "<script>alert('x')</script>&\"<img src=x onerror=y>"


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without the time that pictures take."""

    def draw(path: Path, *_, **__) -> Path:
        Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(path)
        return path

    for name in ("draw_learning", "draw_classes", "draw_samples", "draw_speed"):
        monkeypatch.setattr(f"brainseg_bids.reports.training.{name}", draw)


def page_of(folder: Path) -> Path:
    return write_training_page(folder, folder.parent / "train.html", title="Training t1w")


def flags(folder: Path) -> str:
    return "\n".join(warnings(read_job(folder)))


# -- stretches are one run ----------------------------------------------------------------


def losses(**by_step: float) -> list[dict]:
    return [{"step": int(k[1:]), "loss": value} for k, value in by_step.items()]


def test_a_stretch_takes_back_what_was_logged_beyond_its_beginning(tmp_path):
    jobs.write_log(tmp_path, 0, losses(_10=9.0, _20=8.0, _30=100.0, _40=100.0))
    jobs.write_log(tmp_path, 20, losses(_30=3.0))
    log = read_log(tmp_path)
    assert log["loss"].steps.tolist() == [10, 20, 30]
    assert log["loss"].values.tolist() == [9, 8, 3]
    assert (log.runs, log.resumes, log.steps_done) == ((0, 20), (20,), 30)


def test_stretches_are_in_the_order_of_their_numbers_not_of_their_names(tmp_path):
    for start in (1000, 0, 200):
        jobs.write_log(tmp_path, start, [{"step": start + 10, "loss": float(start)}])
    assert read_log(tmp_path)["loss"].values.tolist() == [0, 200, 1000]


def test_a_stretch_that_was_killed_before_its_first_line_leaves_the_run_at_its_beginning(tmp_path):
    jobs.write_log(tmp_path, 0, losses(_10=9.0, _20=8.0, _30=7.0))
    (tmp_path / "log-from-20").mkdir()
    (tmp_path / "log-from-20" / "metrics.csv").write_text("", encoding="utf-8")
    assert read_log(tmp_path)["loss"].steps.tolist() == [10, 20]


def test_a_line_that_was_cut_off_and_words_among_numbers_are_passed_over(tmp_path):
    path = jobs.write_log(tmp_path, 0, losses(_10=9.0, _20=8.0))
    with path.open("a", encoding="utf-8") as file:
        file.write("what,30\n7.0,\n6.0")
    log = read_log(tmp_path)
    assert log["loss"].values.tolist() == [9, 8]


def test_a_column_that_is_missing_from_a_stretch_keeps_what_others_have(tmp_path):
    jobs.write_log(tmp_path, 0, [{"step": 10, "loss": 1.0, "dice/Vein": 0.25}])
    jobs.write_log(tmp_path, 10, losses(_20=0.5))
    log = read_log(tmp_path)
    assert log.last_dice() == {"Vein": 0.25}
    assert len(log["waiting_frac"]) == 0


# -- what is to be looked at --------------------------------------------------------------


def test_a_good_run_has_nothing_flagged(tmp_path):
    assert flags(jobs.write_job(tmp_path / "model")) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dice/Vein": 0.0, "dice/Artery": 0.0}, "Dice is 0 at the last validation: Artery, Vein"),
        ({"dice/Eyes": math.nan}, "no pair has them: Eyes"),
        ({"waiting_frac": 0.12}, "12 % of the time was lost waiting for data"),
        ({"waiting_frac": 0.12}, "On a CPU this is the time"),
        ({"loss": 2.0}, "The loss does not fall"),
        ({"loss": math.nan}, "not finite at 80 logged steps, first at 25"),
    ],
)
def test_what_is_wrong_with_a_run_is_said(tmp_path, change, words):
    rows = [
        row | {name: value for name, value in change.items() if name in row}
        for row in jobs.log_rows(0, 2000)
    ]
    assert words in flags(jobs.write_job(tmp_path / "model", rows=rows))


def test_a_label_that_was_judged_before_and_not_at_last_has_no_dice_now(tmp_path):
    rows = jobs.log_rows(0, 2000)
    rows[-1].pop("dice/Vein")
    for row in rows:
        row.pop("dice/Eyes", None)
    folder = jobs.write_job(tmp_path / "model", rows=rows)
    assert "Eyes, Vein." in flags(folder)
    assert math.isnan(read_job(folder).log.last_dice()["Vein"])
    found = {row["name"]: row for row in class_rows(read_job(folder).log, jobs.TABLE)}
    assert (found["Vein"]["dice"], found["Eyes"]["dice"]) == ("n/a", "n/a")
    assert found["Vein"]["best_step"] == "1,750"


@pytest.mark.parametrize(
    ("used_gib", "words"), [(6.0, "15 % less than was used"), (4.0, "27 % more than was used")]
)
def test_a_prediction_of_memory_that_is_off_is_flagged(tmp_path, used_gib, words):
    plan = jobs.MEMORY["plans"][0] | {"used_gib": used_gib}
    folder = jobs.write_job(tmp_path / "model", memory=jobs.MEMORY | {"plans": [plan]})
    assert words in flags(folder)


def test_memory_that_was_logged_stands_in_for_a_plan_that_was_not_filled_in(tmp_path):
    plan = jobs.MEMORY["plans"][0] | {"used_gib": None, "predicted_gib": 2.6}
    folder = jobs.write_job(tmp_path / "model", memory=jobs.MEMORY | {"plans": [plan]})
    assert "50 % less than was used (2.60 and 5.20 GiB" in flags(folder)


def test_a_run_that_was_stopped_is_unfinished_and_one_at_its_end_is_not(tmp_path):
    stopped = jobs.write_job(tmp_path / "stopped", rows=jobs.log_rows(0, 1975))
    assert "1,975 of 2,000" in flags(stopped)
    # The last steps before the end may lie between two lines of the log.
    plan = jobs.PLAN | {"total_steps": 2010}
    assert read_job(jobs.write_job(tmp_path / "done", plan=plan)).finished


def test_a_run_without_validation_says_that_nothing_is_known_of_it(tmp_path):
    folder = jobs.write_job(tmp_path / "model", rows=jobs.log_rows(0, 225))
    assert "not validated yet" in flags(folder)
    assert "Dice is 0" not in flags(folder)


def test_few_points_of_noise_are_no_reason_to_say_that_the_loss_does_not_fall():
    assert loss_falls(Curve(np.arange(4), np.array([1.0, 2, 3, 4])))
    assert not loss_falls(Curve(np.arange(9), np.arange(9.0)))


@pytest.mark.usefixtures("undrawn")
def test_bad_steps_name_their_recipe(tmp_path):
    folder = jobs.write_job(tmp_path / "model")
    pair = {"place": 0, "head": 2, "head_file": "/home/me/sub-03.nii.gz", "recipe": {"seed": 77}}
    bad = {"step": 123, "seed": 1, "what": "loss is nan", "pairs": [pair], "plan": jobs.PLAN}
    path = folder / "training" / "bad-step-000123.json"
    path.write_text(json.dumps(bad), encoding="utf-8")
    assert "refused step 123" in flags(folder)
    text = read(page_of(folder)).text
    assert '"seed": 77' in text
    assert "/home/me" not in text


# -- the page -----------------------------------------------------------------------------


def test_the_page_says_what_was_trained_from_what_and_how_well(tmp_path, head, head_image):
    folder = jobs.write_job(tmp_path / "model")
    jobs.write_samples(folder / "training", head, head_image, [250, 2000])
    page = page_of(folder)
    reader = read(page)
    images = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert len(images) == 4
    assert all(attrs["src"].startswith("data:image/png") and attrs["alt"] for attrs in images)
    for words in (
        "Nothing was flagged",
        "type dynunet learns to tell 43 labels apart",
        "14 label maps while it trains; 2 more are held out",
        "t1w (80\u00a0%)",
        jobs.JOB["command"],
        "fullhead → brainseg",
        "2 (2 in a batch)",
        "contrast T1w, kappa 1.0",
        "0.7 × 0.7 × 1 mm",
        "83 min",
        "sub-16_seg-fullhead_dseg.nii.gz",
        "finished",
        "4,000",  # pairs
        "Zen 4, 2 cores (24.0 GiB, shared with the processor)",
    ):
        assert words in reader.text, words
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "train.html"]


@pytest.mark.usefixtures("undrawn")
def test_labels_are_in_the_table_lowest_first_with_their_curve(tmp_path):
    rows = jobs.log_rows(0, 2000)
    rows[-1] |= {"dice/Vein": 0.0, "dice/Skin": 0.125, "dice/Artery": math.nan}
    page = page_of(jobs.write_job(tmp_path / "model", rows=rows))
    found = [row for row in cells(page) if len(row) == 8 and row[0] in jobs.NAMES]
    assert [row[0] for row in found[:2]] == ["Vein", "Skin"]
    assert found[-1][:3] == ["Artery", "502", "n/a"]
    assert found[0][2] == "0.000"
    assert float(found[0][5]) > 0.6  # it had been found before
    assert found[0][6] == "1,750"
    real = {row[0]: row[7] for row in found}
    assert (real["Left-Thalamus"], real["Vein"]) == ("0.606", "n/a")
    assert len(found) == len(jobs.NAMES)
    text = page.read_text(encoding="utf-8")
    assert text.count("<polyline") == len(jobs.NAMES)
    assert 'class="low" style="width: 12.5%"' in text


@pytest.mark.usefixtures("undrawn")
def test_every_memory_plan_is_shown_and_the_last_is_in_force(tmp_path):
    page = page_of(jobs.write_job(tmp_path / "model", memory=jobs.two_plans()))
    first, second = [row for row in cells(page) if row[0] in ("given up", "in force")]
    assert first[0] == "given up"
    assert first[1] == "128 × 144 × 128 voxels"
    assert first[5:] == ["7.60", "8.40", "n/a", "probe ran out of memory"]
    assert second[0] == "in force"
    assert second[4] == "checkpointing"
    assert "96 × 128 × 112" in read(page).text


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_resumed_lists_its_stretches(tmp_path):
    folder = jobs.write_job(tmp_path / "model", rows=jobs.log_rows(0, 900))
    jobs.write_log(folder / "training", 750, jobs.log_rows(750, 2000))
    assert "2 training runs" in read(page_of(folder)).text


def no_files(folder: Path) -> None:
    for path in (folder / "training").glob("*.json"):
        path.unlink()


def damaged(folder: Path) -> None:
    for name in ("plan", "job", "memory"):
        (folder / "training" / f"{name}.json").write_text('{"net": {"arch', encoding="utf-8")
    samples = folder / "training" / "samples"
    samples.mkdir()
    (samples / "step-000250.npz").write_bytes(b"PK\x03\x04 cut off")


def odd(folder: Path) -> None:
    """JSON that is whole and says nothing of use."""
    for name, value in (
        ("plan", {"net": None, "spaces": [], "patch_vox": None, "total_steps": "many"}),
        ("job", {"heads": None, "spaces": ["t1w"], "table": 3}),
        ("memory", {"device": None, "plans": [None, {"patch_vox": 7, "predicted_gib": "much"}]}),
    ):
        (folder / "training" / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def no_log(folder: Path) -> None:
    (folder / "training" / "log-from-0" / "metrics.csv").unlink()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("harm", [no_files, damaged, odd, no_log])
def test_a_page_is_written_whatever_is_missing_or_damaged(tmp_path, harm: Callable):
    folder = jobs.write_job(tmp_path / "model", rows=jobs.log_rows(0, 250))
    harm(folder)
    reader = read(page_of(folder))
    said = {
        no_files: "No plan was found",
        damaged: "plan.json cannot be read",
        odd: "Lost waiting for data",
        no_log: "No step was logged",
    }
    assert said[harm] in reader.text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("column", ["loss", "lr", "dice_brain", "pairs_per_s", "memory_gib"])
def test_a_page_is_written_without_any_one_column_and_with_nothing_but_nan_in_it(tmp_path, column):
    rows = jobs.log_rows(0, 250)
    for case, kept in (
        ("without", [{k: v for k, v in row.items() if k != column} for row in rows]),
        ("nan", [row | {column: math.nan} for row in rows]),
    ):
        folder = jobs.write_job(tmp_path / case / "model", rows=kept)
        assert "of 2,000 steps" in read(page_of(folder)).text


def test_a_folder_that_is_no_job_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="'training'") as caught:
        page_of(tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_nothing_that_is_read_becomes_markup(tmp_path):
    rows = [{"step": 9, "loss": 1.0, f"dice/{EVIL}": 0.0, f"real/{EVIL}/dice_brain": 0.5}]
    folder = jobs.write_job(
        tmp_path / "model",
        rows=rows,
        job={"command": EVIL, "heads": ["maps/<b>"], "spaces": {EVIL: {EVIL: EVIL}}},
        plan={"net": {"architecture": EVIL, "options": {EVIL: EVIL}}, "spaces": {EVIL: 1}},
        memory={"device": {"name": EVIL}, "plans": [{"reason": EVIL, "precision": EVIL}]},
    )
    reader = read(write_training_page(folder, tmp_path / "train.html", title=EVIL))
    assert not [tag for tag, _ in reader.tags if tag in ("script", "b")]
    assert not [attrs for _, attrs in reader.tags if "onerror" in attrs]
    assert reader.text.count(EVIL) >= 8


@pytest.mark.usefixtures("undrawn")
def test_folders_of_label_maps_and_of_the_job_are_not_told(tmp_path):
    job = jobs.JOB | {"heads": ["/home/somebody/secret/sub-01_dseg.nii.gz"]}
    text = page_of(jobs.write_job(tmp_path / "model", job=job)).read_text(encoding="utf-8")
    assert "sub-01_dseg.nii.gz" in text
    assert "secret" not in text
    assert str(tmp_path) not in text


# -- parts --------------------------------------------------------------------------------


def test_a_plan_without_label_maps_is_still_a_sentence(tmp_path):
    words = plan_words(read_job(jobs.write_job(tmp_path / "model", job=None)))
    assert "while it trains" in words
    assert plan_words(read_job(jobs.write_job(tmp_path / "bare", plan=None))) == ""


def test_a_label_that_the_table_does_not_have_is_shown_without_a_code(tmp_path):
    jobs.write_log(tmp_path, 0, [{"step": 9, "dice/Antenna": 0.5}])
    row, *others = class_rows(read_log(tmp_path), jobs.TABLE)
    assert len(others) == len(jobs.NAMES)
    assert (row["name"], row["index"], row["dice"], row["spark"]) == (
        "Antenna",
        "n/a",
        "0.500",
        "",
    )


def test_colours_and_names_are_those_of_the_bundle_if_there_is_one(tmp_path):
    folder = jobs.write_job(tmp_path / "model", job={"table": "tissue"})
    assert read_job(folder).table.name == "tissue"
    (folder / "bundle").mkdir()
    jobs.TABLE.write(folder / "bundle" / "labels.tsv")
    assert "Left-Thalamus" in read_job(folder).table


def test_samples_of_another_pair_are_left_out_and_early_steps_stand_closer(
    tmp_path, head, head_image
):
    training = tmp_path / "training"
    jobs.write_samples(training, head, head_image, list(range(100, 3100, 100)))
    paths = sorted((training / "samples").iterdir())
    samples, left_out = read_samples(paths)
    steps = [one.steps for one in samples]
    assert (len(steps), steps[0], steps[-1], left_out) == (6, 100, 3000, 0)
    assert np.all(np.diff(np.diff(steps)) >= 0)
    with np.load(paths[0]) as stored:
        flipped = {name: stored[name][:, ::-1] for name in stored.files}
    np.savez(paths[0], **flipped)
    samples, left_out = read_samples(paths)
    assert ([one.steps for one in samples], left_out) == (steps[1:], 1)


def test_samples_are_shown_upright_with_the_left_on_the_left(tmp_path):
    stored = np.zeros((3, 4, 6), np.float16)  # to the right, then up
    stored[:, 3, 5] = 1
    path = tmp_path / "step-000010.npz"
    np.savez(path, image=stored, truth=stored.astype(np.uint8), found=stored.astype(np.uint8))
    ((sample,), _) = read_samples([path])
    assert sample.image.shape == (3, 6, 4)
    assert np.argwhere(sample.image[0]).tolist() == [[0, 3]]
    assert np.array_equal(sample.image, sample.found)


def test_memory_without_plans_has_no_rows():
    assert memory_rows({}) == memory_rows({"plans": "none"}) == []


@needs_browser
def test_the_page_opens_offline_with_its_warnings_and_pictures(tmp_path, head, head_image):
    folder = jobs.write_job(tmp_path / "model", rows=jobs.log_rows(0, 500))
    jobs.write_samples(folder / "training", head, head_image, [250, 500])
    try:
        pixels = screenshot(page_of(folder), tmp_path)
    except subprocess.TimeoutExpired:
        pytest.skip("the browser did not answer on this machine")
    boxes = [(0xFF, 0xF6, 0xE5), (0x2D, 0x25, 0x16)]
    assert max((pixels == box).all(axis=1).mean() for box in boxes) > 0.005
    red, green, blue = pixels.T
    # The cortex of the samples is reddish; a page without its pictures has no such pixels.
    assert ((red > 90) & (red > green + 40) & (red > blue + 30)).mean() > 0.005
    # Pictures lie on a dark canvas.
    assert (pixels == (11, 13, 16)).all(axis=1).mean() > 0.1
    assert not re.search(r"https?://", page_of(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("dice", "n_maps", "named"),
    [
        pytest.param(
            0.001, 14, "it has learned nothing",
            marks=pytest.mark.input(
                "results", "a trained model whose held-out Dice is near 0",
                "log, page and card say so; the last line says 1 to look at", 0,
            ),
        ),
        pytest.param(
            0.8, 3, "3 label maps",
            marks=pytest.mark.input(
                "results", "a model that was trained on fewer than five label maps",
                "log, page and card say so; the last line says 1 to look at", 0,
            ),
        ),
        (0.8, 5, ""),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_right_is_named_first(tmp_path, dice, n_maps, named):
    rows = [{"step": step, "loss": 1 / step} for step in range(25, 2001, 25)]
    rows[-1] |= {"dice_brain": dice}
    heads = [f"sub-{n:02d}_dseg.nii.gz" for n in range(n_maps)]
    folder = jobs.write_job(tmp_path / "model", rows=rows, job=jobs.JOB | {"heads": heads})
    first = [*warnings(read_job(folder)), ""][0]
    assert first.startswith("Look at this model") == bool(named)
    assert named in first
    # One that is not finished need not have learned yet.
    part = jobs.write_job(tmp_path / "part", rows=rows[:4], job=jobs.JOB | {"heads": heads})
    assert "learned nothing" not in flags(part)
