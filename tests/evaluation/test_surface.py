# SPDX-License-Identifier: Apache-2.0
"""Surface distances: equal to those of the programs that defined them, and to brute force."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.evaluation import surface, surface_search
from brainseg_bids.evaluation.overlap import tally
from brainseg_bids.evaluation.structures import Pair, choose_structures
from brainseg_bids.evaluation.surfels import surfel_areas_mm2

SIZES = [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (1.28, 0.8, 0.5)]
TILTED = np.array([[1.0, 0.3, 0.0], [0.0, 1.1, -0.4], [0.0, 0.0, 1.5]])


def blobs(seed: int, n: int = 3, shape=(26, 22, 24), amount: float = 2.0) -> list[LabelMap]:
    """Lumpy regions that fill some of a box, and a copy with bent boundaries."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(n + 1, *shape)), (0, 3, 3, 3))
    bent = fields + ndimage.gaussian_filter(rng.normal(size=fields.shape), (0, 2, 2, 2)) / amount
    table = LabelTable([Label(code, f"label-{code}") for code in range(n + 1)])
    grid = Grid(shape, np.eye(4))
    return [LabelMap(f.argmax(0).astype(np.int16), grid, table) for f in (fields, bent)]


def on_grid(maps: list[LabelMap], axes_mm: np.ndarray) -> list[LabelMap]:
    affine = np.eye(4)
    affine[:3, :3] = axes_mm
    return [LabelMap(m.voxels, Grid(m.grid.shape, affine), m.table) for m in maps]


def measure(reference: LabelMap, prediction: LabelMap, definition: str, **groups):
    pair = Pair.of(reference, prediction)
    structures = choose_structures(reference.table, prediction.table, groups=groups)
    found = surface.surface_distances(pair, tally(pair), structures, definition)
    return dict(zip([s.name for s in structures], found, strict=True))


def numbers(found: surface.SurfaceDistances) -> list[float]:
    return [
        found.assd_mm,
        found.from_reference.mean_mm,
        found.from_prediction.mean_mm,
        found.hausdorff_mm(95),
        found.hausdorff_mm(),
        found.nsd(0.6),
        found.nsd(1.5),
    ]


def by_google(reference: np.ndarray, prediction: np.ndarray, size_mm) -> list[float]:
    oracle = pytest.importorskip("surface_distance")
    found = oracle.compute_surface_distances(reference, prediction, size_mm)
    means = oracle.compute_average_surface_distance(found)
    areas = [found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()]
    return [
        np.dot(means, areas) / sum(areas),
        *means,
        oracle.compute_robust_hausdorff(found, 95),
        oracle.compute_robust_hausdorff(found, 100),
        oracle.compute_surface_dice_at_tolerance(found, 0.6),
        oracle.compute_surface_dice_at_tolerance(found, 1.5),
    ]


def by_monai(reference: np.ndarray, prediction: np.ndarray, size_mm) -> list[float]:
    metrics, torch = pytest.importorskip("monai.metrics"), pytest.importorskip("torch")
    pair = [torch.tensor(m[None, None].copy()) for m in (prediction, reference)]
    options = {"include_background": True, "spacing": list(size_mm)}
    _, ways, _ = metrics.utils.get_edge_surface_distance(
        *(m[0, 0] for m in pair), spacing=list(size_mm), symmetric=True
    )
    hd95 = max(np.percentile(way.double().numpy(), 95) for way in ways)
    # MONAI ranks in single precision, which moves its percentile by a few 0.01 micrometres.
    own = metrics.compute_hausdorff_distance(*pair, percentile=95, **options)
    assert hd95 == pytest.approx(float(own), abs=1e-4)
    distance, dice = metrics.compute_average_surface_distance, metrics.compute_surface_dice
    return [
        float(distance(*pair, symmetric=True, **options)),
        float(distance(*pair[::-1], **options)),
        float(distance(*pair, **options)),
        hd95,
        float(metrics.compute_hausdorff_distance(*pair, **options)),
        float(dice(*pair, class_thresholds=[0.6], **options)),
        float(dice(*pair, class_thresholds=[1.5], **options)),
    ]


ORACLES = {"surface": (by_google, 1e-6), "voxel": (by_monai, 1e-5)}


@pytest.mark.parametrize("size_mm", SIZES)
@pytest.mark.parametrize("definition", surface.DEFINITIONS)
def test_every_number_is_that_of_the_program_that_defined_it(definition, size_mm):
    oracle, tolerance = ORACLES[definition]
    maps = on_grid(blobs(4), np.diag(size_mm))
    found = measure(*maps, definition, Both=[1, 2])
    for name, codes in {"label-1": [1], "label-3": [3], "Both": [1, 2]}.items():
        masks = [np.isin(m.voxels, codes) for m in maps]
        assert numbers(found[name]) == pytest.approx(oracle(*masks, size_mm), abs=tolerance)


