# SPDX-License-Identifier: Apache-2.0
"""Transforms to templates that fMRIPrep or sMRIPrep left in their derivatives.

Taken over only if they belong to the image at hand: the image that they were made with lies beside
them, on the same voxels, and their field covers the template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.bids.names import Scan, folder, without_extension
from brainseg_bids.bids.templates import Template
from brainseg_bids.documents import InputError

if TYPE_CHECKING:
    from brainseg_bids.anatomy.grid import Grid

PIPELINES = ("fmriprep", "smriprep")
"""Names of derivatives (``-d``) that transforms are looked for in."""
BESIDE = ("desc-preproc_T1w", "desc-brain_mask")
"""Images on the voxels that a transform was made with; the first one that is there is asked."""
FIELD_TOLERANCE_MM = 4.0
"""How far a field may end from the template's border: two voxels of a coarse template."""
STEPS = 17
"""Points along each axis of an average at which it is compared with one of its images."""
LEAST_SHARED = 0.4
"""Of an average's field of view in each of its images: the average covers all of them, so that
one may be smaller; moved to the border of its own field of view, a head could not be used."""


@dataclass(frozen=True)
class ReusedTransform:
    """A transform of another pipeline, for one image and one template.

    Parameters
    ----------
    pipeline : str
        Name of the derivative.
    uri : str
        Of the transform, for ``Sources``.
    paths : tuple of Path
        What points of the template go through, in this order, to come to the image: the transform
        to the template, and, where several images were averaged first, that from this image to
        their average.
    """

    pipeline: str
    uri: str
    paths: tuple[Path, ...]

    @property
    def through_average(self) -> bool:
        """Whether the image was one of several: its voxels could then not be compared."""
        return len(self.paths) > 1


def find_reused(
    derivatives: Mapping[str, Path], scan: Scan, template: Template
) -> ReusedTransform | None:
    """Transform from an image to a template's space; None if no pipeline has left one.

    Parameters
    ----------
    derivatives : mapping of str to Path
        Folders by name; only those of `PIPELINES` are looked into.
    scan, template

    Raises
    ------
    InputError
        If it belongs to another image or template, if that cannot be checked, or if several fit.
    """
    for pipeline in PIPELINES:
        if pipeline not in derivatives:
            continue
        root = derivatives[pipeline]
        found = _find(root, scan, template.space)
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise InputError(
                f"{found[0].parent}: several transforms fit {scan.path.name} ({names}). Keep one, "
                f"or leave out -d {pipeline}."
            )
        if found:
            paths = _checked(found[0], root, scan, template, pipeline)
            uri = f"bids:{pipeline}:{found[0].relative_to(root).as_posix()}"
            return ReusedTransform(pipeline, uri, paths)
    return None


def _find(root: Path, scan: Scan, space: str) -> list[Path]:
    """Transforms whose names say no other session, run or acquisition than the image's."""
    ends = f"from-{scan.suffix}_to-{space}_mode-image_xfm.h5"
    home, name = root / f"sub-{scan.subject}", f"sub-{scan.subject}_*{ends}"
    fitting = {}
    for path in sorted([*home.glob(f"anat/{name}"), *home.glob(f"ses-*/anat/{name}")]):
        entities = Scan.from_path(path.name.removesuffix(f"_{ends}") + "_xfm").entities
        if all(_same(label, scan.entities.get(key)) for key, label in entities.items()):
            fitting[path] = len(entities)
    # The name that says most: of a session, rather than of all together.
    most = max(fitting.values(), default=0)
    return [path for path, number in fitting.items() if number == most]


def _same(label: str, own: str | None) -> bool:
    """Whether two labels are the same; ``run-01`` is run 1."""
    if own is None or label == own:
        return label == own
    return label.isdecimal() and own.isdecimal() and int(label) == int(own)


def _checked(
    path: Path, root: Path, scan: Scan, template: Template, pipeline: str
) -> tuple[Path, ...]:
    """The transform, and what leads to it from this very image."""
    from brainseg_bids.images import check_present, read_grid  # late: nibabel
    from brainseg_bids.transforms import field_grid  # late: nitransforms

    check_present(path)
    field = field_grid(path)
    if field is not None and not _cover_the_same(field, read_grid(template.image)):
        raise InputError(
            f"{path}: its field does not cover template {template.name} ({template.image}): it "
            f"was made with another one. Leave out -d {pipeline}, and the image is registered."
        )
    base = path.name.partition("_from-")[0]
    beside = [path.with_name(f"{base}_{end}.nii.gz") for end in BESIDE]
    made_with = next((one for one in beside if one.is_file()), beside[0])
    try:
        check_present(made_with)
    except InputError as error:
        raise InputError(
            f"{path}: whether it belongs to {scan.path} cannot be checked. {error}"
        ) from error
    name = without_extension(scan.path).removesuffix(scan.suffix)
    to_average = root / folder(scan) / f"{name}from-orig_to-{scan.suffix}_mode-image_xfm.txt"
    own, theirs = read_grid(scan.path), read_grid(made_with)
    if to_average.is_file():
        _check_meets(to_average, own, theirs, scan, pipeline)
        return path, to_average
    if not own.to_ras().is_close(theirs.to_ras(), tolerance_mm=0.1):
        raise InputError(
            f"{path}: this is the transform of another image: {made_with.name} lies on other "
            f"voxels ({_shown(theirs)}) than {scan.path} ({_shown(own)}). Leave out "
            f"-d {pipeline}, or give the derivative of this image."
        )
    return (path,)


def _check_meets(to_average: Path, own: Grid, average: Grid, scan: Scan, pipeline: str) -> None:
    """Refuse a transform that does not bring an image to where the average of several lies.

    The average has voxels of its own, so that more cannot be compared.
    """
    import numpy as np

    from brainseg_bids.images import check_present  # late: nibabel
    from brainseg_bids.transforms import read_transform  # late: nitransforms

    check_present(to_average)
    # Points of the average's field of view, brought to the image.
    steps = [np.linspace(0, size - 1, STEPS) for size in average.shape]
    voxels = np.stack(np.meshgrid(*steps, indexing="ij")).reshape(3, -1)
    points = voxels.T @ average.affine[:3, :3].T + average.affine[:3, 3]
    to_own = np.linalg.inv(own.affine)
    moved = read_transform(to_average).map(points)
    places = moved @ to_own[:3, :3].T + to_own[:3, 3]
    share = float(((places >= 0) & (places <= np.array(own.shape) - 1)).all(1).mean())
    if not share >= LEAST_SHARED:
        raise InputError(
            f"{to_average}: this is the transform of another image: {scan.path} has {share:.0%} "
            "of the field of view of the average that it was made with. Leave out "
            f"-d {pipeline}, or give the derivative of this image."
        )


def _cover_the_same(one: Grid, other: Grid) -> bool:
    """Whether two boxes end at the same places."""
    import numpy as np

    boxes = []
    for grid in (one.to_ras(), other.to_ras()):
        corners = np.array([[0, 0, 0], np.array(grid.shape) - 1])
        boxes.append(corners @ grid.affine[:3, :3].T + grid.affine[:3, 3])
    return bool(np.abs(boxes[0] - boxes[1]).max() <= FIELD_TOLERANCE_MM)


def _shown(grid: Grid) -> str:
    sizes = " x ".join(f"{size:.3g}" for size in grid.voxel_size_mm)
    start = ", ".join(f"{place:.1f}" for place in grid.to_ras().affine[:3, 3])
    return f"{'x'.join(map(str, grid.to_ras().shape))} of {sizes} mm from {start}"
