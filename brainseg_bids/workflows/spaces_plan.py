# SPDX-License-Identifier: Apache-2.0
"""Which results to bring to which standard space, and what is said about them. No Nipype here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_uri
from brainseg_bids.bids.inputs import Subject
from brainseg_bids.bids.names import OutputNames, Scan, folder, sidecar
from brainseg_bids.bids.templates import (
    SpaceNames,
    Template,
    find_template,
    template_names,
    templateflow_home,
    transform_name,
)
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

KIND = "antsRegistrationSyNQuick[s]"
"""What ANTs calls the registration: rigid, affine, then symmetric normalisation."""
REGISTER_GIB = 3.0
"""Set aside for a registration: 0.9 were measured for an image of 256^3 and a template at 2 mm."""
DRIVING = ("T1w", "UNIT1")
"""Images that are registered: templates are T1-weighted."""
VIEWS = {
    "TemplateSHA256": "the template has changed",
    "TemplateMaskSHA256": "the template's mask has changed",
    "Registration": "another registration made it",
    "Probabilities": "it was made from labels, or from probabilities, unlike now",
}
"""As `brainseg_bids.workflows.plan.CHANGES`, for results in standard spaces."""


@dataclass(frozen=True)
class SpacePlan(ScanPlan):
    """One image and its labels to bring to one standard space, at one or more resolutions.

    Parameters
    ----------
    templates : tuple of Template
        Of one space, finest first; the first one is what the image is registered to.
    labels, mask : Path
        Results of the segmentation.
    probseg : Path or None
        Probabilities, if they belong to the labels.
    """

    templates: tuple[Template, ...]
    labels: Path
    mask: Path
    probseg: Path | None = None

    stage = "spaces"
    shown = ("labels", "image")

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

    @property
    def has_results(self) -> bool:
        shown = {name: self.outputs[name] for name in self.shown}
        return super().has_results and not _why_otherwise(shown, self.provenance)


def key(name: str, number: int) -> str:
    """What an output is called in a plan with several resolutions.

    >>> key("labels", 0), key("labels", 1)
    ('labels', 'labels1')
    """
    return name if number == 0 else f"{name}{number}"


def read_spaces(wanted: Sequence[str], *, home: Path | None = None) -> tuple[Template, ...]:
    """Templates that ``--output-spaces`` names, from TemplateFlow's home alone.

    Raises
    ------
    InputError
        If one is no volumetric template or is not there; nothing is downloaded.
    """
    if not wanted:
        return ()
    home = home or templateflow_home()
    if not template_names(home):  # importing TemplateFlow would fill it with empty files
        name, _, rest = wanted[0].partition(":")
        find_template(home, name, resolution=_entity(rest, "res"), cohort=_entity(rest, "cohort"))
    from niworkflows.utils.spaces import Reference  # late: indexes the whole home

    templates: dict[tuple[str, str], Template] = {}
    for text in wanted:
        try:
            references = Reference.from_string(text)
        except ValueError as error:
            name, _, rest = text.partition(":")
            if not (home / f"tpl-{name}").is_dir() and "is invalid" in str(error):
                find_template(home, name, resolution=_entity(rest, "res"))
            raise InputError(f"--output-spaces {text}: {' '.join(str(error).split())}") from error
        for reference in references:
            if not reference.standard or reference.dim != 3:
                raise InputError(
                    f"--output-spaces {text}: this is no volumetric template. Results on the "
                    "image's own grid are written always; surfaces are not made."
                )
            spec = {name: str(value) for name, value in reference.spec.items()}
            strange = sorted(set(spec) - {"res", "resolution", "cohort"})
            if strange:
                raise InputError(
                    f"--output-spaces {text}: {strange[0]} means nothing here. Give res and, for "
                    "templates that have them, cohort."
                )
            template = find_template(
                home,
                reference.space,
                cohort=spec.get("cohort", ""),
                resolution=spec.get("res", spec.get("resolution", "")),
            )
            templates[template.space, template.resolution] = template
    return tuple(templates.values())


def _entity(spec: str, name: str) -> str:
    return next(
        (part.split("-", 1)[1] for part in spec.split(":") if part.startswith(f"{name}-")), ""
    )


def plan_spaces(
    subject: Subject,
    *,
    bids_dir: Path,
    output_dir: Path,
    templates: Sequence[Template],
    barred: Iterable[str] = (),
) -> SubjectPlan:
    """Decide for each T1-weighted image and space whether results are there already.

    Parameters
    ----------
    barred : iterable of str
        Titles of images that could not be segmented; that has been told.
    """
    plans, faults = [], {}
    driving = [s for s in subject.scans if s.suffix in DRIVING and s.title not in set(barred)]
    for scan in driving:
        for space, some in groupby(sorted(templates, key=_fineness), key=lambda t: t.space):
            title = f"{scan.title} in {space}"
            try:
                plans.append(_plan(scan, bids_dir, output_dir, tuple(some)))
            except InputError as error:
                faults[title] = str(error)
            except OSError as error:
                faults[title] = unreadable(scan.path, error)
    return SubjectPlan(subject.label, tuple(plans), faults)


def _fineness(template: Template) -> tuple:
    """Spaces together, finest resolution first."""
    return template.space, read_grid(template.image).voxel_volume_mm3, template.resolution


def space_outputs(scan: Scan, templates: Sequence[Template], output_dir: Path) -> dict[str, Path]:
    """Where results go: per template those of `SpaceNames`, and transforms both ways."""
    outputs = {
        key(name, number): output_dir / path
        for number, template in enumerate(templates)
        for name, path in vars(SpaceNames.of(scan, template)).items()
    }
    home = output_dir / folder(scan)
    return outputs | {
        "forward": home / transform_name(scan, templates[0]),
        "backward": home / transform_name(scan, templates[0], back=True),
    }


def _plan(
    scan: Scan, bids_dir: Path, output_dir: Path, templates: tuple[Template, ...]
) -> SpacePlan:
    names = OutputNames.of(scan)
    labels, mask, probseg = (
        output_dir / path for path in (names.labels, names.mask, names.probseg)
    )
    missing = next((path for path in (labels, mask) if not path.is_file()), None)
    if missing:
        raise InputError(f"{missing}: is missing, so nothing can be brought to a standard space.")
    soft = probseg.is_file() and _belongs(probseg, labels)
    outputs = space_outputs(scan, templates, output_dir)
    provenance = {
        "BrainsegVersion": __version__,
        "Input": raw_uri(scan.path, bids_dir),
        **fingerprint(scan.path, known=read_object(sidecar(outputs["labels"]))),
        "LabelsOf": f"bids::{names.labels.as_posix()}",
        "LabelsSHA256": sha256(labels),
        "Probabilities": soft,
        **({"ProbabilitiesSHA256": sha256(probseg)} if soft else {}),
        "TemplateSHA256": sha256(templates[0].image),
        **({"TemplateMaskSHA256": sha256(templates[0].mask)} if templates[0].mask else {}),
        "Registration": KIND,
    }
    told = {name: path for name, path in outputs.items() if not name.startswith("figure")}
    reason = why_run(told, provenance) or _why_otherwise(told, provenance)
    reason = reason or _why_other_grid(outputs, templates)
    figures = [path for name, path in outputs.items() if name.startswith("figure")]
    if not reason and not all(path.is_file() for path in figures):
        reason = "its picture is missing"
    return SpacePlan(
        scan,
        RUN if reason else REUSE,
        reason or "results are there already",
        outputs,
        provenance,
        templates,
        labels,
        mask,
        probseg if soft else None,
    )


def _why_other_grid(outputs: dict[str, Path], templates: Sequence[Template]) -> str:
    """Why results do not lie on the grids of these very templates, or nothing."""
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


def _why_otherwise(outputs: dict[str, Path], provenance: dict) -> str:
    for path in outputs.values():
        found = read_object(sidecar(path))
        for name, what in VIEWS.items():
            if name in provenance and found.get(name) != provenance[name]:
                return f"{what} ({path.name})"
    return ""


def found_space(
    path: Path, said: dict, scan: Scan, template: Template, output_dir: Path
) -> SpacePlan | None:
    """Plan of results in the derivative, for the page; None if they are not whole."""
    outputs = {name: output_dir / own for name, own in vars(SpaceNames.of(scan, template)).items()}
    if outputs["labels"] != path or not all(own.is_file() for own in outputs.values()):
        return None
    names = OutputNames.of(scan)
    labels = output_dir / names.labels
    if not labels.is_file() or sha256(labels) != said.get("LabelsSHA256"):
        return None
    facts = {"Input": said["Input"], "LabelsSHA256": said["LabelsSHA256"]}
    mask = output_dir / names.mask
    return SpacePlan(scan, REUSE, "found", outputs, facts, (template,), labels, mask)


def space_metadata(plan: SpacePlan) -> dict[str, dict]:
    """JSON of each output, less what only the run can tell."""
    raw, own = plan.provenance["Input"], plan.provenance["LabelsOf"]
    how = (
        "Probabilities of the labels were interpolated linearly and each voxel got the most "
        "probable label."
        if plan.probseg
        else "Each label's 0/1 map was interpolated linearly and each voxel got the label with "
        "the largest share."
    )
    what = {}
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
                "Sources": [own, raw],
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
                "Sources": [raw],
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
    return {name: said | plan.provenance for name, said in what.items()}
