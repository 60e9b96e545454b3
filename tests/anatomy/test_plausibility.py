# SPDX-License-Identifier: Apache-2.0
"""What cannot be right is said, and what people have is not."""

from __future__ import annotations

import csv
from importlib import resources

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brainseg_bids.anatomy.cohort import structures
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, count_codes
from brainseg_bids.anatomy.plausibility import implausible, implausible_volumes, limits
from brainseg_bids.anatomy.stripped import is_stripped
from brainseg_bids.images import read_label_map
from tests.phantom.head import phantom_grid, phantom_image

TABLE, FULLHEAD = LabelTable.packaged("brainseg"), LabelTable.packaged("fullhead")
ADULT_ML = {
    "Cerebral-White-Matter": 220, "Cerebral-Cortex": 240, "Lateral-Ventricle": 9,
    "Inf-Lat-Vent": 0.3, "Cerebellum-White-Matter": 14, "Cerebellum-Cortex": 54, "Thalamus": 7.4,
    "Caudate": 3.7, "Putamen": 5.2, "Pallidum": 1.6, "Hippocampus": 3.9, "Amygdala": 1.5,
    "Accumbens-area": 0.55, "VentralDC": 4.1, "3rd-Ventricle": 1.0, "4th-Ventricle": 1.7,
    "Brain-Stem": 21, "CSF": 350, "Eyes": 12, "Other-Tissues": 1300, "Skin": 350,
    "Bone-Cortical": 430, "Bone-Cancellous": 100,
}  # fmt: skip
"""An ordinary adult's head, each side."""


def head_ml(**changes: float) -> dict[int, float]:
    """Volumes of an ordinary head by code, some of them times a factor."""
    changes = {name.replace("_", "-"): factor for name, factor in changes.items()}
    found = {}
    for label in TABLE:
        plain = label.name.removeprefix("Left-").removeprefix("Right-")
        factor = changes.get(label.name, changes.get(plain, changes.get("all", 1)))
        found[label.index] = ADULT_ML.get(plain, 0) * factor
    return found


def test_every_limit_names_a_structure_of_a_head_and_a_source():
    names = {s.name for s in structures(LabelTable.packaged("fullhead"))}
    names |= {name.removeprefix("Left-") for name in names}
    others = {"Brain", "Infant brain", "Brain in head", "Head of a stripped image"}
    models = {"Held-out Dice of the brain", "Label maps learned from"}
    assert {structure for structure, _ in limits()} - others - models <= names
    assert all(line.low < line.high and len(line.source) > 20 for line in limits().values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"all": 0.75}, id="a child"),
        pytest.param({"all": 1.4}, id="a large man"),
        pytest.param(
            {"Lateral_Ventricle": 12, "Hippocampus": 0.45, "Cerebral_Cortex": 0.75},
            id="atrophy",
            marks=pytest.mark.input(
                "results",
                "a brain with atrophy: wide ventricles, small hippocampi",
                "no warning",
                0,
            ),
        ),
        pytest.param({"Left_Hippocampus": 0.3}, id="sclerosis of one hippocampus"),
        pytest.param({"Other_Tissues": 3, "Skin": 2}, id="neck and shoulders"),
    ],
)
def test_what_people_have_is_not_flagged(changes):
    assert implausible_volumes(head_ml(**changes), TABLE, whole_head=True) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param(
            {"all": 0.0004}, "brain of 0.4",
            marks=pytest.mark.input(
                "results", "a brain of 0.5 ml", "one warning; last line says 1 to look at", 0
            ),
        ),
        pytest.param(
            {"all": 0.35}, "infants have less",
            marks=pytest.mark.input("results", "the brain of an infant", "one warning", 0),
        ),
        pytest.param(
            {"Left_Cerebral_Cortex": 2, "Right_Cerebral_Cortex": 0}, "Right-Cerebral-Cortex",
            marks=pytest.mark.input(
                "results", "both sides labelled as one side", "warning names the other one", 0
            ),
        ),
        pytest.param(
            {"Right_Putamen": 0.3}, "Putamen",
            marks=pytest.mark.input(
                "results", "one putamen a third of the other", "warning names both volumes", 0
            ),
        ),
        pytest.param(
            {"Hippocampus": 0}, "Left-Hippocampus, Right-Hippocampus",
            marks=pytest.mark.input(
                "results", "a structure that every brain has is missing", "warning names it", 0
            ),
        ),
        ({"Thalamus": 4}, "Left-Thalamus"),
        ({"Bone_Cortical": 0, "Bone_Cancellous": 0}, "Bone"),
        ({"Other_Tissues": 0.08, "Skin": 0, "Bone_Cortical": 0.2}, "brain and the head"),
    ],
)  # fmt: skip
def test_what_nobody_has_is_named_in_one_sentence(changes, named):
    (found,) = implausible_volumes(head_ml(**changes), TABLE, whole_head=True)
    assert named in found


