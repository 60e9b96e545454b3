# SPDX-License-Identifier: Apache-2.0
"""Which images to segment, and what is said about the results. No Nipype here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_uri
from brainseg_bids.bids.inputs import Subject
from brainseg_bids.bids.names import OutputNames, Scan, sidecar
from brainseg_bids.workflows.plan import (
    REUSE,
    RUN,
    ScanPlan,
    SubjectPlan,
    fingerprint,
    read_object,
    unreadable,
    why_run,
)


@dataclass(frozen=True)
class Model:
    """What a plan has to know of a bundle.

    Parameters
    ----------
    path : Path
        Bundle folder.
    name, digest : str
    contrasts : tuple of str
        Suffixes it was made for.
    label_names : tuple of str
        In the order of codes.
    """

    path: Path
    name: str
    digest: str
    contrasts: tuple[str, ...]
    label_names: tuple[str, ...]


@dataclass(frozen=True)
class SegmentPlan(ScanPlan):
    """One image to segment. ``outputs``: fields of `OutputNames`; ``probseg`` only if wanted."""

    stage = "segment"

    @property
    def with_probseg(self) -> bool:
        """Whether probabilities are wanted."""
        return "probseg" in self.outputs


def plan_segment(
    subject: Subject, *, bids_dir: Path, output_dir: Path, model: Model, probseg: bool = False
) -> SubjectPlan:
    """Decide for each image whether its results are there already.

    Results are reused if every output and its JSON are there, and each JSON names the same
    input (by size and SHA-256), model digest and version of this package.
    """
    plans, faults = [], dict(subject.faults)
    for scan in subject.scans:
        try:
            plans.append(_plan_scan(scan, bids_dir, output_dir, model, probseg))
        except OSError as error:
            faults[scan.title] = unreadable(scan.path, error)
    return SubjectPlan(subject.label, tuple(plans), faults)


def _plan_scan(
    scan: Scan, bids_dir: Path, output_dir: Path, model: Model, probseg: bool
) -> SegmentPlan:
    names = OutputNames.of(scan)
    wanted = ["labels", "tissue", "mask", "volumes", "figure", *(["probseg"] if probseg else [])]
    outputs = {name: output_dir / getattr(names, name) for name in wanted}
    provenance = {
        "ModelName": model.name,
        "ModelDigest": model.digest,
        "BrainsegVersion": __version__,
        "Input": raw_uri(scan.path, bids_dir),
        **fingerprint(scan.path, known=read_object(sidecar(outputs["labels"]))),
    }
    reason = why_run(outputs, provenance)
    action = RUN if reason else REUSE
    return SegmentPlan(scan, action, reason or "results are there already", outputs, provenance)


VOLUMES_COLUMNS = {
    "name": {"Description": "Structure."},
    "hemisphere": {
        "Description": "Side of the structure.",
        "Levels": {"left": "left", "right": "right", "none": "midline or both sides"},
    },
    "n_voxels": {"Description": "Number of voxels with this label."},
    "volume_mm3": {"Description": "Volume.", "Units": "mm^3"},
}
"""Columns of a volumes table, as BIDS wants them described; ``index`` depends on the table."""


def metadata(plan: SegmentPlan, model: Model, *, output_dir: Path) -> dict[str, dict]:
    """JSON of each output, less what only the run can tell (time, memory, warnings)."""
    raw = plan.provenance["Input"]
    own = f"bids::{plan.outputs['labels'].relative_to(output_dir).as_posix()}"
    where = {"SpatialReference": raw}
    made_for = f"Made for {', '.join(model.contrasts)}. " if model.contrasts else ""
    what = {
        "labels": {
            "Description": f"Head and brain labels by model {model.name}. {made_for}"
            "Codes are explained in seg-brainseg_dseg.tsv.",
            "Manual": False,
            "Sources": [raw],
            **where,
        },
        "tissue": {
            "Description": "Labels merged to BIDS' standard tissues.",
            "Manual": False,
            "Sources": [own],
            **where,
        },
        "mask": {
            "Description": "Brain with its ventricles, without the fluid around.",
            "Type": "Brain",
            "Sources": [own],
            **where,
        },
        "probseg": {
            "Description": f"Probability of each label by model {model.name}; the last axis is in "
            "the order of LabelMap.",
            "LabelMap": list(model.label_names),
            "Sources": [raw],
            **where,
        },
        "volumes": {
            "Description": "Volume of each label: voxels times the volume of a voxel.",
            "Sources": [own],
            "index": {"Description": "Code in seg-brainseg_dseg.tsv."},
            **VOLUMES_COLUMNS,
        },
    }
    return {name: what[name] | plan.provenance for name in plan.outputs if name in what}
