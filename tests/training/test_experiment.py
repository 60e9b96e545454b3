# SPDX-License-Identifier: Apache-2.0
"""The prior-weight experiment: what is planned, measured and said about it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.evaluation.decision import RULE
from brainseg_bids.reports import experiment
from brainseg_bids.reports.experiment import experiment_page, verdict
from brainseg_bids.training.experiment import (
    ExperimentPlan,
    Pinned,
    RealImage,
    RunResult,
    find,
    with_steps,
)
from brainseg_bids.training.overlap import Overlap, Score
from brainseg_bids.training.plan import TrainPlan
from tests.training.test_training import PLAN

EARLIER_RULE = (
    "Two settings of the dial are trained from the same seeds; the difference of their mean "
    "accuracy (higher is better), setting less baseline, is taken seed by seed, on images of "
    "the contrast and on images of others. Better: the whole interval on the contrast lies "
    "above the margin, and the whole interval off it above minus the margin. Worse: either "
    "interval lies wholly below minus the margin. Anything else, and fewer than five seeds: "
    "no difference shown. The margin is the smallest difference that matters, chosen before "
    "the run."
)
"""Of plans made until November 2026."""
BRAIN, HEAD = "Left-Thalamus", "Skin"
SEEDS = (1, 2, 3, 4, 5)
JITTER = dict(zip(SEEDS, (0.001, -0.001, 0.002, 0.0, -0.002), strict=True))


def make_plan(**options) -> ExperimentPlan:
    training = {"total_steps": 7}
    files = {"maps": (Pinned("a.nii", "a"),), "validation": (Pinned("b.nii", "b"),)}
    plan = ExperimentPlan(
        contrast="T1w",
        version="1",
        planned="2026-01-01",
        prior=Pinned("prior.json", "p"),
        agnostic="agnostic",
        training=training,
        kappas=(0.0, 1.0),
        seeds=SEEDS,
        images=(),
        on_space="o",
        off_spaces={"agnostic": "x", "t2w": "y"},
        kappa_spaces={"0": "x", "1": "o"},
        **files,
    )
    return replace(plan, **options)


def made_up(plan: ExperimentPlan, gains: dict[str, float]) -> list[RunResult]:
    """Results in which a prior weight of 1 gains this much; seeds differ more than weights do."""

    def score(run, where, space, offset):
        gain = run.kappa * (gains[where] + JITTER[run.seed])
        value = 0.6 + 0.05 * run.seed + gain + offset
        return Score(where, space, "b.nii", value, {BRAIN: value})

    return [
        RunResult(
            plan.digest,
            run,
            7,
            (
                score(run, "on", "T1w", 0.0),
                score(run, "off", "agnostic", -0.1),
                score(run, "off", "t2w", -0.2),
                *([score(run, "real", "real", -0.05)] if "real" in gains else []),
            ),
        )
        for run in plan.runs
    ]


def test_a_seed_is_finished_at_every_dial_before_the_next_begins():
    plan = make_plan(kappas=(0.0, 0.5, 1.0), seeds=(4, 2))
    names = [run.name for run in plan.runs]
    assert names[:4] == [
        "kappa-0_seed-4",
        "kappa-0.5_seed-4",
        "kappa-1_seed-4",
        "kappa-0_seed-2",
    ]
    assert [run.index for run in plan.runs] == list(range(6))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kappas": (0.0, 1.2)}, "kappa is 1.2"),
        ({"kappas": (0.0, float("nan"))}, "kappa is nan"),
        ({"kappas": (0.5, 1.0)}, "kappa 0 is what others"),
        ({"kappas": (0.0,)}, "kappa 0 is what others"),
        ({"kappas": (0.0, 1.0, 1.0)}, "given once"),
        ({"seeds": (1, 1)}, "given once"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (-1,)}, "whole numbers"),
        ({"margin": 0.0}, "smallest difference"),
        ({"pairs_per_map": 0}, "at least one pair"),
        ({"validation": ()}, "held out are both needed"),
        ({"validation": (Pinned("copy.nii", "a"),)}, "copy.nii: held out, but the same map"),
    ],
)
def test_what_could_not_be_judged_is_no_plan(change, words):
    with pytest.raises(ValueError, match=words):
        make_plan(**change)


def test_a_plan_survives_json_and_a_changed_one_is_refused():
    image = RealImage(Pinned("i.nii", "i"), Pinned("l.nii", "l"), True)
    plan = make_plan(images=(image,))
    assert ExperimentPlan.from_json(plan.to_json()) == plan
    raw = json.loads(plan.to_json())
    with pytest.raises(ValueError, match="changed"):
        ExperimentPlan.from_json(json.dumps(raw | {"margin": 0.0001}))
    eased = raw["decision"] | {"rule": "Always better."}
    with pytest.raises(ValueError, match="changed"):
        ExperimentPlan.from_json(json.dumps(raw | {"decision": eased}))
    with pytest.raises(ValueError, match="not a plan"):
        ExperimentPlan.from_json("[1]")


def test_a_plan_with_an_earlier_name_of_a_key_is_read():
    plan = make_plan()
    raw = json.loads(plan.to_json())
    raw["dials"] = raw.pop("kappa_spaces")
    raw["digest"] = "5a702598788b8fa47b98f3fc282e7549b9af91ac263575879c1f52cc17c3b891"  # as then
    assert ExperimentPlan.from_json(json.dumps(raw)) == plan


def test_a_plan_with_the_earlier_wording_of_the_rule_is_read():
    plan = make_plan()
    raw = json.loads(plan.to_json())
    earlier = plan.rule.replace(RULE, EARLIER_RULE)
    raw["decision"]["rule"] = earlier
    assert ExperimentPlan.from_json(json.dumps(raw)) == plan
    for changed in (earlier.replace("five", "two"), earlier.replace("0.01", "0.001")):
        raw["decision"]["rule"] = changed
        with pytest.raises(ValueError, match="changed"):
            ExperimentPlan.from_json(json.dumps(raw))


def test_date_and_version_do_not_make_another_experiment_and_anything_else_does():
    plan = make_plan()
    assert replace(plan, planned="later", version="2").digest == plan.digest
    for change in ({"margin": 0.02}, {"seeds": (1, 2)}, {"on_space": "other"}):
        assert replace(plan, **change).digest != plan.digest


def test_real_images_are_judged_if_there_are_any():
    image = RealImage(Pinned("i.nii", "i"), Pinned("l.nii", "l"))
    assert make_plan().judged_where == "on"
    plan = make_plan(images=(image,))
    assert "real images" in plan.rule
    found = find(plan, made_up(plan, {"on": 0.05, "off": 0.0, "real": -0.05}))
    assert found.thesis.verdict == "worse"
    assert found.thesis.on_mean == pytest.approx(-0.05, abs=1e-9)


def test_steps_change_and_the_shape_of_the_schedule_does_not():
    plan = replace(PLAN, total_steps=1000, warmup_steps=100, decay_steps=300, validate_every=250)
    shorter = with_steps(plan, 100)
    assert (shorter.total_steps, shorter.warmup_steps, shorter.decay_steps) == (100, 10, 30)
    assert shorter.validate_every == 100
    assert isinstance(shorter, TrainPlan)
    with pytest.raises(ValueError, match="one step"):
        with_steps(plan, 0)


def test_structures_that_the_reference_lacks_do_not_count_but_take_voxels_from_others():
    table = LabelTable.packaged("brainseg")
    rank = {label.name: k for k, label in enumerate(table)}
    truth = np.array([rank[BRAIN]] * 4 + [rank[HEAD]] * 4 + [0] * 2)
    found = truth.copy()
    found[:2] = rank["Right-Thalamus"]
    overlap = Overlap(table)
    overlap.add(found, truth)
    assert overlap.dice() == {HEAD: 1.0, BRAIN: pytest.approx(2 * 2 / (2 + 4))}
    score = overlap.score("on", "T1w", "b.nii")
    assert score.accuracy == overlap.dice()[BRAIN]


def test_a_reference_without_brain_is_an_error_not_a_number():
    table = LabelTable.packaged("brainseg")
    overlap = Overlap(table)
    overlap.add(np.array([0, 1]), np.array([0, 0]))
    with pytest.raises(ValueError, match="no structure"):
        overlap.score("on", "T1w", "b.nii")


def test_a_gain_on_the_contrast_is_found_by_pairing_seeds():
    plan = make_plan()
    found = find(plan, made_up(plan, {"on": 0.03, "off": 0.0}))
    assert (found.thesis.verdict, found.without_loss.verdict) == ("better", "better")
    on = next(one for one in found.differences if one.where == "on")
    assert on.mean == pytest.approx(0.03)
    assert 0.027 < on.low < on.high < 0.033
    # Seeds are far apart, so that what is not paired would show nothing.
    accuracy = next(one for one in found.accuracy if (one.where, one.kappa) == ("on", 1.0))
    assert accuracy.high - accuracy.low > 0.05


def test_a_gain_at_the_cost_of_other_contrasts_is_said():
    plan = make_plan()
    found = find(plan, made_up(plan, {"on": 0.03, "off": -0.05}))
    assert (found.thesis.verdict, found.without_loss.verdict) == ("better", "worse")
    page = experiment_page(plan, found, figure=None)
    assert "below -0.01" in page


def test_other_contrasts_are_shown_one_by_one_and_together():
    plan = make_plan()
    found = find(plan, made_up(plan, {"on": 0.0, "off": 0.0}))
    means = {one.space: one.mean for one in found.accuracy if one.where == "off" and not one.kappa}
    assert means["agnostic"] == pytest.approx(0.65)
    assert means["t2w"] == pytest.approx(0.55)
    assert means["all"] == pytest.approx(0.6)


def test_nothing_is_judged_before_every_run_is_finished():
    plan = make_plan()
    found = find(plan, made_up(plan, {"on": 0.3, "off": 0.3})[:-1])
    assert (found.thesis, found.without_loss) == (None, None)
    assert [run.name for run in found.missing] == ["kappa-1_seed-5"]
    words = " ".join(verdict(plan, found))
    assert "1 of 10" in words
    assert "better" not in words


@pytest.mark.parametrize(
    ("seeds", "words"),
    [((1,), "With one seed there are no intervals"), ((1, 2, 3), "3 seeds are too few")],
)
def test_too_few_seeds_are_said_to_be_too_few(seeds, words):
    plan = make_plan(seeds=seeds)
    found = find(plan, made_up(plan, {"on": 0.3, "off": 0.3}))
    assert found.thesis.verdict == "no difference shown"
    assert words in " ".join(verdict(plan, found))
    assert all(one.note for one in found.accuracy)
    if len(seeds) == 1:
        assert all((one.low, one.high) == (None, None) for one in found.accuracy)


def test_pairs_from_the_same_prior_are_not_sold_as_real_images():
    plan = make_plan()
    found = find(plan, made_up(plan, {"on": 0.03, "off": 0.0}))
    assert "not whether it is" in " ".join(verdict(plan, found))
    seen = make_plan(images=(RealImage(Pinned("i", "i"), Pinned("l", "l"), True),))
    found = find(seen, made_up(seen, {"on": 0.03, "off": 0.0, "real": 0.02}))
    assert "measured in 1 of the 1 real images" in " ".join(verdict(seen, found))


def test_results_of_another_plan_are_refused():
    plan = make_plan()
    results = made_up(plan, {"on": 0.0, "off": 0.0})
    with pytest.raises(ValueError, match="another plan"):
        find(replace(plan, margin=0.5), results)


def test_a_result_survives_json():
    result = made_up(make_plan(), {"on": 0.01, "off": 0.0})[3]
    assert RunResult.from_json(result.to_json()) == result
    with pytest.raises(ValueError, match="not a result"):
        RunResult.from_json("{}")


@pytest.mark.parametrize("seeds", [(1,), SEEDS])
def test_the_picture_has_a_point_per_seed_and_bars_only_with_several_seeds(
    seeds, tmp_path, monkeypatch
):
    canvases = []
    save = experiment.Canvas.save
    monkeypatch.setattr(
        experiment.Canvas,
        "save",
        lambda canvas, path: canvases.append(canvas) or save(canvas, path),
    )
    plan = make_plan(seeds=seeds)
    found = find(plan, made_up(plan, {"on": 0.03, "off": -0.02}))
    path = experiment.draw_experiment(tmp_path / "report.png", plan, found)
    assert path.stat().st_size > 0
    accuracy, differences = canvases[0].figure.axes
    for axes, n_dials in ((accuracy, 2), (differences, 1)):
        points = [line for line in axes.lines if line.get_marker() == "."]
        bars = [line for line in axes.lines if line.get_alpha() == experiment.BAR_ALPHA]
        assert [len(line.get_ydata()) for line in points] == [len(seeds)] * 2 * n_dials
        assert len(bars) == (2 * n_dials if len(seeds) > 1 else 0)
