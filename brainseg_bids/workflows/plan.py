# SPDX-License-Identifier: Apache-2.0
"""``SubjectPlan``: what to run, reuse or skip, each with its reason. No Nipype here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_uri
from brainseg_bids.bids.inputs import Subject
from brainseg_bids.bids.names import OutputNames, Scan, sidecar

RUN, REUSE = "run", "reuse"


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
class ScanPlan:
    """What becomes of one image.

    Parameters
    ----------
    scan : Scan
    action : {"run", "reuse"}
    reason : str
    outputs : dict of str to Path
        Fields of `OutputNames` to absolute paths; ``probseg`` only if wanted.
    provenance : dict
        Goes into the JSON beside every output; a run that would write the same is not needed.
    """

    scan: Scan
    action: str
    reason: str
    outputs: dict[str, Path]
    provenance: dict

    @property
    def name(self) -> str:
        """Its workflow's name, unique within a subject."""
        stem = self.outputs["labels"].name.split("_seg-brainseg")[0]
        own = [part for part in stem.split("_") if not part.startswith(("sub-", "space-"))]
        words = "_".join([*own, self.scan.suffix]).replace("+", "plus").replace("-", "_")
        return f"{words}_wf"

    @property
    def has_results(self) -> bool:
        """Whether labels and volumes of this input by this model are there."""
        shown = {name: self.outputs[name] for name in ("labels", "volumes")}
        return not _why_run(shown, self.provenance)

    @property
    def with_probseg(self) -> bool:
        """Whether probabilities are wanted."""
        return "probseg" in self.outputs


@dataclass(frozen=True)
class SubjectPlan:
    """What becomes of one participant.

    Parameters
    ----------
    label : str
        Without ``sub-``.
    scans : tuple of ScanPlan
    faults : dict of str to str
        Images that cannot be taken, and the one line that says why.
    """

    label: str
    scans: tuple[ScanPlan, ...]
    faults: dict[str, str]

    @property
    def name(self) -> str:
        """Its workflow's name."""
        return "sub_" + "".join(c if c.isalnum() else "plus" for c in self.label) + "_wf"

    @property
    def to_run(self) -> tuple[ScanPlan, ...]:
        """Images that have to be segmented."""
        return tuple(plan for plan in self.scans if plan.action == RUN)

    def redone(self) -> SubjectPlan:
        """The same plan as if nothing were there yet: what the methods text is made from."""
        return replace(self, scans=tuple(replace(plan, action=RUN) for plan in self.scans))


def plan_subject(
    subject: Subject, *, bids_dir: Path, output_dir: Path, model: Model, probseg: bool = False
) -> SubjectPlan:
    """Decide for each image whether its results are there already.

    Results are reused if every output and its JSON are there, and each JSON names the same
    input (by size and SHA-256), model digest and version of this package.

    Raises
    ------
    OSError
        If an input cannot be read.
    """
    plans, faults = [], dict(subject.faults)
    for scan in subject.scans:
        try:
            plans.append(_plan_scan(scan, bids_dir, output_dir, model, probseg))
        except OSError as error:
            faults[scan.title] = (
                f"{scan.path}: cannot be read ({error.strerror}). Check its permissions."
            )
    return SubjectPlan(subject.label, tuple(plans), faults)


def _plan_scan(
    scan: Scan, bids_dir: Path, output_dir: Path, model: Model, probseg: bool
) -> ScanPlan:
    names = OutputNames.of(scan)
    wanted = ["labels", "tissue", "mask", "volumes", "figure", *(["probseg"] if probseg else [])]
    outputs = {name: output_dir / getattr(names, name) for name in wanted}
    provenance = {
        "ModelName": model.name,
        "ModelDigest": model.digest,
        "BrainsegVersion": __version__,
        "Input": raw_uri(scan.path, bids_dir),
        **_fingerprint(scan.path, known=_read(sidecar(outputs["labels"]))),
    }
    reason = _why_run(outputs, provenance)
    action = RUN if reason else REUSE
    return ScanPlan(scan, action, reason or "results are there already", outputs, provenance)


def _why_run(outputs: dict[str, Path], provenance: dict) -> str:
    """Why results on disk do not do, or nothing if they do."""
    there = [path.is_file() for path in outputs.values()]
    if not any(there):
        return "no results yet"
    if not all(there):
        missing = next(
            path.name for path, found in zip(outputs.values(), there, strict=True) if not found
        )
        return f"{missing} is missing"
    for name, path in outputs.items():
        if name == "figure":  # has no JSON
            continue
        found = _read(sidecar(path))
        if not found:
            return f"{sidecar(path).name} is missing or damaged"
        for key, what in (
            ("InputSHA256", "the input has changed"),
            ("ModelDigest", "another model made it"),
            ("BrainsegVersion", "another version made it"),
            ("Input", "another input made it"),
        ):
            if found.get(key) != provenance[key]:
                return f"{what} ({path.name})"
    return ""


def _read(path: Path) -> dict:
    """A JSON object, empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _fingerprint(path: Path, *, known: dict) -> dict:
    """Size, time and SHA-256 of an input; it is not read if size and time are as ``known``."""
    stat = path.stat()
    modified = datetime.fromtimestamp(stat.st_mtime, tz=UTC).isoformat(timespec="microseconds")
    seen = {"InputBytes": stat.st_size, "InputModified": modified}
    if "InputSHA256" in known and all(known.get(key) == value for key, value in seen.items()):
        return seen | {"InputSHA256": known["InputSHA256"]}
    with path.open("rb") as file:
        return seen | {"InputSHA256": hashlib.file_digest(file, "sha256").hexdigest()}


def metadata(plan: ScanPlan, model: Model, *, output_dir: Path) -> dict[str, dict]:
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
            "name": {"Description": "Structure."},
            "hemisphere": {
                "Description": "Side of the structure.",
                "Levels": {"left": "left", "right": "right", "none": "midline or both sides"},
            },
            "n_voxels": {"Description": "Number of voxels with this label."},
            "volume_mm3": {"Description": "Volume.", "Units": "mm^3"},
        },
    }
    return {name: what[name] | plan.provenance for name in plan.outputs if name in what}


def describe_plans(plans: Iterable[SubjectPlan]) -> list[str]:
    """One line per image that is not simply run."""
    return [
        f"{scan.scan.title}: {scan.reason}, reused"
        if scan.action == REUSE
        else f"{scan.scan.title}: to be segmented ({scan.reason})"
        for plan in plans
        for scan in plan.scans
    ]
