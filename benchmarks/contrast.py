# SPDX-License-Identifier: Apache-2.0
"""Contrast statistics: what is found of a known truth, how fast, and what real heads give.

``python -m benchmarks.contrast truth``: images made from label maps whose means, spreads, field,
noise and resolution are known, with 20 % wrong labels at the borders.

``python -m benchmarks.contrast speed``: seconds and peak memory for a 256^3 head, own process.

``python -m benchmarks.contrast real IMAGE LABELS [IMAGE LABELS ...] [--pictures FOLDER]``
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.data import shared_data
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.measured import BiasField, ContrastStatistics
from brainseg_bids.contrast.statistics import measure
from brainseg_bids.images import read_label_map, read_volume

WRONG_SHARE = 0.2
FIELD = 0.4
FWHM_PER_SD = 2.3548


@dataclass(frozen=True)
class Truth:
    """An image and what it was made from.

    Parameters
    ----------
    image : (X, Y, Z) float32
    labels : LabelMap
        With wrong labels at the borders.
    means, sds : dict of str to float
        Without field, noise included.
    log_field : (X, Y, Z) float32
        Mean 0 in the head.
    sigma : float
        Of the noise, as `NoiseLaw` has it.
    fwhm_vox : float
    """

    image: np.ndarray
    labels: LabelMap
    means: dict[str, float]
    sds: dict[str, float]
    log_field: np.ndarray
    sigma: float
    fwhm_vox: float


def wrong_at_borders(
    voxels: np.ndarray, rng: np.random.Generator, share: float = WRONG_SHARE
) -> np.ndarray:
    """Give a share of the voxels that touch another label a neighbour's label."""
    wrong = voxels.copy()
    drawn = rng.random(voxels.shape) < share
    for number in rng.permutation(6):
        axis, step = number // 2, (-1, 1)[number % 2]
        neighbour = np.roll(voxels, step, axis)
        border = drawn & (neighbour != voxels)
        wrong[border] = neighbour[border]
        drawn &= ~border
    return wrong