def test_many_faults_of_a_kind_are_one_sentence():
    names = [name for name, _ in limits() if name.startswith(("T", "C", "P", "H", "A"))]
    found = implausible_volumes(
        head_ml(**{n.replace("-", "_"): 0 for n in names if "Cerebr" not in n}),
        TABLE,
        whole_head=True,
    )
    assert len(found) == 1
    assert "more" in found[0]


def test_a_brain_map_without_a_head_is_a_brain_map():
    without = head_ml(Bone_Cortical=0, Bone_Cancellous=0, Other_Tissues=0, Skin=0)
    assert implausible_volumes(without, TABLE, whole_head=False) == []


def test_swapped_sides_are_seen_in_the_voxels(head):
    lookup = np.arange(int(head.table.codes[-1]) + 1)
    for label in head.table:
        lookup[label.index] = label.mirror
    swapped = LabelMap(lookup[head.voxels].astype(np.int16), head.grid, head.table)
    assert not any("swapped" in found for found in implausible(head))
    assert any("swapped" in found for found in implausible(swapped))


@pytest.mark.parametrize(
    ("axis", "part"),
    [
        pytest.param(
            2, slice(0, 28),
            marks=pytest.mark.input(
                "results", "a slab, or a head cut at the top", "one warning: the brain is cut", 0
            ),
        ),
        (2, slice(20, 34)),
        (1, slice(0, 24)),
    ],
)  # fmt: skip
def test_a_brain_that_the_box_cuts_gets_one_flag(head, head_image, axis, part):
    box = [slice(None)] * 3
    box[axis] = part
    start = tuple(s.start or 0 for s in box)
    voxels, image = head.voxels[tuple(box)], head_image[tuple(box)]
    cut = LabelMap(voxels, head.grid.crop(start, voxels.shape), head.table)
    (found,) = implausible(cut, image)
    assert "cut" in found
    # The same in a box that was padded afterwards.
    widths = [(4, 4) if a == axis else (0, 0) for a in range(3)]
    padded = np.pad(voxels, widths)
    grid = phantom_grid(padded.shape)
    assert implausible(LabelMap(padded, grid, head.table), np.pad(image, widths)) == [found]


def test_a_head_that_is_all_brain_is_told_as_too_large_though_it_is_cut():
    full = LabelMap(np.full((30, 30, 30), 2, np.int16), phantom_grid((30, 30, 30), 8.0), FULLHEAD)
    cut, size = implausible(full)
    assert "cut" in cut
    assert "600 to 2200" in size


def brain_of(labels: LabelMap, *, fluid: bool = False) -> np.ndarray:
    codes = [lab.index for lab in labels.table if lab.is_brain or (fluid and lab.name == "CSF")]
    return np.isin(labels.voxels, codes)


@pytest.mark.parametrize(
    ("fill", "noise_sd"), [(0.0, 4.0), (-1024.0, 4.0), (70.0, 4.0), (np.nan, 4.0), (0.0, 0.0)]
)
def test_a_stripped_image_is_told_by_what_lies_around_the_brain(head, fill, noise_sd):
    image = phantom_image(head, np.random.default_rng(1), noise_sd=noise_sd)
    brain = brain_of(head)
    assert not is_stripped(image, brain, head.grid)
    assert is_stripped(np.where(brain, image, fill), brain, head.grid)
    # A mask that left the fluid in, and labels that are wrong by a voxel of 4 mm.
    fluid = brain_of(head, fluid=True)
    assert is_stripped(np.where(fluid, image, fill), np.roll(fluid, 1, axis=1), head.grid)


