# SPDX-License-Identifier: Apache-2.0
"""Which images to segment, and what is said about the results. No Nipype here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_uri
from brainseg_bids.bids.inputs import Subject
from brainseg_bids.bids.names import OutputNames, Scan, sidecar
from brainseg_bids.volumes import InputError, read_grid
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
from brainseg_bids.workflows.resources import Footprint, segmentation_gib

SEGMENT_GIB = 4.0
"""Memory set aside for a segmentation of which nothing is known."""

VIEWS = {
    "Ensemble": "another ensemble made it",
    "TestTimeFlips": "it was averaged with its mirror image, or is to be",
}
"""As `plan.CHANGES`, for what only some results name."""


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
    voxel_size_mm : float
        Of the grid that it works on.
    footprint : Footprint or None
        What its memory depends on; None: not known.
    calibrated : bool
        Whether it says how far its probabilities are to be believed.
    """

    path: Path
    name: str
    digest: str
    contrasts: tuple[str, ...]
    label_names: tuple[str, ...]
    voxel_size_mm: float = 1.0
    footprint: Footprint | None = None
    calibrated: bool = False


@dataclass(frozen=True)
class SegmentPlan(ScanPlan):
    """One image to segment. ``outputs``: fields of `OutputNames`; ``probseg`` and ``entropy`` only
    if wanted.

    Parameters
    ----------
    model : Model or None
        None only of results that were found, not planned.
    ensemble : tuple of Model
        Further models whose probabilities are averaged with the first one's.
    flips : bool
        Whether the mirrored image is averaged with, too.
    mem_gib : float
        Predicted peak of the segmentation.
    images : str
        Which images got this model, of several; empty: all.
    """

    model: Model | None = None
    ensemble: tuple[Model, ...] = ()
    flips: bool = False
    mem_gib: float = SEGMENT_GIB
    images: str = ""

    stage = "segment"

    @property
    def has_results(self) -> bool:
        shown = {name: self.outputs[name] for name in self.shown}
        return super().has_results and not why_other_views(shown, self.provenance)

    @property
    def with_probseg(self) -> bool:
        """Whether probabilities are wanted."""
        return "probseg" in self.outputs


def plan_segment(
    subject: Subject,
    *,
    bids_dir: Path,
    output_dir: Path,
    models: Sequence[Model],
    probseg: bool = False,
    ensemble: Sequence[Model] = (),
    flips: bool = False,
) -> SubjectPlan:
    """Decide for each image by which model, and whether its results are there already.

    Results are reused if every output and its JSON are there, and each JSON names the same
    input (by size and SHA-256), model digests, flips and version of this package.
    """
    plans, faults = [], dict(subject.faults)
    for scan in subject.scans:
        names = OutputNames.of(scan)
        fields = ["labels", "tissue", "mask", "volumes", "figure"]
        fields += ["probseg", "entropy"] * probseg
        outputs = {name: output_dir / getattr(names, name) for name in fields}
        model = model_for(scan, models)
        try:
            provenance = {
                "ModelName": model.name,
                "ModelDigest": model.digest,
                **views(ensemble, flips),
                "BrainsegVersion": __version__,
                "Input": raw_uri(scan.path, bids_dir),
                **fingerprint(scan.path, known=read_object(sidecar(outputs["labels"]))),
            }
        except OSError as error:
            faults[scan.title] = unreadable(scan.path, error)
            continue
        reason = why_run(outputs, provenance) or why_other_views(outputs, provenance)
        mem_gib = predicted_gib(scan, (model, *ensemble), flips) if reason else SEGMENT_GIB
        plans.append(
            SegmentPlan(
                scan,
                RUN if reason else REUSE,
                reason or "results are there already",
                outputs,
                provenance,
                model,
                tuple(ensemble),
                flips,
                mem_gib,
                images=images_of(model, scan.suffix, models),
            )
        )
    return SubjectPlan(subject.label, tuple(plans), faults)


def model_for(scan: Scan, models: Sequence[Model]) -> Model:
    """Of the models made for the image's contrast, the one nearest to its longest voxel edge.

    The longest one: thick slices do not show what a fine model looks for. Sizes are compared as
    ratios; of models as near as each other, and for images that cannot be read, the first one.
    A contrast that no model was made for gets one of all.
    """
    peers = _peers(scan.suffix, models)
    if len(peers) == 1:
        return peers[0]
    try:
        longest_mm = max(read_grid(scan.path).voxel_size_mm)
    except (InputError, ValueError):  # the segmentation itself says what is wrong with it
        return peers[0]
    return min(peers, key=lambda model: abs(math.log(longest_mm / model.voxel_size_mm)))


