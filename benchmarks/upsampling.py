# SPDX-License-Identifier: Apache-2.0
"""Label upsampling side by side with rivals: seconds, memory, and truth to finer maps.

``python -m benchmarks.upsampling speed``: a 1 mm head to 0.5 mm; on its middle for the rivals
that would take many minutes.
``python -m benchmarks.upsampling quality``: finer maps are taken down (each coarse voxel gets the
label that fills most of it) and up again, and compared with what they were.
``python -m benchmarks.upsampling fit --factors 2``: searches the weights of the fitted kernel, on
maps that ``quality`` does not judge by.

Needs ``pip install antspyx SimpleITK``; rivals that are missing are left out. Times are CPU
seconds of one thread (``OMP_NUM_THREADS=1 ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1``); with
``--device cuda`` look at wall seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import fft, ndimage, optimize
from scipy.spatial import cKDTree

from benchmarks.data import shared_data
from brainseg_bids.anatomy import interpolation
from brainseg_bids.anatomy import upsample as ours
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.anatomy.upsample_engine import Processor

FILES = {
    "gouhfi-0.7mm": "gouhfi_expected_labels/sub001-t1w-07iso.nii.gz",
    "gouhfi-0.6mm": "gouhfi_expected_labels/sub002-t1w-06iso.nii.gz",
    "nyhead-0.5mm": "nyhead_0.5mm_labels/nyhead_T1orT2_SPM_masks.nii.gz",
    **{
        f"synthseg-{n:02d}": f"synthseg_training_labels/training_seg_{n:02d}.nii.gz"
        for n in range(1, 17)
    },
}
FIT_ON = ("gouhfi-0.7mm", "synthseg-01", "synthseg-09")
JUDGED = ("gouhfi-0.6mm", "nyhead-0.5mm", "synthseg-15", "synthseg-16")
CROP = 200
"""Voxels of the middle that are used of heads; a brain is used whole."""
GREY = {3, 42, *range(1000, 3000)}
WHITE = {2, 41}
TISSUES = {  # grey and white matter in the codes of each kind of map
    "gouhfi": ({2, 21}, {1, 20}),
    "nyhead": ({2}, {1}),
    "synthseg": (GREY, WHITE),
}

Method = Callable[[LabelMap, Grid], LabelMap]


# Maps ------------------------------------------------------------------------------------------


def read(data: Path, name: str, crop: int | None = None) -> LabelMap:
    """One map; its voxels are the unit of length, so that all are compared alike."""
    voxels = np.asanyarray(nib.load(data / FILES[name]).dataobj).squeeze().astype(np.int16)
    if name.startswith("gouhfi"):
        box = ndimage.find_objects((voxels > 0).astype(np.uint8))[0]
        voxels = voxels[tuple(slice(max(0, s.start - 6), s.stop + 6) for s in box)]
    if crop:
        starts = [max(0, (n - crop) // 2) for n in voxels.shape]
        voxels = voxels[tuple(slice(start, start + crop) for start in starts)]
    voxels = np.ascontiguousarray(voxels[tuple(slice(n // 2 * 2) for n in voxels.shape)])
    codes = sorted({0, *np.unique(voxels).tolist()})
    table = LabelTable([Label(code, f"label-{code}") for code in codes], name=name)
    return LabelMap(voxels, Grid(voxels.shape, np.eye(4)), table)


def overlaps(n_fine: int, factor: float) -> np.ndarray:
    """Share of each coarse voxel that each fine one fills, (coarse, fine)."""
    n = int(np.ceil(n_fine / factor - 1e-6))
    edges = (n_fine - n * factor) / 2 + factor * np.arange(n + 1)
    low = np.maximum(edges[:-1, None], np.arange(n_fine))
    high = np.minimum(edges[1:, None], np.arange(1, n_fine + 1))
    return (np.maximum(0, high - low) / factor).astype(np.float32)


@dataclass(frozen=True)
class Coarse:
    """A map taken down, with the volume fractions of its labels."""

    labels: LabelMap
    fractions: TopPosteriors


def coarsen(truth: LabelMap, factor: float) -> Coarse:
    """Exact volume fractions of every label; the largest is the hard label."""
    weights = [overlaps(n, factor) for n in truth.grid.shape]
    shape = tuple(len(w) for w in weights)
    affine = np.diag([factor, factor, factor, 1.0])
    affine[:3, 3] = [
        (n - 1) / 2 - factor * (m - 1) / 2 for n, m in zip(truth.grid.shape, shape, strict=True)
    ]
    grid = Grid(shape, affine)
    fractions = TopPosteriors.from_posteriors(_fractions(truth, weights), grid, truth.table, k=4)
    return Coarse(fractions.hard(), fractions)


def _fractions(truth: LabelMap, weights: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    for label in truth.table:
        volume = (truth.voxels == label.index).astype(np.float32)
        for axis, matrix in enumerate(weights):
            volume = np.moveaxis(np.tensordot(matrix, volume, (1, axis)), 0, axis)
        yield label.index, np.clip(volume, 0, 1)


# Methods ---------------------------------------------------------------------------------------


def our(kernel: str, **settings) -> Method:
    """Our upsampler on one thread."""
    return lambda labels, grid: ours.upsample(
        labels, grid, kernel=kernel, engine=Processor(1), **settings
    )


def on_device(kernel: str, device: str) -> Method:
    """Ours by PyTorch, on one thread where the device is the processor."""
    import torch

    from brainseg_bids.inference.upsample_device import upsample_on

    torch.set_num_threads(1)
    return lambda labels, grid: upsample_on(labels, grid, device=device, kernel=kernel)


def nearest(labels: LabelMap, grid: Grid) -> LabelMap:
    """Label of the source voxel that holds the target's centre."""
    at = []
    for axis, n in enumerate(grid.shape):
        step = grid.affine[axis, axis] / labels.grid.affine[axis, axis]
        start = (grid.affine[axis, 3] - labels.grid.affine[axis, 3]) / labels.grid.affine[
            axis, axis
        ]
        places = np.rint(start + step * np.arange(n)).astype(int)
        at.append(np.clip(places, 0, labels.grid.shape[axis] - 1))
    return LabelMap(labels.voxels[np.ix_(*at)], grid, labels.table)


