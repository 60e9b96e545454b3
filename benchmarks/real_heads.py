# SPDX-License-Identifier: Apache-2.0
"""Dice on real heads: a model of ours and brainchop's MeshNet, same voxels, same metric.

``python -m benchmarks.real_heads --model FOLDER --work SCRATCH --heads ecog oasis``

Everybody's labels are translated to the table ``brainseg`` (``benchmarks/crosswalks``) on the
image's own voxels. A structure's Dice merges its sides, because two of the rivals have none;
a second table keeps them apart. Voxels whose reference label has no counterpart are left out
for everybody (target ``void``); reference labels without a side (corpus callosum, vermis,
white-matter hypointensities) take that of the nearest sided voxel (target ``nearest A B``).
A rival's result is kept in the work folder and not computed twice.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks import meshnet
from benchmarks.data import shared_data
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.evaluation.agreement import confusion
from brainseg_bids.images import read_label_map, write_volume
from brainseg_bids.nets.bundle import ModelBundle, find_bundle
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.space import RecipeSpace

CROSSWALKS = Path(__file__).parent / "crosswalks"

TABLE = LabelTable.packaged("brainseg")

VOID = -1

RIVALS = ("model30chan18cls", "model30chan50cls", "model21_104class")

SIDED_RIVALS = ("model21_104class",)

STRUCTURES = {
    "Cerebral white matter": (2, 41),
    "Cerebral cortex": (3, 42),
    "Lateral ventricle": (4, 43),
    "Inferior lateral ventricle": (5, 44),
    "Cerebellar white matter": (7, 46),
    "Cerebellar cortex": (8, 47),
    "Thalamus": (10, 49),
    "Caudate": (11, 50),
    "Putamen": (12, 51),
    "Pallidum": (13, 52),
    "3rd ventricle": (14,),
    "4th ventricle": (15,),
    "Brain stem": (16,),
    "Hippocampus": (17, 53),
    "Amygdala": (18, 54),
    "Accumbens": (26, 58),
    "Ventral DC": (28, 60),
}

VENTRICLES = ("Lateral ventricle", "Inferior lateral ventricle", "3rd ventricle", "4th ventricle")

GROUPS = {
    "All ventricles": (4, 43, 5, 44, 14, 15),
    "Whole brain": tuple(code for codes in STRUCTURES.values() for code in codes),
}

TISSUES = {
    "Grey matter": (3, 42, 8, 47, 10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58),
    "White matter": (2, 41, 7, 46, 16, 28, 60),
    "CSF": (24, 4, 43, 5, 44, 14, 15),
    "Skull": (515, 516),
    "Other head": (502, 506, 507, 509, 511, 514, 530),
}
"""For references that know tissues only. Deep grey matter is grey, brain stem is white."""

SIDED = [(code,) for codes in STRUCTURES.values() for code in codes if len(codes) == 2]


@dataclass(frozen=True)
class Case:
    """An image and its reference in codes of `TABLE`, `VOID` where it does not count."""

    name: str
    image: Path
    reference: np.ndarray


def read_targets(name: str) -> dict[str, str]:
    """Source to target of a crosswalk of this folder, as text."""
    with (CROSSWALKS / name).open(newline="", encoding="utf-8") as file:
        return {row["source"]: row["target"] for row in csv.DictReader(file, delimiter="\t")}


def translate(codes: np.ndarray, targets: dict[int, str]) -> np.ndarray:
    """Codes of `TABLE`; a source code without a target is an error."""
    unknown = sorted(set(np.unique(codes).tolist()) - set(targets))
    if unknown:
        raise ValueError(f"no translation for codes {unknown}")
    lookup = np.full(max(targets) + 1, VOID, dtype=np.int16)
    for source, target in targets.items():
        if target.isdigit():
            lookup[source] = int(target)
    out = lookup[codes]
    for source, target in targets.items():
        if target.startswith("nearest"):
            wanted = [int(code) for code in target.split()[1:]]
            _settle(out, codes == source, np.isin(out, wanted))
    return out


def _settle(out: np.ndarray, open_: np.ndarray, candidates: np.ndarray) -> None:
    """Give ``open_`` voxels the label of the nearest candidate."""
    if not open_.any():
        return
    nearest = ndimage.distance_transform_edt(
        ~candidates, return_distances=False, return_indices=True
    )
    out[open_] = out[tuple(axis[open_] for axis in nearest)]


def ecog(data: Path) -> Iterator[Case]:
    """One defaced head with FreeSurfer's aseg."""
    folder = data / "mne_sample_ecog"
    codes = np.asarray(nib.load(folder / "aseg.mgz").dataobj).astype(np.int32)
    targets = {int(k): v for k, v in read_targets("aseg_to_brainseg.tsv").items()}
    yield Case("ECoG subject", folder / "T1.mgz", translate(codes, targets))


