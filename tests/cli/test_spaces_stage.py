# SPDX-License-Identifier: Apache-2.0
"""Results in standard spaces, from the command line to the files, with a stand-in for ANTs."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.bids.inputs import find_subjects
from brainseg_bids.bids.templates import read_spaces
from brainseg_bids.images import read_grid
from brainseg_bids.stages.space_jobs import plan_spaces
from tests.fakes import dataset, templates
from tests.fakes.transforms import write_composite

MNI = templates.NAME


@pytest.fixture
def home(tmp_path, monkeypatch):
    return templates.use_home(templates.write_home(tmp_path / "templates"), monkeypatch)


@pytest.fixture(scope="module")
def in_mni(lasting_app):
    """A run of one T1w and one T2w image to the template at two resolutions."""
    lasting_app.images("sub-01_T1w", "sub-01_T2w")
    with pytest.MonkeyPatch.context() as patch:
        templates.use_home(templates.write_home(lasting_app.root / "templates"), patch)
        yield lasting_app(
            "--output-spaces", f"{MNI}:res-1:res-2", "--tool", templates.REGISTER,
            "--freesurfer-export",
        )  # fmt: skip


def test_a_missing_template_or_program_ends_the_run_before_anything_is_segmented(
    app,
    home,
    monkeypatch,
):
    app.images("sub-01_T1w")
    done = app("--output-spaces", f"{MNI}:res-3")
    assert done.code == 2
    assert "templateflow get" in done.log
    monkeypatch.setattr("brainseg_bids.interfaces.register.find_spec", lambda _: None)
    done = app("--output-spaces", MNI)
    assert done.code == 127
    assert "pip install antspyx" in done.log
    assert not list(done.output.rglob("*.nii.gz"))


def test_labels_transforms_and_pictures_are_written_under_valid_names(in_mni):
    done = in_mni
    assert done.code == 0, done.log
    anat = done.output / "sub-01" / "anat"
    for res in ("1", "2"):
        stem = f"sub-01_space-{MNI}"
        template = nib.load(
            done.output.parent / "templates" / f"tpl-{MNI}" / f"tpl-{MNI}_res-0{res}_T1w.nii.gz"
        )
        for name in (
            f"{stem}_seg-brainseg_res-{res}_dseg",
            f"{stem}_seg-tissue_res-{res}_dseg",
            f"{stem}_res-{res}_desc-brain_mask",
            f"{stem}_res-{res}_desc-warped_T1w",
        ):
            image = nib.load(anat / f"{name}.nii.gz")
            assert image.shape == template.shape
            assert np.allclose(image.affine, template.affine)
            said = json.loads((anat / f"{name}.json").read_text())
            assert said["Resolution"]
        figure = f"{stem}_seg-brainseg_res-{res}_dseg.png"
        assert (done.output / "sub-01" / "figures" / figure).is_file()
    for ends in (f"from-T1w_to-{MNI}", f"from-{MNI}_to-T1w"):
        assert (anat / f"sub-01_{ends}_mode-image_xfm.h5").is_file()
        said = json.loads((anat / f"sub-01_{ends}_mode-image_xfm.json").read_text())
        assert said["DrivenBy"] == "brains"
    assert not list(anat.glob("*space-T2w*res-*"))
    assert "sub-01 T2w: not" in done.log
    assert MNI in (done.output / "sub-01.html").read_text()
    assert "[@avants2011]" in (done.output / "logs" / "CITATION.md").read_text()
    dataset.assert_valid_bids(done.output)


def test_an_image_that_lies_there_already_keeps_its_labels(in_mni):
    done = in_mni
    anat = done.output / "sub-01" / "anat"
    own = nib.load(anat / "sub-01_seg-brainseg_dseg.nii.gz")
    there = nib.load(anat / f"sub-01_space-{MNI}_seg-brainseg_res-1_dseg.nii.gz")
    codes = np.asanyarray(there.dataobj)
    volumes = [
        [np.isin(np.asanyarray(i.dataobj), sides).sum() * np.prod(i.header.get_zooms())
         for sides in ((2, 41), (3, 42))] for i in (own, there)
    ]  # fmt: skip
    assert set(np.unique(codes)) == {0, 2, 3, 24, 41, 42}
    assert np.allclose(*volumes, rtol=0.02)


def test_what_is_there_is_reused_until_labels_template_or_probabilities_change(in_mni):
    data, output = in_mni.data, in_mni.output
    (subject,) = find_subjects(data, ["01"])

    def reason(wanted=f"{MNI}:res-1"):
        (scan,) = plan_spaces(
            subject, bids_dir=data, output_dir=output, templates=read_spaces([wanted])
        ).scans
        return f"{scan.action}: {scan.reason}"

    assert reason() == "reuse: results are there already"
    image = next((output.parent / "templates").rglob("*res-01_T1w.nii.gz"))
    before = image.read_bytes()
    dataset.write_image(image, shape=(20, 22, 18), voxel_size_mm=5.0, seed=9)
    assert "template has changed" in reason()
    image.write_bytes(before)
    for pattern, told in {
        "*res-02_T1w.nii.gz": "the template has changed",
        "*res-01*_mask.nii.gz": "the template's mask has changed",
    }.items():
        other = next((output.parent / "templates").rglob(pattern))
        before = other.read_bytes()
        dataset.write_image(other, shape=(20, 22, 18), voxel_size_mm=5.0, seed=9)
        assert f"run: {told}" in reason(f"{MNI}:res-1:res-2")
        other.write_bytes(before)
        assert reason(f"{MNI}:res-1:res-2") == "reuse: results are there already"
    before = image.read_bytes()
    anat = output / "sub-01" / "anat"
    stem = anat / "sub-01_seg-brainseg"
    shutil.copy(f"{stem}_dseg.json", f"{stem}_probseg.json")
    shutil.copy(f"{stem}_dseg.nii.gz", f"{stem}_probseg.nii.gz")
    assert "probabilities have changed" in reason()
    Path(f"{stem}_probseg.nii.gz").unlink()
    Path(f"{stem}_probseg.json").unlink()
    labels = Path(f"{stem}_dseg.nii.gz")
    before = labels.read_bytes()
    dataset.write_image(labels)
    assert "label map has" in reason()
    labels.write_bytes(before)
    transform = anat / f"sub-01_from-{MNI}_to-T1w_mode-image_xfm.h5"
    transform.rename(anat / "away")
    assert "is missing" in reason()
    (anat / "away").rename(transform)
    assert reason() == "reuse: results are there already"


def test_freesurfers_files_lie_in_a_dataset_of_their_own(in_mni):
    home = in_mni.output / "derivatives" / "freesurfer-labels"
    for subject in ("sub-01", "sub-01_space-T2w"):
        names = {path.name for path in (home / subject / "mri").iterdir()}
        assert names == {
            "aseg.mgz", "aseg.json", "aseg_LUT.txt", "head.mgz", "head.json", "head_LUT.txt"
        }  # fmt: skip
    said = json.loads((home / "sub-01" / "mri" / "aseg.json").read_text())
    assert said["LabelsOf"] == "bids:brainseg:sub-01/anat/sub-01_seg-brainseg_dseg.nii.gz"
    own = nib.load(in_mni.output / "sub-01" / "anat" / "sub-01_seg-brainseg_dseg.nii.gz")
    head = nib.load(home / "sub-01" / "mri" / "head.mgz")
    assert np.array_equal(np.asanyarray(head.dataobj), np.asanyarray(own.dataobj))
    assert "recon-all" in (home / "README.md").read_text()
    described = json.loads((home / "dataset_description.json").read_text())
    assert described["DatasetLinks"] == {"brainseg": "../.."}
    dataset.assert_valid_bids(home)


def leave_transform(app, *, shift_mm=0.0, subject="sub-01"):
    """What fMRIPrep leaves of a subject, 7 mm to the left of where the template is."""
    anat = app.root / "fmriprep" / subject / "anat"
    affine = np.eye(4)
    affine[0, 3] = -7
    field = read_grid(next((app.root / "templates").rglob("*res-02_T1w.nii.gz")))
    path = anat / f"{subject}_from-T1w_to-{MNI}_mode-image_xfm.h5"
    write_composite(path, affine, field)
    image = nib.load(app.root / "data" / subject / "anat" / f"{subject}_T1w.nii.gz")
    affine = image.affine.copy()
    affine[2, 3] += shift_mm
    nib.save(
        nib.Nifti1Image(np.asanyarray(image.dataobj), affine),
        anat / f"{subject}_desc-preproc_T1w.nii.gz",
    )
    return path


def test_a_transform_of_fmriprep_is_applied_and_nothing_is_registered(app, home, monkeypatch):
    app.images("sub-01_T1w")
    path = leave_transform(app)
    given = ("--output-spaces", f"{MNI}:res-2", "-d", f"fmriprep={app.root / 'fmriprep'}")
    done = app(*given, "--tool", "ants=false")  # a registration would fail
    assert done.code == 0, done.log
    anat = done.output / "sub-01" / "anat"
    stem = anat / f"sub-01_space-{MNI}_seg-brainseg_res-2_dseg"
    said = json.loads(Path(f"{stem}.json").read_text())
    assert said["Registration"] == f"bids:fmriprep:sub-01/anat/{path.name}"
    assert said["Registration"] in said["Sources"]
    assert not list(anat.glob("*_xfm.h5"))
    moved = [
        np.average(np.argwhere(np.asanyarray(image.dataobj) > 0) @ image.affine[:3, :3].T, axis=0)
        + image.affine[:3, 3]
        for image in (
            nib.load(f"{stem}.nii.gz"),
            nib.load(anat / "sub-01_seg-brainseg_dseg.nii.gz"),
        )
    ]
    assert np.allclose(moved[0] - moved[1], [7, 0, 0], atol=1.5)
    assert "fmriprep" in (done.output / "logs" / "CITATION.md").read_text()
    assert "bids:fmriprep" in (done.output / "sub-01.html").read_text()
    dataset.assert_valid_bids(done.output)
    again = app(*given, "--tool", "ants=false")
    assert again.code == 0
    assert "results are there already" in again.log or "reused" in again.log
    path.write_bytes(path.read_bytes() + b" ")
    (subject,) = find_subjects(done.data, ["01"])
    (job,) = plan_spaces(
        subject,
        bids_dir=done.data,
        output_dir=done.output,
        templates=read_spaces([f"{MNI}:res-2"]),
        derivatives={"fmriprep": app.root / "fmriprep"},
    ).scans
    assert (job.action, "transform has changed" in job.reason) == ("run", True)


def test_a_transform_of_another_image_ends_the_run_before_anything_is_segmented(app, home):
    app.images("sub-01_T1w")
    path = leave_transform(app, shift_mm=2)
    done = app("--output-spaces", f"{MNI}:res-2", "-d", f"fmriprep={app.root / 'fmriprep'}")
    assert done.code == 2
    assert path.name in done.said
    assert not list(done.output.rglob("*.nii.gz"))


@pytest.mark.parametrize("fault", ["another image", "damaged"])
@pytest.mark.input(
    "metadata",
    "`-d fmriprep=` with one image's transform damaged or of other voxels",
    "a warning before anything runs; this image is not brought to the space, the others are",
    1,
)
def test_one_wrong_transform_leaves_the_other_participants_alone(app, home, fault):
    app.images("sub-01_T1w", "sub-02_T1w")
    wrong = leave_transform(app, shift_mm=2 if fault == "another image" else 0)
    leave_transform(app, subject="sub-02")
    if fault == "damaged":
        wrong.write_bytes(wrong.read_bytes()[: wrong.stat().st_size // 2])
    given = ("--output-spaces", f"{MNI}:res-2", "-d", f"fmriprep={app.root / 'fmriprep'}")
    done = app(*given, "--tool", "ants=false")  # a registration would fail
    assert done.code == 1
    assert str(wrong) in done.said
    assert "1 of 2" in done.said
    there = {path.parent.parent.name for path in done.output.rglob(f"*space-{MNI}*_dseg.nii.gz")}
    assert there == {"sub-02"}
    assert (done.output / "sub-01" / "anat" / "sub-01_seg-brainseg_dseg.nii.gz").is_file()
    again = app(*given, "--tool", "ants=false")
    assert again.code == 1


def test_a_derivative_that_nothing_is_taken_from_is_refused(app, home):
    app.images("sub-01_T1w")
    for words, told in (
        (["-d", f"fmriprep={app.root}"], "--output-spaces"),
        (["-d", f"samseg={app.root}", "--output-spaces", MNI], "samseg"),
    ):
        with pytest.raises(SystemExit) as ended:
            app(*words)
        assert ended.value.code == 2
        assert told in app.capture.readouterr().err
