# SPDX-License-Identifier: Apache-2.0
"""Stage ``evaluate`` from one end to the other."""

import csv
import json

import numpy as np
import pytest

from brainseg_bids import runner
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.images import read_volume, voxel_hash, write_label_map
from tests.fakes import dataset
from tests.made_nifti import contradict
from tests.phantom.head import phantom_head

HEAD = phantom_head()
SUBJECTS = ("01", "02", "03")
TABLE = "index\tname\n" + "".join(f"{label.index}\t{label.name}\n" for label in HEAD.table)


def shifted(by: int) -> LabelMap:
    """The phantom, some voxels to the right."""
    return LabelMap(np.roll(HEAD.voxels, by, axis=0), HEAD.grid, HEAD.table)


def derivative(folder, maps: dict[str, LabelMap]):
    """A BIDS derivative of label maps, by subject."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.1"}')
    (folder / "dseg.tsv").write_text(TABLE)
    for subject, labels in maps.items():
        anat = folder / f"sub-{subject}" / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        write_label_map(labels, anat / f"sub-{subject}_dseg.nii.gz")
    return folder


def give(app) -> tuple[str, ...]:
    """Three subjects, a reference, a good and a bad rater."""
    app.images(*(f"sub-{subject}_T1w" for subject in SUBJECTS))
    truth = derivative(app.root / "manual", dict.fromkeys(SUBJECTS, HEAD))
    good = derivative(app.root / "good", dict.fromkeys(SUBJECTS, HEAD))
    bad = derivative(app.root / "bad", {s: shifted(k) for k, s in enumerate(SUBJECTS, 1)})
    return ("--reference", f"manual={truth}", "-d", f"good={good}", f"bad={bad}")


def table(done, name: str) -> list[dict]:
    with (done.output / "evaluation" / f"{name}.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def finished(lasting_app):
    return lasting_app("--stages", "evaluate", *give(lasting_app), level="group")


def test_raters_are_compared_with_the_reference(finished):
    assert finished.code == 0, finished.log
    rows = table(finished, "agreement")
    assert {row["rater"] for row in rows} == {"good", "bad"}
    good = {row["status"]: row["dice"] for row in rows if row["rater"] == "good"}
    assert good == {"both": "1", "neither": "n/a"}
    bad = {
        row["image"]: float(row["dice"])
        for row in rows
        if row["rater"] == "bad" and row["name"] == "Left-Cerebral-White-Matter"
    }
    assert 1 > bad["sub-01"] > bad["sub-02"] > bad["sub-03"] > 0
    assert {row["definition"] for row in rows} == {"surface"}


def test_tables_and_page_say_the_same(finished):
    [mean] = [
        row
        for row in table(finished, "headline")
        if row["rater"] == "bad" and row["metric"] == "dice" and row["stratum"] == "all"
    ]
    assert mean["n_subjects"] == "3"
    twin = json.loads((finished.output / "evaluation" / "evaluation.json").read_text())
    assert any(
        line["rater"] == "bad" and f"{line['mean']:.6g}" == mean["mean"]
        for line in twin["headline"]
    )
    page = (finished.output / "group_evaluation.html").read_text()
    assert f"{float(mean['mean']):.3f}" in page
    assert "manual" in page
    dataset.assert_valid_bids(finished.output)


def test_reports_only_writes_pages_again_from_what_was_found(finished, lasting_app, monkeypatch):
    monkeypatch.setattr(runner, "run_workflow", lambda *_, **__: pytest.fail("was compared"))
    folder = finished.output / "evaluation"
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    page = finished.output / "group_evaluation.html"
    page.unlink()
    root = lasting_app.root
    given = ("--reference", f"manual={root / 'manual'}")
    raters = ("-d", f"good={root / 'good'}", f"bad={root / 'bad'}")
    again = ("--stages", "evaluate", *given, *raters, "--reports-only")
    assert lasting_app(*again, level="group").code == 0
    assert page.is_file()
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before
    assert lasting_app(*again, "--nsd-tolerance", "3", level="group").code == 2
    assert lasting_app(*again, level="group", work="elsewhere").code == 2


def test_another_definition_gives_other_distances(finished, lasting_app):
    before = {
        (row["rater"], row["image"], row["name"]): row["assd_mm"]
        for row in table(finished, "agreement")
    }
    given = ("--reference", f"manual={lasting_app.root / 'manual'}")
    raters = ("-d", f"bad={lasting_app.root / 'bad'}")
    done = lasting_app(
        "--stages", "evaluate", *given, *raters, "--surfaces", "voxel",
        level="group", output="voxel",
    )  # fmt: skip
    rows = table(done, "agreement")
    assert {row["definition"] for row in rows} == {"voxel"}
    assert any(before[row["rater"], row["image"], row["name"]] != row["assd_mm"] for row in rows)


def test_own_segmentations_are_judged_too(app):
    app.images("sub-01_T1w")
    assert app().code == 0
    truth = derivative(app.root / "manual", {"01": HEAD})
    done = app("--stages", "evaluate", "--reference", f"manual={truth}", level="group")
    assert done.code == 0, done.log
    assert {row["rater"] for row in table(done, "agreement")} == {"fake"}
    folder = done.output / "evaluation"
    written = {path.stem for path in folder.glob("*.tsv")}
    assert {"headline", "structures"} <= written
    assert written.isdisjoint({"comparisons", "ranks", "missing"})
    assert all(path.stat().st_size for path in folder.glob("*.tsv"))
    assert f"{folder}/comparisons.tsv: not written" in done.log
    assert "trained on" in (done.output / "group_evaluation.html").read_text()


@pytest.mark.input(
    "names",
    "`evaluate`: a map without a reference, a reference without a map",
    "listed in missing.tsv, all others are compared",
    0,
)
def test_what_is_missing_on_either_side_is_listed(app):
    given = give(app)
    (app.root / "good" / "sub-02" / "anat" / "sub-02_dseg.nii.gz").unlink()
    (app.root / "manual" / "sub-03" / "anat" / "sub-03_dseg.nii.gz").unlink()
    done = app("--stages", "evaluate", *given, level="group")
    assert done.code == 0, done.log
    missing = {(row["kind"], row["rater"], row["image"]) for row in table(done, "missing")}
    assert ("reference without prediction", "good", "sub-02") in missing


@pytest.mark.input(
    "geometry",
    "`evaluate`: a reference, or a rater's map, without orientation or whose header contradicts "
    "itself",
    "compared; warnings in log and on the page, as of images",
    0,
)
def test_what_makes_a_map_doubtful_is_told(app):
    given = give(app)
    doubts = [
        contradict(app.root / who / "sub-01" / "anat" / "sub-01_dseg.nii.gz")
        for who in ("manual", "bad")
    ]
    done = app("--stages", "evaluate", *given, "--participant-label", "01", level="group")
    assert done.code == 0, done.log
    page = (done.output / "group_evaluation.html").read_text()
    for doubt in doubts:
        assert done.log.count(doubt) == 1
        assert doubt in page


@pytest.mark.input(
    "files",
    "`evaluate`: a rater's map that is not an image",
    "left out and named; all others are compared",
    1,
)
def test_a_damaged_map_fails_alone_and_is_named(app):
    given = give(app)
    (app.root / "bad" / "sub-02" / "anat" / "sub-02_dseg.nii.gz").write_bytes(b"no image at all")
    done = app("--stages", "evaluate", *given, level="group")
    assert done.code == 1
    assert "sub-02 (manual), bad:" in done.log
    assert {row["image"] for row in table(done, "agreement")} == {"sub-01", "sub-02", "sub-03"}


@pytest.mark.input(
    "geometry",
    "`evaluate`: a rater's map on another grid than the reference's",
    "resampled label by label, the page states this; `--on-other-grid refuse`: exit code 1",
    0,
)
def test_another_grid_is_resampled_or_refused(app):
    given = give(app)
    other = phantom_head(shape=(40, 50, 46), voxel_size_mm=4.6)
    write_label_map(other, app.root / "good" / "sub-01" / "anat" / "sub-01_dseg.nii.gz")
    done = app("--stages", "evaluate", *given, level="group")
    assert done.code == 0, done.log
    assert "resampled" in (done.output / "group_evaluation.html").read_text()
    refused = app(
        "--stages", "evaluate", *given, "--on-other-grid", "refuse", level="group", work="work2"
    )
    assert refused.code == 1
    assert "another grid" in refused.log


def test_one_subject_has_no_intervals_and_that_is_said(app):
    app.images("sub-01_T1w")
    truth = derivative(app.root / "manual", {"01": HEAD})
    other = derivative(app.root / "other", {"01": shifted(1)})
    done = app(
        "--stages", "evaluate", "--reference", f"manual={truth}", "-d", f"other={other}",
        level="group",
    )  # fmt: skip
    assert done.code == 0, done.log
    assert all(row["low"] == "n/a" and row["note"] != "n/a" for row in table(done, "headline"))


@pytest.mark.input(
    "training",
    "`evaluate`: an image that the model was trained or fitted on",
    "left out and named; exit code 2 if nothing else is there, `--include-seen` marks it",
    2,
)
def test_a_model_is_not_judged_on_what_it_has_seen(app):
    image = app.images("sub-01_T1w") / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    manifest = app.model / "bundle.json"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"seen": [voxel_hash(*read_volume(image))]}))
    assert app().code == 0
    truth = app.root / "manual"
    anat = derivative(truth, {"01": HEAD}) / "sub-01" / "anat"
    toml = app.root / "mine.toml"
    names = "\n".join(f'"{label.index}" = "{label.name}"' for label in HEAD.table)
    toml.write_text(
        '[patterns]\nlabels = ["sub-{subject}/anat/sub-{subject}_dseg.nii.gz"]\n'
        'image = ["sub-{subject}/anat/sub-{subject}_T1w.nii.gz"]\n'
        f"[labels.codes]\n{names}\n"
    )
    (anat / "sub-01_T1w.nii.gz").write_bytes(image.read_bytes())
    given = ("--stages", "evaluate", "--reference", f"{toml}={truth}")
    done = app(*given, level="group")
    assert done.code == 2
    assert "trained or fitted" in done.log
    forced = app(*given, "--include-seen", level="group")
    assert forced.code == 0, forced.log
    assert {row["seen"] for row in table(forced, "agreement")} == {"true"}
    assert "† seen" in (forced.output / "group_evaluation.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--reference NAME=PATH"),
        (("--reference", "manual={root}/manual"), "no segmentations are in it"),
        (("--reference", "nothing={root}/data"), "no labels of nothing"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_line(app, arguments, message):
    give(app)
    filled = [argument.format(root=app.root) for argument in arguments]
    if "nothing" in message:
        filled += ["-d", f"good={app.root / 'good'}"]
    done = app("--stages", "evaluate", *filled, level="group")
    assert done.code == 2
    assert message in done.log
