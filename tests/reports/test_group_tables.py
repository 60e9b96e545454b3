# SPDX-License-Identifier: Apache-2.0
"""Volumes of everybody: wide tables, shares of the inside of the skull, and who has none."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace

import pytest

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.intracranial import STRIPPED, intracranial
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.inputs import find_participants
from brainseg_bids.documents import InputError
from brainseg_bids.interfaces.labels import write_volumes
from brainseg_bids.stages.summary import write_group


@pytest.fixture(scope="module")
def derivative(head, tmp_path_factory):
    """Volumes of three images of one head, one of them called skull-stripped."""
    folder = tmp_path_factory.mktemp("derivative")
    labels = Crosswalk.packaged("fullhead", "brainseg").translate(head)
    LabelTable.packaged("brainseg").write(folder / "seg-brainseg_dseg.tsv")
    soft = {str(label.index): 10.5 for label in labels.table if label.index}
    confidence = [
        {"index": 10, "confidence": 0.91, "threshold": 0.8},
        {"index": 49, "confidence": 0.62, "threshold": 0.8},
    ]
    for name in ("01", "02", "bare"):
        anat = folder / f"sub-{name}" / "anat"
        anat.mkdir(parents=True)
        write_volumes(
            labels,
            anat / f"sub-{name}_seg-brainseg_desc-volumes_morph.tsv",
            intracranial(labels, stripped=name == "bare"),
            {"soft_voxels": soft, "confidence": confidence * (name != "02")},
        )
    write_group(folder, title="demo")
    return folder, labels


def rows_of(folder, desc):
    path = folder / f"group_seg-brainseg_desc-{desc}_morph.tsv"
    described = json.loads(path.with_suffix(".json").read_text())
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    inside = {"intracranial_mm3", "intracranial_note"} & rows[0].keys()
    assert {"Description", *inside} <= set(described)
    return {row["participant_id"]: row for row in rows}


def test_volumes_have_the_covariate_beside_them(derivative):
    folder, labels = derivative
    rows = rows_of(folder, "volumes")
    expected = intracranial(labels).n_voxels * labels.grid.voxel_volume_mm3
    assert float(rows["sub-01"]["intracranial_mm3"]) == pytest.approx(expected)
    assert rows["sub-bare"]["intracranial_mm3"] == "n/a"
    assert rows["sub-bare"]["intracranial_note"] == STRIPPED
    assert float(rows["sub-bare"]["Left-Cerebral-Cortex"]) > 0


def test_shares_are_percent_of_the_covariate(derivative):
    folder, _ = derivative
    volumes, shares = rows_of(folder, "volumes"), rows_of(folder, "shares")
    one, share = volumes["sub-01"], float(shares["sub-01"]["Left-Cerebral-Cortex"])
    expected = 100 * float(one["Left-Cerebral-Cortex"]) / float(one["intracranial_mm3"])
    assert share == pytest.approx(expected, abs=1e-3)
    assert shares["sub-bare"]["Left-Cerebral-Cortex"] == "n/a"
    assert "Skin" in one
    assert "Skin" not in shares["sub-01"]


def test_confidence_has_tables_of_the_structures_that_have_one(derivative):
    folder, _ = derivative
    confidence, low = rows_of(folder, "confidence"), rows_of(folder, "lowconfidence")
    sides = ("Left-Thalamus", "Right-Thalamus")
    assert [confidence["sub-01"][side] for side in sides] == ["0.91", "0.62"]
    assert [low["sub-01"][side] for side in sides] == ["no", "yes"]
    assert [low["sub-02"][side] for side in sides] == ["n/a", "n/a"]
    assert list(low["sub-01"]) == ["participant_id", "session_id", "image", "to_look_at", *sides]


def test_soft_volumes_have_a_table(derivative):
    folder, labels = derivative
    soft = rows_of(folder, "softvolumes")["sub-02"]
    assert float(soft["Left-Amygdala"]) == pytest.approx(10.5 * labels.grid.voxel_volume_mm3)


def test_the_page_compares_shares_and_names_who_has_none(derivative):
    page = (derivative[0] / "group.html").read_text()
    assert "In percent of the intracranial volume" in page
    assert f"sub-bare: {STRIPPED}" in page


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: text.index("\n") + 1],
        lambda text: text[: text.index("Intracranial") + len("Intracranial\tnone")],
        lambda text: text.replace("\tnote\n", "\tother\n"),
    ],
    ids=["empty", "columns alone", "cut off", "without a column"],
)
def test_a_damaged_table_is_named(derivative, tmp_path, damage):
    folder = shutil.copytree(derivative[0], tmp_path / "copy")
    (path,) = folder.glob("sub-01/anat/*_morph.tsv")
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=rf"{path.name}.*Remove it"):
        write_group(folder, title="demo")


def test_sessions_that_are_not_asked_for_are_left_out(derivative, tmp_path):
    folder = shutil.copytree(derivative[0], tmp_path / "copy")
    (path,) = folder.glob("sub-01/anat/*_morph.tsv")
    for session in ("A", "B"):
        name = path.name.replace("sub-01", f"sub-01_ses-{session}")
        target = folder / "sub-01" / f"ses-{session}" / "anat" / name
        target.parent.mkdir(parents=True)
        shutil.copy(path, target)
    ((_, n_images, _),) = write_group(folder, title="demo", sessions=("B",))
    with (folder / "group_seg-brainseg_desc-volumes_morph.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["session_id"] for row in rows] == ["ses-B"]
    assert n_images == 1


@pytest.mark.input(
    "results",
    "results by another version, model file or flips than the others', or whose images have "
    "changed or gone, in `summary` and `evaluate`",
    "counted; a warning in log and page names them",
    0,
)
def test_results_that_do_not_belong_together_are_named(derivative, tmp_path, caplog):
    folder = shutil.copytree(derivative[0], tmp_path / "copy")
    for version, path in enumerate(sorted(folder.glob("sub-0*/anat/*_morph.tsv"))):
        uri = f"bids:raw:{path.name[:6]}/anat/{path.name[:6]}_T1w.nii.gz"
        said = {"BrainsegVersion": str(version), "Input": uri}
        path.with_suffix(".json").write_text(json.dumps(said))
    write_group(folder, title="demo", bids_dir=tmp_path)
    for text in (caplog.text, (folder / "group.html").read_text()):
        assert "version 0 (sub-01) and 1 (sub-02)" in text
        assert "no longer has the image of sub-01, sub-02" in text


@pytest.mark.input(
    "results",
    "participants who failed or were never segmented, in `summary`",
    "the others are in the tables; a warning in log and page counts who is not",
    0,
)
def test_who_is_in_no_line_of_the_tables_is_named(derivative, tmp_path, caplog):
    folder = shutil.copytree(derivative[0], tmp_path / "copy")
    for name in ("01", "02", "bare", "07", "08", "09"):
        (tmp_path / "data" / f"sub-{name}" / "anat").mkdir(parents=True)
    (tmp_path / "data" / "sub-10" / "func").mkdir(parents=True)
    for title in ("sub-07 T1w", "sub-01 T1w contrast"):
        (folder / "logs" / "failed").mkdir(parents=True, exist_ok=True)
        path = folder / "logs" / "failed" / f"{title.replace(' ', '_')}.json"
        path.write_text(json.dumps({"Title": title, "Reason": "no memory"}))
    write_group(folder, title="demo", bids_dir=tmp_path / "data")
    for text in (caplog.text, (folder / "group.html").read_text()):
        assert "sub-07 T1w could not be done in the last run" in text
        assert "sub-01 T1w could" not in text
        assert "2 of 7 participants are not in these numbers" in text
        assert "sub-08, sub-09." in text
    caplog.clear()
    write_group(folder, title="demo", bids_dir=tmp_path / "data", participants=["01"])
    assert "not in these numbers" not in caplog.text


def test_a_page_of_an_earlier_run_is_named(derivative, tmp_path, caplog):
    folder = shutil.copytree(derivative[0], tmp_path / "copy")
    (folder / "group_fullhead.html").write_text("of an earlier run")
    write_group(folder, title="demo")
    (line,) = [one for one in caplog.messages if "group_fullhead.html" in one]
    assert "Remove" in line


@pytest.mark.input(
    "results",
    "maps of heads of which some lack a label (the tools have different ones, or not every head "
    "has it) on the group page",
    "those who lack it are left out of its median, not counted as 0",
    0,
)
def test_a_label_that_a_head_lacks_is_not_a_volume_of_0(head, tmp_path):
    table = LabelTable.packaged("fullhead")
    table.write(tmp_path / "seg-fullhead_dseg.tsv")
    few = table["5th-Ventricle"].index
    for number in range(1, 7):
        voxels = head.voxels.copy()
        if number > 4:
            voxels[0, 0, :number] = few
        anat = tmp_path / f"sub-{number}" / "anat"
        anat.mkdir(parents=True)
        path = anat / f"sub-{number}_seg-fullhead_desc-volumes_morph.tsv"
        write_volumes(replace(head, voxels=voxels, table=table), path, None)
    write_group(tmp_path, title="demo")
    text = " ".join((tmp_path / "group_fullhead.html").read_text().split())
    voxel_ml = head.grid.voxel_volume_mm3 / 1000
    cells = re.search(r"5th-Ventricle</td>\s*<td[^>]*>(\d+)</td>\s*<td[^>]*>([\d.]+)</td>", text)
    assert cells.groups() == ("2", f"{5.5 * voxel_ml:.2f}")
    assert "Look at these pictures again" not in text


def test_tables_of_an_earlier_version_have_no_covariate_and_no_shares(derivative):
    folder, _ = derivative
    for path in folder.glob("sub-*/anat/*.tsv"):
        lines = [line.split("\t")[:5] for line in path.read_text().splitlines()[:-1]]
        path.write_text("\n".join("\t".join(line) for line in lines) + "\n")
    write_group(folder, title="demo")
    assert rows_of(folder, "volumes")["sub-01"]["intracranial_mm3"] == "n/a"
    assert not list(folder.glob("*shares*"))
    assert not list(folder.glob("*softvolumes*"))
    assert not list(folder.glob("*confidence*"))


def test_participants_are_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "seg-brainseg_dseg.tsv").write_text(
        "index\tname\n0\tBackground\n10\tLeft-Thalamus\n"
    )
    data = tmp_path / "data"
    for label in ("10", "2", "1", "a"):
        anat = tmp_path / f"sub-{label}" / "anat"
        anat.mkdir(parents=True)
        (data / f"sub-{label}").mkdir(parents=True)
        (anat / f"sub-{label}_seg-brainseg_desc-volumes_morph.tsv").write_text(
            "index\tname\themisphere\tvolume_mm3\n10\tLeft-Thalamus\tleft\t7300\n"
        )
    ((page, *_),) = write_group(tmp_path, title="demo")
    wanted = ["sub-1", "sub-2", "sub-10", "sub-a"]
    table = tmp_path / "group_seg-brainseg_desc-volumes_morph.tsv"
    assert [line.split("\t")[0] for line in table.read_text().splitlines()[1:]] == wanted
    text = page.read_text()
    assert sorted(wanted, key=lambda label: text.index(f">{label}<")) == wanted
    assert [f"sub-{label}" for label in find_participants(data)] == wanted
