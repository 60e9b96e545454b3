# SPDX-License-Identifier: Apache-2.0
"""From the tools' own maps to one map of the head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from brainseg_bids import __version__
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, UnknownLabelError
from brainseg_bids.anatomy.merge import Source, merge
from brainseg_bids.anatomy.merge_report import MergeReport
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.anatomy.upsample import regrid, regrid_posteriors
from brainseg_bids.documents import InputError
from brainseg_bids.files import sha256
from brainseg_bids.images import (
    noting,
    read_grid,
    read_label_map,
    read_posteriors,
    read_top_posteriors,
    read_volume,
    write_label_map,
    write_top_posteriors,
)
from brainseg_bids.interfaces.tools import find_tool

LEAST_SHARED = 0.2
"""Share of the image's box that a tool's box must cover; less is a map of another place."""


class _ReadToolInputSpec(BaseInterfaceInputSpec):
    tool = traits.Str(mandatory=True, desc="name of the tool")
    image = File(exists=True, mandatory=True, desc="what was labelled")
    labels = File(exists=True, mandatory=True, desc="the tool's map, own codes and grid")
    posteriors = InputMultiPath(File(exists=True), desc="probabilities, 3D each or one 4D")
    posterior_codes = traits.List(traits.Int(), desc="the tool's code of each")
    log = File(desc="the tool's log, named in messages")
    given = traits.Bool(False, usedefault=True, desc="the user's own: its grid may be another")


class _ReadToolOutputSpec(TraitedSpec):
    labels = File(exists=True, desc="the tool's codes on the tool's grid, int16")
    top_codes = File(exists=True, desc="most probable labels, by rank")
    top_weights = File(exists=True, desc="their probabilities")
    notes = traits.List(traits.Str(), desc="what is odd about the tool's map")


class ReadTool(SimpleInterface):
    """Check what a tool wrote and store it compactly; nothing is translated yet."""

    input_spec = _ReadToolInputSpec
    output_spec = _ReadToolOutputSpec

    def _run_interface(self, runtime):
        tool, folder = find_tool(self.inputs.tool), Path(runtime.cwd)
        table = tool.crosswalk().source_table()
        log = f" Its log: {self.inputs.log}" if isdefined(self.inputs.log) else ""
        try:
            path = Path(self.inputs.labels)
            if self.inputs.given:
                path = tool.interface.whole_map(path, folder)
            with noting() as self._results["notes"]:
                labels = read_label_map(path, table)
            if not labels.voxels.any():
                raise InputError(f"{self.inputs.labels}: {tool.name} labelled nothing.")
            self._check_place(labels, tool.same_grid and not self.inputs.given)
            self._results["labels"] = str(write_label_map(labels, folder / "tool_dseg.nii.gz"))
            if isdefined(self.inputs.posteriors) and self.inputs.posteriors:
                self._keep_top(table, folder)
        except UnknownLabelError as error:
            raise InputError(
                f"{error}. Is this the output of {tool.name}? Another version of it may have "
                f"other codes.{log}"
            ) from error
        except InputError as error:
            raise InputError(f"{error}{log}") from error
        return runtime

    def _check_place(self, labels: LabelMap, same_grid: bool) -> None:
        grid = read_grid(self.inputs.image)
        name, path = self.inputs.tool, self.inputs.labels
        if same_grid and not labels.grid.is_close(grid, tolerance_mm=0.01):
            raise InputError(
                f"{path}: {name} was to label the grid of {self.inputs.image}, "
                f"{_shown(grid)}, but this map is {_shown(labels.grid)}. Give one on this grid "
                f"with -d {name}=FOLDER, or choose another tool."
            )
        shared = shared_box(labels.grid, grid)
        if shared < LEAST_SHARED:
            raise InputError(
                f"{path}: this map covers {shared:.0%} of {self.inputs.image}. It belongs to "
                "another image, or its header is wrong."
            )

    def _keep_top(self, table: LabelTable, folder: Path) -> None:
        grid, posteriors = read_posteriors(self.inputs.posteriors, self.inputs.posterior_codes)
        top = TopPosteriors.from_posteriors(posteriors, grid, table)
        paths = folder / "top_dseg.nii.gz", folder / "top_probseg.nii.gz"
        codes, weights = write_top_posteriors(top, *paths)
        self._results |= {"top_codes": str(codes), "top_weights": str(weights)}


class _MergeHeadInputSpec(BaseInterfaceInputSpec):
    # Another version may merge otherwise: nothing is taken from Nipype's cache then.
    version = traits.Str(__version__, usedefault=True, desc="of this package")
    image = File(exists=True, mandatory=True, desc="the image whose grid the result has")
    head_tool = traits.Str(mandatory=True)
    head_labels = File(exists=True, mandatory=True, desc="as ReadTool stores it")
    head_top_codes = File(exists=True)
    head_top_weights = File(exists=True)
    head_notes = traits.List(traits.Str(), desc="as ReadTool gives them")
    brain_tool = traits.Str(desc="none: the head tool alone")
    brain_labels = File(exists=True)
    brain_top_codes = File(exists=True)
    brain_top_weights = File(exists=True)
    brain_notes = traits.List(traits.Str())
    made = traits.List(traits.Str(), desc="roles whose map was made in this run")


class _MergeHeadOutputSpec(TraitedSpec):
    labels = File(exists=True, desc="codes of fullhead on the image's grid")
    top_codes = File(exists=True, desc="most probable labels, by rank")
    top_weights = File(exists=True, desc="their probabilities")
    merge = File(exists=True, desc="voxels changed by each rule, TSV")
    facts = File(exists=True, desc="SHA-256 of the maps made in this run, JSON")
    report = File(exists=True, desc="the same, and the whole merge report, JSON")


class MergeHead(SimpleInterface):
    """One map of the head from one or two tools' maps, with a report."""

    input_spec = _MergeHeadInputSpec
    output_spec = _MergeHeadOutputSpec

    def _run_interface(self, runtime):
        folder = Path(runtime.cwd)
        with noting() as notes:
            image, _ = read_volume(self.inputs.image)
        notes += [*(self.inputs.head_notes or ()), *(self.inputs.brain_notes or ())]
        head = self._source("head")
        brain = self._source("brain") if isdefined(self.inputs.brain_tool) else None
        merged = merge(head, brain, image=image)
        facts = {
            f"{role.capitalize()}SHA256": sha256(getattr(self.inputs, f"{role}_labels"))
            for role in self.inputs.made or ()
        }
        facts["ToLookAt"] = merged.report.implausible
        report = facts | {"Merge": merged.report.to_json(), "Warnings": notes}
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
        self._results |= {
            "labels": str(write_label_map(merged.labels, folder / "head_dseg.nii.gz")),
            "merge": str(write_rules(merged.report, folder / "merge_morph.tsv")),
            "facts": str(folder / "facts.json"),
            "report": str(folder / "report.json"),
        }
        if merged.posteriors is not None:
            paths = folder / "top_dseg.nii.gz", folder / "top_probseg.nii.gz"
            codes, weights = write_top_posteriors(merged.posteriors, *paths)
            self._results |= {"top_codes": str(codes), "top_weights": str(weights)}
        return runtime

    def _source(self, role: str) -> Source:
        given = {
            name: getattr(self.inputs, f"{role}_{name}")
            for name in ("tool", "labels", "top_codes", "top_weights")
        }
        return read_source(read_grid(self.inputs.image), **given)


