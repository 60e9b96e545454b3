# SPDX-License-Identifier: Apache-2.0
"""The picture of a contrast: the field lies where it was, histograms and laws fit each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.contrast.measured import BiasField, NoiseLaw
from brainseg_bids.reports import contrast_figures, plots
from brainseg_bids.reports.contrast_figures import draw_contrast, field_map, noise_density
from brainseg_bids.reports.densities import density, in_bins, pooled_counts, rebinned
from tests.reports import looks as looks_module
from tests.reports.looks import looks


@pytest.fixture(scope="module")
def seen(head):
    return looks(head, np.random.default_rng(5))


@pytest.fixture
def words(words, monkeypatch) -> list[str]:
    """Those of the plots, too."""
    original = plots.name_axes

    def name_axes(axes, **named):
        words.extend(named.values())
        original(axes, **named)

    for module in (contrast_figures, plots):
        monkeypatch.setattr(module, "name_axes", name_axes)
        monkeypatch.setattr(module, "no_data", lambda axes, why: words.append(f"none: {why}"))
    return words


def cuts_of(monkeypatch) -> list:
    """Fills with every cut of the image that is painted: as it is, then without its field."""
    painted = []
    original = contrast_figures.paint_cut

    def paint(cut, *args, **options):
        painted.append(cut)
        return original(cut, *args, **options)

    monkeypatch.setattr(contrast_figures, "paint_cut", paint)
    return painted


def test_the_picture_names_rows_tissues_sides_and_noise(head, seen, tmp_path, words):
    path = draw_contrast(tmp_path / "contrast.png", seen[0], head, seen[1])
    with Image.open(path) as file:
        assert file.format == "PNG"
        assert file.width == 1600
    for wanted in ("image", "smooth field", "field removed", "factor", "White matter", "Bone",
                   "Outside the head", "left", "right"):  # fmt: skip
        assert wanted in words, wanted
    assert any("Rician, sigma 4" in line for line in words)
    assert any(line.startswith("Sagittal, x =") for line in words)
    assert not [line for line in words if line.startswith("none")]


def test_the_field_is_removed_where_it_was(head, seen, tmp_path, monkeypatch):
    painted = cuts_of(monkeypatch)
    _, log_field = looks_module.seen(head, np.random.default_rng(0), seen[1].bias.array())
    draw_contrast(tmp_path / "contrast.png", 100 * np.exp(log_field), head, seen[1])
    assert len(painted) == 12
    before, after = (
        np.concatenate([cut.grey[cut.codes > 0] for cut in cuts])
        for cuts in (painted[:6], painted[6:])
    )
    assert before.std() > 5
    assert after.std() < 0.3
    assert after.mean() == pytest.approx(100, rel=0.003)


@pytest.mark.parametrize(
    "turn",
    [
        np.diag([3.0, 3, 3, 1]),
        np.array([[0, -3.0, 0, 9], [0, 0, 3, -4], [-3, 0, 0, 7], [0, 0, 0, 1]]),
    ],
    ids=["RAS", "turned"],
)
def test_nodes_lie_on_the_outermost_voxels_whatever_the_axes(turn):
    grid = Grid((9, 13, 17), turn)
    ras = grid.to_ras()
    last = ras.affine @ np.array([*(np.array(ras.shape) - 1), 1])
    line = np.linspace(-0.3, 0.5, 4)
    nodes = np.broadcast_to(line[None, :, None], (3, 4, 2))
    bias = BiasField(0.2, 50.0, tuple(map(tuple, nodes.tolist())), (1.0, 1.0, 1.0))
    log_field, own = field_map(bias, grid)
    np.testing.assert_allclose(own.affine[:3, 3], ras.affine[:3, 3])
    np.testing.assert_allclose(own.affine @ [*(np.array(own.shape) - 1), 1], last)
    assert log_field.shape == own.shape
    np.testing.assert_allclose(log_field[0, [0, -1], 0], [-0.3, 0.5], atol=1e-6)


def test_a_single_node_is_a_field_everywhere(head):
    bias = BiasField(0.0, 60.0, (((0.25,),),), (1.0, 1.0, 1.0))
    log_field, own = field_map(bias, head.grid)
    assert log_field.ravel().tolist() == [0.25]
    np.testing.assert_allclose(own.center_mm, head.grid.center_mm)


def test_what_was_not_measured_is_said_instead_of_drawn(head, seen, tmp_path, words):
    image, statistics = seen
    masked = np.where(head.voxels > 0, image, 0)
    bare = replace(statistics, edges=(), noise=NoiseLaw("none", 0.0))
    draw_contrast(tmp_path / "bare.png", masked, head, bare)
    assert words.count("none: nothing was measured") == 7
    assert "none: constant: 0" in words
    nothing = replace(statistics, labels={})
    draw_contrast(tmp_path / "nothing.png", image, head, nothing)
    assert "No label" in " ".join(words)


def test_image_and_labels_must_have_one_shape(head, seen, tmp_path):
    with pytest.raises(ValueError, match="differ in shape"):
        draw_contrast(tmp_path / "contrast.png", seen[0][:-1], head, seen[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full_disk")
def test_a_picture_that_cannot_be_written_leaves_nothing(head, seen, tmp_path):
    with pytest.raises(OSError, match="No space"):
        draw_contrast(tmp_path / "contrast.png", seen[0], head, seen[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("noise", [NoiseLaw("rician", 3.0), NoiseLaw("chi", 3.0, channels=6.0)])
def test_the_law_over_the_air_is_that_of_magnitudes_without_signal(noise, rng):
    edges = np.linspace(0, 30, 61)
    channels = int(noise.channels)
    drawn = np.sqrt((rng.normal(0, noise.sigma, (2 * channels, 200_000)) ** 2).sum(axis=0))
    seen = density(np.histogram(drawn, edges)[0], edges)
    np.testing.assert_allclose(in_bins(noise_density(noise), edges), seen, atol=0.005)


def test_noise_that_has_no_law_in_the_air_is_not_drawn():
    assert noise_density(NoiseLaw("ratio", 0.01)) is None
    assert noise_density(NoiseLaw("none", 0.0)) is None


def test_imputed_labels_add_nothing_to_their_class(seen):
    statistics = seen[1]
    both = ["Left-Putamen", "Right-Putamen"]  # the left one is imputed
    counts, found = pooled_counts(statistics, both)
    assert len(found) == 1
    assert counts.tolist() == list(map(float, statistics["Right-Putamen"].histogram))


def test_counts_in_other_bins_are_kept_or_fall_outside(rng):
    edges = np.sort(rng.uniform(0, 10, 20))
    counts = rng.integers(0, 50, 19)
    finer = np.unique(np.concatenate([edges, np.linspace(edges[0], edges[-1], 40)]))
    assert rebinned(counts, edges, finer).sum() == pytest.approx(counts.sum())
    half = np.linspace(edges[0], edges[9], 5)
    assert rebinned(counts, edges, half).sum() == pytest.approx(counts[:9].sum())
