# SPDX-License-Identifier: Apache-2.0
"""Who is compared, and what tables call them."""

import json
from pathlib import Path

import pytest

from brainseg_bids.documents import InputError
from brainseg_bids.interfaces.raters import models_in, seen_by
from brainseg_bids.nets.bundle import ModelBundle
from brainseg_bids.stages.raters import Choice, plan_evaluation
from tests.fakes.dataset import write_bundle


def derivative(folder: Path, *kinds: str, subjects=("01", "02"), **facts) -> Path:
    """Maps of some kinds without a voxel in them, each with a sidecar."""
    for subject in subjects:
        anat = folder / f"sub-{subject}" / "anat"
        anat.mkdir(parents=True)
        for kind in kinds:
            (anat / f"sub-{subject}_seg-{kind}_dseg.nii.gz").write_bytes(b"x")
            (anat / f"sub-{subject}_seg-{kind}_dseg.json").write_text(json.dumps(facts))
    return folder


def plan(root: Path, **derivatives: Path):
    truth = root / "truth"
    if not truth.is_dir():
        derivative(truth, "manual")
    return plan_evaluation(
        root / "out", bids_dir=root / "bids", references={"manual": truth}, derivatives=derivatives
    )


@pytest.mark.input(
    "names",
    "`evaluate -d mine=OUT`, a derivative of this app, beside the packaged model's",
    "both are compared, each called by the model that made it",
    0,
)
def test_own_and_packaged_model_stand_side_by_side(tmp_path):
    derivative(tmp_path / "out", "brainseg", "tissue", ModelName="head-1mm")
    mine = derivative(tmp_path / "mine", "brainseg", "tissue", "samseg", ModelName="head-7t")
    found = plan(tmp_path, mine=mine)
    assert {name: rater.root for name, rater in found.raters.items()} == {
        "head-7t": mine,
        "head-1mm": tmp_path / "out",
    }
    names = {case.labels.name for image in found.images for case in image.rated.values()}
    assert names == {f"sub-{s}_seg-brainseg_dseg.nii.gz" for s in ("01", "02")}


def test_one_model_twice_is_told_apart_by_the_names_that_were_given(tmp_path):
    both = {n: derivative(tmp_path / n, "brainseg", ModelName="head-1mm") for n in ("a", "b")}
    assert list(plan(tmp_path, **both).raters) == ["head-1mm_a", "head-1mm_b"]


def test_a_model_called_as_another_rater_is_told_apart(tmp_path):
    given = {
        "mine": derivative(tmp_path / "mine", "brainseg", ModelName="expert"),
        "expert": derivative(tmp_path / "expert", "hand"),
    }
    assert list(plan(tmp_path, **given).raters) == ["expert_mine", "expert"]


def test_maps_of_one_name_by_two_models_are_told(tmp_path):
    derivative(tmp_path / "out", "brainseg", subjects=("01",), ModelName="m", ModelDigest="ab")
    derivative(tmp_path / "out", "brainseg", subjects=("02",), ModelName="m", ModelDigest="cd")
    (note,) = plan(tmp_path).notes
    assert "m: results were not made alike: model m ab (sub-01) and cd (sub-02)" in note


def test_the_same_model_and_name_twice_is_refused(tmp_path):
    derivative(tmp_path / "out", "brainseg", ModelName="head-1mm")
    again = derivative(tmp_path / "again", "brainseg", ModelName="head-1mm")
    with pytest.raises(InputError, match="another NAME"):
        plan(tmp_path, brainseg=again)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ([{"ModelName": "a"}, {"ModelName": "b"}], "a_and_b"),
        ([{"ModelName": "a", "Ensemble": [{"ModelName": "b"}]}], "a+b"),
        ([{"ModelName": "my model/7T"}], "my-model-7T"),
        ([{"ModelName": "a"}, {}], ""),
        ([{"ModelName": name} for name in "abcd"], ""),
        ([], ""),
    ],
)
def test_models_are_named_by_sidecars(tmp_path, facts, name):
    for number, said in enumerate(facts):
        (tmp_path / f"{number}_dseg.json").write_text(json.dumps(said))
    assert models_in(tmp_path / f"{n}_dseg.nii.gz" for n in range(len(facts))) == name


