# SPDX-License-Identifier: Apache-2.0
"""The tables of the released models' cards: accuracy, robustness, native voxels, time.

``python -m benchmarks.released_model --work SCRATCH --models head-t1w NEW --samseg "run_samseg"``

Every image is segmented by every model of ours, by brainchop's MeshNets and, where named, by
SAMSEG, on the image's own voxels; Dice as in `benchmarks.real_heads`. Results are kept in the work
folder and not computed twice. Parts (``--parts``):

``real``
    The ECoG subject and a stripped brain (both FreeSurfer's aseg), and eight brains labelled by
    hand (OASIS).
``fields``
    The same images with what 7 T does to them, simulated: a receive field of 0.6 to 1.4, signal
    lost in temporal lobes and cerebellum, MP2RAGE's background. What each method loses.
``flair``
    A real FLAIR head, without a reference: agreement with SAMSEG, which adapts itself to any
    contrast.
``colin``
    Colin27 beside SAMSEG's result in the shared data. It decides which model is packaged, and
    its contrast was fitted, so that it is in no table of accuracy.
``heldout``
    Label maps 15 and 16, which no training has seen, with freshly drawn recipes: brain and head.
``native``
    Images of 0.8 and 0.6 mm, segmented as they are and after resampling to 1 mm: surface distance
    of grey matter.
``cost``
    Time and peak memory of a whole head of 1 mm, file to file, one program after the other.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel import processing
from scipy import ndimage

from benchmarks import real_heads
from benchmarks.data import shared_data
from benchmarks.inference import run
from benchmarks.real_heads import RIVALS, STRUCTURES, TABLE, TISSUES, VENTRICLES, Case, stem
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.evaluation.agreement import compare
from brainseg_bids.images import read_label_map, read_volume, write_volume
from brainseg_bids.nets.bundle import ModelBundle, find_bundle
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.interpolate import smooth_field
from brainseg_bids.synth.recipe import View
from brainseg_bids.synth.recipe_files import read_space

Method = Callable[[Path], np.ndarray]
"""Image file to codes of `TABLE` on its voxels."""

ALL_HAVE = (*(s for s in STRUCTURES if s not in VENTRICLES), "All ventricles")
"""Structures that the MeshNet without single ventricles has, too."""

HEAD_CLASSES = {
    "Artery": (502,),
    "Eyes": (506,),
    "Other soft tissue": (507,),
    "Mucosa": (509,),
    "Skin": (511,),
    "Spinal cord": (512,),
    "Vein": (514,),
    "Cortical bone": (515,),
    "Cancellous bone": (516,),
    "Optic nerve and chiasm": (530,),
}

LENTIFORM = ("Putamen", "Pallidum")
"""On the FLAIR head SAMSEG calls the dark pallidum putamen, as its picture shows."""

SPACES = (
    "t1w",
    "benchmarks/released/t1w_sharp.toml",
    "t1w7t",
    "mp2rage7t",
    "flair",
    "t2w",
    "agnostic7t",
)


def methods(options: argparse.Namespace, data: Path) -> dict[str, Method]:
    """All methods by name; ours first."""
    work, threads = options.work, options.threads
    found: dict[str, Method] = {}
    for name, folder in our_models(options.models).items():
        ours = partial(real_heads.by_ours, model=folder, work=work, threads=threads)
        found[name] = ours
        if options.without_flips:
            found[f"{name} without flips"] = partial(ours, flips=False)
    for name in options.rivals:
        found[name] = partial(
            real_heads.by_rival, name=name, data=data, work=work, threads=threads
        )
    return found


def our_models(wanted: list[str]) -> dict[str, Path]:
    """Model folders by name; models of one name are told apart by their digests."""
    folders = [find_bundle(name) for name in wanted]
    bundles = [ModelBundle.read(folder) for folder in folders]
    names = [bundle.name for bundle in bundles]
    found = {}
    for bundle, folder in zip(bundles, folders, strict=True):
        shared = names.count(bundle.name) > 1
        found[f"{bundle.name} {bundle.digest[:8]}" if shared else bundle.name] = folder
    return found


def by_samseg(image: Path, program: str, work: Path) -> np.ndarray:
    """Codes of `TABLE` by SAMSEG."""
    folder = samseg_folder(image, work)
    if not (folder / "seg.mgz").exists():
        used = run([*shlex.split(program), "-i", str(image), "-o", str(folder), "--threads", "1"])
        (folder / "used.txt").write_text(" ".join(f"{number:.3f}" for number in used))
    return read_samseg(folder / "seg.mgz")


def read_samseg(file: Path) -> np.ndarray:
    """Codes of `TABLE` from SAMSEG's result; what is no brain is background."""
    codes = np.asarray(nib.load(file).dataobj).astype(np.int32)
    targets = {int(k): v for k, v in real_heads.read_targets("aseg_to_brainseg.tsv").items()}
    # Bone, soft tissue and eyes.
    return real_heads.translate(codes, {165: "0", 258: "0", 259: "0"} | targets)


