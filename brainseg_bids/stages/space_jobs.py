# SPDX-License-Identifier: Apache-2.0
"""What is brought to which standard space, what it is made from, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids.bids.names import OutputNames, Scan, folder, sidecar
from brainseg_bids.bids.reused_transforms import ReusedTransform, find_reused
from brainseg_bids.bids.templates import SpaceNames, Template, transform_name
from brainseg_bids.documents import InputError, read_object
from brainseg_bids.stages.jobs import Job, PlanErrors, SubjectPlan, decided, provenance_of, why_run

if TYPE_CHECKING:
    from brainseg_bids.bids.inputs import Subject

KIND = "antsRegistrationSyNQuick[s]"
"""What ANTs calls the registration: rigid, affine, then symmetric normalisation."""
DRIVING = ("T1w", "UNIT1")
"""Images that are registered: templates are T1-weighted."""
SPACE_CHANGES = {
    "TemplateSHA256": "the template has changed",
    "TemplateMaskSHA256": "the template's mask has changed",
    "Registration": "another registration made it",
    "TransformSHA256": "the transform has changed",
    "Probabilities": "it was made from labels, or from probabilities, unlike now",
}
"""As `brainseg_bids.stages.jobs.CHANGES`, for results in standard spaces."""


@dataclass(frozen=True)
class SpaceJob(Job):
    """One image and its labels to bring to one standard space, at one or more resolutions.

    Parameters
    ----------
    templates : tuple of Template
        Of one space, finest first; the first one is what the image is registered to.
    labels, mask : Path
        Results of the segmentation.
    probseg : Path or None
        Probabilities, if they belong to the labels.
    reused : ReusedTransform or None
        Another pipeline's transform; without it the image is registered.
    """

    templates: tuple[Template, ...]
    labels: Path
    mask: Path
    probseg: Path | None = None
    reused: ReusedTransform | None = None

    stage: ClassVar[str] = "spaces"
    shown: ClassVar[tuple[str, ...]] = ("labels", "image")
    changes: ClassVar[Mapping[str, str]] = SPACE_CHANGES

    @property
    def name(self) -> str:
        """Its workflow's name, unique within a subject."""
        words = "_".join([super().name.removesuffix("_wf"), self.space, "wf"])
        return words.replace("+", "plus")

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.scan.title} in {self.space}"

    @property
    def space(self) -> str:
        """Label of ``space-``."""
        return self.templates[0].space


def key(name: str, number: int) -> str:
    """What an output is called in a plan with several resolutions.

    >>> key("labels", 0), key("labels", 1)
    ('labels', 'labels1')
    """
    return name if number == 0 else f"{name}{number}"


def plan_spaces(
    subject: Subject,
    *,
    bids_dir: Path,
    output_dir: Path,
    templates: Sequence[Template],
    derivatives: Mapping[str, Path] | None = None,
    excluded: Iterable[str] = (),
) -> SubjectPlan:
    """Decide for each T1-weighted image and space whether results are there already.

    Parameters
    ----------
    derivatives : mapping of str to Path, optional
        Other pipelines' derivatives by name, for their transforms.
    excluded : iterable of str
        Titles of images that could not be segmented; that has been told.
    """
    plans, errors = [], PlanErrors()
    driving = [s for s in subject.scans if s.suffix in DRIVING and s.title not in set(excluded)]
    for scan in driving:
        by_space = groupby(sorted(templates, key=_fineness), key=lambda t: t.space)
        for space, some in [(space, tuple(group)) for space, group in by_space]:
            with errors.of(f"{scan.title} in {space}", scan.path):
                reused = find_reused(derivatives or {}, scan, some[0])
                plans.append(_plan(scan, bids_dir, output_dir, some, reused))
    return SubjectPlan(subject.label, tuple(plans), errors)


def _fineness(template: Template) -> tuple:
    """Spaces together, finest resolution first."""
    from brainseg_bids.images import read_grid  # late: nibabel

    return template.space, read_grid(template.image).voxel_volume_mm3, template.resolution


def space_outputs(
    scan: Scan, templates: Sequence[Template], output_dir: Path, *, registered: bool = True
) -> dict[str, Path]:
    """Where results go: those of `SpaceNames` per template, and transforms both ways if made."""
    outputs = {
        key(name, number): output_dir / path
        for number, template in enumerate(templates)
        for name, path in vars(SpaceNames.of(scan, template)).items()
    }
    if not registered:
        return outputs
    home = output_dir / folder(scan)
    return outputs | {
        "forward": home / transform_name(scan, templates[0]),
        "backward": home / transform_name(scan, templates[0], back=True),
    }