def read_labels(grid: Grid, *, tool: str, labels: str) -> LabelMap:
    """A tool's map in codes of ``fullhead`` on ``grid``, as it stands for itself.

    Raises
    ------
    InputError
        If the tool has classes that only another map can tell apart.
    """
    source = read_source(grid, tool=tool, labels=labels)
    if source.coarse:
        raise InputError(
            f"{labels}: {tool} does not tell left from right. Run --stages headlabels "
            f"--brain-tool {tool} and take the merged map, which does."
        )
    return source.labels


def read_source(grid: Grid, *, tool: str, labels: str, top_codes="", top_weights="") -> Source:
    """A tool's map in codes of ``fullhead`` on ``grid``.

    A map on another grid is brought there by its affine: by its probabilities if they were
    kept, else by linear interpolation of each label.
    """
    crosswalk: Crosswalk = find_tool(tool).crosswalk()
    table = crosswalk.source_table()
    own = crosswalk.translate(read_label_map(labels, table), what=labels)
    same = own.grid.is_close(grid, tolerance_mm=0.01)
    seen = None if same else own.grid.covers(grid)
    if not (isdefined(top_codes) and top_codes):
        placed = _placed(own, grid) if same else regrid(own, grid)
        return Source(tool, placed, seen=seen, coarse=crosswalk.coarse)
    top = read_top_posteriors(top_codes, top_weights, table).translate(crosswalk)
    if not (same and top.grid.is_close(grid, tolerance_mm=0.01)):
        top = regrid_posteriors(top, grid)
        return Source(tool, top.hard(), top, seen)
    top = TopPosteriors(top.codes, top.weights, grid, top.table)
    return Source(tool, _placed(own, grid), top)


def _placed(labels: LabelMap, grid: Grid) -> LabelMap:
    """The same voxels on a grid that differs by rounding only."""
    return LabelMap(labels.voxels, grid, labels.table)


def write_rules(report: MergeReport, path: Path) -> Path:
    """Write what each rule of a merge changed."""
    from brainseg_bids.reports.tables import write_rows  # late: pandas

    columns = ("rule", "voxels", "volume_mm3", "reason")
    return write_rows(path, columns, report.to_json()["rules"])


def shared_box(one: Grid, other: Grid) -> float:
    """Share of the smaller of two grids' boxes that lies in the other, along RAS axes."""
    low, high = zip(*(_bounds(grid) for grid in (one, other)), strict=True)
    shared = np.clip(np.minimum(*high) - np.maximum(*low), 0, None)
    sizes = [np.prod(top - bottom) for bottom, top in zip(low, high, strict=True)]
    return float(np.prod(shared) / min(sizes))


def _bounds(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape])).reshape(3, -1)
    world = grid.affine[:3, :3] @ corners + grid.affine[:3, 3:]
    return world.min(axis=1), world.max(axis=1)


def _shown(grid: Grid) -> str:
    return "{}x{}x{} voxels of {:.3g} x {:.3g} x {:.3g} mm".format(
        *grid.shape, *grid.voxel_size_mm
    )