def samseg_folder(image: Path, work: Path) -> Path:
    """Where SAMSEG's results of an image are."""
    return work / f"{image.name.split('.')[0]}_samseg"


def _dice(reference: np.ndarray, predicted: np.ndarray, method: str) -> dict[str, float]:
    counts = real_heads.count(reference, predicted)
    return real_heads.scores(counts, method, STRUCTURES | real_heads.GROUPS)


MEANS = {
    f"mean of {len(STRUCTURES)} structures": tuple(STRUCTURES),
    f"mean of {len(ALL_HAVE)} that all have": ALL_HAVE,
}


def mean_of(row: dict[str, float]) -> float:
    """Mean Dice of the structures that a method has."""
    names = STRUCTURES if "3rd ventricle" in row else ALL_HAVE
    return float(np.nanmean([row[name] for name in names]))


# Real heads -------------------------------------------------------------------------------------


REAL: dict[str, tuple[str, Callable[[Path, Path], Iterator[Case]]]] = {
    "ecog": ("ECoG subject against FreeSurfer's aseg", lambda data, _: real_heads.ecog(data)),
    "voxelmorph": (
        "VoxelMorph's test scan, skull-stripped, against FreeSurfer's aseg",
        real_heads.aligned,
    ),
    "oasis": (
        "Eight brains labelled by hand (OASIS), skull-stripped",
        lambda data, _: real_heads.oasis(data),
    ),
}


def real(options: argparse.Namespace, data: Path) -> None:
    """Dice beside references that programs or people have made."""
    for title, cases in map(REAL.get, options.heads):
        rows: dict[str, list[dict[str, float]]] = {}
        for case in cases(data, options.work):
            used = methods(options, data)
            if options.samseg and case.name == "ECoG subject":
                used["SAMSEG"] = partial(by_samseg, program=options.samseg, work=options.work)
            for name, segment in used.items():
                image = _nifti(case.image, options.work) if name == "SAMSEG" else case.image
                rows.setdefault(name, []).append(_dice(case.reference, segment(image), name))
            print(f"{case.name}: done", file=sys.stderr, flush=True)
        print(f"\n### {title}\n\n{real_heads.table(rows, MEANS)}")


def _nifti(image: Path, work: Path) -> Path:
    """The image as NIfTI of 8 or 16 bits, for programs that want one."""
    out = work / f"{stem(image)}_input.nii.gz"
    if not out.exists():
        loaded = nib.load(image)
        nib.save(nib.Nifti1Image(np.asarray(loaded.dataobj), loaded.affine), out)
    return out


# What 7 T does ----------------------------------------------------------------------------------


def places_mm(grid: Grid) -> np.ndarray:
    """World coordinates of all voxels, (3, X, Y, Z) float32."""
    index = np.indices(grid.shape, dtype=np.float32).reshape(3, -1)
    affine = np.asarray(grid.affine, dtype=np.float32)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *grid.shape)


