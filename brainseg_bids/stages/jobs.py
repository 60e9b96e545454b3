# SPDX-License-Identifier: Apache-2.0
"""What a stage is to make of an image: run or reuse, each with its reason. No Nipype here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_uri
from brainseg_bids.bids.names import Scan, sidecar
from brainseg_bids.documents import InputError, read_object
from brainseg_bids.units import natural_order

RUN, REUSE = "run", "reuse"

CHANGES = {
    "InputSHA256": "the input has changed",
    "ModelDigest": "another model made it",
    "HeadTool": "another head tool made it",
    "BrainTool": "another brain tool made it",
    "HeadSource": "another head map is given",
    "BrainSource": "another brain map is given",
    "HeadSHA256": "the head tool's map has changed",
    "BrainSHA256": "the brain tool's map has changed",
    "TargetVoxelSizeMm": "it has other voxels",
    "Kernel": "another kernel made it",
    "SmoothingMm": "it is smoothed otherwise",
    "KeepThin": "thin structures are guarded otherwise",
    "LabelsSHA256": "its label map has changed",
    "ProbabilitiesSHA256": "its probabilities have changed",
    "LabelsOf": "another label map was taken",
    "BrainsegVersion": "another version made it",
    "Input": "another input made it",
}
"""Facts in the JSON of a result that must be as the plan wants them, and what to say if not."""


@dataclass(frozen=True)
class Job:
    """What a stage makes of one image.

    Parameters
    ----------
    scan : Scan
    action : {"run", "reuse"}
    reason : str
    outputs : dict of str to Path
        What it is to absolute paths.
    provenance : dict
        Goes into the JSON beside every output; a run that would write the same is not needed.
    """

    scan: Scan
    action: str
    reason: str
    outputs: dict[str, Path]
    provenance: dict

    stage: ClassVar[str] = ""
    """Name of the stage, set by each kind of job."""
    verb: ClassVar[str] = "to be made"
    """What is to be done with the image, in the log."""
    shown: ClassVar[tuple[str, ...]] = ("labels", "volumes")
    """Outputs that results cannot be shown without; the first one names them. Each but figures
    (PNG, HTML) has a JSON beside it, whose keys say what it was made of."""
    changes: ClassVar[Mapping[str, str]] = {}
    """As `CHANGES`, for keys that only results of this stage have: what a flag of it decides."""

    @property
    def name(self) -> str:
        """Its workflow's name, unique within a subject."""
        stem = self.main.name.split("_seg-")[0].split(".")[0]
        own = [part for part in stem.split("_") if not part.startswith(("sub-", "space-"))]
        words = "_".join([self.stage, *own, self.scan.suffix])
        return words.replace("+", "plus").replace("-", "_") + "_wf"

    @property
    def title(self) -> str:
        """How messages call it."""
        return self.scan.title

    @property
    def main(self) -> Path:
        """The output that the others belong to."""
        return self.outputs[self.shown[0]]

    @property
    def has_results(self) -> bool:
        """Whether what can be shown of this input is there, as this plan would make it."""
        shown = {name: self.outputs[name] for name in self.shown}
        # What the run itself has added to the JSON is not known to the plan.
        return not why_run(shown, self.provenance, self.changes, both_ways=False)


@dataclass(frozen=True)
class SubjectPlan:
    """What becomes of one participant.

    Parameters
    ----------
    label : str
        Without ``sub-``.
    scans : tuple of Job
        Of all stages.
    errors : dict of str to str
        Images that cannot be taken, and the one line that says why.
    """

    label: str
    scans: tuple[Job, ...]
    errors: dict[str, str]

    @property
    def name(self) -> str:
        """Its workflow's name."""
        return "sub_" + "".join(c if c.isalnum() else "plus" for c in self.label) + "_wf"

    @property
    def to_run(self) -> tuple[Job, ...]:
        """What has to be run."""
        return tuple(plan for plan in self.scans if plan.action == RUN)

    def redone(self) -> SubjectPlan:
        """The same plan as if nothing were there yet: what the methods text is made from."""
        return replace(self, scans=tuple(replace(plan, action=RUN) for plan in self.scans))


