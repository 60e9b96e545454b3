# SPDX-License-Identifier: Apache-2.0
"""Label maps that are rated as bad: nothing is learned from them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.documents import InputError
from brainseg_bids.files import sha256
from brainseg_bids.images import write_mask
from brainseg_bids.settings import Settings
from brainseg_bids.stages import train_job
from brainseg_bids.stages.measured import find_measured
from brainseg_bids.stages.pair_sources import find_sources
from tests.contrast.made_up import both_sides, image_of


def give_map(root: Path, name: str, size_mm: float = 4, source: str = "") -> Path:
    """A label map of a derivative; ``source``: the map that it was made from."""
    path = root / name.split("_")[0] / "anat" / f"{name}_dseg.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(np.ones((8, 8, 8)), Grid((8, 8, 8), np.diag([size_mm] * 3 + [1])), path)
    image = f"bids::{path.parent.relative_to(root)}/{source}_dseg.nii.gz" if source else ""
    said = {"Input": image or f"bids:raw:{name.split('_seg')[0]}_T1w.nii.gz"}
    path.with_suffix("").with_suffix(".json").write_text(json.dumps(said))
    (root / "dseg.tsv").write_text("index\tname\n0\tBackground\n")
    return path


def rate(labels: Path, rating: str, folder: Path | None = None, rater: str = "me") -> Path:
    """A rating file, as a page saves it, in the participant's figures or a folder."""
    root = labels.parents[2]
    folder = folder or labels.parents[1] / "figures"
    folder.mkdir(exist_ok=True)
    said = {
        "Segmentation": labels.relative_to(root).as_posix(),
        "LabelsSHA256": sha256(labels),
        "Rating": rating,
        "Rater": rater,
    }
    path = folder / f"{labels.parents[1].name}_rating-{rater}.json"
    path.write_text(json.dumps(said))
    return path


def seen_by_training(settings: Settings, monkeypatch) -> list[str]:
    """Names of the label maps that stage ``train`` goes on with."""
    seen: list[str] = []

    def stop(_settings, maps, *_, **__):
        seen.extend(one.path.name for one in maps)
        raise InputError("enough")

    monkeypatch.setattr(train_job, "check_maps", stop)
    with pytest.raises(InputError, match="enough"):
        train_job.plan_job(settings)
    return seen


@pytest.mark.input(
    "training",
    "synth, train: a label map that a rater has marked as bad, or one made from it",
    "left out; a warning names it; good ones, and ratings of earlier labels, change nothing",
    0,
)
def test_nothing_is_learned_from_maps_that_are_rated_as_bad(tmp_path, caplog, monkeypatch):
    bad = give_map(tmp_path, "sub-01_seg-fullhead")
    give_map(tmp_path, "sub-01_seg-fullhead_res-2", 2, source="sub-01_seg-fullhead")
    good = give_map(tmp_path, "sub-02_seg-fullhead")
    other = give_map(tmp_path, "sub-03_seg-fullhead")
    rate(bad, "bad")
    rate(good, "good")
    rate(other, "bad")
    give_map(tmp_path, "sub-03_seg-fullhead", 5)  # made again since
    settings = Settings(tmp_path, tmp_path)
    assert [source.path for source in find_sources(settings)] == [good, other]
    assert str(bad) in caplog.text
    caplog.clear()
    assert seen_by_training(settings, monkeypatch) == [good.name, other.name]
    assert str(bad) in caplog.text


def test_the_worst_of_several_raters_counts_also_in_a_folder(tmp_path):
    out, files = tmp_path / "out", tmp_path / "files"
    maps = [give_map(out, f"sub-{n}_seg-fullhead") for n in (1, 2)]
    files.mkdir()
    rate(maps[0], "good", files, rater="a")
    rate(maps[0], "bad", files, rater="b")
    assert [one.path for one in find_sources(Settings(out, out))] == maps
    assert [one.path for one in find_sources(Settings(out, out, ratings=files))] == maps[1:]


@pytest.mark.input(
    "training",
    "synth, train: every label map is rated as bad",
    "refused; the line names one, and what to do",
    2,
)
def test_if_all_are_bad_the_line_says_so(tmp_path):
    labels = give_map(tmp_path, "sub-01_seg-fullhead")
    rate(labels, "bad")
    with pytest.raises(InputError, match=rf"{labels}.*remove the rating"):
        find_sources(Settings(tmp_path, tmp_path))


@pytest.mark.input(
    "training",
    "a damaged rating file beside label maps to learn from",
    "a warning names it; the maps are used",
    0,
)
def test_a_damaged_rating_is_told(tmp_path, caplog):
    labels = give_map(tmp_path, "sub-01_seg-fullhead")
    file = rate(labels, "bad")
    file.write_text("{")
    assert [one.path for one in find_sources(Settings(tmp_path, tmp_path))] == [labels]
    assert str(file) in caplog.text


@pytest.mark.input(
    "results",
    "contrast statistics whose label map is rated as bad",
    "priors: not pooled; a warning names the map",
    0,
)
def test_statistics_by_bad_labels_are_not_pooled(tmp_path, caplog):
    for n, rating in ((1, "bad"), (2, "usable")):
        labels = give_map(tmp_path, f"sub-{n}_seg-brainseg")
        rate(labels, rating)
        said = {
            "Statistics": asdict(image_of(both_sides())),
            "LabelsOf": f"bids::{labels.relative_to(tmp_path).as_posix()}",
        }
        name = labels.name.replace("_dseg.nii.gz", "_desc-contrast_morph.json")
        labels.with_name(name).write_text(json.dumps(said))
    assert [one.subject for one in find_measured(tmp_path)] == ["2"]
    assert "sub-1_seg-brainseg_dseg.nii.gz is rated as bad" in caplog.text