def receive_field(image: np.ndarray, grid: Grid, brain: np.ndarray) -> np.ndarray:
    """Times a smooth field that spans 0.6 to 1.4 over the brain."""
    field = smooth_field(
        grid.shape,
        voxel_size_mm=float(np.mean(grid.voxel_size_mm)),
        node_spacing_mm=60.0,
        seed=7,
        device=torch.device("cpu"),
    )
    values = field(0, grid.shape[0]).numpy()
    low, high = values[brain].min(), values[brain].max()
    return image * (0.6 + 0.8 * np.clip((values - low) / (high - low), 0, 1))


def dropout(image: np.ndarray, grid: Grid, brain: np.ndarray) -> np.ndarray:
    """Up to 60 % of the signal lost in both temporal lobes and in the cerebellum."""
    where = places_mm(grid)
    low, high = (np.percentile(where[:, brain], q, axis=1) for q in (1, 99))
    left = np.ones(grid.shape, dtype=np.float32)
    # Shares of the brain's box, right, forward, up: temporal lobes, cerebellum.
    for share in ((0.1, 0.6, 0.25), (0.9, 0.6, 0.25), (0.5, 0.15, 0.1)):
        middle = low + (high - low) * np.array(share)
        square = np.square(where - middle[:, None, None, None].astype(np.float32)).sum(0)
        left *= 1 - 0.6 * np.exp(-square / (2 * 22.0**2))
    return image * left


def noisy_background(image: np.ndarray, grid: Grid, brain: np.ndarray) -> np.ndarray:
    """What is dark around the head as bright noise, as in MP2RAGE's UNI."""
    bright = image > 0.1 * np.percentile(image[brain], 90)
    head = ndimage.binary_closing(bright, iterations=3) | brain
    pieces, _ = ndimage.label(head)
    head = ndimage.binary_fill_holes(pieces == np.argmax(np.bincount(pieces[brain])))
    noise = np.random.default_rng(7).uniform(0, np.percentile(image[brain], 99), grid.shape)
    return np.where(head, image, noise)


CHANGES = {
    "receive field ±40 %": receive_field,
    "dropout": dropout,
    "MP2RAGE background": noisy_background,
}


def changed_cases(cases: Iterator[Case], work: Path) -> Iterator[tuple[str, Case]]:
    """Every case as it is and changed; stripped brains keep their empty background."""
    for case in cases:
        yield "as it is", case
        image, grid = read_volume(case.image)
        for name, change in CHANGES.items():
            if name == "MP2RAGE background" and case.name.startswith("OASIS"):
                continue
            path = work / f"{stem(case.image)}_{list(CHANGES).index(name)}.nii.gz"
            if not path.exists():
                brain = (case.reference != 0) & (image > 0)
                write_volume(change(image, grid, brain).astype(np.float32), grid, path)
            yield name, replace(case, image=path)


def fields(options: argparse.Namespace, data: Path) -> None:
    """Mean Dice of each method under each change."""
    few = list(real_heads.oasis(data))[: options.oasis]
    for title, cases in (("ECoG subject", real_heads.ecog(data)), ("OASIS", iter(few))):
        found: dict[str, dict[str, list[float]]] = {}
        for change, case in changed_cases(cases, options.work):
            for name, segment in methods(options, data).items():
                row = _dice(case.reference, segment(case.image), name)
                found.setdefault(name, {}).setdefault(change, []).append(mean_of(row))
            print(f"{case.name}, {change}: done", file=sys.stderr, flush=True)
        if found:  # of OASIS none may be wanted
            print_losses(f"{title}: simulated fields of 7 T, mean Dice (loss)", found)


