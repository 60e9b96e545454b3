# SPDX-License-Identifier: Apache-2.0
"""Which images to measure with which labels, and what is said about the results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_uri
from brainseg_bids.bids.inputs import Subject
from brainseg_bids.bids.names import ContrastNames, HeadNames, OutputNames, Scan, sidecar
from brainseg_bids.bids.sidecars import Metadata, read_metadata
from brainseg_bids.contrast.measured import ContrastStatistics
from brainseg_bids.interfaces.tools import check_origin, find_existing, find_tool
from brainseg_bids.volumes import InputError, read_grid, sha256
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

OWN = {"fullhead": "fullhead", "brainseg": "model"}
"""Labels that this app makes, in the order they are preferred in, and whose codes they have."""

BYTES_PER_VOXEL = 60
"""Memory that measuring takes, and what reading and drawing need beside it."""

PRIVATE = re.compile(
    "Patient|UID|Physician|Operator|Accession|Birth|Date|Institution|Station|StudyID|Serial"
    "|AcquisitionTime|ContentTime"
)
"""Keys of metadata that say who or where somebody was: they are not copied."""

COLUMNS = {
    "index": {"Description": "Code in seg-fullhead_dseg.tsv."},
    "name": {"Description": "Structure."},
    "n_voxels": {"Description": "Number of voxels with this label."},
    "n_interior": {"Description": "Number of voxels that the estimate rests on."},
    "location": {"Description": "Robust mean, smooth field removed, in units of the image."},
    "scale": {"Description": "Robust standard deviation, likewise."},
    "median": {"Description": "Median of all voxels of the label, as they are."},
    "mad": {"Description": "1.4826 times the median absolute deviation, likewise."},
    "components": {"Description": "Number of Gaussians that describe the label."},
    "grain_mm": {"Description": "Distance at which the correlation has halved.", "Units": "mm"},
    "fit": {"Description": "Largest difference of cumulative histograms, data against Gaussians."},
    "source": {"Description": "Measured, or the label that it was borrowed from."},
}
"""Columns of the table of statistics, as BIDS wants them described."""


@dataclass(frozen=True)
class ContrastPlan(ScanPlan):
    """One image to measure. ``outputs``: fields of `ContrastNames`.

    Parameters
    ----------
    labels : Path
        Label map to measure with.
    tool : str
        Whose codes it has.
    contrast : dict
        What BIDS metadata say the image's contrast is.
    mem_gb : float
    notes : tuple of str
        Metadata that could not be read or used.
    """

    labels: Path
    tool: str
    contrast: dict
    mem_gb: float
    notes: tuple[str, ...] = ()

    stage = "contrast"
    shown = ("statistics", "figure")

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.scan.title} contrast"

    @property
    def said_stripped(self) -> bool | None:
        """``SkullStripped`` of the image's metadata; None where they do not say."""
        said = self.contrast.get("Metadata", {}).get("SkullStripped")
        return said if isinstance(said, bool) else None

    @property
    def has_results(self) -> bool:
        """Whether statistics of this input and these labels are there, and their figure."""
        table = {"statistics": self.outputs["statistics"]}
        return self.outputs["figure"].is_file() and not why_run(
            table, self.provenance, both_ways=False
        )


@dataclass(frozen=True)
class LabelChoice:
    """Which labels to measure with.

    Parameters
    ----------
    wanted : str
        ``fullhead`` or ``brainseg`` (this app's own), the name of a folder in ``derivatives``,
        or nothing: the first of ``derivatives``, else this app's.
    derivatives : mapping of str to Path
        The user's label maps, by the tool whose codes they have.
    """

    wanted: str
    derivatives: Mapping[str, Path]

    @property
    def names(self) -> tuple[str, ...]:
        """Where to look, best first."""
        return (self.wanted,) if self.wanted else (*self.derivatives, *OWN)

    def check(self) -> None:
        """Raise `InputError` if there can be no such labels."""
        known = (*self.derivatives, *OWN)
        if self.wanted and self.wanted not in known:
            raise InputError(
                f"--labels {self.wanted}: nothing is known by this name. Give one of "
                f"{', '.join(OWN)}, or a folder with -d {self.wanted}=FOLDER."
            )


def plan_contrast(
    subject: Subject,
    *,
    bids_dir: Path,
    output_dir: Path,
    choice: LabelChoice,
    barred: frozenset[str] = frozenset(),
) -> SubjectPlan:
    """Decide for each image what it is measured with, and whether that is done already.

    Images whose labels could not be made (``barred``: their titles) are passed over.
    """
    plans, faults = [], dict(subject.faults)
    for scan in subject.scans:
        title = f"{scan.title} contrast"
        try:
            found = find_labels(scan, bids_dir, output_dir, choice)
            if found is not None:
                plans.append(_plan_scan(scan, bids_dir, output_dir, *found))
            elif scan.title not in barred:
                folders = (choice.derivatives.get(n, output_dir) for n in choice.names)
                looked = " or ".join(dict.fromkeys(map(str, folders)))
                faults[title] = (
                    f"{scan.path}: there is no label map of it in {looked}. Run --stages "
                    "segment contrast, or give label maps with -d fullhead=FOLDER."
                )
        except InputError as error:
            faults[title] = str(error)
        except OSError as error:
            faults[title] = unreadable(scan.path, error)
    return SubjectPlan(subject.label, tuple(plans), faults)


