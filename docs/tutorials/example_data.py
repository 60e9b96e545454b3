# SPDX-License-Identifier: Apache-2.0
"""Write the tutorial's two small datasets: heads of ellipsoids, as if scanned at 3 T and at 7 T.

``python docs/tutorials/example_data.py FOLDER``

==================  ============================================================================
FOLDER/scans3t      three T1w images, 6 mm
FOLDER/maps3t       label maps of these heads, as if a tool had made them
FOLDER/scans7t      three T1w images of another contrast, 3 mm, darker at the sides
FOLDER/manual7t     their true labels, a BIDS derivative
FOLDER/quick.toml   a training recipe for a laptop and two minutes
==================  ============================================================================

Everybody's head has another shape. The same command writes the same files. Nothing here is
anatomy: it is for trying commands, in minutes and without data at hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import write_label_map, write_volume

EXTENT_MM = (192, 216, 204)
# Name, centre (R, A, S) mm, half axes mm; later ones are painted over earlier ones.
MIDDLE = [
    ("Skin", (0, 0, 0), (78, 96, 90)),
    ("Other-Tissues", (0, 0, 0), (75, 93, 87)),
    ("Bone-Cortical", (0, 0, 2), (72, 89, 83)),
    ("CSF", (0, 0, 3), (67, 83, 77)),
]
SIDES = [
    ("Cerebral-Cortex", (34, 2, 12), (33, 75, 60)),
    ("Cerebral-White-Matter", (34, 2, 12), (26, 65, 51)),
    ("Cerebellum-Cortex", (24, -45, -42), (23, 22, 18)),
    ("Lateral-Ventricle", (12, 0, 20), (8, 30, 10)),
    ("Thalamus", (11, -8, 4), (10, 15, 10)),
    ("Putamen", (27, 8, 4), (8, 17, 10)),
]
LOWER = [
    ("Brain-Stem", (0, -22, -35), (12, 11, 20)),
    ("Air-Internal", (0, 62, -48), (18, 12, 14)),
]
T1W_3T = {
    "Skin": 150, "Other-Tissues": 110, "Bone-Cortical": 25, "CSF": 35, "Cerebral-Cortex": 90,
    "Cerebral-White-Matter": 145, "Cerebellum-Cortex": 85, "Lateral-Ventricle": 30,
    "Thalamus": 115, "Putamen": 105, "Brain-Stem": 135, "Air-Internal": 0,
}  # fmt: skip
# Longer T1: fluid and grey matter are darker beside white matter; fat is bright.
T1W_7T = {
    "Skin": 210, "Other-Tissues": 170, "Bone-Cortical": 20, "CSF": 15, "Cerebral-Cortex": 70,
    "Cerebral-White-Matter": 160, "Cerebellum-Cortex": 62, "Lateral-Ventricle": 12,
    "Thalamus": 112, "Putamen": 88, "Brain-Stem": 146, "Air-Internal": 0,
}  # fmt: skip


RECIPE = """\
# For ellipsoids on a laptop; with heads leave this file away.
base = "cpu"
voxel_size_mm = 5.0     # coarse, to be quick; the recipe for CPUs says 1.5
total_steps = 150
warmup_steps = 20
decay_steps = 60
ema_decay = 0.9         # the model is a mean of the last ten steps; usually of the last 200
validate_every = 75
"""


@dataclass(frozen=True)
class Scanner:
    """How images look.

    Parameters
    ----------
    field_t : float
        Goes into their JSON.
    voxel_size_mm : float
    intensity : dict of str to float
        By structure, without side.
    side_loss_frac : float
        Share of the signal that is missing 80 mm to the side of the middle.
    """

    field_t: float
    voxel_size_mm: float
    intensity: dict[str, float]
    side_loss_frac: float = 0.0


SCANNER_3T = Scanner(3.0, 6.0, T1W_3T)
SCANNER_7T = Scanner(7.0, 3.0, T1W_7T, side_loss_frac=0.35)


def make_head(rng: np.random.Generator, voxel_size_mm: float) -> LabelMap:
    """Label map of one person; sizes vary by some per cent, places by some millimetres."""
    shape = tuple(round(length / voxel_size_mm) for length in EXTENT_MM)
    affine = np.diag([voxel_size_mm] * 3 + [1.0])
    affine[:3, 3] = [-voxel_size_mm * (n - 1) / 2 for n in shape]
    table = LabelTable.packaged("fullhead")
    world = affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]
    world /= rng.normal(1.0, 0.03, (3, 1))
    voxels = np.zeros(world.shape[1], dtype=np.int16)
    for names, shift_mm in ((MIDDLE, 0.0), (SIDES, 1.5), (LOWER, 1.5)):
        for name, centre, half in names:
            centre = np.array(centre) + rng.normal(0, shift_mm, 3)
            half = np.array(half) * (rng.normal(1.0, 0.04) if shift_mm else 1.0)
            for side in ("Right-", "Left-") if names is SIDES else ("",):
                turn = np.array([-1, 1, 1]) if side == "Left-" else 1
                away = (world - (centre * turn)[:, None]) / half[:, None]
                voxels[(away**2).sum(axis=0) <= 1] = table[side + name].index
    return LabelMap(voxels.reshape(shape), Grid(shape, affine), table)


def make_image(head: LabelMap, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """T1-weighted picture of a head, (X, Y, Z) float32."""
    lookup = np.zeros(int(head.table.codes[-1]) + 1)
    for label in head.table:
        name = label.name.removeprefix("Left-").removeprefix("Right-")
        lookup[label.index] = scanner.intensity.get(name, 0.0)
    image = lookup[head.voxels] * rng.uniform(0.8, 1.25)
    right_mm = head.grid.affine[0, 0] * np.arange(image.shape[0]) + head.grid.affine[0, 3]
    image *= (1 - scanner.side_loss_frac * (right_mm / 80) ** 2).clip(0.3)[:, None, None]
    noise = rng.normal(0, 4.0, (2, *image.shape))  # of both channels: Rician, as scanners give
    return np.hypot(image + noise[0], noise[1]).astype(np.float32)


def describe(root: Path, name: str, kind: str) -> None:
    """Make a folder a BIDS dataset."""
    root.mkdir(parents=True, exist_ok=True)
    said = {"Name": name, "BIDSVersion": "1.10.1", "DatasetType": kind, "License": "CC0"}
    if kind == "derivative":
        said["GeneratedBy"] = [{"Name": "example_data.py"}]
    (root / "dataset_description.json").write_text(json.dumps(said, indent=2) + "\n")
    (root / "README.md").write_text(f"# {name}\n\nHeads of ellipsoids, made by a program.\n")


def write_scans(root: Path, people: list[str], scanner: Scanner, seed: int) -> dict[str, LabelMap]:
    """Write a BIDS dataset of T1w images; gives the heads they show."""
    describe(root, f"Ellipsoids at {scanner.field_t:g} T", "raw")
    heads = {}
    for person in people:
        rng = np.random.default_rng([seed, int(person)])
        heads[person] = make_head(rng, scanner.voxel_size_mm)
        image = root / f"sub-{person}" / "anat" / f"sub-{person}_T1w.nii.gz"
        image.parent.mkdir(parents=True, exist_ok=True)
        write_volume(make_image(heads[person], scanner, rng), heads[person].grid, image)
        told = {"MagneticFieldStrength": scanner.field_t, "Modality": "MR"}
        image.with_name(f"sub-{person}_T1w.json").write_text(json.dumps(told, indent=2) + "\n")
    return heads


def write_example(root: Path) -> None:
    """Write all four folders."""
    heads = write_scans(root / "scans3t", ["01", "02", "03"], SCANNER_3T, seed=3)
    (root / "maps3t").mkdir(parents=True, exist_ok=True)
    for person, head in heads.items():
        write_label_map(head, root / "maps3t" / f"sub-{person}_T1w.nii.gz")
    heads = write_scans(root / "scans7t", ["71", "72", "73"], SCANNER_7T, seed=7)
    describe(root / "manual7t", "True labels of the ellipsoids at 7 T", "derivative")
    LabelTable.packaged("fullhead").write(root / "manual7t" / "dseg.tsv")
    for person, head in heads.items():
        labels = (
            root / "manual7t" / f"sub-{person}" / "anat" / f"sub-{person}_seg-fullhead_dseg.nii.gz"
        )
        labels.parent.mkdir(parents=True, exist_ok=True)
        write_label_map(head, labels)
    (root / "quick.toml").write_text(RECIPE)


def main(argv: list[str] | None = None) -> int:
    """Write the data and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the datasets go")
    folder = parser.parse_args(argv).folder
    write_example(folder)
    for name in ("scans3t", "maps3t", "scans7t", "manual7t", "quick.toml"):
        print(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
