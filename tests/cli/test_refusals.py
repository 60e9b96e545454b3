# SPDX-License-Identifier: Apache-2.0
"""What bad input gets: one clear line, an exit code, nothing half-written, the others done."""

import contextlib
import ctypes
import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.scratch import OUTPUT_LOCK
from tests.fakes import dataset

NAMES = {
    "empty": "02", "corrupt": "03", "truncated": "04", "unfetched": "05", "series": "06",
    "nan": "07", "zero": "08", "qform": "09", "killed": "10", "twice": "11", "none": "12",
    "infinite": "13", "slice": "14",
}  # fmt: skip


def spoil(root):
    """One participant per fault; 01 is well."""

    def image(fault, suffix=".nii.gz"):
        label = NAMES[fault]
        return root / f"sub-{label}" / "anat" / f"sub-{label}_T1w{suffix}"

    def change(fault, function):
        file = nib.load(image(fault))
        data = np.asanyarray(file.dataobj).copy()
        nib.save(nib.Nifti1Image(function(data), file.affine, file.header), image(fault))

    def put(value):
        def change_one(data):
            data[tuple(n // 2 for n in data.shape)] = value
            return data

        return change_one

    image("empty").write_bytes(b"")
    image("corrupt").write_bytes(b"this is no image " * 100)
    whole = image("truncated").read_bytes()
    image("truncated").write_bytes(whole[: len(whole) // 2])
    image("unfetched").unlink()
    image("unfetched").symlink_to("../../.git/annex/objects/x/y/MD5E-s9--z.nii.gz")
    change("series", lambda data: np.stack([data] * 3, axis=-1))
    change("nan", put(np.nan))
    change("infinite", put(np.inf))
    change("zero", lambda data: data * 0)
    change("slice", lambda data: data[:, :, :1])
    conflict = nib.load(image("qform"))
    turned = conflict.affine.copy()
    turned[:3, 3] += 20
    conflict.set_qform(turned, code=1)
    nib.save(conflict, image("qform"))
    with gzip.open(image("twice")) as file:
        image("twice", ".nii").write_bytes(file.read())
    shutil.rmtree(root / "sub-12" / "anat")


@pytest.fixture(scope="module")
def spoilt(lasting_app):
    """A run over all of them."""
    labels = ["01", *NAMES.values()]
    root = lasting_app.images(*[f"sub-{label}_T1w" for label in labels])
    spoil(root)
    (root / "dataset_description.json").unlink()
    return lasting_app(kill="sub-10")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("empty", "empty. Copy or export it again"),
        ("corrupt", "cannot be read as an image"),
        ("truncated", "cannot be read as an image"),
        ("unfetched", "content is not here (git-annex). Fetch it with: "),
        ("series", "not one 3D volume"),
        ("nan", "NaN or infinite"),
        ("infinite", "NaN or infinite"),
        ("zero", "the image is constant"),
        ("slice", "single slice"),
        ("killed", "was killed, most likely because memory ran out"),
        ("twice", "would both become"),
    ],
)
def test_each_fault_is_one_line_that_names_the_file_and_leaves_nothing(spoilt, fault, words):
    subject = f"sub-{NAMES[fault]}"
    lines = [line for line in spoilt.log.splitlines() if f"ERROR: {subject} T1w" in line]
    assert len(lines) == 1
    assert words in lines[0]
    assert f"{subject}/anat/{subject}_T1w" in lines[0]
    page = (spoilt.output / f"{subject}.html").read_text()
    assert f"{subject}_T1w.nii" in page
    if fault != "twice":
        assert not list(spoilt.output.glob(f"{subject}/**/*.nii.gz"))


def test_the_others_are_done_and_the_exit_code_says_that_some_were_not(spoilt):
    assert spoilt.code == 1
    assert "11 of 14" in spoilt.log
    for label in ("01", NAMES["qform"], NAMES["twice"]):
        folder = spoilt.output / f"sub-{label}" / "anat"
        assert len(list(folder.glob("*.nii.gz"))) == 3


def test_headers_that_disagree_are_a_warning_in_log_json_and_page(spoilt):
    subject = f"sub-{NAMES['qform']}"
    assert "20.0 mm" in spoilt.log
    beside = spoilt.output / subject / "anat" / f"{subject}_seg-brainseg_dseg.json"
    assert "qform and sform" in beside.read_text()
    assert "qform and sform" in (spoilt.output / f"{subject}.html").read_text()


def test_a_participant_without_images_is_passed_over_with_a_warning(spoilt):
    assert "WARNING: sub-12:" in spoilt.log
    assert not (spoilt.output / "sub-12.html").exists()


def test_a_missing_dataset_description_is_a_warning(spoilt):
    assert "valid BIDS dataset" in spoilt.log


def test_nothing_half_written_is_left(spoilt):
    assert not [path for path in spoilt.output.rglob(".*") if path.name != ".bidsignore"]
    empty = [
        path for path in spoilt.output.rglob("*") if path.is_file() and not path.stat().st_size
    ]
    assert empty == [spoilt.output / OUTPUT_LOCK]


def test_mended_data_are_done_by_the_same_command(spoilt, lasting_app):
    dataset.write_image(spoilt.data / "sub-02" / "anat" / "sub-02_T1w.nii.gz")
    again = lasting_app("--participant-label", "01", "02")
    assert again.code == 0
    assert "reused" in again.log
    assert "sub-02 T1w: segmented" in again.log
    assert "could not" not in (again.output / "sub-02.html").read_text()


def test_an_input_that_has_become_bad_does_not_show_its_old_results(app):
    root = app.images("sub-01_T1w")
    assert app().code == 0
    (root / "sub-01" / "anat" / "sub-01_T1w.nii.gz").write_bytes(b"no image")
    again = app()
    assert again.code == 1
    assert "data:image/png" not in (again.output / "sub-01.html").read_text()


@pytest.mark.parametrize(
    ("images", "arguments", "named"),
    [
        (["sub-01_T1w"], ["--participant-label", "01", "77"], "no participant 77"),
        (["sub-01_T2w"], ["--contrasts", "T1w"], "no T1w image"),
        (["sub-01_T1"], [], "A name is like sub-01/anat/sub-01_T1w.nii.gz"),
        ([], [], "no folder sub-*"),
        (["sub-01_T1w"], ["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_what_is_not_there_is_refused_by_name(app, images, arguments, named):
    app.images(*images)
    done = app(*arguments)
    assert done.code == 2
    assert named in done.said
    assert not (done.output / "sub-01").exists()


def test_a_model_that_is_not_what_it_was_is_refused(app):
    app.images("sub-01_T1w")
    (app.model / "weights.safetensors").write_bytes(b"tampered")
    done = app()
    assert done.code == 2
    assert "SHA-256" in done.said
    assert not (done.output / "sub-01").exists()


def test_labels_of_another_model_are_not_mixed_into_an_output(app):
    app.images("sub-01_T1w")
    assert app().code == 0
    shutil.rmtree(app.model)
    table = LabelTable.packaged("brainseg").subset([0, 2, 41])
    dataset.write_bundle(app.model, table=table)
    done = app()
    assert done.code == 2
    assert "another output_dir" in done.said


def test_a_model_with_labels_that_have_no_tissue_is_refused(app):
    app.images("sub-01_T1w")
    shutil.rmtree(app.model)
    dataset.write_bundle(app.model, table=LabelTable([Label(0, "Background"), Label(999, "What")]))
    done = app()
    assert done.code == 2
    assert "999" in done.said


def test_label_names_with_odd_characters_pass_through(app):
    app.images("sub-01_T1w")
    odd = "Ää \"x\" <b onload=1> & 'y' 名"
    labels = [
        Label(label.index, odd if label.index == 24 else label.name, label.color, label.mapping,
              label.hemisphere, label.mirror)
        for label in LabelTable.packaged("brainseg")
    ]  # fmt: skip
    shutil.rmtree(app.model)
    dataset.write_bundle(app.model, table=LabelTable(labels))
    done = app("--probseg")
    assert done.code == 0, done.log
    assert "<b onload" not in (done.output / "sub-01.html").read_text()
    dataset.assert_valid_bids(done.output)


@pytest.mark.parametrize("more", [(), ("--boilerplate-only",), ("--reports-only",)])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("plugin: SLURMGraph", "SLURMGraph returns before"),
        ("plugin_args: {}", "the key plugin is missing"),
        ("plugin: [", "not valid YAML"),
    ],
)
@pytest.mark.input(
    "metadata",
    "`--use-plugin` with a file that is not valid YAML, or a plugin that cannot be used, also "
    "with `--boilerplate-only`",
    "refused by name before anything runs",
    2,
)
def test_a_plugin_that_cannot_be_used_is_refused(app, tmp_path, text, told, more):
    app.images("sub-01_T1w")
    plugin = tmp_path / "plugin.yml"
    plugin.write_text(text)
    done = app("--use-plugin", plugin, *more)
    assert done.code == 2
    assert told in done.said
    assert str(plugin) in done.said
    assert not list(done.output.glob("sub-*"))


@contextlib.contextmanager
def small_disk(path, options):
    """A disk of its own in memory, if this user may mount one."""
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(path).encode(), b"tmpfs", 0, options.encode()) != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        yield path
    finally:
        libc.umount2(str(path).encode(), 2)


def test_a_full_disk_is_told_and_leaves_only_whole_files(app, tmp_path):
    app.images("sub-01_T1w", "sub-02_T1w")
    with small_disk(tmp_path / "out", "size=160k") as output:
        done = app()
        assert done.code == 1
        assert "disk is full" in done.said
        figures = list(output.glob("**/*.png"))
        assert len(figures) < 2
        for path in figures:
            Image.open(path).load()
        for path in output.rglob("*.nii.gz"):
            nib.load(path).get_fdata()  # raises if it is cut
        assert not [path for path in output.rglob(".*") if path.name != ".bidsignore"]


def test_a_full_scratch_disk_is_told(app, tmp_path):
    app.images("sub-01_T1w")
    with small_disk(tmp_path / "work", "size=16k"):
        done = app()
    assert done.code == 1
    assert "full" in done.said
    assert not list(done.output.glob("sub-01/**/*.nii.gz"))


def test_a_read_only_output_is_refused(app, tmp_path, capsys):
    app.images("sub-01_T1w")
    with small_disk(tmp_path / "out", "ro"), pytest.raises(SystemExit) as caught:
        app()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert "Choose another" in said


def test_an_image_that_several_passes_and_stages_meet_is_told_and_counted_once(app):
    data = app.images("sub-01_T1w", "sub-02_T1w", "sub-03_T1w")
    (data / "sub-02" / "anat" / "sub-02_T1w.nii.gz").write_bytes(b"no image")
    done = app("--stages", "segment", "headlabels", "--freesurfer-export")
    assert done.code == 1
    lines = [line for line in done.log.splitlines() if " brainseg ERROR: " in line]
    assert len(lines) == 2, lines
    assert "sub-02 T1w: failed" in lines[0]
    assert "cannot be read" in lines[0]
    assert lines[1].endswith("1 of 3 could not be done; the others are complete")
    assert not list(done.work.glob("crash_*"))
    (crashes,) = done.output.glob("logs/*/crash")
    assert list(crashes.glob("crash-*.txt"))


def test_a_participant_without_a_label_is_refused_and_leaves_no_file_of_its_name(app):
    app.images("sub-01_T1w")
    dataset.write_image(app.root / "data" / "sub-CON-01" / "anat" / "sub-CON-01_T1w.nii.gz")
    done = app()
    assert done.code == 1
    assert "sub-CON-01: failed: " in done.log
    assert "1 of 2" in done.log
    assert not [name for name in done.files if "CON" in name and not name.startswith("logs")]
    assert "sub-01/anat/sub-01_seg-brainseg_dseg.nii.gz" in done.files
