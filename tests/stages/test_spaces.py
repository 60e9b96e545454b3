# SPDX-License-Identifier: Apache-2.0
"""Templates that are found and refused; every variant of a plan is wired."""

import logging

import pytest

from brainseg_bids.bids.description import write_json
from brainseg_bids.bids.inputs import find_subjects
from brainseg_bids.bids.names import sidecar
from brainseg_bids.bids.templates import find_template, read_spaces, templateflow_home
from brainseg_bids.documents import InputError
from brainseg_bids.files import sha256
from brainseg_bids.stages.exports import plan_freesurfer, plan_precomputed
from brainseg_bids.stages.space_jobs import plan_spaces
from brainseg_bids.stages.workflow import init_subject_wf
from tests.fakes import dataset, templates
from tests.stages.test_wiring import wiring_faults

MNI = templates.NAME


@pytest.fixture
def home(tmp_path, monkeypatch):
    return templates.use_home(templates.write_home(tmp_path / "templates"), monkeypatch)


def test_a_template_is_found_by_what_people_write(home):
    found = read_spaces([f"{MNI}:res-2", MNI])
    assert [(t.space, t.resolution) for t in found] == [(MNI, "2"), (MNI, "1")]
    assert found[0].image.name == f"tpl-{MNI}_res-02_T1w.nii.gz"
    assert found[0].mask.name == f"tpl-{MNI}_res-02_desc-brain_mask.nii.gz"


@pytest.mark.input(
    "metadata",
    "`--output-spaces` with a template that is not where TemplateFlow keeps them",
    "refused with the command that fetches it",
    2,
)
@pytest.mark.parametrize(
    ("given", "copies"),
    [("", False), ("{user}/.cache/templateflow", False), ("{user}/small", True)],
)
def test_nobody_is_told_to_copy_a_folder_onto_itself(tmp_path, monkeypatch, given, copies):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TEMPLATEFLOW_HOME", given.format(user=tmp_path))
    with pytest.raises(InputError, match=f"templateflow get {MNI} --res 1 -s T1w") as told:
        find_template(templateflow_home(), MNI)
    assert ("then copy ~/.cache/templateflow" in str(told.value)) == copies


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (f"{MNI}:res-3", f"templateflow get {MNI} --res 3 -s T1w"),  # an empty file is no template
        (f"{MNI}:res-4", f"templateflow get {MNI} --res 4 -s T1w"),  # nor a link to nowhere
        ("MNI152NLin6Asym", "templateflow get MNI152NLin6Asym --res 1 -s T1w"),
        ("MNI152NLin6Asym:res-2", "templateflow get MNI152NLin6Asym --res 2 -s mask"),
        ("T1w", "not a volumetric template"),
        ("fsaverage", "not a volumetric template"),
        (f"{MNI}:den-10k", "den means nothing here"),
        (f"{MNI}:cohort-1", "does not accept a cohort"),
    ],
)
def test_what_cannot_be_used_is_named_with_a_remedy_and_nothing_is_fetched(home, wanted, said):
    before = sorted(home.rglob("*"))
    with pytest.raises(InputError) as error:
        read_spaces([wanted])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(home.rglob("*")) == before