def fourier(sigma: float, only: int | None = None) -> Method:
    """Nearest, then every label's mask under a Gaussian by Fourier transform, strictly largest.

    After the description of BrainSegmentation's label smoothing; ``sigma`` in target voxels.
    ``only`` times the first few labels.
    """

    def run(labels: LabelMap, grid: Grid) -> LabelMap:
        fine = nearest(labels, grid).voxels
        frequencies = [fft.fftfreq(n) for n in grid.shape[:2]] + [fft.rfftfreq(grid.shape[2])]
        squares = sum(
            f.reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
            for axis, f in enumerate(frequencies)
        )
        filters = np.exp(-2 * (np.pi * sigma) ** 2 * squares).astype(np.float32)
        best, out = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.int16)
        for label in list(labels.table)[:only]:
            mask = (fine == label.index).astype(np.float32)
            smooth = fft.irfftn(fft.rfftn(mask) * filters, grid.shape)
            better = smooth > best
            out[better], best[better] = label.index, smooth[better]
        return LabelMap(out, grid, labels.table)

    return run


def _zoomed(labels: LabelMap, grid: Grid, code: int, order: int) -> np.ndarray:
    factors = [b / a for a, b in zip(labels.grid.shape, grid.shape, strict=True)]
    mask = (labels.voxels == code).astype(np.float32)
    return ndimage.zoom(mask, factors, order=order, mode="nearest", grid_mode=True)


def scipy_zoom(labels: LabelMap, grid: Grid) -> LabelMap:
    """``scipy.ndimage.zoom`` of every label's mask, order 1, the largest wins."""
    best, out = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.int16)
    for label in labels.table:
        score = _zoomed(labels, grid, label.index, 1)
        better = score > best
        out[better], best[better] = label.index, score[better]
    return LabelMap(out, grid, labels.table)


def nnunet(labels: LabelMap, grid: Grid) -> LabelMap:
    """As nnU-Net describes its resizing of labels: masks by order 1, set where at least a half."""
    out = np.zeros(grid.shape, np.int16)
    for label in labels.table:
        out[_zoomed(labels, grid, label.index, 1) >= 0.5] = label.index
    return LabelMap(out, grid, labels.table)


