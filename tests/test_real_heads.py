# SPDX-License-Identifier: Apache-2.0
"""The packaged models on real heads, as the app runs them: a floor under what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.evaluation.agreement import compare
from brainseg_bids.images import read_label_map, write_volume
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.recipe import View
from brainseg_bids.synth.recipe_files import read_space

pytestmark = [pytest.mark.shared_data, pytest.mark.slow]

GREY = (3, 42, 8, 47, 10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58)


def segment(image, model, folder) -> np.ndarray:
    """With flips, as is the app's default."""
    subprocess.run(
        [sys.executable, "-m", "brainseg_bids.programs.segment", "--image", image,
         "--model", model,
         "--labels", folder / "dseg.nii.gz", "--report", folder / "report.json",
         "--threads", "2", "--test-time-flips"],
        check=True, capture_output=True,
    )  # fmt: skip
    return np.asarray(nib.load(folder / "dseg.nii.gz").dataobj)


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def test_structures_of_a_real_head_lie_where_freesurfer_puts_them(shared_data, tmp_path):
    folder = shared_data / "mne_sample_ecog"
    codes = segment(folder / "T1.mgz", "head-1mm", tmp_path)
    truth = np.asarray(nib.load(folder / "aseg.mgz").dataobj)
    # Each side by itself, so that a flipped brain cannot pass; 0.003 to 0.011 under what was
    # measured.
    floors = {2: 0.913, 41: 0.915, 3: 0.875, 42: 0.877, 8: 0.898, 47: 0.912, 10: 0.878, 49: 0.877,
              17: 0.858, 53: 0.864, 11: 0.90, 50: 0.893, 12: 0.832, 51: 0.879, 18: 0.82, 54: 0.836,
              16: 0.888}  # fmt: skip
    reached = {code: dice(codes == code, truth == code) for code in floors}
    assert {code: d for code, d in reached.items() if d < floors[code]} == {}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["metadata"]["PeakMemoryGiB"] < 4


def test_a_stripped_brain_of_fine_voxels_is_done_by_the_model_for_them(shared_data, tmp_path):
    folder = shared_data / "niimath_t1_0.8mm"
    codes = segment(folder / "T1.nii.gz", "head-0.8mm", tmp_path)
    file = nib.load(folder / "GM.nii.gz")
    grey = np.asarray(file.dataobj, dtype=float)
    tissue = LabelTable([Label(0, "Background"), Label(1, "Grey-Matter")])
    grid = Grid(file.shape, file.affine)
    predicted, reference = (
        LabelMap(where.astype(np.int16), grid, tissue)
        for where in (np.isin(codes, GREY), grey > grey.max() / 2)
    )
    (row,) = compare(predicted, reference)
    # Measured: 0.878 and 0.278 mm.
    assert row.dice > 0.87
    assert row.assd_mm < 0.30


def test_a_flair_of_a_head_that_was_not_learned_from_is_done_by_the_model_for_flair(
    shared_data, tmp_path
):
    # No reference is at hand for a real one. As `benchmarks.released_model --parts heldout`.
    full, shape = LabelTable.packaged("fullhead"), (176, 224, 208)
    file = shared_data / "synthseg_training_labels" / "training_seg_15.nii.gz"
    generator = Generator(Crosswalk.packaged("fullhead", "brainseg"), full, shape=shape)
    recipe = read_space("flair").at(1.0).draw(np.random.default_rng([15, 0, 20]))
    middle = replace(recipe.deformation, center_frac=(0.5, 0.5, 0.55))
    pair = generator.render(
        LabelVolume.from_label_map(read_label_map(file, full)),
        replace(recipe, deformation=middle, view=View()),
    )
    image = write_volume(
        pair.image[0].numpy(), Grid(shape, np.eye(4)), tmp_path / "sub-15_FLAIR.nii.gz"
    )
    codes = segment(image, "head-flair", tmp_path)
    truth = LabelTable.packaged("brainseg").codes[pair.labels.numpy()]
    # 0.013 to 0.014 under what was measured.
    floors = {2: 0.896, 41: 0.897, 3: 0.855, 42: 0.865, 8: 0.915, 47: 0.91, 10: 0.902, 49: 0.89,
              17: 0.845, 53: 0.853, 11: 0.868, 50: 0.845, 12: 0.85, 51: 0.831,
              16: 0.931}  # fmt: skip
    reached = {code: dice(codes == code, truth == code) for code in floors}
    assert {code: d for code, d in reached.items() if d < floors[code]} == {}