def smooth_field(
    shape: tuple[int, int, int],
    voxel_size_mm: tuple[float, float, float],
    node_spacing_mm: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Random cubic B-spline field, (X, Y, Z) float32."""
    counts = [int(n * s / node_spacing_mm) + 4 for n, s in zip(shape, voxel_size_mm, strict=True)]
    field = rng.standard_normal(counts)
    for axis, (n, size) in enumerate(zip(shape, voxel_size_mm, strict=True)):
        at = np.arange(n) * size / node_spacing_mm + 1
        matrix = np.stack([_spline_at(column, at) for column in np.eye(counts[axis])], 1)
        field = np.moveaxis(np.tensordot(matrix, field, (1, axis)), 0, axis)
    return field.astype(np.float32)


def _spline_at(coefficients: np.ndarray, at: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(
        coefficients, at[None], order=3, prefilter=False, mode="nearest"
    )


def between(field: np.ndarray, head: np.ndarray, limit: float) -> np.ndarray:
    """The field as a logarithm whose factor goes ``limit`` up and down within the head."""
    field = field - field[head].mean()
    reach = np.quantile(np.abs(field[head]), 0.995)
    return np.log1p(np.clip(field / reach, -1, 1) * limit).astype(np.float32)


def make_truth(
    labels: LabelMap,
    means: dict[str, float],
    rng: np.random.Generator,
    *,
    sd_frac: float = 0.06,
    field: float = FIELD,
    node_spacing_mm: float = 70.0,
    sigma: float = 3.0,
    fwhm_vox: float = 1.2,
    kind: str = "magnitude",
) -> Truth:
    """Image of known statistics.

    Parameters
    ----------
    means : dict of str to float
        By name of label, 0..255; UNI of -0.5..0.5 for ``kind="ratio"``.
    sd_frac : float
        Spread of a label as a share of the range (drawn between half and one and a half of it).
    field : float
        Largest deviation of the field from 1.
    sigma : float
        Noise, as of ``means``.
    """
    table = labels.table
    highest = int(table.codes[-1]) + 1
    mean_of, sd_of = np.zeros(highest), np.zeros(highest)
    for label in table:
        if label.name in means:
            mean_of[label.index] = means[label.name]
            pair = np.random.default_rng([1, min(label.index, label.mirror)])
            sd_of[label.index] = pair.uniform(0.5, 1.5) * sd_frac
    sd_of *= np.ptp(list(means.values()))
    sd_of[0] = 0
    head = labels.voxels > 0
    size = labels.grid.voxel_size_mm
    log_field = between(smooth_field(labels.voxels.shape, size, node_spacing_mm, rng), head, field)
    log_field -= log_field[head].mean()
    texture = rng.standard_normal(labels.voxels.shape, dtype=np.float32)
    clean = mean_of.astype(np.float32)[labels.voxels]
    spread = sd_of.astype(np.float32)[labels.voxels] * texture
    blurred = ndimage.gaussian_filter(clean, fwhm_vox / FWHM_PER_SD)
    noisy = _ratio if kind == "ratio" else _rician
    flat = noisy(clean + spread, head, sigma, rng)
    image = noisy(
        np.where(head, (blurred + spread), blurred) * np.exp(log_field), head, sigma, rng
    )
    flat_means, flat_sds = {}, {}
    for code in np.unique(labels.voxels):
        values = flat[labels.voxels == code]
        flat_means[table[int(code)].name] = float(values.mean())
        flat_sds[table[int(code)].name] = float(values.std())
    wrong = LabelMap(wrong_at_borders(labels.voxels, rng), labels.grid, table)
    return Truth(image, wrong, flat_means, flat_sds, log_field, sigma, fwhm_vox)


def _rician(image, head, sigma, rng):
    real = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, sigma * rng.standard_normal(image.shape, dtype=np.float32))


def _ratio(image, head, sigma, rng):
    """UNI of -0.5..0.5, as 0..4095, from two noisy inversions; there is no signal in the air."""
    uni = np.clip(image, -0.499, 0.499)
    second = np.where(head, 1.0, 0.0).astype(np.float32)
    safe = np.where(np.abs(uni) < 1e-4, 1e-4, uni)
    first = second * (1 - np.sqrt(1 - 4 * safe**2)) / (2 * safe)

    def noise():
        parts = rng.standard_normal((2, *image.shape), dtype=np.float32)
        return sigma * (parts[0] + 1j * parts[1])

    first, second = first + noise(), second + noise()
    ratio = (first * second.conj()).real / (np.abs(first) ** 2 + np.abs(second) ** 2)
    return ((ratio + 0.5) * 4095).astype(np.float32)


def draw_means(labels: LabelMap, rng: np.random.Generator, low=20.0, high=250.0) -> dict:
    """A mean for each label that is there; left and right have one."""
    means: dict[str, float] = {}
    drawn: dict[int, float] = {}
    for code in np.unique(labels.voxels):
        label = labels.table[int(code)]
        pair = min(label.index, label.mirror)
        means[label.name] = drawn.setdefault(pair, float(rng.uniform(low, high)))
    return means


def field_on(bias: BiasField, shape: tuple[int, int, int]) -> np.ndarray:
    """The measured log field at every voxel of a grid on RAS axes."""
    nodes = bias.array()
    matrices = []
    for n, m in zip(shape, nodes.shape, strict=True):
        at = np.linspace(0, m - 1, n)
        matrices.append(
            np.stack(
                [
                    ndimage.map_coordinates(row, at[None], order=min(3, m - 1), mode="nearest")
                    for row in np.eye(m)
                ],
                1,
            )
        )
    return np.einsum("xi,yj,zk,ijk->xyz", *matrices, nodes, optimize=True)


def compare(truth: Truth, statistics: ContrastStatistics) -> dict[str, float]:
    """Errors: means in % of their range, spreads in %, field in %, noise, resolution.

    Labels measured in the image, background left out; spreads where 300 voxels or more were used.
    """
    names = [n for n, s in statistics.labels.items() if s.source == "measured"]
    names = [n for n in names if n in truth.means and truth.labels.table[n].index != 0]
    known = np.array([truth.means[n] for n in names])
    found = np.array([statistics[n].location for n in names])
    ratio = np.array([statistics[n].scale / truth.sds[n] for n in names])
    grid = truth.labels.grid
    head = grid.array_to_ras(truth.labels.voxels) > 0
    log_known = grid.array_to_ras(truth.log_field)
    log_found = field_on(statistics.bias, head.shape)
    off = np.exp(log_found - log_known)[head]
    error = 100 * np.abs(found - known) / np.ptp(known)
    spread = 100 * np.abs(ratio - 1)
    # The spread of n voxels is known to no better than 1 in the root of 2n.
    many = np.array([statistics[n].interior_voxels >= 300 for n in names])
    return {
        "labels": len(names),
        "mean_rms": float(np.sqrt((error**2).mean())),
        "mean_worst": float(error.max()),
        "spread_median": float(np.median(spread)),
        "spread_rms": float(np.sqrt((spread[many] ** 2).mean())),
        "spread_worst": float(spread.max()),
        "field_rmse": 100 * float(np.sqrt(((off / off.mean() - 1) ** 2).mean())),
        "r": float(np.corrcoef(known, found)[0, 1]),
        "sigma_ratio": statistics.noise.sigma / truth.sigma,
        "fwhm_vox": float(np.mean(np.array(statistics.fwhm_mm) / statistics.voxel_size_mm)),
        "worst_mean_of": names[int(error.argmax())],
        "worst_spread_of": names[int(spread.argmax())],
    }


def truths(folder: Path, maps: list[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Conditions, and the errors of each."""
    table = LabelTable.packaged("fullhead")
    for number in maps:
        path = folder / "synthseg_training_labels" / f"training_seg_{number}.nii.gz"
        labels = read_label_map(path, table)
        conditions = {
            "no field": {"field": 0.0},
            "field ±40 %, 120 mm": {"node_spacing_mm": 120.0},
            "field ±40 %, 70 mm": {"node_spacing_mm": 70.0},
            "field ±40 %, 50 mm": {"node_spacing_mm": 50.0},
            "field ±40 %, FWHM 2": {"fwhm_vox": 2.0},
            "MP2RAGE": {"kind": "ratio", "field": 0.0, "sigma": 0.03, "sd_frac": 0.03},
        }
        for name, settings in conditions.items():
            rng = np.random.default_rng(int(number))
            ratio = settings.get("kind") == "ratio"
            means = draw_means(labels, rng, *((-0.4, 0.45) if ratio else (20.0, 250.0)))
            means[table[0].name] = 0.0
            truth = make_truth(labels, means, rng, **settings)
            yield f"{number}, {name}", compare(truth, measure(truth.image, truth.labels))


def print_truth(folder: Path, maps: list[str]) -> None:
    """Table of errors, and the correlation of means over the series."""
    heads = ("condition", "labels", "mean rms %", "mean worst %", "of", "spread rms %")
    print(f"| {' | '.join(heads)} | field RMSE % | r | sigma ratio | FWHM vox |")
    print("|---" * 10 + "|")
    for name, errors in truths(folder, maps):
        sigma = "" if "MP2RAGE" in name else f"{errors['sigma_ratio']:.3f}"
        print(
            f"| {name} | {errors['labels']} | {errors['mean_rms']:.2f} "
            f"| {errors['mean_worst']:.2f} | {errors['worst_mean_of']} "
            f"| {errors['spread_rms']:.1f} | {errors['field_rmse']:.2f} | {errors['r']:.4f} "
            f"| {sigma} | {errors['fwhm_vox']:.2f} |",
            flush=True,
        )


def print_series(folder: Path, number: str, images: int = 10) -> None:
    """Correlation of true and estimated means of each label over images of drawn contrast."""
    table = LabelTable.packaged("fullhead")
    path = folder / "synthseg_training_labels" / f"training_seg_{number}.nii.gz"
    whole = read_label_map(path, table)
    size = 2 * np.array(whole.grid.voxel_size_mm)
    affine = whole.grid.affine @ np.diag([2, 2, 2, 1])
    voxels = np.ascontiguousarray(whole.voxels[::2, ::2, ::2])
    labels = LabelMap(voxels, Grid(voxels.shape, affine), table)
    pairs: dict[str, list[tuple[float, float]]] = {}
    for seed in range(images):
        rng = np.random.default_rng([seed, 7])
        means = draw_means(labels, rng) | {table[0].name: 0.0}
        truth = make_truth(labels, means, rng)
        statistics = measure(truth.image, truth.labels)
        for name, label in statistics.labels.items():
            if label.source == "measured" and table[name].index != 0:
                pairs.setdefault(name, []).append((truth.means[name], label.location))
    r = {n: float(np.corrcoef(np.transpose(p))[0, 1]) for n, p in pairs.items() if len(p) > 5}
    worst = min(r, key=r.get)
    print(
        f"\n{images} images of map {number} at {size[0]:g} mm: r of true and estimated means over "
        f"the images, per label: median {np.median(list(r.values())):.4f}, lowest {r[worst]:.4f} "
        f"({worst}), {len(r)} labels."
    )


def print_speed(folder: Path, number: str) -> None:
    """Seconds and peak memory of `measure` on a 256^3 head."""
    table = LabelTable.packaged("fullhead")
    path = folder / "synthseg_training_labels" / f"training_seg_{number}.nii.gz"
    labels = read_label_map(path, table)
    rng = np.random.default_rng(0)
    # Made in single precision and in place: the making must not be the peak.
    lookup = rng.uniform(20, 250, int(table.codes[-1]) + 1).astype(np.float32)
    lookup[0] = 0
    image = lookup[labels.voxels]
    for plane in image:
        plane += 5 * rng.standard_normal(plane.shape, dtype=np.float32)
    np.abs(image, out=image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu, wall = time.process_time(), time.perf_counter()
    measure(image, labels)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("| voxels | labels | CPU s | wall s | peak GiB | of these before |")
    print("|---|---|---|---|---|---|")
    shape = "x".join(map(str, image.shape))
    n = len(np.unique(labels.voxels[::2, ::2, ::2]))
    print(f"| {shape} | {n} | {cpu:.1f} | {wall:.1f} | {peak:.2f} | {before:.2f} |")


SHOWN = (
    "Cerebral-White-Matter",
    "Cerebral-Cortex",
    "Lateral-Ventricle",
    "Thalamus",
    "CSF",
    "Soft-Nonbrain-Tissue",
    "Other-Tissues",
    "Skull",
    "Bone-Cortical",
)


def print_real(pairs: list[tuple[Path, Path]], table: str, pictures: Path | None) -> None:
    """What images with label maps give, and what it looks like."""
    print("| image | label | voxels | interior | location | scale | fit | components |")
    print("|---|---|---|---|---|---|---|---|")
    for image_path, label_path in pairs:
        image, _ = read_volume(image_path)
        labels = read_label_map(label_path, LabelTable.packaged(table))
        statistics = measure(image, labels)
        for name, label in statistics.labels.items():
            if name.removeprefix("Left-") in SHOWN:
                print(
                    f"| {image_path.name} | {name} | {label.voxels} | {label.interior_voxels} "
                    f"| {label.location:.1f} | {label.scale:.1f} | {label.fit:.3f} "
                    f"| {len(label.components)} |"
                )
        noise, bias = statistics.noise, statistics.bias
        print(
            f"| {image_path.name} | noise {noise.kind} {noise.sigma:.2f} | | | field log sd "
            f"{bias.log_sd:.3f}, {bias.smoothness_mm:.0f} mm | FWHM "
            f"{'/'.join(f'{w:.2f}' for w in statistics.fwhm_mm)} mm | | |"
        )
        for warning in statistics.warnings:
            print(f"| {image_path.name} | {warning} | | | | | | |")
        if pictures:
            draw(image, labels, statistics, pictures / f"{image_path.name.split('.')[0]}.png")


def draw(image: np.ndarray, labels: LabelMap, statistics: ContrastStatistics, path: Path) -> None:
    """Histograms with their components, and field and field-free image over an axial slice."""
    from matplotlib import pyplot as plt

    names = [n for n in statistics.labels if n.removeprefix("Left-") in SHOWN]
    figure, axes = plt.subplots(3, 4, figsize=(16, 10))
    edges = np.array(statistics.edges)
    middle = (edges[1:] + edges[:-1]) / 2
    for axis, name in zip(axes.flat, names[:8], strict=False):
        label = statistics[name]
        counts = np.array(label.histogram) / max(1, sum(label.histogram)) / np.diff(edges)
        axis.stairs(counts, edges, fill=True, alpha=0.4)
        for part in label.components:
            density = np.exp(-0.5 * ((middle - part.mean) / part.sd) ** 2) * part.weight
            axis.plot(middle, density / (part.sd * np.sqrt(2 * np.pi)))
        axis.axvline(label.location, color="black", linewidth=0.5)
        axis.set_title(f"{name}, KS {label.fit:.3f}", fontsize=9)
    image, voxels = (labels.grid.array_to_ras(a) for a in (image, labels.voxels))
    field = field_on(statistics.bias, image.shape)
    cut = round(0.62 * image.shape[2])
    top = statistics.head_high
    shown = [
        (image[:, :, cut], "gray", 0, top),
        (image[:, :, cut] / np.exp(field[:, :, cut]), "gray", 0, top),
        (field[:, :, cut], "RdBu_r", -0.5, 0.5),
        (np.where(voxels > 0, field, np.nan)[image.shape[0] // 2 + 5], "RdBu_r", -0.5, 0.5),
    ]
    for axis, (plane, colours, low, high) in zip(axes[2], shown, strict=True):
        drawn = axis.imshow(plane.T, cmap=colours, vmin=low, vmax=high, origin="lower")
        figure.colorbar(drawn, ax=axis)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=60, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("truth", "speed", "real"))
    parser.add_argument("files", nargs="*", type=Path, help="image, labels, image, labels, ...")
    parser.add_argument("--maps", nargs="+", default=["15", "02"], help="numbers of label maps")
    parser.add_argument("--shared-data")
    parser.add_argument("--table", default="fullhead")
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    if given.what == "truth":
        print_truth(shared_data(given.shared_data), given.maps)
        print_series(shared_data(given.shared_data), given.maps[0])
    elif given.what == "speed":
        print_speed(shared_data(given.shared_data), given.maps[0])
    else:
        pairs = list(zip(given.files[::2], given.files[1::2], strict=True))
        print_real(pairs, given.table, given.pictures)


if __name__ == "__main__":
    main()