@pytest.mark.input(
    "results", "a skull-stripped image padded by a fill value", "reported as skull-stripped", 0
)
@pytest.mark.parametrize("value", [-32768, -1024, 32767])
def test_padding_by_a_fill_value_is_nothing_around_the_brain(head, head_image, value):
    brain = brain_of(head)
    for image, stripped in ((np.where(brain, head_image, 0), True), (head_image, False)):
        padded = image.copy()
        padded[:4] = padded[-4:] = value
        assert is_stripped(padded, brain, head.grid) == stripped


def test_a_masked_background_and_a_removed_face_are_no_stripped_brain(head, head_image):
    brain, whole = brain_of(head), head.voxels != 0
    assert not is_stripped(np.where(whole, head_image, 0), brain, head.grid)
    faceless = np.where(whole, head_image, 0)
    faceless[:, 36:, :20] = 0
    assert not is_stripped(faceless, brain, head.grid)
    assert not is_stripped(np.where(brain, head_image, 0), np.zeros_like(brain), head.grid)


@pytest.mark.input(
    "results", "bone labelled in a skull-stripped image", "warning names the volumes", 0
)
def test_bone_around_a_stripped_brain_is_named(head, head_image):
    bare = np.where(brain_of(head), head_image, 0)
    assert any("skull-stripped" in found for found in implausible(head, bare))
    assert not any("skull-stripped" in found for found in implausible(head, head_image))
    without = LabelMap(np.where(brain_of(head), head.voxels, 0), head.grid, head.table)
    assert not any("skull-stripped" in found for found in implausible(without, bare))


# Real heads


def real_ml(path, codes=None) -> dict[int, float]:
    """Volumes in ml of a map, its codes translated into those of ``fullhead``."""
    file = nib.load(path)
    counts = count_codes(np.rint(np.asanyarray(file.dataobj)).astype(np.int32))
    voxel_ml = abs(np.linalg.det(file.affine[:3, :3])) / 1000
    found: dict[int, float] = {}
    for code, n in counts.items():
        own = codes.get(code, 0) if codes else code
        found[own] = found.get(own, 0.0) + n * voxel_ml
    return {code: ml for code, ml in found.items() if code and code in FULLHEAD}


def oasis_codes() -> dict[int, int]:
    path = resources.files("brainseg_bids") / "data" / "references" / "oasis_manual.tsv"
    with path.open(newline="") as file:
        rows = [(row["source"], row["target"]) for row in csv.DictReader(file, delimiter="\t")]
    # The vermis has no side: it goes to the left here.
    targets = {"void": "0", "nearest 8 47": "8"}
    return {int(source): int(targets.get(target, target)) for source, target in rows}


@pytest.mark.shared_data
@pytest.mark.slow
def test_no_reference_map_of_a_real_head_is_flagged(shared_data):
    whole = sorted((shared_data / "synthseg_training_labels").glob("*.nii.gz"))
    whole.append(shared_data / "samseg_output_example" / "seg.mgz")
    oasis = sorted((shared_data / "malf_oasis_manual").glob("*_glm.nii.gz"))
    flagged = {
        path.name: found
        for path in whole
        if (found := implausible_volumes(real_ml(path), FULLHEAD, whole_head=True))
    }
    for path in oasis:
        if found := implausible_volumes(real_ml(path, oasis_codes()), FULLHEAD, whole_head=False):
            flagged[path.name] = found
    assert len(whole) == 17
    assert len(oasis) == 8
    assert flagged == {}


@pytest.mark.shared_data
def test_a_real_head_is_fine_and_its_broken_versions_are_not(shared_data):
    path = shared_data / "mne_sample_ecog" / "aseg.mgz"
    aseg = Crosswalk.packaged("freesurfer", "fullhead").translate(
        read_label_map(path, Crosswalk.packaged("freesurfer", "fullhead").source_table())
    )
    assert implausible(aseg) == []
    eroded = aseg.voxels * ndimage.binary_erosion(aseg.voxels > 0, iterations=14)
    left_of = np.arange(int(FULLHEAD.codes[-1]) + 1)
    for label in FULLHEAD:
        left_of[label.index] = label.mirror if label.hemisphere == "right" else label.index
    merged = left_of[aseg.voxels]
    without = np.where(aseg.voxels == 53, 0, aseg.voxels)
    for voxels in (eroded, merged, without):
        broken = LabelMap(voxels.astype(np.int16), aseg.grid, FULLHEAD)
        assert implausible(broken), np.unique(voxels)
