# SPDX-License-Identifier: Apache-2.0
"""Pictures for the report."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from brainseg_bids.anatomy.coarse import refined
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import read_again, read_label_map
from brainseg_bids.interfaces.headlabels import read_source


class _DrawLabelsInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="what was segmented")
    labels = File(exists=True, mandatory=True, desc="label map on the image's grid")
    table = File(exists=True, mandatory=True, desc="label table, dseg.tsv")


class _DrawLabelsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="PNG")


class DrawLabels(SimpleInterface):
    """Labels over the image, in three planes."""

    input_spec = _DrawLabelsInputSpec
    output_spec = _DrawLabelsOutputSpec

    def _run_interface(self, runtime):
        from brainseg_bids.reports.figures import draw_segmentation  # late: matplotlib

        image, _ = read_again(self.inputs.image)
        table = LabelTable.read(self.inputs.table, name="brainseg")
        labels = read_label_map(self.inputs.labels, table)
        path = Path(runtime.cwd) / "labels.png"
        self._results["out_file"] = str(draw_segmentation(image, labels, path))
        return runtime


class _DrawViewerInputSpec(_DrawLabelsInputSpec):
    title = traits.Str(mandatory=True, desc="what was segmented, in words")
    source = traits.Str(mandatory=True, desc="the image, below the dataset's root")
    page = traits.Str(mandatory=True, desc="the participant's page, from where the viewer goes")
    segmentation = traits.Str(mandatory=True, desc="the label map, below the derivative's root")


class _DrawViewerOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="HTML")


class DrawViewer(SimpleInterface):
    """Image and labels to turn and click."""

    input_spec = _DrawViewerInputSpec
    output_spec = _DrawViewerOutputSpec

    def _run_interface(self, runtime):
        from brainseg_bids.reports.ratings import rating_form  # late: jinja2
        from brainseg_bids.reports.viewer import write_viewer

        image, _ = read_again(self.inputs.image)
        labels = read_label_map(self.inputs.labels, LabelTable.read(self.inputs.table))
        path = Path(runtime.cwd) / "viewer.html"
        write_viewer(
            path,
            image,
            labels,
            title=self.inputs.title,
            source=self.inputs.source,
            page=self.inputs.page,
            rating=rating_form(Path(self.inputs.labels), self.inputs.segmentation),
        )
        self._results["out_file"] = str(path)
        return runtime


class _DrawMergeInputSpec(_DrawLabelsInputSpec):
    head_tool = traits.Str(mandatory=True)
    head_labels = File(exists=True, mandatory=True, desc="as ReadTool stores it")
    brain_tool = traits.Str()
    brain_labels = File(exists=True)


class DrawMerge(SimpleInterface):
    """Merged labels over the image, and below them each tool's."""

    input_spec = _DrawMergeInputSpec
    output_spec = _DrawLabelsOutputSpec

    def _run_interface(self, runtime):
        from brainseg_bids.reports.head_figures import draw_merge  # late: matplotlib

        image, grid = read_again(self.inputs.image)
        merged = read_label_map(self.inputs.labels, LabelTable.read(self.inputs.table))
        sources = [(self.inputs.head_tool, self.inputs.head_labels)]
        if isdefined(self.inputs.brain_tool):
            sources.append((self.inputs.brain_tool, self.inputs.brain_labels))
        drawn = [read_source(grid, tool=tool, labels=labels) for tool, labels in sources]
        head = drawn[0].labels
        shown = [
            (one.name, refined(one.labels, one.coarse, head) if one.coarse else one.labels)
            for one in drawn
        ]
        path = Path(runtime.cwd) / "merge.png"
        self._results["out_file"] = str(draw_merge(image, merged, shown, path))
        return runtime


class _DrawUpsampledInputSpec(BaseInterfaceInputSpec):
    source = File(exists=True, mandatory=True, desc="label map")
    labels = File(exists=True, mandatory=True, desc="the same at finer voxels")
    table = File(exists=True, mandatory=True, desc="label table, dseg.tsv")


class DrawUpsampled(SimpleInterface):
    """A label map above the same at finer voxels."""

    input_spec = _DrawUpsampledInputSpec
    output_spec = _DrawLabelsOutputSpec

    def _run_interface(self, runtime):
        from brainseg_bids.reports.upsample_figures import draw_upsampled  # late: matplotlib

        table = LabelTable.read(self.inputs.table)
        source = read_label_map(self.inputs.source, table)
        upsampled = read_label_map(self.inputs.labels, table)
        path = Path(runtime.cwd) / "upsampled.png"
        self._results["out_file"] = str(draw_upsampled(source, upsampled, path))
        return runtime
