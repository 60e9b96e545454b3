# SPDX-License-Identifier: Apache-2.0
"""ITK's transforms, read and applied: order, orientation, borders, and what is none."""

import h5py
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.documents import InputError
from brainseg_bids.transforms import field_grid, read_transform, source_coordinates
from tests.fakes.transforms import LPS, write_composite

AFFINE = np.array([[0.9, 0.2, 0, 5], [-0.1, 1.1, 0.05, -3], [0.02, 0, 1, 2], [0, 0, 0, 1.0]])


@pytest.fixture
def oblique():
    """A grid whose axes are turned and swapped, with voxels of three sizes."""
    angle = np.deg2rad(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn[:, [2, 0, 1]] * [2.0, -1.5, 3.0]
    affine[:3, 3] = [-10, 20, 5]
    return Grid((9, 8, 7), affine)


def set_field(path, displacements):
    """Displacements (X, Y, Z, 3) in mm along R, A, S."""
    in_lps = displacements @ LPS[:3, :3]
    with h5py.File(path, "a") as file:
        numbers = file["TransformGroup/2/TransformParameters"]
        # ITK: the first axis runs fastest, and the three components of a voxel lie together.
        numbers[:] = in_lps.transpose(2, 1, 0, 3).ravel()
    return displacements


def test_displacements_come_first_then_the_linear_part(tmp_path, oblique):
    path = write_composite(tmp_path / "x.h5", AFFINE, oblique)
    moved = set_field(path, np.random.default_rng(1).normal(size=(*oblique.shape, 3)))
    assert field_grid(path).is_close(oblique)
    image = Grid((30, 30, 30), np.diag([2.0, 2, 2, 1]))
    coordinates = source_coordinates([read_transform(path)], image, oblique)
    for voxel in ((0, 0, 0), (3, 5, 2), (8, 7, 6)):
        point = oblique.affine[:3] @ [*voxel, 1] + moved[voxel]
        expected = (AFFINE[:3] @ [*point, 1]) / 2
        assert np.allclose(coordinates[(slice(None), *voxel)], expected, atol=1e-4)


def test_between_voxels_displacements_are_linear_and_outside_there_are_none(tmp_path, oblique):
    path = write_composite(tmp_path / "x.h5", None, oblique)
    moved = set_field(path, np.random.default_rng(2).normal(size=(*oblique.shape, 3)))
    transform = read_transform(path)
    voxels = np.array([[2.5, 3.25, 4.75], [-0.4, 3, 2]])
    points = voxels @ oblique.affine[:3, :3].T + oblique.affine[:3, 3]
    expected = [
        map_coordinates(moved[..., axis], voxels.T, order=1, mode="nearest") for axis in range(3)
    ]
    assert np.allclose(transform.map(points) - points, np.transpose(expected), atol=1e-4)
    # On whole voxels, too: beyond the box is not its other end.
    outside = np.array([[-1, 3, 2], [9, 3, 2], [3, 3, -2]])
    points = outside @ oblique.affine[:3, :3].T + oblique.affine[:3, 3]
    assert np.allclose(transform.map(points), points)


def test_transforms_are_gone_through_in_order(tmp_path):
    path = write_composite(tmp_path / "x.h5", AFFINE)
    text = tmp_path / "y.txt"
    text.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 -4 0 0\nFixedParameters: 0 0 0\n"
    )
    grid = Grid((2, 2, 2), np.eye(4))
    coordinates = source_coordinates([read_transform(path), read_transform(text)], grid, grid)
    assert np.allclose(coordinates[:, 1, 0, 1], AFFINE[:3] @ [1, 0, 1, 1] + [4, 0, 0], atol=1e-4)


@pytest.mark.input(
    "metadata",
    "a file that is not a transform, is cut off, or has a part that is not known",
    "refused by name",
    2,
)
def test_what_is_no_transform_is_named(tmp_path, oblique):
    text = tmp_path / "text.h5"
    text.write_text("no transform")
    half = write_composite(tmp_path / "half.h5", AFFINE, oblique)
    half.write_bytes(half.read_bytes()[:2000])
    strange = write_composite(tmp_path / "strange.h5", AFFINE)
    with h5py.File(strange, "a") as file:
        file["TransformGroup/1/TransformType"][0] = b"BSplineTransform_double_3_3"
    empty = tmp_path / "empty.h5"
    h5py.File(empty, "w").close()
    for path in (text, half, strange, empty, tmp_path / "missing.h5"):
        with pytest.raises(InputError, match=path.name):
            read_transform(path)
    for path in (text, half, strange, empty):
        with pytest.raises(InputError, match=path.name):
            field_grid(path)