def find_labels(
    scan: Scan, bids_dir: Path, output_dir: Path, choice: LabelChoice
) -> tuple[str, str, Path, str] | None:
    """Name of the labels, whose codes they have, the map, and its BIDS URI; None: there is none.

    A map of this app's that was made from another state of the image is not taken.
    """
    for name in choice.names:
        if name in choice.derivatives:
            tool, root = find_tool(name), choice.derivatives[name]
            path = find_existing(tool, root, scan)
            if path is not None:
                said = fingerprint(scan.path, known={})
                check_origin(path, tool, scan, said["InputSHA256"])
                return name, name, path, f"bids:{name}:{path.relative_to(root).as_posix()}"
            continue
        names = HeadNames if name == "fullhead" else OutputNames
        path = output_dir / names.of(scan).labels
        said = read_object(sidecar(path))
        if path.is_file() and said.get("Input") == raw_uri(scan.path, bids_dir):
            now = fingerprint(scan.path, known=said)
            if said.get("InputSHA256") == now["InputSHA256"]:
                uri = f"bids::{path.relative_to(output_dir).as_posix()}"
                return name, OWN[name], path, uri
    return None


def _plan_scan(
    scan: Scan, bids_dir: Path, output_dir: Path, name: str, tool: str, labels: Path, uri: str
) -> ContrastPlan:
    names = ContrastNames.of(scan, name)
    outputs = {"statistics": output_dir / names.statistics, "figure": output_dir / names.figure}
    known = read_object(sidecar(outputs["statistics"]))
    provenance = {
        "BrainsegVersion": __version__,
        "Input": raw_uri(scan.path, bids_dir),
        **fingerprint(scan.path, known=known),
        "LabelsOf": uri,
        "LabelsSHA256": sha256(labels),
    }
    metadata = read_metadata(scan.path, bids_dir)
    contrast = contrast_of(scan, metadata)
    reason = why_run(outputs, provenance) or _why_damaged(known)
    if not reason and known.get("Contrast") != contrast:
        reason = "its metadata have changed"
    n_voxels = np.prod(read_grid(scan.path).shape, dtype=float)
    return ContrastPlan(
        scan,
        RUN if reason else REUSE,
        reason or "results are there already",
        outputs,
        provenance,
        labels,
        tool,
        contrast,
        0.5 + BYTES_PER_VOXEL * n_voxels / 2**30,
        metadata.warnings,
    )


def _why_damaged(said: dict) -> str:
    """Why statistics cannot be read, or nothing."""
    try:
        ContrastStatistics.from_json(json.dumps(said.get("Statistics")))
    except ValueError:
        return "its statistics are damaged"
    return ""


def contrast_of(scan: Scan, metadata: Metadata) -> dict:
    """What says which contrast an image is of: suffix, name, voxel size, metadata.

    Voxel size is that of the voxel's volume, rounded to 0.1 mm.
    """
    said = metadata.values
    sequence = next(
        (said[key] for key in ("PulseSequenceType", "ScanningSequence") if said.get(key)), None
    )
    size_mm = read_grid(scan.path).voxel_volume_mm3 ** (1 / 3)
    facts = {
        "Suffix": scan.suffix,
        "MagneticFieldStrength": said.get("MagneticFieldStrength"),
        "Sequence": "+".join(sequence) if isinstance(sequence, list) else sequence,
        "VoxelSizeMm": round(size_mm, 1),
    }
    return {key: value for key, value in facts.items() if value is not None} | {
        "Entities": {k: v for k, v in scan.entities.items() if k not in ("sub", "ses", "run")},
        "Metadata": {
            k: v
            for k, v in said.items()
            if isinstance(v, str | int | float) and k not in facts and not PRIVATE.search(k)
        },
    }


def contrast_metadata(plan: ContrastPlan) -> dict[str, dict]:
    """JSON beside the statistics, less what only the run can tell."""
    said = {
        "Description": "How each label looks in the image. Below, under Statistics, also noise, "
        "smooth field, resolution and histograms.",
        "Sources": [plan.provenance["Input"], plan.provenance["LabelsOf"]],
        "Contrast": plan.contrast,
        "LabelsTool": plan.tool,
        "MetadataWarnings": list(plan.notes) or None,
    }
    return {"statistics": said | COLUMNS | plan.provenance}


def found_contrast(path: Path, said: dict, scan: Scan, output_dir: Path) -> ContrastPlan | None:
    """Plan of statistics that are there already, from the JSON beside them."""
    statistics = path.with_suffix(".tsv")
    figure = output_dir / f"sub-{scan.subject}" / "figures" / f"{statistics.stem}.png"
    if not (statistics.is_file() and figure.is_file()) or _why_damaged(said):
        return None
    outputs = {"statistics": statistics, "figure": figure}
    own = {"Input": said["Input"]}
    tool, contrast = str(said.get("LabelsTool")), dict(said.get("Contrast", {}))
    return ContrastPlan(scan, REUSE, "found", outputs, own, path, tool, contrast, 0.0)