def ants_generic(labels: LabelMap, grid: Grid) -> LabelMap:
    """ANTs' genericLabel."""
    import ants

    def image(voxels: np.ndarray, where: Grid):
        return ants.from_numpy(
            voxels, origin=where.affine[:3, 3].tolist(), spacing=list(where.voxel_size_mm)
        )

    target = image(np.zeros(grid.shape, np.float32), grid)
    found = ants.resample_image_to_target(
        image(labels.voxels.astype(np.float32), labels.grid), target, interp_type="genericLabel"
    )
    return LabelMap(found.numpy().astype(np.int16), grid, labels.table)


def simple_itk(interpolator: str) -> Method:
    """SimpleITK's label interpolators."""

    def run(labels: LabelMap, grid: Grid) -> LabelMap:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        image = sitk.GetImageFromArray(np.ascontiguousarray(labels.voxels.T))
        image.SetSpacing(labels.grid.voxel_size_mm)
        image.SetOrigin(labels.grid.affine[:3, 3].tolist())
        found = sitk.Resample(
            image, grid.shape, sitk.Transform(), getattr(sitk, interpolator),
            grid.affine[:3, 3].tolist(), grid.voxel_size_mm, (1, 0, 0, 0, 1, 0, 0, 0, 1), 0,
        )  # fmt: skip
        return LabelMap(sitk.GetArrayFromImage(found).T.astype(np.int16), grid, labels.table)

    return run


def rivals(n_fourier: int | None = None) -> dict[str, Method]:
    """Every rival that is installed."""
    found = {
        "nearest": nearest,
        "FFT Gaussian, sigma 1 voxel": fourier(1.0, n_fourier),
        "scipy zoom per label": scipy_zoom,
        "nnU-Net resize": nnunet,
    }
    if find_spec("ants"):
        found["ANTs genericLabel"] = ants_generic
    if find_spec("SimpleITK"):
        found["SimpleITK LabelLinear"] = simple_itk("sitkLabelLinear")
        found["SimpleITK LabelGaussian"] = simple_itk("sitkLabelGaussian")
    return found


# Speed -----------------------------------------------------------------------------------------


