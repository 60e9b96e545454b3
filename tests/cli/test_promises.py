# SPDX-License-Identifier: Apache-2.0
"""Flags that promise not to compute keep their word, at every stage."""

import json
import subprocess
from pathlib import Path

import pytest

from brainseg_bids import runner
from brainseg_bids.reports import training
from brainseg_bids.reports.densities import IntensityComparison
from brainseg_bids.stages import GROUP_STAGES, PARTICIPANT_STAGES, pairs, pooling, train_run
from brainseg_bids.stages.pooling import read_synthetic, write_synthetic
from tests.reports.training_jobs import write_job
from tests.synth.priors import make_prior

NAME = "t1w-0p8mm"


def give_priors(output: Path) -> Path:
    (output / "priors").mkdir(parents=True)
    return make_prior().write(output / "priors")


@pytest.fixture
def there(app, monkeypatch):
    """A derivative that holds a training and priors; whatever would compute is noted instead."""
    app.images("sub-01_T1w")
    output = app.root / "out"
    write_job(output / "derivatives" / f"model-{NAME}", rows=[])
    give_priors(output)
    began = []

    def note(what):
        return lambda *_, **__: began.append(what) or pytest.fail(what)

    monkeypatch.setattr(runner, "run_workflow", note("a workflow"))
    monkeypatch.setattr(pooling, "make_priors", note("pooling"))
    monkeypatch.setattr(pairs, "synthesise", note("synthesis"))
    monkeypatch.setattr(train_run, "watch", note("training"))
    monkeypatch.setattr(subprocess, "Popen", note("a process"))
    app.began = began
    return app


@pytest.fixture
def app(app):
    """The same, with room for what a test notes."""

    class Noting:
        began: list

        def __getattr__(self, name):
            return getattr(app, name)

        def __call__(self, *arguments, **options):
            return app(*arguments, **options)

    return Noting()


def state(output: Path) -> dict[str, bytes]:
    """Every file but logs."""
    files = (path for path in output.rglob("*") if path.is_file())
    named = {path.relative_to(output).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if name[:5] != "logs/"}


LEVELS = [("participant", stage) for stage in PARTICIPANT_STAGES]
LEVELS += [("group", stage) for stage in GROUP_STAGES]


@pytest.mark.parametrize(("level", "stage"), LEVELS)
@pytest.mark.input(
    "runs", "--reports-only, at any stage", "pages alone are written; 1 or 2 without results", 0
)
def test_reports_only_writes_pages_alone(there, level, stage, monkeypatch):
    monkeypatch.setattr(training, "_figures", lambda *_: {})
    output = there.root / "out"
    before = state(output)
    more = ("--reference", f"a={there.root}") if stage == "evaluate" else ()
    done = there("--stages", stage, "--reports-only", *more, level=level)
    after = state(output)
    assert there.began == []
    assert {name: after[name] for name in before} == before
    new = set(after) - set(before)
    pages = {
        "train": {f"train_{NAME}.html"},
        "priors": {"group_priors.html"},
        "synth": {"group_priors.html"},
    }
    assert new == pages.get(stage, {name for name in new if name.endswith(".html")})
    assert (done.code == 0) == (stage in pages), done.said
    assert not done.work.exists()


@pytest.mark.parametrize("stage", PARTICIPANT_STAGES)
def test_boilerplate_only_runs_nothing(there, stage):
    output = there.root / "out"
    before = state(output)
    assert there("--stages", stage, "--boilerplate-only").code == 0
    after = state(output)
    assert there.began == []
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.startswith("sub-") or name.endswith(".html")]
    assert not there.root.joinpath("work").exists()


@pytest.mark.parametrize(
    "arguments", [("--boilerplate-only",), ("--boilerplate-only", "--reports-only")]
)
def test_what_cannot_be_promised_is_refused(there, arguments):
    level = "participant" if len(arguments) > 1 else "group"
    with pytest.raises(SystemExit) as ended:
        there(*arguments, level=level)
    assert ended.value.code == 2
    assert there.began == []


@pytest.mark.parametrize(("level", "stage"), LEVELS)
def test_slurm_prints_a_script_alone(there, level, stage):
    output = there.root / "out"
    before = state(output)
    more = ("--reference", f"a={there.root}") if stage == "evaluate" else ()
    there("--stages", stage, "--slurm", *more, level=level)
    assert there.began == []
    assert state(output) == before


def test_plan_only_leaves_other_stages_out(there, monkeypatch):
    planned = []
    monkeypatch.setattr(
        train_run, "train", lambda settings, *_, **__: planned.append(settings.plan_only) or 0
    )
    stages = ("summary", "priors", "synth", "train")
    done = there("--stages", *stages, "--plan-only", level="group")
    assert done.code == 0, done.said
    assert (planned, there.began) == ([True], [])


@pytest.mark.input("training", "--stages train --reports-only without a training", "refused", 2)
def test_without_a_training_there_is_no_page_of_it(there):
    done = there("--stages", "train", "--reports-only", "--name", "other", level="group")
    assert done.code == 2
    assert "model-other" in done.said
    assert there.began == []


def test_what_was_shown_of_pairs_is_shown_again_while_the_prior_is_the_same(tmp_path):
    prior = give_priors(tmp_path)
    (name,) = pooling.read_priors(tmp_path)
    figures = tmp_path / "priors" / "figures"
    figures.mkdir()
    for picture in ("a.png", "gone.png"):
        (figures / picture).write_bytes(b"")
    comparisons = [
        IntensityComparison("skull", {"prior": 0.5}, (0.0, 1.0), (3.0,), {"prior": (2.0,)})
    ]
    pictures = [figures / "a.png", figures / "gone.png"]
    write_synthetic(prior, pictures, comparisons)
    (figures / "gone.png").unlink()
    shown, compared = read_synthetic(tmp_path)
    assert shown == {name: [figures / "a.png"]}
    assert compared[name][0].distances == {"prior": 0.5}
    prior.write_text(json.dumps(json.loads(prior.read_text())) + "\n")
    assert read_synthetic(tmp_path) == ({}, {})