def joined(plans: Iterable[SubjectPlan]) -> list[SubjectPlan]:
    """Plans of several stages, one `SubjectPlan` per participant."""
    by_label: dict[str, SubjectPlan] = {}
    for plan in plans:
        known = by_label.get(plan.label, SubjectPlan(plan.label, (), {}))
        by_label[plan.label] = SubjectPlan(
            plan.label, known.scans + plan.scans, known.errors | plan.errors
        )
    return list(by_label.values())


def to_review(plans: Iterable[SubjectPlan]) -> dict[str, list[str]]:
    """What cannot be right about the results of these plans, by the titles of their images."""
    found: dict[str, list[str]] = {}
    for plan in plans:
        for scan in plan.scans:
            said = read_object(sidecar(scan.main)).get("ToLookAt")
            if isinstance(said, list) and said:
                found.setdefault(image_of(scan.title), []).extend(map(str, said))
    return found


FAILED = Path("logs", "failed")
"""Folder in the derivative with a file for each image that the last run to try it could not do."""


def noted_failures(label: str, *, output_dir: Path) -> dict[str, str]:
    """What runs could not do for a participant, by title, if the image is still there.

    Of every participant if the label is ``*``.
    """
    noted = {}
    for path in sorted((output_dir / FAILED).glob(f"sub-{label}_*.json"), key=natural_order):
        said = read_object(path)
        image = said.get("Image", "")
        if said.get("Title") and (not os.path.isabs(image) or os.path.lexists(image)):
            noted[said["Title"]] = said.get("Reason", "")
    return noted


def image_of(title: str) -> str:
    """The image that the title of a step or a fault is about.

    >>> image_of("sub-01 ses-A T2w contrast"), image_of("sub-01 T1w for sMRIPrep")
    ('sub-01 ses-A T2w', 'sub-01 T1w')

    Maps of heads are made of T1w images, and their titles leave that out. A file beside another
    of the same name counts for itself.

    >>> image_of("sub-01 at 0.5 mm"), image_of("sub-01 T1w (sub-01_T1w.nii)")
    ('sub-01 T1w', 'sub-01 T1w (sub-01_T1w.nii)')
    """
    found = re.match(r"(sub-\S+(?: [a-z]+-\S+)*) (\w+)(?= [^(]|$)", title)
    if not found:
        return title
    entities, word = found.groups()
    return f"{entities} {'T1w' if word == 'at' else word}"


def why_run(
    outputs: Mapping[str, Path],
    provenance: Mapping,
    changes: Mapping[str, str] = {},
    *,
    both_ways: bool = True,
) -> str:
    """Why results on disk do not do, or nothing if they do.

    Parameters
    ----------
    outputs : mapping of str to Path
    provenance : mapping
        What the JSON beside each has to say.
    changes : mapping of str to str
        Keys beyond `CHANGES` that have to be the same, and what to say if they are not.
    both_ways : bool
        Whether results may not name what the provenance does not name either: one that names a
        brain tool is not one of the head tool alone. Of ``changes`` that holds always.
    """
    there = [path.is_file() for path in outputs.values()]
    if not any(there):
        return "no results yet"
    if not all(there):
        missing = next(
            path.name for path, found in zip(outputs.values(), there, strict=True) if not found
        )
        return f"{missing} is missing"
    for path in outputs.values():
        if path.suffix in (".png", ".html"):  # figures have no JSON
            continue
        found = read_object(sidecar(path))
        if not found:
            return f"{sidecar(path).name} is missing or damaged"
        checked = {key: what for key, what in CHANGES.items() if both_ways or key in provenance}
        for key, what in {**checked, **changes}.items():
            if found.get(key) != provenance.get(key):
                return f"{what} ({path.name})"
    return ""


