# SPDX-License-Identifier: Apache-2.0
"""What a comparison of two records sees, and what it leaves out."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.golden import Record, compare


@pytest.fixture
def records(tmp_path):
    """Two records of the same files, made in different folders at different times."""

    def write(name: str, time: str, seconds: float) -> Record:
        root = tmp_path / name
        root.mkdir()
        (root / "folder.txt").write_text(str(root))
        (root / "a.tsv").write_text(f"label\tseconds\nSkin\t{seconds}\n")
        (root / "a.json").write_text(json.dumps({"Voxels": 3, "PeakGiB": seconds}))
        (root / "a.nii.gz").write_bytes(gzip.compress(b"voxels", mtime=int(seconds)))
        (root / "a.html").write_text(f"<p>Took {seconds} s at {time}: {root}/a.tsv</p>")
        (root / "a.log").write_text(f"{time} brainseg INFO: read\n{seconds} %\n")
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "a.png")
        return Record(root)

    return write("before", "2026-01-01 10:00:00", 1.5), write("after", "2026-02-03 11:12:13", 22.0)


def test_records_of_the_same_code_are_equal(records):
    assert compare(*records).empty


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.tsv", b"label\tseconds\nBone\t22.0\n", "tables"),
        ("a.json", b'{"Voxels": 4, "PeakGiB": 1.0}', "metadata"),
        ("a.json", b'{"PeakGiB": 1.0}', "metadata"),
        ("a.nii.gz", gzip.compress(b"Voxels", mtime=0), "images"),
        ("a.log", b"2026-02-03 11:12:13 brainseg INFO: written\n", "logs"),
        ("b.tsv", b"", "files"),
    ],
)
def test_a_planted_change_is_seen(records, name, content, kind):
    (records[1].root / name).write_bytes(content)
    found = compare(*records)
    assert set(zip(found["kind"], found["file"], strict=True)) == {(kind, name)}


def test_figures_and_markup_are_told_apart_from_what_a_page_says(records):
    before, after = records
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(after.root / "a.png")
    (after.root / "a.html").write_text((after.root / "a.html").read_text().replace("p>", "b>"))
    assert set(compare(before, after)["kind"]) == {"figures", "markup"}