def far_apart() -> list[LabelMap]:
    """A bent copy, moved by more than a search reaches; a voxel of each label far away."""
    reference, prediction = blobs(8, shape=(30, 28, 40))
    moved = np.roll(prediction.voxels, 15, 2)
    return [reference, LabelMap(moved, reference.grid, reference.table)]


@pytest.mark.parametrize("definition", surface.DEFINITIONS)
@pytest.mark.parametrize("limit", ["search", "queue", "transform"])
def test_it_does_not_matter_how_far_sites_are_found(monkeypatch, definition, limit):
    oracle, tolerance = ORACLES[definition]
    maps = far_apart()
    if limit != "search":
        monkeypatch.setattr(surface_search, "PROBES", 33)
    if limit == "queue":
        monkeypatch.setattr(surface_search, "COMPARISONS_PER_VOXEL", 10**6)
        monkeypatch.setattr(surface_search, "PROBES_PER_VOXEL", 10**6)
    if limit == "transform":
        monkeypatch.setattr(surface_search, "PROBES_PER_VOXEL", 0)
    found = measure(*maps, definition)
    for code in (1, 2, 3):
        masks = [m.voxels == code for m in maps]
        expected = oracle(*masks, (1, 1, 1))
        assert numbers(found[f"label-{code}"]) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("definition", surface.DEFINITIONS)
def test_a_queue_that_is_full_costs_time_but_no_site(monkeypatch, definition):
    maps = far_apart()
    expected = measure(*maps, definition)
    monkeypatch.setattr(surface_search, "PROBES", 7)
    monkeypatch.setattr(surface_search, "QUEUE", 40)
    found = measure(*maps, definition)
    for name, one in expected.items():
        assert numbers(found[name]) == pytest.approx(numbers(one), abs=1e-9)


@pytest.mark.parametrize("definition", surface.DEFINITIONS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_noise_far_from_noise_is_transformed_exactly(monkeypatch, axis, definition):
    # Many sites in a line, each far from the other map: the line is worked out as a whole.
    rng = np.random.default_rng(3)
    voxels = np.zeros((2, 50, 12, 11), np.int16)
    voxels[0, :20], voxels[1, 38:] = (
        rng.integers(0, 2, (20, 12, 11)),
        rng.random((12, 12, 11)) < 0.3,
    )
    grid = Grid(np.moveaxis(voxels[0], 0, axis).shape, np.diag([1.0, 0.8, 1.3, 1]))
    table = LabelTable([Label(0, "Background"), Label(1, "Noise")])
    maps = [LabelMap(np.ascontiguousarray(np.moveaxis(v, 0, axis)), grid, table) for v in voxels]
    monkeypatch.setattr(surface_search, "PROBES_PER_VOXEL", 0)
    got = numbers(measure(*maps, definition)["Noise"])
    expected = brute_force(*(m.voxels for m in maps), definition, grid.affine[:3, :3])
    assert [*got[:3], got[4], got[6]] == pytest.approx(expected, abs=1e-9)


def brute_force(reference, prediction, definition, axes_mm) -> list[float]:
    """Every site against every site."""
    areas = surfel_areas_mm2(axes_mm) if definition == "surface" else np.ones(256)
    places, weights = [], []
    for mask in (reference, prediction):
        codes = surface.site_codes(np.pad(mask, 1).astype(np.uint8), definition)
        sites = (codes > 0) & (codes < 255)
        places.append(np.argwhere(sites) @ axes_mm.T)
        weights.append(areas[codes[sites]])
    apart = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1)
    ways = [apart.min(1), apart.min(0)]
    total = sum(w.sum() for w in weights)
    return [
        sum(d @ w for d, w in zip(ways, weights, strict=True)) / total,
        *(np.average(d, weights=w) for d, w in zip(ways, weights, strict=True)),
        max(d.max() for d in ways),
        sum(w[d <= 1.5].sum() for d, w in zip(ways, weights, strict=True)) / total,
    ]


@pytest.mark.parametrize("probes", [925, 15])
@pytest.mark.parametrize("definition", surface.DEFINITIONS)
def test_sheared_voxels_are_measured_in_true_mm(monkeypatch, definition, probes):
    monkeypatch.setattr(surface_search, "PROBES", probes)
    maps = on_grid(blobs(5, shape=(16, 15, 17), amount=1.0), TILTED)
    assert Pair.of(*maps).is_sheared
    found = measure(*maps, definition)
    for code in (1, 2):
        got = numbers(found[f"label-{code}"])
        masks = [m.voxels == code for m in maps]
        expected = brute_force(*masks, definition, TILTED)
        assert [*got[:3], got[4], got[6]] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("definition", surface.DEFINITIONS)