def print_losses(title: str, found: dict[str, dict[str, list[float]]]) -> None:
    """A row a method, a column a change."""
    changes = list(next(iter(found.values())))
    print(f"\n### {title}\n\n| method | " + " | ".join(changes) + " |")
    print("|---" * (len(changes) + 1) + "|")
    for name, by_change in found.items():
        plain = np.mean(by_change[changes[0]])
        cells = [f"{plain:.3f}"]
        for change in changes[1:]:
            mean = np.mean(by_change[change])
            cells.append(f"{mean:.3f} ({mean - plain:+.3f})")
        print(f"| {name} | " + " | ".join(cells) + " |")


def flair(options: argparse.Namespace, data: Path) -> None:
    """Agreement with SAMSEG on a FLAIR head, with and without `LENTIFORM`."""
    if not options.samseg:
        print("\nflair: left out, it needs --samseg", file=sys.stderr)
        return
    image = data / "py_synthsr_flair" / "FLAIR.nii.gz"
    reference = by_samseg(image, options.samseg, options.work)
    rows = {
        name: [_dice(reference, segment(image), name)]
        for name, segment in methods(options, data).items()
    }
    means = MEANS | {
        f"{title} without putamen and pallidum": tuple(s for s in names if s not in LENTIFORM)
        for title, names in MEANS.items()
    }
    print(f"\n### FLAIR against SAMSEG\n\n{real_heads.table(rows, means)}")


def colin(options: argparse.Namespace, data: Path) -> None:
    """Agreement with SAMSEG on Colin27, which chooses between models."""
    reference = read_samseg(data / "samseg_output_example" / "seg.mgz")
    (case,) = real_heads.colin(data)
    rows = {
        name: [_dice(reference, segment(case.image), name)]
        for name, segment in methods(options, data).items()
    }
    print(f"\n### Colin27 beside SAMSEG\n\n{real_heads.table(rows, MEANS)}")


# Held-out label maps ----------------------------------------------------------------------------


def heldout(options: argparse.Namespace, data: Path) -> None:
    """Fresh pairs of maps 15 and 16, whole heads."""
    full = LabelTable.packaged("fullhead")
    shape = (176, 224, 208)
    generator = Generator(Crosswalk.packaged("fullhead", "brainseg"), full, shape=shape)
    ours = our_models(options.models)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    rows = ["model\tmap\tspace\tpair\tbrain\thead"]
    for number in (15, 16):
        labels = options.labels or data / "synthseg_training_labels"
        file = labels / f"training_seg_{number}.nii.gz"
        head = LabelVolume.from_label_map(read_label_map(file, full))
        for space in options.spaces:
            for index in range(options.pairs):
                recipe = read_space(space).at(1.0).draw(np.random.default_rng([number, index, 20]))
                middle = replace(recipe.deformation, center_frac=(0.5, 0.5, 0.55))
                pair = generator.render(head, replace(recipe, deformation=middle, view=View()))
                image = options.work / f"seg{number}_{Path(space).stem}{index}.nii.gz"
                write_volume(pair.image[0].numpy(), Grid(shape, np.eye(4)), image)
                reference = TABLE.codes.astype(np.int16)[pair.labels.numpy()]
                for name, folder in ours.items():
                    predicted = real_heads.by_ours(
                        image, folder, options.work, options.threads, anew=True
                    )
                    counts = real_heads.count(reference, predicted)
                    means = [
                        float(np.nanmean([real_heads.dice(counts, c) for c in codes.values()]))
                        for codes in (STRUCTURES, HEAD_CLASSES)
                    ]
                    found.setdefault(name, {}).setdefault(Path(space).stem, []).append(means)
                    brain, outside = means
                    words = (
                        name,
                        number,
                        Path(space).stem,
                        index,
                        f"{brain:.4f}",
                        f"{outside:.4f}",
                    )
                    rows.append("\t".join(map(str, words)))
    if options.tsv:
        options.tsv.write_text("\n".join(rows) + "\n", encoding="utf-8")
    spaces = [Path(space).stem for space in options.spaces]
    print(f"\n### Fresh pairs of maps 15 and 16, {2 * options.pairs} a recipe space, mean Dice\n")
    print("| model | classes | " + " | ".join(spaces) + " |\n|" + "---|" * (len(spaces) + 2))
    for name, by_space in found.items():
        for column, what in enumerate(("brain (17, sides merged)", "head (10)")):
            cells = []
            for space in spaces:
                values = np.array(by_space[space])[:, column]
                cells.append(f"{values.mean():.3f} ± {values.std(ddof=1):.3f}")
            print(f"| {name} | {what} | " + " | ".join(cells) + " |")