def trained(folder, name: str, seen: list[str]) -> dict[str, str]:
    """A model that has seen something; what the JSON of its maps says of it."""
    bundle = write_bundle(folder / "derivatives" / f"model-{name}" / "bundle", name=name)
    manifest = bundle / "bundle.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seen": seen}))
    return {"ModelName": name, "ModelDigest": ModelBundle.read(bundle).digest}


def test_what_a_model_trained_in_the_derivative_has_seen_is_known(tmp_path):
    made = trained(tmp_path, "mine", ["a", "b"])
    derivative(tmp_path, "brainseg", subjects=("01",), **made)
    labels = tmp_path / "sub-01" / "anat" / "sub-01_seg-brainseg_dseg.nii.gz"
    assert seen_by(labels, "", [tmp_path]) == ({"a", "b"}, "")
    assert "not here" in seen_by(labels, "")[1]


def test_images_that_raters_have_labelled_are_known(tmp_path):
    image = tmp_path / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"x")
    uri = "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"
    derivative(tmp_path / "out", "brainseg", subjects=("01",), ModelName="m", Input=uri)
    mine = derivative(tmp_path / "mine", "brainseg", subjects=("01",), Input="bids:raw:gone.nii")
    found = plan(tmp_path, mine=mine).images[0]
    assert found.segmented == (image,)
    assert found.case.image == image


def test_what_any_model_of_an_ensemble_has_seen_counts(tmp_path):
    first, second = (trained(tmp_path, name, [name]) for name in ("one", "two"))
    derivative(tmp_path, "brainseg", subjects=("01",), **first, Ensemble=[second])
    labels = tmp_path / "sub-01" / "anat" / "sub-01_seg-brainseg_dseg.nii.gz"
    assert seen_by(labels, "", [tmp_path]) == ({"one", "two"}, "")
    gone = {**second, "ModelName": "gone", "ModelDigest": "ab"}
    other = derivative(tmp_path / "other", "brainseg", subjects=("01",), **first, Ensemble=[gone])
    seen, unknown = seen_by(other / labels.relative_to(tmp_path), "", [tmp_path])
    assert seen == {"one"}
    assert "model gone" in unknown


def test_the_model_of_a_merged_head_map_is_known_by_its_digest(tmp_path):
    digest = trained(tmp_path, "mine", ["a"])["ModelDigest"]
    derivative(tmp_path, "fullhead", subjects=("01",), HeadTool="model", ModelDigest=digest)
    labels = tmp_path / "sub-01" / "anat" / "sub-01_seg-fullhead_dseg.nii.gz"
    assert seen_by(labels, "", [tmp_path]) == ({"a"}, "")


@pytest.mark.parametrize(
    ("choice", "compared"),
    [
        (Choice(), ["sub-01_ses-pre", "sub-01_ses-2", "sub-01_ses-pre_T2w", "sub-0A"]),
        (Choice(participants=("A",)), None),
        (Choice(participants=("1",), sessions=("02",)), ["sub-01_ses-2"]),
        (Choice(sessions=("pre",)), ["sub-01_ses-pre", "sub-01_ses-pre_T2w"]),
        (Choice(sessions=("pre",), suffixes=("T1w",)), ["sub-01_ses-pre"]),
        (Choice(sessions=("post",)), None),
    ],
)
def test_participants_sessions_and_contrasts_that_are_asked_for_are_compared(
    tmp_path, choice, compared
):
    names = ("01_ses-pre", "01_ses-2", "01_ses-pre_space-T2w", "0A")
    folders = {"manual": tmp_path / "truth", "mine": tmp_path / "mine"}
    for kind, folder in folders.items():
        for name in names:
            path = folder / f"sub-{name[:2]}" / "anat" / f"sub-{name}_seg-{kind}_dseg.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    given = {"references": {"manual": folders["manual"]}, "derivatives": {"mine": folders["mine"]}}
    where = {"bids_dir": tmp_path / "bids", **given, "choice": choice}
    if compared is None:
        with pytest.raises(InputError, match=r"manual has none of them. It has .*sub-01_ses-pre"):
            plan_evaluation(tmp_path / "out", **where)
    else:
        found = plan_evaluation(tmp_path / "out", **where)
        assert sorted(image.case.key for image in found.images) == sorted(compared)
