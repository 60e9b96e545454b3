# SPDX-License-Identifier: Apache-2.0
"""Intracranial volume: everything inside of the inner skull, counted from labels.

It does not change with atrophy, since fluid that replaces tissue counts as well. Without a skull,
or if the field of view ends inside of it, there is no such volume, and a sentence says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import cc3d
import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.cavities import fill_cavities
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable, count_codes
from brainseg_bids.anatomy.plausibility import cut_mm2, ends_of
from brainseg_bids.anatomy.stripped import brain_and_fluid, is_stripped

NAME = "Intracranial"
"""Name of its row in a table of volumes."""

STRIPPED = "the image is skull-stripped"
"""Reason for skull-stripped images; all other reasons are unexpected."""
CONTRADICTED = (
    "its metadata say that it is skull-stripped, but there is image around the brain. Correct "
    "SkullStripped if that is wrong, and segment again"
)

VESSELS = frozenset({"Artery", "Vein"})
CORD = "Spinal-Cord"
BONE_MAPPING = 4
"""BIDS standard code of bone."""
VESSEL_MM = 6.0
"""Vessels further than this from brain and fluid are in bone or outside of the skull; sinuses are
as wide."""
CANAL_MM = 30.0
"""Fluid further than this from the spinal cord is not in the spinal canal."""
LEAST_SKULL_SHARE = 0.5
"""Smallest fraction of the surface of the intracranial space that must be covered by bone. In
label maps of whole heads it is 85 to 95 %; the rest are air in bone, vessels and nerves."""

TISSUE, FLUID, VESSEL, CORD_KIND, BONE = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Intracranial:
    """Voxels inside of the skull of one head.

    Parameters
    ----------
    voxels : dict of int to int
        Number of voxels inside of the skull by code; empty if there is no intracranial volume.
    why_none : str
        Reason why there is no intracranial volume; empty if there is one.
    inside_codes : frozenset of int
        Codes of brain, ventricles, fluid and vessels.
    """

    voxels: dict[int, int] = field(default_factory=dict)
    why_none: str = ""
    inside_codes: frozenset[int] = frozenset()

    @property
    def n_voxels(self) -> int | None:
        """Number of voxels inside of the skull, or None without intracranial volume."""
        return None if self.why_none else sum(self.voxels.values())

    def n_inside(self, code: int) -> int | None:
        """Voxels of a label inside of the skull; None of labels that lie outside of it.

        >>> head = Intracranial({2: 90, 515: 1}, inside_codes=frozenset({2, 24}))
        >>> head.n_inside(2), head.n_inside(24), head.n_inside(515)
        (90, 0, None)
        """
        return self.voxels.get(code, 0) if code in self.inside_codes else None

    def soft_voxels(self, soft: Mapping[int, float], counts: Mapping[int, int]) -> float | None:
        """Intracranial volume in voxels from probabilities, or None without intracranial volume.

        It is the sum of the probabilities of brain, fluid and vessels over the image, minus the
        number of their voxels outside of the skull, plus that of other voxels that they enclose.

        Parameters
        ----------
        soft : mapping of int to float
            Sum of the probability of each code over all voxels of the image.
        counts : mapping of int to int
            Number of voxels of each code in the label map.

        Examples
        --------
        A label that no voxel has (4) has probability as well.

        >>> Intracranial({2: 90, 24: 8, 515: 1}, inside_codes=frozenset({2, 4, 24})).soft_voxels(
        ...     {2: 91.5, 4: 0.5, 24: 30.25, 515: 50.0}, {2: 90, 24: 28, 515: 51})
        103.25
        """
        if self.why_none:
            return None
        n_enclosed = sum(n for code, n in self.voxels.items() if code not in self.inside_codes)
        return n_enclosed + sum(
            soft.get(code, 0.0) - (counts.get(code, 0) - self.voxels.get(code, 0))
            for code in self.inside_codes
        )


def intracranial(
    labels: LabelMap, image: np.ndarray | None = None, *, stripped: bool = False
) -> Intracranial:
    """Voxels inside of the skull: brain, ventricles, fluid, vessels, and what these enclose.

    Parameters
    ----------
    labels : LabelMap
        There is no volume if its table has no bone.
    image : (X, Y, Z) float, optional
        The segmented image, to find out whether it is skull-stripped and whether padding hides
        the end of the field of view.
    stripped : bool
        Whether the image is known to be skull-stripped, for instance from its metadata.

    Examples
    --------
    >>> from brainseg_bids.anatomy.grid import Grid
    >>> away = np.linalg.norm(np.indices((60, 60, 60)) - 29.5, axis=0) * 4
    >>> voxels = np.select([away < 70, away < 76, away < 84], [2, 24, 515])
    >>> labels = LabelMap(voxels, Grid((60, 60, 60), np.diag([4, 4, 4, 1])),
    ...     LabelTable.packaged("brainseg"))
    >>> intracranial(labels).n_voxels - int(np.count_nonzero(away < 76))
    0
    >>> intracranial(labels, stripped=True).why_none
    'the image is skull-stripped'
    """
    bare = image is not None and is_stripped(image, brain_and_fluid(labels), labels.grid)
    if stripped or bare:
        return Intracranial(why_none=STRIPPED if bare or image is None else CONTRADICTED)
    kind_of = _kinds(labels.table)
    kinds = kind_of[labels.voxels]
    if not (kinds == TISSUE).any():
        return Intracranial(why_none="no brain was found")
    box = _box_around((kinds > 0) & (kinds < BONE), (1, 1, 1))
    inside = np.zeros(kinds.shape, dtype=bool)
    inside[box] = _inside(kinds[box], labels.grid.voxel_size_mm)
    if why := _skull_missing(inside, kinds) or _cut(inside, labels, image):
        return Intracranial(why_none=why)
    own = np.flatnonzero((kind_of > 0) & (kind_of <= VESSEL)).tolist()
    return Intracranial(count_codes(labels.voxels[inside]), inside_codes=frozenset(own))


def _kinds(table: LabelTable) -> np.ndarray:
    """What each code is here; 0 of all else."""

    def kind(label: Label) -> int:
        if label.is_extracerebral_csf:
            return FLUID
        if label.is_brain:
            return TISSUE
        if label.name in VESSELS:
            return VESSEL
        if label.name == CORD:
            return CORD_KIND
        return BONE if label.mapping == BONE_MAPPING else 0

    return table.lookup(kind, np.uint8)


def _box_around(mask: np.ndarray, margin_vox: tuple[int, ...]) -> tuple[slice, ...]:
    (found,) = ndimage.find_objects(mask.view(np.uint8))
    return tuple(
        slice(max(0, one.start - more), one.stop + more)
        for one, more in zip(found, margin_vox, strict=True)
    )


def _inside(kinds: np.ndarray, voxel_size_mm: tuple[float, ...]) -> np.ndarray:
    """The largest piece of brain and fluid above the spinal canal, with the vessels at it."""
    canal = _canal(kinds, voxel_size_mm)
    inside = ((kinds == TISSUE) | (kinds == FLUID)) & ~canal
    components = cc3d.connected_components(inside, connectivity=6)
    inside = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    near = inside.view(np.uint8)
    for axis, size in enumerate(voxel_size_mm):
        near = ndimage.maximum_filter1d(near, 1 + 2 * round(VESSEL_MM / size), axis)
    return fill_cavities(inside | ((kinds == VESSEL) & near.view(bool) & ~canal))


def _canal(kinds: np.ndarray, voxel_size_mm: tuple[float, ...]) -> np.ndarray:
    """Fluid and vessels that are nearer to the spinal cord than to the brain."""
    canal, is_cord = np.zeros(kinds.shape, dtype=bool), kinds == CORD_KIND
    if not is_cord.any():
        return canal
    box = _box_around(is_cord, tuple(int(np.ceil(CANAL_MM / size)) for size in voxel_size_mm))
    near = kinds[box]
    if not (near == TISSUE).any():
        return canal
    cord_mm, brain_mm = (
        ndimage.distance_transform_edt(near != kind, sampling=voxel_size_mm)
        for kind in (CORD_KIND, TISSUE)
    )
    canal[box] = ((near == FLUID) | (near == VESSEL)) & (cord_mm < brain_mm)
    return canal


def _skull_missing(inside: np.ndarray, kinds: np.ndarray) -> str:
    """A sentence if bone is at too little of the surface."""
    at_bone = faces = 0
    for _, outermost, beyond in _sides(inside, kinds):
        there = beyond[outermost]
        faces, at_bone = faces + len(there), at_bone + int(np.count_nonzero(there == BONE))
    if at_bone >= LEAST_SKULL_SHARE * faces:
        return ""
    return f"only {at_bone / max(faces, 1):.0%} of the brain and its fluid has a skull around it"


def _sides(inside: np.ndarray, around: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Axis, outermost voxels towards one side, and what ``around`` is beyond each voxel."""
    for axis in range(3):
        mask, values = np.moveaxis(inside, axis, 0), np.moveaxis(around, axis, 0)
        for here, beyond in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            yield axis, mask[here] & ~mask[beyond], values[beyond]


def _cut(inside: np.ndarray, labels: LabelMap, image: np.ndarray | None) -> str:
    """A sentence if the field of view ends inside of the skull; a cut is a large plane face.

    Either the image ends there, or the labels do, in a box that is padded with background.
    """
    sizes = labels.grid.voxel_size_mm
    largest = [0, 0, 0]  # voxels of a plane that are open
    for axis, outermost, beyond in _sides(inside, labels.voxels):
        n_open = np.count_nonzero(outermost & (beyond == 0), axis=(1, 2))
        largest[axis] = max(largest[axis], int(np.max(n_open)))
    for axis in range(3):
        for plane in ends_of(image, inside.shape, axis):
            n_open_there = int(np.count_nonzero(np.take(inside, plane, axis)))
            largest[axis] = max(largest[axis], n_open_there)
        area_mm2 = largest[axis] * labels.grid.voxel_volume_mm3 / sizes[axis]
        if area_mm2 >= cut_mm2(sizes[axis]):
            return (
                "the field of view ends inside of the skull: "
                f"{area_mm2 / 100:.0f} cm² of it are cut"
            )
    return ""
