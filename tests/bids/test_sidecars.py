# SPDX-License-Identifier: Apache-2.0
"""Metadata of images: BIDS' inheritance, kinds, units and ranges; what cannot be used is told."""

from __future__ import annotations

import json

import pytest

from brainseg_bids.bids.inputs import dataset_notes, find_subjects
from brainseg_bids.bids.sidecars import read_metadata
from brainseg_bids.documents import InputError
from tests.fakes.dataset import write_dataset

DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@pytest.fixture
def image(tmp_path):
    folder = tmp_path / "sub-01" / "ses-A" / "anat"
    folder.mkdir(parents=True)
    return folder / "sub-01_ses-A_acq-x_T1w.nii.gz"


def beside(image, text: str | bytes, *, encoding: str = "utf-8"):
    path = image.with_name("sub-01_ses-A_acq-x_T1w.json")
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def test_the_nearer_file_wins_and_files_of_other_images_do_not_apply(image, tmp_path):
    for name, values in {
        "T1w.json": {"MagneticFieldStrength": 1.5, "EchoTime": 0.003},
        "acq-y_T1w.json": {"EchoTime": 0.1},
        "T2w.json": {"EchoTime": 0.2},
        "sub-01/sub-01_acq-x_T1w.json": {"MagneticFieldStrength": 3},
        "sub-01/ses-A/anat/sub-01_ses-A_T1w.json": {"FlipAngle": 9},
        "sub-01/ses-A/anat/sub-01_ses-A_acq-x_T1w.json": {"MagneticFieldStrength": 7},
    }.items():
        (tmp_path / name).write_text(json.dumps(values))
    found = read_metadata(image, tmp_path)
    assert found.values == {"MagneticFieldStrength": 7, "EchoTime": 0.003, "FlipAngle": 9}
    assert found.warnings == ()


@pytest.mark.input(
    "metadata",
    "value of no use in an image's own sidecar, and another one in that of the dataset",
    "nothing is known of the key; warning names file and key",
    0,
)
@pytest.mark.parametrize("own", ['"7T"', "1e999", "7000"])
def test_a_value_of_no_use_is_not_replaced_by_that_of_other_images(image, tmp_path, own):
    (tmp_path / "T1w.json").write_text('{"MagneticFieldStrength": 3, "EchoTime": 0.003}')
    path = beside(image, f'{{"MagneticFieldStrength": {own}}}')
    found = read_metadata(image, tmp_path)
    assert found.values == {"EchoTime": 0.003}
    assert f"{path}: MagneticFieldStrength" in found.warnings[0]
    # A value that is nearer still does know.
    nearer = path.with_name("sub-01_acq-x_T1w.json")
    path.rename(nearer)
    beside(image, '{"MagneticFieldStrength": 7}')
    assert read_metadata(image, tmp_path).values["MagneticFieldStrength"] == 7