def _plan(
    scan: Scan,
    bids_dir: Path,
    output_dir: Path,
    templates: tuple[Template, ...],
    reused: ReusedTransform | None,
) -> SpaceJob:
    from brainseg_bids.files import sha256

    names = OutputNames.of(scan)
    labels, mask, probseg = (
        output_dir / path for path in (names.labels, names.mask, names.probseg)
    )
    missing = next((path for path in (labels, mask) if not path.is_file()), None)
    if missing:
        raise InputError(f"{missing}: is missing, so nothing can be brought to a standard space.")
    soft = probseg.is_file() and _belongs(probseg, labels)
    outputs = space_outputs(scan, templates, output_dir, registered=reused is None)
    provenance = {
        **provenance_of(
            scan, labels, f"bids::{names.labels.as_posix()}", outputs["labels"], bids_dir
        ),
        "Probabilities": soft,
        **({"ProbabilitiesSHA256": sha256(probseg)} if soft else {}),
        "TemplateSHA256": sha256(templates[0].image),
        **({"TemplateMaskSHA256": sha256(templates[0].mask)} if templates[0].mask else {}),
        **_registration(reused),
    }
    told = {name: path for name, path in outputs.items() if not name.startswith("figure")}
    reason = why_run(told, provenance, SPACE_CHANGES)
    reason = reason or _why_other_grid(outputs, templates)
    figures = [path for name, path in outputs.items() if name.startswith("figure")]
    if not reason and not all(path.is_file() for path in figures):
        reason = "its picture is missing"
    return SpaceJob(
        scan,
        *decided(reason),
        outputs,
        provenance,
        templates,
        labels,
        mask,
        probseg if soft else None,
        reused,
    )


def _registration(reused: ReusedTransform | None) -> dict[str, object]:
    """What brings the image to the template, for the JSON."""
    from brainseg_bids.files import sha256

    if reused is None:
        return {"Registration": KIND}
    digests = [sha256(path) for path in reused.paths]
    return {"Registration": reused.uri, "TransformSHA256": digests}


def _why_other_grid(outputs: dict[str, Path], templates: Sequence[Template]) -> str:
    """Why results do not lie on the grids of these very templates, or nothing."""
    from brainseg_bids.files import sha256

    for number, template in enumerate(templates):
        path = outputs[key("labels", number)]
        if read_object(sidecar(path)).get("GridSHA256") != sha256(template.image):
            return f"the template has changed ({path.name})"
    return ""


def _belongs(probseg: Path, labels: Path) -> bool:
    """Whether probabilities were made with these labels: by what is said beside both."""
    ours, theirs = read_object(sidecar(probseg)), read_object(sidecar(labels))
    keys = ("InputSHA256", "ModelDigest", "BrainsegVersion", "Ensemble", "TestTimeFlips")
    return bool(ours) and all(ours.get(name) == theirs.get(name) for name in keys)


def space_metadata(plan: SpaceJob) -> dict[str, dict]:
    """JSON of each output, less what only the run can tell."""
    from brainseg_bids.files import sha256

    raw, own = plan.provenance["Input"], plan.provenance["LabelsOf"]
    through = [plan.reused.uri] if plan.reused else []
    how = (
        "Probabilities of the labels were interpolated linearly and each voxel got the most "
        "probable label."
        if plan.probseg
        else "Each label's 0/1 map was interpolated linearly and each voxel got the label with "
        "the largest share."
    )
    what: dict[str, dict] = {}
    for number, template in enumerate(plan.templates):
        here = f"bids::{SpaceNames.of(plan.scan, template).labels.as_posix()}"
        grid = f"The grid of template {template.name} at its resolution {template.resolution}."
        common = {"Resolution": grid} if template.resolution else {}
        common["GridSHA256"] = sha256(template.image)
        what |= {
            key("labels", number): {
                "Description": f"Head and brain labels in a standard space. {how} Codes are "
                "explained in seg-brainseg_dseg.tsv.",
                "Manual": False,
                "Sources": [own, raw, *through],
                **common,
            },
            key("tissue", number): {
                "Description": "Labels merged to BIDS' standard tissues.",
                "Manual": False,
                "Sources": [here],
                **common,
            },
            key("mask", number): {
                "Description": "Brain with its ventricles, without the fluid around.",
                "Type": "Brain",
                "Sources": [here],
                **common,
            },
            key("image", number): {
                "Description": "The image in a standard space, to check the registration by.",
                "SkullStripped": False,
                "Sources": [raw, *through],
                **common,
            },
        }
    to = f"from {plan.scan.suffix} to {plan.space}"
    back = f"from {plan.space} to {plan.scan.suffix}"
    for name, ends in (("forward", to), ("backward", back)):
        what[name] = {
            "Description": f"Composite ITK transform that brings images {ends}.",
            "Sources": [raw],
        }
    return {name: what[name] | plan.provenance for name in plan.outputs if name in what}


def methods_text(template: str, *, probabilities: bool, registration: str = KIND) -> str:
    """How results were brought to a template."""
    through = (
        "their probabilities" if probabilities else "each label's linearly interpolated share"
    )
    if registration == KIND:
        how = f"""registered to template {template} with *ANTs*
(`{KIND}`) [@avants2011], by their brains where the template has a brain mask"""
    else:
        how = f"""brought to template {template} with the
transforms that {registration.split(":")[1]} had made"""
    return f"""\
T1-weighted images were {how}. Transforms were applied with *NiTransforms*
[@goncalves2021]. Labels were brought there once, through {through}; tissues and brain masks were
derived from the result.
"""