def test_turning_the_head_in_the_scanner_changes_nothing(definition):
    maps = blobs(6)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    straight = measure(*on_grid(maps, np.diag([0.7, 0.7, 1.2])), definition)
    oblique = on_grid(maps, np.float32(turn @ np.diag([0.7, 0.7, 1.2])))
    assert not Pair.of(*oblique).is_sheared
    for name, found in measure(*oblique, definition).items():
        assert numbers(found) == pytest.approx(numbers(straight[name]), abs=1e-5)


def test_flat_faces_have_the_area_of_a_voxel_face_and_areas_do_not_depend_on_orientation():
    areas = surfel_areas_mm2(np.diag([1.0, 2.0, 3.0]))
    assert (areas[15], areas[51], areas[85]) == pytest.approx((6, 3, 2))
    cubes = surfel_areas_mm2(np.eye(3))
    assert cubes == pytest.approx(cubes[::-1])
    assert np.count_nonzero(cubes) == 254
    assert len(np.unique(cubes.round(9))) <= 14


def test_areas_are_those_of_the_program_that_defined_them():
    tables = pytest.importorskip("surface_distance").lookup_tables
    for size in SIZES:
        expected = tables.create_table_neighbour_code_to_surface_area(size)
        assert surfel_areas_mm2(np.diag(size)) == pytest.approx(expected, abs=1e-12)


def test_more_structures_than_bits_are_measured_in_turns():
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 130, (2, 6, 6, 6)).astype(np.int16)
    coarse[1] = np.where(rng.random((6, 6, 6)) < 0.7, coarse[0], coarse[1])
    maps = coarse.repeat(3, 1).repeat(3, 2).repeat(3, 3)
    table = LabelTable([Label(code, f"label-{code}") for code in range(130)])
    grid = Grid(maps.shape[1:], np.eye(4))
    pair = [LabelMap(v, grid, table) for v in maps]
    found = measure(*pair, "voxel")
    there = [name for name, one in found.items() if one is not None]
    assert len(there) > 62
    for name in there[::9]:
        code = table[name].index
        expected = brute_force(*(m.voxels == code for m in pair), "voxel", np.eye(3))
        got = numbers(found[name])
        assert [*got[:3], got[4], got[6]] == pytest.approx(expected)


@pytest.mark.shared_data
@pytest.mark.parametrize("definition", surface.DEFINITIONS)
def test_numbers_of_a_real_brain_are_those_of_the_program_that_defined_them(
    shared_data, definition
):
    oracle, tolerance = ORACLES[definition]
    image = nib.load(shared_data / "gouhfi_expected_labels" / "sub002-t1w-06iso.nii.gz")
    voxels = np.asarray(image.dataobj[130:230, 130:220, 150:250])
    bend = np.random.default_rng(2).normal(size=(3, 5, 5, 5)).repeat(20, 1).repeat(20, 2)
    at = np.indices(voxels.shape) + bend.repeat(20, 3)[:, :, :90]
    limit = np.array(voxels.shape).reshape(3, 1, 1, 1) - 1
    bent = voxels[tuple(np.clip(np.rint(at).astype(int), 0, limit))]
    table = LabelTable([Label(code, f"label-{code}") for code in range(36)])
    grid = Grid(voxels.shape, np.diag([*image.header.get_zooms(), 1.0]))
    maps = [LabelMap(v, grid, table) for v in (voxels, bent)]
    found = measure(*maps, definition)
    sizes = np.bincount(voxels.ravel(), minlength=36)
    for code in [c for c in np.argsort(sizes)[::-1] if 300 < sizes[c] < 9_000][:4]:
        masks = [m.voxels == code for m in maps]
        expected = oracle(*masks, grid.voxel_size_mm)
        assert numbers(found[f"label-{code}"]) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_the_metric_gives_the_length_of_a_step(shear):
    affine = np.array([[1.0, shear, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    table = LabelTable([Label(0, "Background")])
    labels = LabelMap(np.zeros((4, 5, 6), np.int16), Grid((4, 5, 6), affine), table)
    pair = Pair.of(labels, labels)
    step = np.array([1, -2, 1])
    assert pair.is_sheared == (shear > 0)
    expected = np.sum((pair.axes_mm @ step) ** 2)
    assert step @ pair.metric_mm2 @ step == pytest.approx(expected)