def _memory_mb(entry: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {entry} in /proc/self/status")


def timed(
    method: Method, labels: LabelMap, grid: Grid, repeats: int
) -> tuple[float, float, float]:
    """Least CPU seconds, wall seconds of that call, and peak MB above the start."""
    found = []
    for _ in range(repeats):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before, wall, cpu = _memory_mb("VmRSS"), time.perf_counter(), time.process_time()
        method(labels, grid)
        took = time.process_time() - cpu, time.perf_counter() - wall
        found.append((*took, _memory_mb("VmHWM") - before))
    return min(found)


def speed(data: Path, name: str, device: str) -> None:
    """Tables of seconds and memory: the whole head, then its middle."""
    whole = read(data, name)
    by_torch = {f"ours, {kernel}, PyTorch on {device}": on_device(kernel, device)
                for kernel in ("linear", "fitted") if find_spec("torch")}  # fmt: skip
    two = (
        ("ours, linear", our("linear"), 3),
        ("ours, fitted", our("fitted"), 3),
        ("ours, fitted, keep_thin=False", our("fitted", keep_thin=False), 3),
        ("ours, lossless", our("lossless"), 1),
        *((title, method, 1) for title, method in by_torch.items()),
        ("nearest", nearest, 3),
    )
    ours.upsample(read(data, name, 24), 0.5, kernel="linear")  # compiles, or reads what was
    ours.upsample(read(data, name, 24), 0.5, kernel="lossless")
    for method in by_torch.values():
        method(read(data, name, 24), read(data, name, 24).grid.with_voxel_size(0.5))
    generic = [("ANTs genericLabel", ants_generic, 1)] if find_spec("ants") else []
    _speed_table(f"{name}, whole", whole, [*two, *generic])
    n = 6
    middle = read(data, name, 128)
    others = [(name, method, 1) for name, method in rivals(n).items() if name != "nearest"]
    _speed_table(
        f"{name}, middle; FFT timed on {n} of {len(middle.table)} labels and multiplied",
        middle, [*two, *others], {"FFT Gaussian, sigma 1 voxel": len(middle.table) / n},
    )  # fmt: skip
    for kernel in ("linear", "fitted", "lossless") if by_torch else ():
        report_device(middle, kernel, device)


def report_device(labels: LabelMap, kernel: str, device: str) -> None:
    """How many labels of the device differ from the processor's, and the memory it took."""
    import torch

    grid = labels.grid.with_voxel_size(0.5)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    found = on_device(kernel, device)(labels, grid).voxels
    differ = np.count_nonzero(found != our(kernel)(labels, grid).voxels)
    print(f"{kernel}: {differ} of {found.size} labels by PyTorch differ from ours", end="")
    if device.startswith("cuda"):
        print(f"; {torch.cuda.max_memory_allocated() / 2**30:.3f} GiB of the device", end="")
    print()


def _speed_table(title, labels, methods, scale=None) -> None:
    grid = labels.grid.with_voxel_size(0.5)
    print(f"\n{title}: {labels.grid.shape} to {grid.shape}, {len(labels.table)} labels\n")
    print("| method | CPU-s | x ours, linear | wall s | GiB above the start | n |")
    print("|---|---|---|---|---|---|")
    first = None
    for name, method, repeats in methods:
        cpu, wall, rise = timed(method, labels, grid, repeats)
        factor = (scale or {}).get(name, 1)
        cpu, wall = cpu * factor, wall * factor
        first = first or cpu
        print(
            f"| {name} | {cpu:.3g} | {cpu / first:.3g} | {wall:.3g} | {rise / 1024:.3f} "
            f"| {repeats} |",
            flush=True,
        )


# Quality ---------------------------------------------------------------------------------------


def dice(truth: LabelMap, found: LabelMap) -> dict[int, float]:
    """Of every label of the truth but background."""
    n = int(truth.table.codes[-1]) + 1
    joint = np.bincount(
        (truth.voxels.astype(np.int32) * n + found.voxels).ravel(), minlength=n * n
    )
    joint = joint.reshape(n, n)
    rows, columns = joint.sum(1), joint.sum(0)
    return {
        code: float(2 * joint[code, code] / (rows[code] + columns[code]))
        for code in truth.table.codes.tolist()
        if code and rows[code]
    }


def _edge(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask, border_value=1)


def surfaces(truth: LabelMap, found: LabelMap) -> dict[int, tuple[float, float]]:
    """Average symmetric surface distance and HD95 of every label but background, in voxels.

    Surface voxels have a face neighbour of another label; distances from centre to centre.
    """
    boxes = [ndimage.find_objects(labels.voxels) for labels in (truth, found)]
    result = {}
    for code in truth.table.codes.tolist():
        both = [box[code - 1] if 0 < code <= len(box) else None for box in boxes]
        if None in both:
            continue
        union = tuple(
            slice(max(0, min(a.start, b.start) - 1), max(a.stop, b.stop) + 1)
            for a, b in zip(*both, strict=True)
        )
        edges = [_edge(labels.voxels[union] == code) for labels in (truth, found)]
        away = []
        for here, there in (edges, edges[::-1]):
            points = np.argwhere(here)
            distance = np.zeros(len(points))
            off = ~there[tuple(points.T)]
            if off.any():
                distance[off] = cKDTree(np.argwhere(there)).query(points[off])[0]
            away.append(distance)
        hd95 = max(np.percentile(distance, 95) for distance in away)
        result[code] = float(np.concatenate(away).mean()), float(hd95)
    return result


def volume_changes(truth: LabelMap, found: LabelMap) -> dict[int, float]:
    """Relative change of every label of the truth but background."""
    before, after = truth.volumes_mm3(), found.volumes_mm3()
    return {code: after[code] / v - 1 for code, v in before.items() if code and v}


def _tissue(values: dict[int, float], codes: set[int]) -> float:
    return float(np.mean([value for code, value in values.items() if code in codes]))


def judge(name: str, method: str, truth: LabelMap, found: LabelMap, back: float) -> None:
    """One line of the table of quality."""
    grey, white = TISSUES[name.split("-")[0]]
    overlap, distance, volume = (
        dice(truth, found),
        surfaces(truth, found),
        volume_changes(truth, found),
    )
    assd, hd95 = (np.mean([row[n] for row in distance.values()]) for n in (0, 1))
    print(
        f"| {name} | {method} | {np.mean(list(overlap.values())):.4f} "
        f"| {_tissue(overlap, grey):.4f} | {_tissue(overlap, white):.4f} | {assd:.3f} "
        f"| {hd95:.3f} | {np.mean(np.abs(list(volume.values()))):.4f} "
        f"| {_tissue(volume, grey):+.4f} | {back:.5f} |",
        flush=True,
    )


def quality(data: Path, names: list[str], factors: list[float], all_rivals: bool) -> None:
    """Table of Dice, distances and volumes for each map, factor and method."""
    print(
        "| map | method | Dice | GM | WM | ASSD voxels | HD95 | abs dVol | GM dVol | round trip |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in names:
        truth = read(data, name, None if name.startswith("gouhfi") else CROP)
        if all_rivals:
            truth = read(data, name, 128)
        for factor in factors:
            coarse = coarsen(truth, factor)
            methods = {
                "nearest": nearest,
                "ours, linear": our("linear"),
                "ours, fitted": our("fitted"),
                "ours, fitted, keep_thin=False": our("fitted", keep_thin=False),
                "ours, lossless": our("lossless"),
            }
            if all_rivals:
                methods = rivals() | methods
            title = f"{name} x {factor:g}"
            for method, run in methods.items():
                found = run(coarse.labels, truth.grid)
                down = ours.regrid(found, coarse.labels.grid).voxels
                judge(title, method, truth, found, float(np.mean(down == coarse.labels.voxels)))
            for order in ours.ORDERS:
                found = ours.upsample_posteriors(coarse.fractions, truth.grid, order=order)
                down = ours.regrid(found, coarse.labels.grid).voxels
                equal = float(np.mean(down == coarse.labels.voxels))
                judge(title, f"ours, volume fractions, {order}", truth, found, equal)


# Fit -------------------------------------------------------------------------------------------


def fit(data: Path, factor: float, calls: int) -> None:
    """Nelder and Mead's search for the weights at 0.5, 1, 1.5 and 2 voxels, from linear's gain.

    What is maximised: gain in mean Dice over linear on the 0.7 mm map, plus 0.3 times that on
    1 mm maps, which are noisier than what is upsampled to in practice.
    """
    truths = [read(data, n, None if n.startswith("gouhfi") else 150) for n in FIT_ON]
    pairs = [(truth, coarsen(truth, factor).labels) for truth in truths]

    def gains(kernel: str) -> np.ndarray:
        run = our(kernel, keep_thin=False)
        overlaps = [dice(truth, run(coarse, truth.grid)) for truth, coarse in pairs]
        return np.array([np.mean(list(overlap.values())) for overlap in overlaps])

    base = gains("linear")

    def loss(weights: np.ndarray) -> float:
        row = np.array([1, *weights, 0.0])
        interpolation.fitted_kernels = lambda: (np.array([factor]), row[None])
        gain = gains("fitted") - base
        print(np.round(weights, 4), np.round(gain, 4), flush=True)
        return -(gain[0] + 0.3 * gain[1:].mean())

    start = np.array([0.97, 0.085, -0.09, -0.155])
    moves = [[0] * 4, [-0.1, 0.06, -0.05, 0.02], [-0.05, -0.06, 0, 0], [0, 0.03, 0.05, 0],
             [0, 0, -0.03, 0.04]]  # fmt: skip
    found = optimize.minimize(
        loss, start, method="Nelder-Mead",
        options={"initial_simplex": start + moves, "maxfev": calls},
    )  # fmt: skip
    print(f"{factor:g}:", np.round(found.x, 4), f"loss {found.fun:.5f}")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "quality", "fit"])
    parser.add_argument("--data", type=Path, help="folder of the real heads")
    parser.add_argument("--maps", nargs="+", default=list(JUDGED), choices=list(FILES))
    parser.add_argument("--factors", nargs="+", type=float, default=[2.0])
    parser.add_argument("--rivals", action="store_true", help="every rival, on a crop of 128³")
    parser.add_argument("--device", default="cpu", help="where PyTorch works: cpu or cuda")
    parser.add_argument("--calls", type=int, default=40, help="evaluations of the search")
    options = parser.parse_args()
    data = shared_data(options.data)
    if options.what == "speed":
        speed(data, "synthseg-02", options.device)
    elif options.what == "quality":
        quality(data, options.maps, options.factors, options.rivals)
    else:
        for factor in options.factors:
            fit(data, factor, options.calls)


if __name__ == "__main__":
    main()