# Native voxels ----------------------------------------------------------------------------------


def native(options: argparse.Namespace, data: Path) -> None:
    """Grey matter's surface distance: own voxels, or by way of 1 mm."""
    cases = [*real_heads.fine(data), *fine_synthetic(data, options.work)]
    print("\n### Grey matter, own voxels and by way of 1 mm\n")
    print("| image | model | Dice | by 1 mm | ASSD mm | by 1 mm |\n|" + "---|" * 6)
    for case in cases:
        coarse = _at_one_mm(case.image, options.work)
        for name, folder in our_models(options.models).items():
            cells = []
            for image in (case.image, coarse):
                real_heads.by_ours(image, folder, options.work, options.threads)
                cells.append(_grey(case, real_heads.ours_file(image, folder, options.work)))
            numbers = [f"{dice:.4f}" for dice, _ in cells] + [f"{assd:.3f}" for _, assd in cells]
            print(f"| {case.name} | {name} | " + " | ".join(numbers) + " |")


def _grey(case: Case, labels: Path) -> tuple[float, float]:
    """Dice and ASSD of grey matter; labels of other voxels are brought to the image's."""
    target = nib.load(case.image)
    found = nib.load(labels)
    if found.shape != target.shape:
        found = processing.resample_from_to(found, target, order=0)
    grid = Grid(target.shape, target.affine)
    tissue = LabelTable([Label(0, "Background"), Label(1, "Grey-Matter")])
    codes = TISSUES["Grey matter"]
    predicted, reference = (
        LabelMap(np.isin(voxels, codes).astype(np.int16), grid, tissue)
        for voxels in (np.asarray(found.dataobj), case.reference)
    )
    (row,) = compare(predicted, reference)
    return row.dice, row.assd_mm


def _at_one_mm(image: Path, work: Path) -> Path:
    """The image resampled to 1 mm, smoothed before as coarser voxels are."""
    out = work / f"{stem(image)}_1mm.nii.gz"
    if not out.exists():
        loaded = nib.load(image)
        sizes = np.array(loaded.header.get_zooms()[:3], dtype=float)
        # The standard deviation that a box of 1 mm has beyond a box of the image's voxels.
        sd_vox = np.sqrt(np.maximum(1 - sizes**2, 0) / 12) / sizes
        smooth = ndimage.gaussian_filter(np.asarray(loaded.dataobj, dtype=np.float32), sd_vox)
        smooth = nib.Nifti1Image(smooth, loaded.affine)
        nib.save(processing.resample_to_output(smooth, 1.0, order=1), out)
    return out