@pytest.mark.input(
    "metadata", "sidecar in UTF-8 with a byte order mark, or in UTF-16 with one", "read as is", 0
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_fault(image, tmp_path, encoding):
    beside(image, '{"MagneticFieldStrength": 7}', encoding=encoding)
    assert read_metadata(image, tmp_path).values == {"MagneticFieldStrength": 7}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param(
            '{\n"InstitutionName": "Zürich"}'.encode("latin-1"),
            "T1w.json, line 2",
            marks=pytest.mark.input(
                "metadata",
                "sidecar in Latin-1",
                "a warning with file and line in the log and on the page; nothing of it is used",
                0,
            ),
        ),
        pytest.param(
            b'{"MagneticFieldStrength": 7,}',
            "T1w.json, line 1",
            marks=pytest.mark.input(
                "metadata", "sidecar that is not valid JSON", "a warning with file and line", 0
            ),
        ),
        pytest.param(
            DEEP,
            "nested",
            marks=pytest.mark.input(
                "metadata", "sidecar with thousands of levels", "a warning with the file", 0
            ),
        ),
        pytest.param(
            b"[7]",
            "a list",
            marks=pytest.mark.input(
                "metadata", "sidecar that holds a list", "a warning with the file", 0
            ),
        ),
        (b"", "T1w.json"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_warning_and_higher_ones_stay(
    image, tmp_path, text, named
):
    (tmp_path / "T1w.json").write_text('{"EchoTime": 0.003}')
    beside(image, text)
    found = read_metadata(image, tmp_path)
    assert found.values == {"EchoTime": 0.003}
    (warning,) = found.warnings
    assert named in warning
    assert "\n" not in warning


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(
            "1e999",
            marks=pytest.mark.input(
                "metadata",
                "`MagneticFieldStrength` of 1e999 or NaN",
                "a warning with file and key; not known",
                0,
            ),
        ),
        "NaN",
        pytest.param(
            "3000",
            marks=pytest.mark.input(
                "metadata",
                "`MagneticFieldStrength` of 3000 (milliteslas) or 0",
                "a warning with file and key; not known",
                0,
            ),
        ),
        "0",
        pytest.param(
            '"3T"',
            marks=pytest.mark.input(
                "metadata",
                "`MagneticFieldStrength` that is a text or a list",
                "a warning with file and key; not known",
                0,
            ),
        ),
        "[3]",
        "true",
        pytest.param(
            "12345678901234567890",
            marks=pytest.mark.input(
                "metadata",
                "whole numbers of 20 or 5,000 digits in a sidecar",
                "a warning with file and key; not known",
                0,
            ),
        ),
        "1" * 5000,
        r'"\ud800"',
        pytest.param(
            '3, "MagneticFieldStrength": 7',
            marks=pytest.mark.input(
                "metadata",
                "a key twice in a sidecar, with different values",
                "a warning with file and key; not known",
                0,
            ),
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_left_out_and_told(image, tmp_path, value):
    beside(image, f'{{"MagneticFieldStrength": {value}, "SkullStripped": true}}')
    found = read_metadata(image, tmp_path)
    assert found.values == {"SkullStripped": True}
    (warning,) = found.warnings
    assert "sub-01_ses-A_acq-x_T1w.json: MagneticFieldStrength" in warning
    assert len(warning) < 300


@pytest.mark.input(
    "metadata", "times of a sidecar in milliseconds", "a warning with file and key; not used", 0
)
@pytest.mark.parametrize(
    ("key", "value"), [("EchoTime", 2.98), ("RepetitionTime", 2300), ("InversionTime", [900])]
)
def test_milliseconds_are_not_seconds(image, tmp_path, key, value):
    beside(image, json.dumps({key: value}))
    found = read_metadata(image, tmp_path)
    assert found.values == {}
    assert f"{key} " in found.warnings[0]


def test_a_sidecar_whose_content_is_elsewhere_is_told_with_the_remedy(image, tmp_path):
    path = beside(image, "")
    path.unlink()
    path.symlink_to(".git/annex/objects/aa/MD5E-s1--x.json")
    (warning,) = read_metadata(image, tmp_path).warnings
    assert "Fetch it with" in warning


DESCRIPTIONS = {
    "Latin-1": '{"Name": "Zürich", "BIDSVersion": "1.8.0"}'.encode("latin-1"),
    "cut off": b'{"Name":',
    "no text": b'{"Name": 3, "BIDSVersion": "1.8.0"}',
    "empty": b"",
}


@pytest.mark.input(
    "metadata", "`dataset_description.json` in Latin-1 or cut off", "a warning with the line", 0
)
@pytest.mark.parametrize("content", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_a_broken_description_is_told_and_images_are_found(tmp_path, content):
    root = write_dataset(tmp_path, "sub-01_T1w")
    (root / "dataset_description.json").write_bytes(content)
    (root / "T1w.json").write_bytes(content)  # an index reads no sidecars
    (note,) = dataset_notes(root)
    assert "dataset_description.json" in note
    assert len(find_subjects(root, ["01"])[0].scans) == 1


@pytest.mark.input(
    "metadata", "`dataset_description.json` with a list or thousands of levels", "refused", 2
)
@pytest.mark.parametrize("content", [b"[1]", DEEP], ids=["list", "deep"])
def test_a_description_that_is_no_object_is_refused_in_one_line(tmp_path, content):
    root = write_dataset(tmp_path, "sub-01_T1w")
    (root / "dataset_description.json").write_bytes(content)
    with pytest.raises(InputError, match=r"dataset_description\.json"):
        find_subjects(root, ["01"])
