# SPDX-License-Identifier: Apache-2.0
"""The parcels of the cortex that an external tool gave, on the image's own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from brainseg_bids import __version__
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.upsample import regrid
from brainseg_bids.images import read_grid, read_label_map, write_label_map
from brainseg_bids.interfaces.tools import find_tool
from brainseg_bids.interfaces.tools.base import Tool

NAME = "parcellation"


class _ParcellationInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="the image whose grid the result has")
    tool = traits.Str(mandatory=True, desc="name of the tool")
    labels = File(exists=True, mandatory=True, desc="its map, in its own codes and grid")
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _ParcellationOutputSpec(TraitedSpec):
    labels = File(exists=True, desc="parcels in FreeSurfer's codes; all else 0")


class Parcellation(SimpleInterface):
    """Parcels alone, in FreeSurfer's codes, brought to the image's grid by the affines."""

    input_spec = _ParcellationInputSpec
    output_spec = _ParcellationOutputSpec

    def _run_interface(self, runtime):
        folder, tool = Path(runtime.cwd), find_tool(self.inputs.tool)
        parcels = parcels_of(tool, Path(self.inputs.labels), folder)
        grid = read_grid(self.inputs.image)
        if parcels.grid.is_close(grid, tolerance_mm=0.01):
            placed = LabelMap(parcels.voxels, grid, parcels.table)
        else:
            placed = regrid(parcels, grid)
        path = write_label_map(placed, folder / "parcellation_dseg.nii.gz")
        self._results["labels"] = str(path)
        return runtime


def parcel_codes(tool: Tool) -> dict[int, int]:
    """Of each code of a tool that is a parcel, FreeSurfer's code; known by its name.

    >>> codes = parcel_codes(find_tool("gouhfi"))
    >>> len(codes), codes[103], parcel_codes(find_tool("samseg"))
    (62, 1005, {})
    """
    by_name = {label.name: label.index for label in LabelTable.packaged(NAME) if label.index}
    return {
        code: by_name[name] for code, name in tool.crosswalk().names.items() if name in by_name
    }


def parcel_table(tool: Tool) -> LabelTable:
    """Parcels that a tool may give."""
    codes = [0, *parcel_codes(tool).values()]
    return LabelTable.packaged(NAME).subset(codes, name=f"{tool.name} {NAME}")


def parcels_of(tool: Tool, path: Path, folder: Path) -> LabelMap:
    """Parcels in a tool's map, on the tool's grid; what is made on the way lies in ``folder``.

    Raises
    ------
    UnknownLabelError
        If the map has codes that the tool does not know.
    """
    own = tool.crosswalk().source_table()
    labels = read_label_map(tool.interface.whole_map(path, folder), own)
    codes = parcel_codes(tool)
    pairs = {label.index: codes.get(label.index, 0) for label in own}
    walk = Crosswalk(pairs, parcel_table(tool), name=f"{tool.name} to {NAME}")
    return walk.translate(labels, what=str(path))


def has_parcels(tool: Tool, path: Path) -> bool:
    """Whether a tool's map has any parcel: aseg has none, aparc+aseg has."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="brainseg-") as folder:
        return bool(np.any(parcels_of(tool, path, Path(folder)).voxels))