def fine_synthetic(data: Path, work: Path) -> Iterator[Case]:
    """T1w images of 0.6 mm, painted from a label map of a real brain of that size."""
    full = LabelTable.packaged("fullhead")
    file = data / "gouhfi_expected_labels" / "sub002-t1w-06iso.nii.gz"
    loaded = nib.load(file)
    codes = Crosswalk.packaged("gouhfi", "fullhead").codes(np.asarray(loaded.dataobj).astype(int))
    head = LabelVolume.from_label_map(LabelMap(codes, Grid(loaded.shape, loaded.affine), full))
    low, high = head.box_vox
    shape = tuple(int(n) for n in 16 * np.ceil((high - low + 24) / 16))
    generator = Generator(
        Crosswalk.packaged("fullhead", "brainseg"), full, shape=shape, voxel_size_mm=0.6
    )
    space = read_space("t1w").without("deformation", "ageing", "flip", "view")
    space = space.changed({"resolution_isotropic_mm": (0.6, 0.7), "resolution_slice_p": 0.0})
    for index in range(2):
        recipe = space.draw(np.random.default_rng([index, 6]))
        middle = replace(recipe.deformation, center_frac=(0.5, 0.5, 0.5))
        pair = generator.render(head, replace(recipe, deformation=middle))
        image = work / f"fine{index}.nii.gz"
        write_volume(pair.image[0].numpy(), Grid(shape, np.diag([0.6, 0.6, 0.6, 1])), image)
        reference = TABLE.codes.astype(np.int16)[pair.labels.numpy()]
        yield Case(f"synthetic T1w, 0.6 mm ({index + 1})", image, reference)


# Cost -------------------------------------------------------------------------------------------


def cost(options: argparse.Namespace, data: Path) -> None:
    """Seconds and memory of the ECoG head, each program alone."""
    image = _nifti(data / "mne_sample_ecog" / "T1.mgz", options.work)
    out = options.work / "cost.nii.gz"
    common = ["--image", image, "--threads", str(options.threads), "--labels", out]
    programs = {}
    for name, folder in our_models(options.models).items():
        ours = [sys.executable, "-m", "brainseg_bids.programs.segment", *common, "--model", folder]
        ours += ["--device", "cpu", "--report", out.with_suffix(".json")]
        programs |= {name: [*ours, "--test-time-flips"], f"{name} without flips": ours}
    for name in options.rivals:
        programs[name] = [sys.executable, "-m", "benchmarks.meshnet", *common, "--model", name]
    if options.deepbet:
        code = "import sys; from deepbet import run_bet as bet; "
        code += "bet([sys.argv[1]], [sys.argv[2]], no_gpu=True)"
        programs["deepbet (mask only)"] = [options.deepbet, "-c", code, image, out]
    print(f"\n### A head of 256³ at 1 mm, file to file, {options.threads} threads, one run\n")
    print("| program | wall s | CPU-s | peak GiB |\n|---|---|---|---|")
    for name, command in programs.items():
        wall, cpu, peak = run([str(part) for part in command])
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {peak:.2f} |")
    used = samseg_folder(image, options.work) / "used.txt"
    if used.exists():
        wall, cpu, peak = map(float, used.read_text().split())
        print(f"| SAMSEG, 1 thread | {wall:.0f} | {cpu:.0f} | {peak:.2f} |")


PARTS = {
    "real": real,
    "fields": fields,
    "flair": flair,
    "colin": colin,
    "heldout": heldout,
    "native": native,
    "cost": cost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--models", nargs="+", required=True, help="packaged names or folders")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS[:2]), choices=RIVALS)
    parser.add_argument(
        "--heads", nargs="+", default=list(REAL), choices=REAL, help="of part real"
    )
    parser.add_argument("--without-flips", action="store_true", help="ours without flips, too")
    parser.add_argument("--samseg", help="how SAMSEG is called; without, it is left out")
    parser.add_argument("--deepbet", help="a Python that has deepbet; without, it is left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=2, help="synthetic pairs a map and space")
    parser.add_argument(
        "--spaces", nargs="+", default=list(SPACES), help="that held-out maps are painted by"
    )
    parser.add_argument("--oasis", type=int, default=8, help="brains that fields are tried on")
    parser.add_argument("--data", help="folder of the shared data")
    parser.add_argument("--labels", type=Path, help="folder of label maps 15 and 16, of heldout")
    parser.add_argument("--tsv", type=Path, help="also write the numbers of heldout there")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(options.threads)
    alone = options.labels is not None and options.parts == ["heldout"]
    data = options.labels.parent if alone else shared_data(options.data)
    for part in options.parts:
        PARTS[part](options, data)


if __name__ == "__main__":
    main()