def test_an_empty_home_is_told_and_left_empty(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    templates.use_home(tmp_path / "empty", monkeypatch)
    with pytest.raises(InputError, match="MNI152NLin2009cAsym --res 2"):
        read_spaces([f"{MNI}:res-2"])
    assert not list((tmp_path / "empty").iterdir())


def test_a_cohort_is_part_of_the_space(tmp_path):
    folder = tmp_path / "tpl-MNIInfant" / "cohort-2"
    dataset.write_image(folder / "tpl-MNIInfant_cohort-2_res-1_T1w.nii.gz")
    found = find_template(tmp_path, "MNIInfant", cohort="2")
    assert (found.space, found.mask) == ("MNIInfant+2", None)
    with pytest.raises(InputError, match="cohort 1"):
        find_template(tmp_path, "MNIInfant", cohort="1")


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("probseg", [True, False])
def test_every_variant_is_wired(data, how, tmp_path, monkeypatch, mask, probseg):
    templates.use_home(templates.write_home(tmp_path / "tf", mask=mask), monkeypatch)
    anat = tmp_path / "out" / "sub-01" / "anat"
    dataset.write_image(anat / "sub-01_seg-brainseg_dseg.nii.gz")
    dataset.write_image(anat / "sub-01_desc-brain_mask.nii.gz")
    if probseg:
        for name in ("dseg", "probseg"):
            dataset.write_image(anat / f"sub-01_seg-brainseg_{name}.nii.gz")
            (anat / f"sub-01_seg-brainseg_{name}.json").write_text('{"ModelDigest": "x"}')
    (subject,) = find_subjects(data, ["01"])
    plan = plan_spaces(
        subject, bids_dir=data, output_dir=tmp_path / "out", templates=read_spaces([MNI])
    )
    assert not plan.errors
    (scan,) = plan.scans
    assert (scan.probseg is not None) == probseg
    workflow = init_subject_wf(plan, how)
    assert list(wiring_faults(workflow)) == []
    nodes = {node.name: node for node in workflow._create_flat_graph().nodes}
    fed = {
        edge[1]
        for *_, data_ in workflow._create_flat_graph().edges(data=True)
        for edge in data_["connect"]
    }
    assert ("moving_mask" in fed) == mask
    assert nodes["register"].mem_gb > 1


def write_transform(output, image_sha256):
    """Labels of sub-01 with their probabilities, and a transform of some image."""
    anat = output / "sub-01" / "anat"
    for name in ("dseg", "probseg"):
        dataset.write_image(anat / f"sub-01_seg-brainseg_{name}.nii.gz")
    transform = anat / "sub-01_from-T1w_to-MNI_mode-image_xfm.h5"
    transform.write_bytes(b"transform")
    write_json(sidecar(transform), {"InputSHA256": image_sha256})
    return transform


@pytest.mark.parametrize("copied", [True, False])
def test_what_is_written_for_other_programs_is_wired(data, how, tmp_path, copied):
    output = tmp_path / "out"
    image = data / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    transform = write_transform(output, sha256(image))
    if not copied:
        transform.unlink()
    (subject,) = find_subjects(data, ["01"])
    where = {"bids_dir": data, "output_dir": output}
    plan, notes = plan_precomputed(subject, **where)
    assert not notes
    for own in (plan, plan_freesurfer(subject, **where)):
        assert own.to_run
        workflow = init_subject_wf(own, how)
        assert list(wiring_faults(workflow)) == []
        saved = {
            node.inputs.path
            for node in workflow._create_flat_graph().nodes
            if node.name.startswith("ds_")
        }
        assert saved == {str(path) for scan in own.scans for path in scan.outputs.values()}
    assert len(plan.scans[0].outputs) == 5 + copied


@pytest.mark.input(
    "runs",
    "`--probseg` without `--output-spaces`, after an image that had transforms was replaced",
    "transforms of the earlier image are not handed to sMRIPrep; copies of them are removed",
    0,
)
def test_transforms_of_an_earlier_image_are_not_handed_on(data, how, tmp_path):
    output = tmp_path / "out"
    transform = write_transform(output, "of an earlier image")
    copy = output / "derivatives" / "smriprep-inputs" / "sub-01" / "anat" / transform.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(transform.read_bytes())
    (subject,) = find_subjects(data, ["01"])
    plan, _ = plan_precomputed(subject, bids_dir=data, output_dir=output)
    (job,) = plan.scans
    assert (copy not in job.outputs.values(), job.outdated) == (True, (copy,))
    saved = {
        node.name: node.inputs for node in init_subject_wf(plan, how)._create_flat_graph().nodes
    }
    assert saved["ds_mask"].outdated == [str(copy)]


def test_what_was_written_for_the_only_image_is_warned_of_when_there_is_a_second(tmp_path):
    data = dataset.write_dataset(tmp_path / "data", "sub-01_run-1_T1w", "sub-01_run-2_T1w")
    output = tmp_path / "out"
    for run in (1, 2):
        dataset.write_image(output / f"sub-01/anat/sub-01_run-{run}_seg-brainseg_dseg.nii.gz")
    mask = output / "derivatives/smriprep-inputs/sub-01/anat/sub-01_run-1_desc-brain_mask.nii.gz"
    dataset.write_image(mask)
    (subject,) = find_subjects(data, ["01"])
    plan, notes = plan_precomputed(subject, bids_dir=data, output_dir=output)
    assert not plan.scans
    assert [note.level for note in notes] == [logging.WARNING, logging.INFO]
    assert str(mask) in notes[0].text
