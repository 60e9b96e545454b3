# SPDX-License-Identifier: Apache-2.0
"""External tools: how each is called, what it leaves, and what is said when it fails.

Stand-ins (``tests/fakes/tools``) take the tools' place; they write what the real ones write.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from nipype.pipeline import engine as pe

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import UnknownLabelError
from brainseg_bids.documents import InputError
from brainseg_bids.images import (
    holds_numbers_only,
    read_grid,
    read_label_map,
    read_posteriors,
    read_volume,
    write_volume,
)
from brainseg_bids.interfaces.tools import _process, find_tool, tool_names
from brainseg_bids.interfaces.tools._failures import (
    NO_KEY,
    MissingToolError,
    ToolError,
    error_line,
    failure,
    log_tail,
)
from brainseg_bids.interfaces.tools._process import Ended
from brainseg_bids.interfaces.tools.base import find_program
from brainseg_bids.interfaces.tools.charm import read_transforms, transform_to_force
from brainseg_bids.interfaces.tools.gouhfi import Gouhfi
from brainseg_bids.interfaces.tools.synthseg import measure_quality
from brainseg_bids.nets.bundle import ModelBundle
from tests.fakes import dataset
from tests.fakes.tools import fake_command, install, on_path
from tests.fakes.tools.charm import check_forms
from tests.fakes.tools.samseg import NAMES
from tests.made_nifti import contradict
from tests.phantom.head import phantom_grid, phantom_head, phantom_image

RUN = (
    "charm", "samseg", "synthseg", "fastsurfer", "gouhfi", "brainchop", "brainchop104", "siam",
    "supersynth",
)  # fmt: skip
"""Tools that are programs of others."""
IN_PYTHON = (sys.executable, "-c")


@pytest.fixture
def image(tmp_path):
    """The middle of the phantom, in a folder whose name few programs like."""
    grid = phantom_grid((20, 22, 18))
    labels = phantom_head(grid=grid)
    path = tmp_path / "ünï 'code' \"(1)\"" / "sub-01_T1w.nii.gz"
    path.parent.mkdir()
    return write_volume(phantom_image(labels, np.random.default_rng(2)), grid, path)


@pytest.fixture(autouse=True)
def _in_a_folder_with_an_odd_name(tmp_path, monkeypatch):
    folder = tmp_path / "scratch ä's"
    folder.mkdir()
    monkeypatch.chdir(folder)


def interface(name, image, *switches, **inputs):
    inputs = {"subject": "sub-01_ses-A", "command": shlex.split(fake_command(name, *switches))} | (
        inputs
    )
    return find_tool(name).interface(image=str(image), **inputs)


def failed(made) -> ToolError:
    """The error of a run; it is one line that names the log."""
    with pytest.raises(ToolError) as caught:
        made.run()
    assert "\n" not in str(caught.value)
    assert str(Path(f"{made.name}.log").absolute()) in str(caught.value)
    return caught.value


def facts_of(outputs) -> dict:
    return json.loads(Path(outputs.facts).read_text(encoding="utf-8"))


# What each leaves


@pytest.mark.parametrize("name", RUN)
def test_a_tool_leaves_its_labels_its_log_and_facts(name, image):
    outputs = interface(name, image, threads=2).run().outputs
    crosswalk = find_tool(name).crosswalk()
    labels = crosswalk.translate(read_label_map(outputs.labels, crosswalk.source_table()))
    facts = facts_of(outputs)
    assert facts["Tool"] == name
    assert facts["Seconds"] > 0
    assert facts["PeakMemoryGiB"] > 0.01
    assert fake_command(name).partition(" ")[0] in facts["Command"]
    assert Path(outputs.log).is_file()
    assert labels.grid.is_close(read_grid(image)) == find_tool(name).same_grid
    to_voxel = np.linalg.inv(labels.grid.affine)
    for x_mm, code in ((10, 49), (-10, 10)):  # thalami: right is right
        at = to_voxel @ [x_mm, -8, 6, 1]
        found = labels.voxels[tuple(np.rint(at[:3]).astype(int))]
        assert found == (10 if 10 in crosswalk.coarse else code)  # left stands for either there


def command_line(made) -> list[str]:
    """What was told, without the program."""
    made.run()
    (command,) = made.commands()
    return command[2:]


def test_charm_is_told_to_stop_before_the_surfaces(image):
    assert command_line(interface("charm", image)) == [
        "sub-01_ses-A", "input.nii.gz", "--initatlas", "--segment"
    ]  # fmt: skip


def test_samseg_keeps_probabilities(image):
    assert command_line(interface("samseg", image, threads=2)) == [
        "-i", "input.nii.gz", "-o", "samseg", "--threads", "2", "--save-posteriors"
    ]  # fmt: skip


def test_words_with_spaces_and_quotes_stay_whole(image, bundle):
    options = Path("it's so.json").absolute()
    options.write_text("{}")
    made = interface("samseg", image, options=str(options))
    assert made.arguments()[-2:] == ["--options", str(options)]
    assert str(bundle.path) in own(bundle, image).arguments()


def test_an_image_with_a_plain_path_is_given_by_that_path(image):
    # Containers see folders that were bound, not links into others.
    plain = Path("/tmp") / f"brainseg-test-{os.getpid()}.nii.gz"
    plain.symlink_to(image)
    try:
        assert interface("samseg", plain).arguments()[1] == str(plain)
    finally:
        plain.unlink()


@pytest.mark.input(
    "geometry",
    "an image in microns or metres for an external tool (`--stages headlabels`)",
    "the tool gets a copy in mm, and its labels lie on the image",
    0,
)
def test_a_tool_gets_mm_whatever_the_images_unit(image):
    grid = replace(read_grid(image), file_unit="micron")
    write_volume(read_volume(image)[0], grid, image)
    made = interface("samseg", image)
    outputs = made.run().outputs
    assert made.arguments()[1] == "input.nii.gz"
    assert read_grid("input.nii.gz") == grid
    assert read_grid("input.nii.gz").file_unit == "mm"
    assert read_grid(outputs.labels).is_close(grid)


@pytest.mark.input(
    "geometry",
    "qform and sform that disagree, of an image for an external tool (`--stages headlabels`)",
    "the tool gets a copy with both as the sform, whichever it goes by, and its labels lie on the "
    "image; a warning says how far they are apart",
    0,
)
def test_a_tool_gets_one_place_where_qform_and_sform_disagree(image):
    contradict(image)
    grid = read_grid(image)
    made = interface("samseg", image)
    outputs = made.run().outputs
    assert made.arguments()[1] == "input.nii.gz"
    given = nib.load("input.nii.gz")
    np.testing.assert_allclose(given.get_qform(), grid.affine, atol=1e-4)
    np.testing.assert_allclose(given.get_sform(), grid.affine, atol=1e-4)
    assert read_grid(outputs.labels).is_close(grid)


@pytest.mark.input(
    "intensities",
    "NaN in the background of an image for an external tool (`--stages headlabels`)",
    "the tool gets a copy with the level of the background there",
    0,
)
def test_a_tool_gets_numbers_only(image):
    voxels, grid = read_volume(image)
    voxels[0] = np.nan
    write_volume(voxels, grid, image)
    made = interface("samseg", image)
    made.run()
    assert made.arguments()[1] == "input.nii.gz"
    given, _ = read_volume("input.nii.gz")
    assert holds_numbers_only("input.nii.gz")
    assert not holds_numbers_only(image)
    np.testing.assert_array_equal(given[1:], voxels[1:])


def test_synthseg_is_told_threads_and_where_to_compute(image):
    assert command_line(interface("synthseg", image, threads=3, mode="standard")) == [
        "--i", "input.nii.gz", "--o", "synthseg.nii.gz", "--threads", "3", "--cpu"
    ]  # fmt: skip
    made = interface("synthseg", image, mode="standard", use_gpu=True)
    assert "--cpu" not in made.arguments()


def test_fastsurfer_gets_absolute_paths_without_spaces(image):
    made = interface("fastsurfer", image, threads=2)
    facts = facts_of(made.run().outputs)
    words = shlex.split(facts["Command"])[2:]
    told = dict(zip(words[::2], words[1::2], strict=False))
    assert told["--t1"].startswith("/")
    assert " " not in told["--t1"] + told["--sd"]
    assert words[6:] == [
        "--seg_only", "--no_cereb", "--no_hypothal", "--no_biasfield", "--threads", "2",
        "--device", "cpu", "--viewagg_device", "cpu",
    ]  # fmt: skip
    assert not Path(told["--sd"]).exists()  # the link with a plain name is gone
    assert "cuda" in interface("fastsurfer", image, use_gpu=True).arguments()


def test_fastsurfers_grid_is_conformed(image):
    grid = read_grid(interface("fastsurfer", image).run().outputs.labels)
    assert grid.shape == (256, 256, 256)
    assert nib.aff2axcodes(grid.affine) == ("L", "I", "A")


def test_threads_are_what_the_tool_can_use_and_reach_its_environment(image):
    code = "import os, sys; sys.exit(f'error {os.environ[\"OMP_NUM_THREADS\"]} {sys.argv[5:7]}')"
    error = failed(interface("samseg", image, command=(*IN_PYTHON, code), threads=64))
    assert "error 4 ['--threads', '4']" in str(error)


def test_synthseg_runs_with_the_variables_that_save_memory(image):
    code = "import os, sys; sys.exit('error ' + os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    assert "(error 0)" in str(failed(interface("synthseg", image, command=(*IN_PYTHON, code))))


def test_a_subject_is_no_path(image):
    with pytest.raises(ToolError, match=r"\.\./x"):
        interface("charm", image, subject="../x").run()


# SAMSEG's probabilities


def test_samsegs_probabilities_are_found_by_their_names(image):
    outputs = interface("samseg", image).run().outputs
    by_name = {
        Path(p).stem: c for p, c in zip(outputs.posteriors, outputs.posterior_codes, strict=True)
    }
    assert by_name == {name: code for code, name in NAMES.items()}
    grid, posteriors = read_posteriors(outputs.posteriors, outputs.posterior_codes)
    volumes = dict(posteriors)
    assert np.allclose(sum(volumes.values()), 1, atol=1e-3)
    labels = read_label_map(outputs.labels, find_tool("samseg").crosswalk().source_table())
    codes = np.array(list(volumes))
    assert np.array_equal(codes[np.argmax(list(volumes.values()), axis=0)], labels.voxels)
    assert grid.is_close(read_grid(image))


def test_a_missing_probability_is_told(image):
    remove = (
        "import pathlib, runpy, sys; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); "
        "pathlib.Path('samseg/posteriors/CSF.mgz').unlink()"
    )
    command = (*IN_PYTHON, remove, shlex.split(fake_command("samseg"))[1])
    assert "wrote no samseg/posteriors/CSF.mgz" in str(
        failed(interface("samseg", image, command=command))
    )


def test_probabilities_can_be_left_out(image):
    made = interface("samseg", image, save_posteriors=False)
    outputs = made.run().outputs
    assert "--save-posteriors" not in made.arguments()
    assert not outputs.posteriors


@pytest.mark.shared_data
def test_what_samseg_really_wrote_is_understood(shared_data):
    table = find_tool("samseg").crosswalk().source_table()
    labels = read_label_map(shared_data / "samseg_output_example" / "seg.mgz", table)
    assert labels.grid.is_close(read_grid(shared_data / "colin27" / "ch2.nii.gz"))
    assert labels.volumes_mm3()[165] > 5e5


# CHARM's header and folder


def write_header(path: Path, *, q_code: int, s_code: int, shift_mm=0.0, tilt=0.0, order="<"):
    """A box of 200 mm about the origin, first axis to the left, nodding by ``tilt`` radians."""
    affine = np.eye(4)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine[:3, :3] = turn * [-32, 28, 24]
    affine[:3, 3] = -affine[:3, :3] @ [2.5, 3, 3.5]
    file = nib.Nifti1Image(
        np.random.default_rng(1).normal(100, 9, (6, 7, 8)).astype(order + "f4"), None,
        header=nib.Nifti1Header(endianness=order),
    )  # fmt: skip
    file.set_qform(affine, q_code)
    affine[:3, 3] += shift_mm
    file.set_sform(affine, s_code)
    nib.save(file, path)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_transforms_are_read_as_nibabel_reads_them(name, order):
    path = write_header(Path(name), q_code=1, s_code=2, shift_mm=3, tilt=0.2, order=order)
    file, read = nib.load(path), read_transforms(path)
    assert np.allclose(read.qform, file.get_qform(), atol=1e-5)
    assert np.allclose(read.sform, file.get_sform(), atol=1e-5)
    assert (read.qform_code, read.sform_code) == (1, 2)


@pytest.mark.parametrize(
    ("header", "forced"),
    [
        ({"q_code": 1, "s_code": 1}, ""),
        ({"q_code": 0, "s_code": 1}, "sform"),
        ({"q_code": 1, "s_code": 1, "shift_mm": 0.1}, "sform"),
        ({"q_code": 1, "s_code": 1, "shift_mm": 9}, "sform"),
        ({"q_code": 1, "s_code": 0, "shift_mm": 5}, "qform"),
    ],
)
def test_charm_is_told_which_transform_counts_only_where_it_would_refuse(header, forced):
    path = write_header(Path("T1w.nii.gz"), **header)
    assert transform_to_force(path) == forced
    made = interface("charm", path)
    outputs = made.run().outputs
    assert facts_of(outputs)["Header"] == (f"--force{forced}" if forced else "as it is")
    assert read_grid(outputs.labels).is_close(read_grid(path))  # where we think the voxels are


@pytest.mark.parametrize("tilt", np.linspace(0, 0.6, 7))
def test_rounding_in_tilted_headers_is_seen_as_charm_sees_it(tilt):
    path = write_header(Path("T1w.nii.gz"), q_code=1, s_code=1, tilt=tilt)
    try:
        check_forms(nib.load(path), False, False)
        refused = False
    except ValueError:
        refused = True
    assert transform_to_force(path) == ("sform" if refused else "")


def test_the_stand_in_refuses_what_charm_refuses():
    # Transforms that are farther apart do not reach it: a copy with one of them is made.
    path = write_header(Path("T1w.nii.gz"), q_code=1, s_code=1, shift_mm=0.05)
    error = failed(interface("charm", path, header="as it is"))
    assert "exit code 1 (ValueError: The qform and sform matrices do not match" in str(error)


def test_an_image_without_orientation_is_refused_before_charm_begins():
    path = write_header(Path("T1w.nii.gz"), q_code=0, s_code=0)
    with pytest.raises(ToolError, match=r"T1w\.nii\.gz: "):
        interface("charm", path).run()
    assert not Path("m2m_sub-01_ses-A").exists()


def test_what_a_killed_charm_has_left_is_no_obstacle(image):
    failed(interface("charm", image, "sigkill"))
    assert Path("m2m_sub-01_ses-A").is_dir()
    assert Path(interface("charm", image).run().outputs.labels).is_file()


def test_charms_threads_are_set_in_a_copy_of_simnibs_settings(image, tmp_path):
    home = tmp_path / "simnibs_env"
    package = home / "lib" / "python3.11" / "site-packages" / "simnibs"
    package.mkdir(parents=True)
    (package / "charm.ini").write_text("[general]\nthreads = 8\n\n[segment]\nstiffness = 0.1\n")
    program = install(home / "bin", "charm") / "charm"
    made = interface("charm", image, command=[str(program)], threads=3)
    facts = facts_of(made.run().outputs)
    used = Path("m2m_sub-01_ses-A/settings.ini").read_text()
    assert used == "[general]\nthreads = 3\n\n[segment]\nstiffness = 0.1\n"
    assert "--usesettings charm.ini" in facts["Command"]
    assert facts["Threads"] == 3


def test_charms_codes_become_whole_numbers_and_others_are_no_codes(image):
    outputs = interface("charm", image).run().outputs
    assert nib.load(outputs.labels).get_data_dtype() == np.int16
    written = nib.load("m2m_sub-01_ses-A/segmentation/labeling.nii.gz")
    assert written.get_data_dtype() == np.float32
    assert np.array_equal(written.get_fdata(), nib.load(outputs.labels).get_fdata())
    assert "not labels" in str(failed(interface("charm", image, "inexact")))
    assert "9999 (2 voxels)" in str(failed(interface("charm", image, "code")))


def test_charms_background_is_air_and_its_fluid_one_code(head, head_image):
    image = write_volume(head_image, head.grid, Path("T1w.nii.gz"))
    outputs = interface("charm", image).run().outputs
    crosswalk = find_tool("charm").crosswalk()
    own = read_label_map(outputs.labels, crosswalk.source_table())
    assert {517, 520} <= set(np.unique(own.voxels))
    made = crosswalk.translate(own)
    assert not {517, 520} & set(np.unique(made.voxels))
    assert (made.voxels[own.voxels == 520] == 24).all()


# SynthSeg's mode


def head_with(noise: float, *, slices: int = 1):
    labels = phantom_head((96, 112, 104), 2.0)
    picture = phantom_image(labels, np.random.default_rng(5), noise_sd=110 * noise)
    affine = labels.grid.affine.copy() / [2, 2, 2, 1]
    affine[:, 2] *= slices
    picture = picture[:, :, ::slices]
    return picture, Grid(picture.shape, affine)


@pytest.mark.parametrize(
    ("noise", "slices", "robust"),
    [(0.02, 1, False), (0.05, 1, False), (0.4, 1, True), (0.02, 5, True)],
)
def test_robust_is_for_noise_and_thick_slices_only(noise, slices, robust):
    assert bool(measure_quality(*head_with(noise, slices=slices)).errors) == robust


def test_noise_is_measured_in_its_own_units():
    for noise in (0.04, 0.08):
        quality = measure_quality(*head_with(noise))
        assert quality.snr == pytest.approx(1 / noise, rel=0.25)


def test_small_voxels_may_be_noisier():
    picture, grid = head_with(0.12)
    fine = Grid(grid.shape, grid.affine @ np.diag([0.5, 0.5, 0.5, 1]))
    assert measure_quality(picture, fine).snr == pytest.approx(
        measure_quality(picture, grid).snr * np.sqrt(8)
    )


def test_an_image_of_nothing_has_no_quality():
    quality = measure_quality(np.zeros((5, 5, 5)), Grid((5, 5, 5), np.eye(4)))
    assert (quality.snr, quality.cnr) == (0, 0)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    ["colin27/ch2.nii.gz", "mne_sample_ecog/T1.mgz", "py_synthsr_flair/FLAIR.nii.gz"],
)
def test_good_scans_are_not_segmented_robustly(shared_data, name):
    made = interface("synthseg", shared_data / name)
    assert not made.robust, made.quality


def test_the_mode_is_recorded_with_its_numbers(image):
    facts = facts_of(interface("synthseg", image).run().outputs)
    assert facts["Mode"] == "robust"  # voxels of 4 mm
    assert facts["ModeReason"] == "voxels of 4 mm"
    assert facts["Quality"]["largest_voxel_mm"] == 4.0
    assert "SynthSeg-robust" in Path("synthseg.log").read_text()
    facts = facts_of(interface("synthseg", image, mode="standard").run().outputs)
    assert (facts["Mode"], facts["ModeReason"]) == ("standard", "asked for")


# GOUHFI's versions


def test_gouhfi_two_needs_two_programs(image):
    made = interface("gouhfi", image, threads=2)
    facts = facts_of(made.run().outputs)
    told = [shlex.split(part)[1:] for part in facts["Command"].split("; ")]
    assert [Path(words[0]).stem for words in told] == ["run_preprocessing", "run_gouhfi"]
    assert told[1][1:] == [
        "-i",
        "gouhfi_masked",
        "-o",
        "gouhfi",
        "--np",
        "2",
        "--cpu",
    ]
    assert facts["Generation"] == 2


def test_gouhfis_two_maps_become_one(image, tmp_path):
    made = interface("gouhfi", image)
    outputs = made.run().outputs
    table = find_tool("gouhfi").crosswalk().source_table()
    codes = set(np.unique(read_label_map(outputs.labels, table).voxels))
    assert {106, 126, 137, 157} <= codes
    assert not {2, 21} & codes  # all of the phantom's cortex has a parcel
    home = Path("gouhfi").absolute()
    again = Gouhfi.whole_map(home / "outputs_seg_postpro" / "sub-01_ses-A.nii.gz", tmp_path)
    assert Path(outputs.labels).read_bytes() == again.read_bytes()
    assert Gouhfi.whole_map(home / "other.nii.gz", tmp_path) == home / "other.nii.gz"


def test_a_parcel_of_gouhfi_counts_in_the_cortex_of_its_own_side_only(image, tmp_path, caplog):
    interface("gouhfi", image).run()
    assert "outputs_parc_postpro" not in caplog.text
    first = next(Path("gouhfi/outputs_seg_postpro").glob("*.nii.gz")).absolute()
    second = first.parent.parent / "outputs_parc_postpro" / first.name
    file = nib.load(second)
    codes = np.asanyarray(file.dataobj)
    swapped = np.where(codes > 31, codes - 31, np.where(codes > 0, codes + 31, 0))
    nib.save(nib.Nifti1Image(swapped.astype(np.uint8), file.affine), second)
    whole = np.asanyarray(nib.load(Gouhfi.whole_map(first, tmp_path)).dataobj)
    assert np.array_equal(whole, np.asanyarray(nib.load(first).dataobj))
    assert f"{second}: 100 % of its parcels" in caplog.text
    nib.save(nib.Nifti1Image(codes + 62, file.affine), second)
    with pytest.raises(UnknownLabelError, match="parcels"):
        Gouhfi.whole_map(first, tmp_path)
    nib.save(nib.Nifti1Image(codes, file.affine + np.diag([0.1, 0, 0, 0])), second)
    with pytest.raises(ToolError, match="grid"):
        Gouhfi.whole_map(first, tmp_path)


@pytest.mark.parametrize(
    ("name", "switches", "told"),
    [
        ("brainchop", (), ["-m", "subcortical", "-o", "brainchop.nii.gz"]),
        ("brainchop104", (), ["-m", "DKatlas", "-o", "brainchop.nii.gz"]),
        ("brainchop", ("one",), ["-m", "mindmap", "-o", "brainchop.nii.gz"]),
        ("brainchop104", ("one",), ["-m", "mindsnap", "-o", "brainchop.nii.gz"]),
    ],
)
def test_brainchop_is_told_its_model_and_old_ones_the_images_grid(name, switches, told, image):
    made = interface(name, image, *switches)
    facts = facts_of(made.run().outputs)
    (command,) = made.commands()
    of_old = [] if switches else ["--inverse-conform", "--no-optimize"]
    assert command[command.index("-m") :] == [*told, *of_old]
    assert facts["Model"] == told[1]


def test_brainchop_finds_what_pip_put_beside_it(image, tmp_path):
    program = install(tmp_path / "bin", "brainchop") / "brainchop"
    made = interface("brainchop", image, command=[str(program)])
    assert made.environment()["PATH"].split(os.pathsep)[0] == str(program.parent)
    made.run()


def test_siam_writes_beside_a_link_in_a_folder_of_its_own(image):
    made = interface("siam", image, threads=3)
    facts = facts_of(made.run().outputs)
    (command,) = made.commands()
    assert command[-6:] == ["-i", "siam/head.nii.gz", "-device", "cpu", "-nbthread", "3"]
    assert facts["Model"] == "siamV03"
    assert not list(Path(image).parent.glob("siam*"))
    old = interface("siam", image, command=[*shlex.split(fake_command("siam")), "-m", "2"])
    assert facts_of(old.run().outputs)["Model"] == "siamV02"


def test_supersynth_is_told_that_the_head_is_alive(image):
    made = interface("supersynth", image, threads=2)
    assert command_line(made)[2:] == [
        "--o", "supersynth", "--mode", "invivo", "--threads", "2", "--device", "cpu",
    ]  # fmt: skip


def test_gouhfi_one_needs_three(image, tmp_path):
    program = install(tmp_path / "one" / "bin", "gouhfi1") / "run_gouhfi"
    made = interface("gouhfi", image, command=[str(program)], use_gpu=True)
    outputs = made.run().outputs
    told = [Path(shlex.split(part)[0]).name for part in facts_of(outputs)["Command"].split("; ")]
    assert told == ["run_conforming", "run_brain_extraction", "run_gouhfi"]
    assert Path(outputs.labels) == Path("gouhfi/sub-01_ses-A.nii.gz").absolute()


def test_gouhfis_version_in_a_container_is_asked_for(image, tmp_path):
    container = tmp_path / "container"
    for version, name in ((2, "gouhfi"), (1, "gouhfi1")):
        programs = install(tmp_path / f"v{version}", name)
        container.write_text(f'#!/bin/sh\nPATH="{programs}:$PATH"\nexec "$@"\n')
        container.chmod(0o755)
        made = interface("gouhfi", image, command=[str(container), "run_gouhfi"])
        assert facts_of(made.run().outputs)["Generation"] == version


def test_gouhfi_gets_a_compressed_nifti_whatever_the_image_is(image):
    file = nib.load(image)
    nib.save(nib.MGHImage(np.float32(file.dataobj), file.affine), "T1.mgz")
    interface("gouhfi", Path("T1.mgz").absolute()).run()
    raw = nib.load("gouhfi_raw/sub-01_ses-A_0000.nii.gz")
    assert np.allclose(raw.affine, file.affine, atol=1e-4)


def test_gouhfis_command_must_name_its_program(image, tmp_path):
    with pytest.raises(ToolError, match="must name run_gouhfi") as caught:
        interface("gouhfi", image, command=[sys.executable, "other"]).run()
    assert caught.value.exit_code == 127


# Our own network


@pytest.fixture
def bundle(tmp_path):
    return ModelBundle.read(dataset.write_bundle(tmp_path / "a model"))


def own(bundle, image, *extra, **inputs):
    return interface(
        "model", image, command=[*dataset.PREDICT, *extra], model=str(bundle.path),
        model_digest=bundle.digest, **inputs,
    )  # fmt: skip


def test_our_network_gives_probabilities_in_the_order_of_its_table(bundle, image):
    outputs = own(bundle, image, threads=2).run().outputs
    assert outputs.posterior_codes == bundle.table.codes.tolist()
    _, posteriors = read_posteriors(outputs.posteriors, outputs.posterior_codes)
    labels = read_label_map(outputs.labels, find_tool("model").crosswalk().source_table())
    for code, volume in posteriors:
        assert np.array_equal(volume > 0.5, labels.voxels == code)
    facts = facts_of(outputs)
    assert facts["ModelDigest"] == bundle.digest
    assert facts["Model"] == "fake"


@pytest.mark.parametrize("flips", [False, True])
def test_our_network_looks_at_the_mirror_image_where_told(bundle, image, flips):
    command = own(bundle, image, test_time_flips=flips).cmdline
    assert ("--test-time-flips" in command) == flips


def test_what_our_program_says_is_handed_on(bundle, image):
    code = "import sys; sys.exit('brainseg: ERROR: T1w.nii.gz: it is too dark.')"
    made = interface("model", image, command=(*IN_PYTHON, code), model=str(bundle.path))
    with pytest.raises(ToolError, match=r"^T1w.nii.gz: "):
        made.run()


def test_our_killed_process_says_that_memory_ran_out(bundle, image):
    assert "killed" in str(failed(own(bundle, image, "--kill", "input")))


def test_our_program_is_found_without_path():
    program = find_program(find_tool("model"))
    assert program == (sys.executable, "-m", "brainseg_bids.programs.segment")


# Failures


@pytest.mark.parametrize("name", RUN)
def test_a_failing_tool_is_told_with_its_own_words(name, image):
    error = failed(interface(name, image, "exit1"))
    assert error.exit_code == 1
    said = (
        f"{image}: {name} failed with exit code 1 (ValueError: the atlas does not fit this head)"
    )
    assert str(error).startswith(said)


@pytest.mark.parametrize("name", ["charm", "samseg", "fastsurfer"])
def test_a_tool_that_writes_nothing_is_told(name, image):
    error = failed(interface(name, image, "nothing"))
    assert f"{name} ended without a fault but wrote no " in str(error)
    assert "(nothing to do)" in str(error)


@pytest.mark.parametrize("name", ["samseg", "gouhfi"])
def test_a_killed_tool_is_most_likely_out_of_memory(name, image):
    error = failed(interface(name, image, "sigkill"))
    assert "was killed, most likely because memory ran out" in str(error)
    assert error.exit_code == 1


def test_a_tool_that_says_it_has_no_memory_is_believed(image):
    error = failed(interface("samseg", image, "memory"))
    assert "out of memory" in str(error)


@pytest.mark.parametrize("name", ["synthseg", "fastsurfer"])
def test_a_missing_licence_has_an_exit_code_of_its_own(name, image):
    error = failed(interface(name, image, "licence"))
    assert error.exit_code == 126
    assert "--fs-license-file" in str(error)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("ERROR: FreeSurfer license file /usr/local/freesurfer/license.txt not found.", True),
        ("ERROR: Invalid FreeSurfer license key found in license file", True),
        ("ERROR: No FreeSurfer license found", True),
        ("Licensed under the Apache License, Version 2.0", False),
        ("--fs_license <file>  Path to FreeSurfer license key file.", False),
    ],
)
def test_talk_of_licences_is_not_always_about_a_missing_one(line, meant):
    assert bool(NO_KEY.search(line)) == meant


def test_a_container_that_lacks_the_program_is_a_missing_tool(image):
    command = ["/bin/sh", "-c", 'no-such-program "$@"', "x"]
    error = failed(interface("samseg", image, command=command))
    assert error.exit_code == 127
    assert "make tools-samseg" in str(error)


def test_a_signal_has_a_name(tmp_path):
    error = failure(find_tool("samseg"), "T1w.nii.gz", Ended(-signal.SIGSEGV), tmp_path / "no.log")
    assert "samseg was ended by signal SIGSEGV. Run it again." in str(error)


def test_an_error_survives_the_way_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(MissingToolError("T1w: no.")))
    assert (str(error), error.exit_code) == ("T1w: no.", 127)


def test_long_logs_are_read_from_their_end(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("ERROR: long ago\n" * 9000 + "\x1b[31mRuntimeError: now\x1b[0m\n\n10 %\r20 %\r")
    assert len(log_tail(log)) < 5000
    assert error_line(log_tail(log)) == "RuntimeError: now"


def gone(pids, within_s: float = 20.0) -> bool:
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        left = [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != "zombie"]
        if not left:
            return True
        time.sleep(0.1)
    return False


def test_time_that_is_up_ends_a_tool_and_all_it_started(image):
    error = failed(interface("samseg", image, "hang", timeout_s=4.0))
    # What was asked for, not how long it took until all had ended.
    assert "samseg was ended because it took longer than 4 s. Give" in str(error)
    assert "--tool-timeout" in str(error)
    assert gone(int(pid) for pid in Path("hanging.pids").read_text().split())


def test_a_tool_does_not_outlive_a_killed_worker(image):
    code = (
        "import sys; from brainseg_bids.interfaces.tools import find_tool\n"
        "find_tool('samseg').interface(image=sys.argv[1], subject='x', command=sys.argv[2:]).run()"
    )
    words = [*IN_PYTHON, code, str(image), *shlex.split(fake_command("samseg", "hang"))]
    worker = subprocess.Popen(
        words, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    )
    pids = Path("hanging.pids")
    until_s = time.monotonic() + 60
    while not (pids.is_file() and pids.read_text()) and time.monotonic() < until_s:
        time.sleep(0.1)
    started = [int(pid) for pid in pids.read_text().split()]
    assert not gone(started, within_s=0.2)
    worker.kill()
    worker.wait()
    assert gone(started)


def test_no_shell_sees_the_command(image):
    code = "import sys; sys.exit('error ' + sys.argv[1])"
    error = failed(
        interface("samseg", image, command=[*IN_PYTHON, code, "$(touch pwned); `id` *"])
    )
    assert "(error $(touch pwned); `id` *)" in str(error)
    assert not Path("pwned").exists()


# What is wrong with an image is told before a tool begins


def damaged(image: Path, how: str) -> Path:
    file = nib.load(image)
    voxels, path = file.get_fdata(dtype=np.float32), image.with_name(f"{how}.nii.gz")
    if how == "truncated":
        path.write_bytes(image.read_bytes()[:5000])
        return path
    if how == "4D":
        voxels = np.stack([voxels, voxels], axis=-1)
    elif how == "NaN":
        voxels[tuple(n // 2 for n in voxels.shape)] = np.nan
    elif how == "constant":
        voxels[:] = 7
    nib.save(nib.Nifti1Image(voxels, file.affine), path)
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "cannot be read"),
        ("4D", "not one 3D volume"),
        ("NaN", "1 voxels inside the head are NaN"),
        ("constant", "every voxel is 7"),
    ],
)
@pytest.mark.parametrize("name", [*RUN, "model"])
def test_no_tool_is_run_on_an_image_that_is_none(name, how, words, image):
    begun = Path("begun").absolute()
    script = f"import pathlib; pathlib.Path({str(begun)!r}).touch()"
    path = damaged(image, how)
    with pytest.raises(InputError, match=words) as caught:
        interface(name, path, command=(*IN_PYTHON, script, "run_gouhfi")).run()
    assert str(path) in str(caught.value)
    assert not begun.exists()


# Where programs are


def test_a_program_is_found_on_path(image, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))  # `make tools-samseg` may have been run
    on_path(monkeypatch, install(tmp_path / "a bin", "samseg"))
    assert find_program(find_tool("samseg")) == (str(tmp_path / "a bin" / "run_samseg"),)
    assert interface("samseg", image, command=[]).run().outputs.labels


def test_a_tools_own_environment_comes_before_path(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    on_path(monkeypatch, install(tmp_path / "elsewhere", "samseg"))
    beside = install(tmp_path / "tools" / "samseg" / "bin", "samseg")
    assert find_program(find_tool("samseg")) == (str(beside / "run_samseg"),)


@pytest.mark.parametrize("name", RUN)
def test_a_missing_program_has_its_exit_code_and_a_remedy(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    tool = find_tool(name)
    with pytest.raises(ToolError, match=f"{name}: ") as caught:
        find_program(tool)
    assert caught.value.exit_code == 127
    assert tool.how_to_get in str(caught.value)


def test_files_of_a_command_are_found_from_any_folder(monkeypatch):
    Path("samseg.sif").write_text("")
    Path("run_samseg").mkdir()
    sh = "/bin/sh"
    program = find_program(find_tool("samseg"), [sh, "exec", "samseg.sif", "run_samseg"])
    assert program == (sh, "exec", str(Path("samseg.sif").absolute()), "run_samseg")


def test_a_given_command_that_is_not_there_is_told():
    with pytest.raises(ToolError, match="'nope'") as caught:
        find_program(find_tool("samseg"), ["nope", "run_samseg"])
    assert caught.value.exit_code == 127


def test_a_given_command_that_may_not_be_run_is_not_called_missing():
    Path("run_samseg").write_text("#!/bin/sh\n")
    for command in ("/etc/passwd", "./run_samseg"):
        with pytest.raises(ToolError, match=f"--tool samseg: {command} is not executable"):
            find_program(find_tool("samseg"), [command])


@pytest.mark.parametrize("name", ["freesurfer", "fullhead"])
def test_tools_whose_results_are_reused_are_never_run(name, image):
    with pytest.raises(ToolError, match=f"{name} is never") as caught:
        find_tool(name).interface(image=str(image), subject="sub-01").run()
    assert caught.value.exit_code == 127


# What is known of tools


def test_names_are_told_without_importing_anything_heavy():
    code = (
        "import sys; from brainseg_bids.interfaces.tools import tool_names; tool_names()\n"
        "print([m for m in ('nipype', 'nibabel', 'numpy', 'scipy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([*IN_PYTHON, code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_tool_needs_torch_to_be_run():
    code = (
        "import sys; from brainseg_bids.interfaces.tools import find_tool, tool_names\n"
        "[find_tool(name) for name in tool_names()]; print('torch' in sys.modules)"
    )
    done = subprocess.run([*IN_PYTHON, code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_an_unknown_tool_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="'base'; known: brainchop"):
        find_tool("base")


@pytest.mark.parametrize("name", tool_names())
def test_what_is_said_of_a_tool_is_complete(name):
    tool = find_tool(name)
    assert tool.name == name == tool.interface.name
    assert tool.regions
    assert tool.regions <= {"head", "brain"}
    assert tool.how_to_get.endswith(".")
    assert tool.about
    assert not tool.about.endswith(".")  # it stands within a sentence
    assert "head" not in tool.regions or not tool.crosswalk().coarse  # the head tool tells sides
    assert tool.mem_gb(40_000_000) >= tool.mem_gb(1_000_000) >= 1
    assert all("{id}" in pattern or "{bids}" in pattern for pattern in tool.existing)
    assert not (tool.posteriors and not tool.program)


def test_samsegs_memory_covers_what_was_measured():
    tool = find_tool("samseg")
    assert tool.mem_gb(9_100_000) > 6.83
    assert tool.mem_gb(40_400_000) > 16.7


def test_more_threads_or_time_do_not_run_a_tool_again(image, tmp_path):
    def run(**inputs):
        node = pe.Node(
            interface("samseg", image, **inputs), name="samseg", base_dir=tmp_path / "w"
        )
        return Path(node.run().outputs.facts).stat().st_mtime_ns

    first = run(threads=1)
    assert run(threads=2, timeout_s=900.0) == first
    assert run(save_posteriors=False) != first


def test_papers_of_tools_are_in_the_bibliography():
    import brainseg_bids

    bibliography = "".join(
        path.read_text(encoding="utf-8")
        for path in (Path(brainseg_bids.__file__).parent / "data").rglob("*.bib")
    )
    keys = {k for name in tool_names() for k in re.findall(r"@(\w+)", find_tool(name).about)}
    assert len(keys) == 9
    assert all(f"{{{key}," in bibliography for key in keys)


def test_the_watcher_of_a_program_imports_nothing_of_this_package():
    """It is started isolated, where the package may not be found."""
    source = Path(_process.__file__).read_text()
    assert "import brainseg_bids" not in source
    assert "from brainseg_bids" not in source