def oasis(data: Path) -> Iterator[Case]:
    """Eight skull-stripped brains labelled by hand. For evaluation only, never for training."""
    folder = data / "malf_oasis_manual"
    targets = {int(k): v for k, v in read_targets("oasis_manual_to_brainseg.tsv").items()}
    for image in sorted(folder.glob("*_SS.nii.gz")):
        name = image.name.split("_")[0]
        codes = np.asarray(nib.load(folder / f"{name}_glm.nii.gz").dataobj).astype(np.int32)
        yield Case(f"OASIS {name}", image, translate(codes, targets))


def colin(data: Path) -> Iterator[Case]:
    """Colin27 with six tissues; each becomes the first code of its group in `TISSUES`."""
    folder = data / "colin27"
    seg = np.asarray(nib.load(folder / "colin27_v3_on_ch2_grid_seg.nii.gz").dataobj)
    first = [0, TISSUES["Other head"][0], TISSUES["Skull"][0], TISSUES["CSF"][0]]
    first += [TISSUES["Grey matter"][0], TISSUES["White matter"][0], VOID]
    yield Case("Colin27", folder / "ch2.nii.gz", np.array(first, dtype=np.int16)[seg])


def fine(data: Path) -> Iterator[Case]:
    """A skull-stripped 0.8 mm brain with a grey matter map; above one half counts."""
    folder = data / "niimath_t1_0.8mm"
    grey = np.asarray(nib.load(folder / "GM.nii.gz").dataobj) > 127
    yield Case("0.8 mm", folder / "T1.nii.gz", np.where(grey, 3, 0).astype(np.int16))


def aligned(data: Path, work: Path) -> Iterator[Case]:
    """A stripped, affinely aligned T1w brain with FreeSurfer's aseg: VoxelMorph's test scan.

    The file tells no orientation. Centres of its labels do: the axes run left, down and forward.
    """
    scan = np.load(data / "voxelmorph_test_scan" / "test_scan.npz")
    image = work / "voxelmorph_test_scan.nii.gz"
    if not image.exists():
        axes = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
        write_volume(scan["vol"].astype(np.float32), Grid(scan["vol"].shape, axes), image)
    targets = {int(k): v for k, v in read_targets("aseg_to_brainseg.tsv").items()}
    yield Case("VoxelMorph's test scan", image, translate(scan["seg"].astype(np.int32), targets))


HEADS = {"ecog": ecog, "oasis": oasis, "colin": colin, "fine": fine}


def ours_file(image: Path, model: Path, work: Path, *, flips: bool = True) -> Path:
    """Where the labels of an image by a model of ours are kept."""
    bundle = ModelBundle.read(model)
    how = "-flips" if flips else ""
    return work / f"{stem(image)}_{bundle.name}-{bundle.digest[:12]}{how}.nii.gz"


def by_ours(
    image: Path, model: Path, work: Path, threads: int, *, anew: bool = False, flips: bool = True
) -> np.ndarray:
    """Codes of `TABLE` from the segmentation program; ``anew`` even if they are there."""
    out = ours_file(image, model, work, flips=flips)
    if anew or not out.exists():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "brainseg_bids.programs.segment",
                "--image",
                image,
                "--model",
                model,
                "--labels",
                out,
                "--report",
                out.with_suffix(".json"),
                "--device",
                "cpu",
                "--threads",
                str(threads),
                *(["--test-time-flips"] if flips else []),
            ],
            check=True,
        )
    return np.asarray(nib.load(out).dataobj).astype(np.int16)


def by_rival(image: Path, name: str, data: Path, work: Path, threads: int) -> np.ndarray:
    """Codes of `TABLE` from one of brainchop's models; sides merged into left if it has none."""
    out = work / f"{stem(image)}_{name}.nii.gz"
    if not out.exists():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.meshnet",
                "--image",
                image,
                "--model",
                name,
                "--labels",
                out,
                "--threads",
                str(threads),
                "--data",
                data,
            ],
            check=True,
        )
    ranks = np.asarray(nib.load(out).dataobj)
    targets = read_targets("meshnet_to_brainseg.tsv")
    names = meshnet.label_names(meshnet.model_folder(name, data))
    return translate(ranks, {rank: targets[label] for rank, label in enumerate(names)})


def stem(image: Path) -> str:
    """Name that tells images of several folders apart."""
    return f"{image.parent.name}_{image.name.split('.')[0]}"


