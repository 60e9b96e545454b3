# SPDX-License-Identifier: Apache-2.0
"""``--stages upsample`` from one end to the other."""

import json

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import read_label_map, write_label_map
from brainseg_bids.stages import upsample
from brainseg_bids.stages.jobs import image_of
from tests.cli.test_headlabels import SAMSEG, tools, write_heads
from tests.fakes import dataset
from tests.phantom.head import phantom_head

FULLHEAD = LabelTable.packaged("fullhead")
FINER = ("--stages", "upsample", "--target-voxel-size", "2")


def give_maps(app, *subjects: str) -> tuple[str, ...]:
    """Heads and maps of them; arguments that take the maps."""
    write_heads(app.root / "data", *(f"sub-{subject}_T1w" for subject in subjects))
    (app.root / "maps").mkdir()
    for subject in subjects:
        write_label_map(phantom_head(), app.root / "maps" / f"sub-{subject}.nii.gz")
    return ("--head-tool", "fullhead", "-d", f"fullhead={app.root / 'maps'}")


@pytest.fixture(scope="module")
def finished(lasting_app):
    given = give_maps(lasting_app, "01", "02")
    return lasting_app("--stages", "headlabels", *FINER[1:], *given)


def finer(done, ending: str):
    return done.output / "sub-01" / "anat" / f"sub-01_seg-fullhead_res-2mm_{ending}"


def test_heads_are_labelled_and_upsampled_in_one_command(finished):
    assert finished.code == 0, finished.log
    names = [name for name in finished.files if "res-2mm" in name and "sub-01" in name]
    assert names == [
        "sub-01/anat/sub-01_seg-fullhead_res-2mm_desc-volumes_morph.json",
        "sub-01/anat/sub-01_seg-fullhead_res-2mm_desc-volumes_morph.tsv",
        "sub-01/anat/sub-01_seg-fullhead_res-2mm_dseg.json",
        "sub-01/anat/sub-01_seg-fullhead_res-2mm_dseg.nii.gz",
        "sub-01/figures/sub-01_seg-fullhead_res-2mm_dseg.png",
    ]
    dataset.assert_valid_bids(finished.output)


def test_maps_of_other_contrasts_are_called_by_their_image_and_standard_spaces_are_left(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for name in ("sub-01", "sub-01_space-UNIT1", "sub-01_space-MNIPediatricAsym"):
        (anat / f"{name}_seg-fullhead_dseg.nii.gz").touch()
    maps = upsample.find_maps(tmp_path)["01"]
    titles = [upsample._title(scan, upsample.Target((0.6,))) for scan in maps]
    assert titles == ["sub-01 at 0.6 mm", "sub-01 UNIT1 at 0.6 mm"]
    assert [image_of(title) for title in titles] == ["sub-01 T1w", "sub-01 UNIT1"]


def test_the_finer_map_covers_the_same_box_and_keeps_volumes(finished):
    coarse = read_label_map(
        finished.output / "sub-01" / "anat" / "sub-01_seg-fullhead_dseg.nii.gz", FULLHEAD
    )
    fine = read_label_map(finer(finished, "dseg.nii.gz"), FULLHEAD)
    assert fine.grid.voxel_size_mm == (2, 2, 2)
    assert np.allclose(fine.grid.extent_mm, coarse.grid.extent_mm)
    assert np.allclose(fine.grid.center_mm, coarse.grid.center_mm)
    before, after = coarse.volumes_mm3(), fine.volumes_mm3()
    assert {code for code in before if before[code]} == {code for code in after if after[code]}
    for code, volume in before.items():
        assert after[code] == pytest.approx(volume, rel=0.15)


def test_the_json_holds_resolution_and_certificate(finished):
    said = json.loads(finer(finished, "dseg.json").read_text())
    assert "2 mm" in said["Resolution"]
    assert said["Sources"] == ["bids::sub-01/anat/sub-01_seg-fullhead_dseg.nii.gz"]
    assert said["Certificate"]["round_trip_mean_dice"] > 0.95
    assert said["Certificate"]["labels_invented"] == []
    assert said["Method"] == "labels, fitted"
    page = (finished.output / "sub-01.html").read_text()
    assert "Dice" in page


def test_a_second_run_does_nothing_and_another_kernel_does(finished, lasting_app):
    again = lasting_app(*FINER)
    assert again.code == 0
    assert "reused" in again.log
    other = lasting_app(*FINER, "--upsample-kernel", "lossless", "--participant-label", "02")
    assert other.code == 0, other.log
    assert "sub-02 at 2" in other.log
    path = other.output / "sub-02" / "anat" / "sub-02_seg-fullhead_res-2mm_dseg.json"
    proof = json.loads(path.read_text())["Certificate"]
    assert proof["round_trip_equal_voxels"] == 1


def test_a_map_that_changed_is_upsampled_again(app):
    given = give_maps(app, "01")
    assert app("--stages", "headlabels", *FINER[1:], *given).code == 0
    changed = phantom_head()
    changed.voxels[20:30, 20:30, 20:30] = 16
    write_label_map(changed, app.root / "maps" / "sub-01.nii.gz")
    again = app("--stages", "headlabels", *FINER[1:], *given)
    assert again.code == 0, again.log
    assert "map has changed" in again.log
    assert "sub-01 at 2" in again.log


def test_kept_probabilities_are_used(app):
    write_heads(app.root / "data", "sub-01_T1w")
    done = app("--stages", "headlabels", *FINER[1:], *SAMSEG[2:], *tools("samseg"))
    assert done.code == 0, done.log
    said = json.loads(finer(done, "dseg.json").read_text())
    assert said["Method"] == "probabilities, cubic"


def test_without_maps_it_says_what_to_do_first(app):
    app.images("sub-01_T1w")
    done = app(*FINER)
    assert done.code == 2
    assert "--stages headlabels first" in done.log


def test_a_target_that_does_not_fit_is_refused_with_its_size_before_it_begins(app):
    given = give_maps(app, "01")
    done = app(
        "--stages", "headlabels", "upsample", "--target-voxel-size", "0.1", *given, "--mem", "4G"
    )
    assert done.code == 1
    (line,) = [line for line in done.log.splitlines() if "ERROR: sub-01 at 0.1 mm" in line]
    assert "Choose larger voxels" in line
    assert not list(done.output.rglob("*res-*"))


def test_a_target_coarser_than_the_map_is_refused(finished, lasting_app):
    done = lasting_app("--stages", "upsample", "--target-voxel-size", "5")
    assert done.code == 1
    lines = [line for line in done.log.splitlines() if "ERROR: sub-01 at 5 mm" in line]
    assert len(lines) == 1
    assert "5 mm" in lines[0]
    assert not list(done.output.rglob("*res-5mm*"))


def test_a_damaged_map_is_one_clear_line(finished, lasting_app):
    path = finished.output / "sub-02" / "anat" / "sub-02_seg-fullhead_dseg.nii.gz"
    whole = path.read_bytes()
    strange = nib.load(path)
    voxels = np.asarray(strange.dataobj).copy()
    voxels[3, 3, 3] = 999
    nib.save(nib.Nifti1Image(voxels, strange.affine), path)
    done = lasting_app("--stages", "upsample", "--target-voxel-size", "3")
    path.write_bytes(whole)
    assert done.code == 1
    (line,) = [line for line in done.log.splitlines() if "ERROR: sub-02 at 3 mm" in line]
    assert "999 (1 voxel)" in line
    assert (done.output / "sub-01" / "anat" / "sub-01_seg-fullhead_res-3mm_dseg.nii.gz").is_file()