def images_of(model: Model, suffix: str, models: Sequence[Model]) -> str:
    """In words, which images get a model that an image of a suffix got; empty: all do.

    >>> fine = Model(Path(), "fine", "", ("T1w",), (), 0.8)
    >>> flair = Model(Path(), "flair", "", ("FLAIR", "T2w"), ())
    >>> images_of(fine, "T1w", [fine, flair]), images_of(fine, "T1w", [fine])
    ('T1w images', '')
    >>> images_of(fine, "T1w", [Model(Path(), "usual", "", ("T1w",), ()), fine, flair])
    'T1w images with voxels nearest to 0.8 mm'
    >>> images_of(flair, "T2w", [fine, flair])
    'FLAIR and T2w images'
    >>> images_of(fine, "PDw", [fine, flair])
    'Other structural images with voxels nearest to 0.8 mm'
    """
    if len(models) == 1:
        return ""
    peers = _peers(suffix, models)
    if suffix not in model.contrasts:
        kind = "Other structural"
    elif len(peers) == len(models):
        kind = "Structural"
    else:
        kind = " and ".join(model.contrasts)
    near = f" with voxels nearest to {model.voxel_size_mm:g} mm" if len(peers) > 1 else ""
    return f"{kind} images{near}"


def _peers(suffix: str, models: Sequence[Model]) -> Sequence[Model]:
    return [model for model in models if suffix in model.contrasts] or models


def views(ensemble: Sequence[Model], flips: bool) -> dict:
    """What the JSON says of further models and of flips: nothing where there are none."""
    facts = {}
    if ensemble:
        facts["Ensemble"] = [
            {"ModelName": model.name, "ModelDigest": model.digest} for model in ensemble
        ]
    if flips:
        facts["TestTimeFlips"] = True
    return facts


def why_other_views(outputs: Mapping[str, Path], provenance: Mapping) -> str:
    """Why results made with another ensemble, or with other flips, do not do."""
    for name, path in outputs.items():
        found = read_object(sidecar(path)) if name != "figure" else provenance
        for key, what in VIEWS.items():
            if found.get(key) != provenance.get(key):
                return f"{what} ({path.name})"
    return ""


def predicted_gib(scan: Scan, models: Sequence[Model], flips: bool) -> float:
    """Predicted peak of a segmentation; `SEGMENT_GIB` where image or model does not tell."""
    nets = [model.footprint for model in models if model.footprint is not None]
    try:
        grid = read_grid(scan.path).to_ras()
    except (InputError, ValueError):  # the segmentation itself says what is wrong with it
        return SEGMENT_GIB
    if len(nets) < len(models):
        return SEGMENT_GIB
    return segmentation_gib(grid.shape, grid.voxel_size_mm, nets, flips=flips)


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

CONFIDENCE_COLUMNS = {
    "confidence": {
        "Description": "Expected Dice of the structure, 0 to 1, from the model's probabilities; "
        "n/a without voxels. Calibrated on images of known truth if confidence_threshold is given."
    },
    "confidence_threshold": {
        "Description": "Confidence below which a structure is flagged, by images of known truth "
        "that the model was not trained on; n/a if the model has no calibration, or was not "
        "used as it was calibrated."
    },
    "low_confidence": {
        "Description": "Whether confidence lies below the threshold.",
        "Levels": {"yes": "look at it before using the volume", "no": "as usual"},
    },
}
"""The same of those that a volumes table of a segmentation has beyond `VOLUMES_COLUMNS`."""


def metadata(plan: SegmentPlan, *, output_dir: Path) -> dict[str, dict]:
    """JSON of each output, less what only the run can tell (time, memory, warnings)."""
    model, raw = plan.model, plan.provenance["Input"]
    own = f"bids::{plan.outputs['labels'].relative_to(output_dir).as_posix()}"
    where = {"SpatialReference": raw}
    made_for = f"Made for {', '.join(model.contrasts)}. " if model.contrasts else ""
    by = _by_whom(plan)
    what = {
        "labels": {
            "Description": f"Head and brain labels by {by}. {made_for}"
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
            "Description": f"Probability of each label by {by}; the last axis is in "
            "the order of LabelMap.",
            "LabelMap": list(model.label_names),
            "Sources": [raw],
            **where,
        },
        "entropy": {
            "Description": f"Entropy of the label probabilities of each voxel by {by}: 0 where "
            "one label is certain.",
            "Units": "bit",
            "Sources": [raw],
            **where,
        },
        "volumes": {
            "Description": "Volume of each label: voxels times the volume of a voxel.",
            "Sources": [own],
            "index": {"Description": "Code in seg-brainseg_dseg.tsv."},
            **VOLUMES_COLUMNS,
            **CONFIDENCE_COLUMNS,
        },
    }
    return {name: what[name] | plan.provenance for name in plan.outputs if name in what}


def _by_whom(plan: SegmentPlan) -> str:
    names = ", ".join([plan.model.name, *(other.name for other in plan.ensemble)])
    models = f"the mean of models {names}" if plan.ensemble else f"model {names}"
    return models + (", averaged with the mirrored image" if plan.flips else "")