def count(reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Confusion table in ranks of `TABLE`, void voxels left out."""
    ranks = TABLE.positions()
    counted = reference != VOID
    # A predicted code without a counterpart is wrong wherever the reference has a label.
    predicted = np.where(predicted == VOID, 0, predicted)
    return confusion(ranks[reference[counted]], ranks[predicted[counted]], len(TABLE))


def dice(counts: np.ndarray, codes: tuple[int, ...]) -> float:
    """Dice of the union of some codes; NaN where nobody has it."""
    group = TABLE.positions()[list(codes)]
    total = counts[group].sum() + counts[:, group].sum()
    return 2 * counts[np.ix_(group, group)].sum() / total if total else float("nan")


def scores(
    counts: np.ndarray, method: str, groups: dict[str, tuple[int, ...]]
) -> dict[str, float]:
    """Dice of every structure that a method has; merged classes are left out where it merges."""
    left_out: tuple[str, ...] = ()
    if method == "model30chan50cls":
        left_out = VENTRICLES
    if method in RIVALS:
        left_out += ("CSF", "Skull", "Other head")
    return {name: dice(counts, c) for name, c in groups.items() if name not in left_out}


def table(results: dict[str, list[dict[str, float]]], means: dict[str, tuple[str, ...]]) -> str:
    """Markdown: one row a structure, one column a method, mean (and spread) over the cases."""
    methods = list(results)
    rows = list(next(iter(results.values()))[0])
    lines = ["| structure | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for row in rows:
        cells = [_cell([case.get(row, np.nan) for case in results[m]]) for m in methods]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    for title, wanted in means.items():
        cells = []
        for method in methods:
            has = all(name in results[method][0] for name in wanted)
            cells.append(
                _cell([np.nanmean([case[n] for n in wanted]) for case in results[method]])
                if has
                else "-"
            )
        lines.append(f"| **{title}** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    values = np.array(values, dtype=float)
    if np.isnan(values).all():
        return "-"
    spread = f" ± {np.nanstd(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.nanmean(values):.3f}{spread}"


def evaluate(head: str, options: argparse.Namespace, data: Path) -> None:
    """Print the tables of one set of heads."""
    tissue_only = head in ("colin", "fine")
    groups = TISSUES if tissue_only else STRUCTURES | GROUPS
    if head == "fine":
        groups = {"Grey matter": TISSUES["Grey matter"]}
    merged: dict[str, list] = {}
    sided: dict[str, list] = {}
    for case in HEADS[head](data):
        found = {"ours": by_ours(case.image, options.model, options.work, options.threads)}
        for name in options.rivals:
            found[name] = by_rival(case.image, name, data, options.work, options.threads)
        for method, predicted in found.items():
            counts = count(case.reference, predicted)
            merged.setdefault(method, []).append(scores(counts, method, groups))
            if method == "ours" or method in SIDED_RIVALS:
                sided.setdefault(method, []).append(
                    {TABLE[c[0]].name: dice(counts, c) for c in SIDED}
                )
        print(f"{case.name}: done", file=sys.stderr, flush=True)
    n = len(merged["ours"])
    print(f"\n### {head} ({n} {'head' if n == 1 else 'heads'}), sides merged\n")
    common = tuple(s for s in STRUCTURES if s not in VENTRICLES)
    means = (
        {}
        if tissue_only
        else {
            f"mean of {len(STRUCTURES)} structures": tuple(STRUCTURES),
            f"mean of {len(common) + 1} that all have": (*common, "All ventricles"),
        }
    )
    print(table(merged, means))
    if not tissue_only:
        names = tuple(TABLE[c[0]].name for c in SIDED)
        print(f"\n### {head}, left and right apart\n")
        print(table(sided, {f"mean of {len(SIDED)}": names}))


def synthetic(options: argparse.Namespace, data: Path) -> None:
    """Ours only: fresh pairs from the two label maps that it was not trained on."""
    full = LabelTable.packaged("fullhead")
    rows: dict[str, list[dict[str, float]]] = {}
    for number in (15, 16):
        file = data / "synthseg_training_labels" / f"training_seg_{number}.nii.gz"
        labels = read_label_map(file, full)
        head = LabelVolume.from_label_map(labels)
        shape = (176, 224, 208)
        generator = Generator(Crosswalk.packaged("fullhead", "brainseg"), full, shape=shape)
        for space in ("t1w", "agnostic"):
            for index in range(options.pairs):
                rng = np.random.default_rng([number, index, 20])
                recipe = RecipeSpace.packaged(space).draw(rng)
                middle = replace(recipe.deformation, center_frac=(0.5, 0.5, 0.55))
                pair = generator.render(head, replace(recipe, deformation=middle))
                image = options.work / f"seg{number}_{space}{index}.nii.gz"
                write_volume(pair.image[0].numpy(), Grid(shape, np.eye(4)), image)
                predicted = by_ours(image, options.model, options.work, options.threads, anew=True)
                reference = TABLE.codes.astype(np.int16)[pair.labels.numpy()]
                rows.setdefault(space, []).append(
                    scores(count(reference, predicted), "ours", STRUCTURES | GROUPS)
                )
    print(f"\n### Fresh synthetic pairs of maps 15 and 16 ({2 * options.pairs} a recipe space)\n")
    print(table(rows, {f"mean of {len(STRUCTURES)} structures": tuple(STRUCTURES)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="packaged model's name or a model folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument(
        "--heads", nargs="+", default=[*HEADS, "synthetic"], choices=[*HEADS, "synthetic"]
    )
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=RIVALS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=3, help="synthetic pairs a map and space")
    parser.add_argument("--data", help="folder of the shared data")
    options = parser.parse_args()
    options.model = find_bundle(options.model)
    options.work.mkdir(parents=True, exist_ok=True)
    data = shared_data(options.data)
    for head in options.heads:
        if head == "synthetic":
            synthetic(options, data)
        else:
            evaluate(head, options, data)


if __name__ == "__main__":
    main()