def fingerprint(path: Path, *, known: Mapping) -> dict:
    """Size, time, state and SHA-256 of an input; it is not read if its state is as ``known``."""
    from brainseg_bids.files import file_state, sha256

    seen = date_and_size(path)
    state = file_state(path)
    if state:
        seen["InputState"] = state
        if known.get("InputState") == state and "InputSHA256" in known:
            return seen | {"InputSHA256": known["InputSHA256"]}
    return seen | {"InputSHA256": sha256(path)}


def date_and_size(path: Path) -> dict:
    """What `fingerprint` says of a file without reading it."""
    stat = path.stat()
    seen: dict = {"InputBytes": stat.st_size}
    with suppress(ValueError, OverflowError):  # a clock that was wrong by thousands of years
        modified = datetime.fromtimestamp(stat.st_mtime, tz=UTC)
        seen["InputModified"] = modified.isoformat(timespec="microseconds")
    return seen


def provenance_of(scan: Scan, labels: Path, uri: str, main: Path, bids_dir: Path) -> dict:
    """Provenance of what is made from an image and its label map.

    Parameters
    ----------
    labels, uri
        The label map, and its BIDS URI.
    main : Path
        Output whose JSON tells whether the image has to be read again.
    """
    from brainseg_bids.files import sha256

    return {
        "BrainsegVersion": __version__,
        "Input": raw_uri(scan.path, bids_dir),
        **fingerprint(scan.path, known=read_object(sidecar(main))),
        "LabelsOf": uri,
        "LabelsSHA256": sha256(labels),
    }


def is_unchanged(path: Path, metadata: Mapping) -> bool:
    """Whether an input is still what results were made from, by the JSON beside them."""
    try:
        now = fingerprint(path, known=metadata)
    except OSError:
        return False
    return now["InputSHA256"] == metadata.get("InputSHA256")


def is_current(image: Path, metadata: Mapping, outputs: Mapping[str, Path]) -> bool:
    """Whether labels and volumes are there, as the JSON says, and their image is unchanged."""
    shown = {name: outputs.get(name, image / "missing") for name in ("labels", "volumes")}
    expected = {key: metadata[key] for key in CHANGES if key in metadata}
    return is_unchanged(image, metadata) and not why_run(shown, expected)


def present(names: object, output_dir: Path) -> dict[str, Path]:
    """Of a dataclass of names of outputs, those that are there."""
    paths = {name: output_dir / path for name, path in vars(names).items()}
    return {name: path for name, path in paths.items() if path.is_file()}


def outdated(
    there: Mapping[str, Path],
    outputs: Mapping[str, Path],
    provenance: Mapping,
    changes: Mapping[str, str],
) -> tuple[Path, ...]:
    """Of files that earlier runs left, those that are not made this time and belong to others.

    Parameters
    ----------
    there : mapping of str to Path
        Of files with a JSON, and of viewers. A viewer does not say what it shows, so it goes.
    outputs : mapping of str to Path
        What is made this time, by the same names.
    provenance, changes
        As of `why_run`.
    """
    return tuple(
        path
        for name, path in there.items()
        if name not in outputs
        and (path.suffix == ".html" or why_run({name: path}, provenance, changes))
    )


def decided(reason: str) -> tuple[str, str]:
    """A job's action and reason: run if there is a reason to."""
    return (RUN, reason) if reason else (REUSE, "results are there already")


class PlanErrors(dict[str, str]):
    """What cannot be planned: a line by the title of each image."""

    @contextmanager
    def of(self, title: str, path: Path) -> Iterator[None]:
        """Keep what is wrong with a file that the block reads."""
        try:
            yield
        except InputError as error:
            self[title] = str(error)
        except OSError as error:
            self[title] = f"{path}: cannot be read ({error.strerror}). Check its permissions."


def describe_plans(plans: Iterable[SubjectPlan]) -> list[str]:
    """One line per image and stage."""
    return [
        f"{scan.title}: {scan.reason}, reused"
        if scan.action == REUSE
        else f"{scan.title}: {scan.verb} ({scan.reason})"
        for plan in plans
        for scan in plan.scans
    ]
