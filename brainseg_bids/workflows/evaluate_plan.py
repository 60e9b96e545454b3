# SPDX-License-Identifier: Apache-2.0
"""Who is compared with which reference on which image. No Nipype here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from brainseg_bids.bids.adapters import Adapter
from brainseg_bids.bids.names import sidecar
from brainseg_bids.bids.references import Case, find_cases
from brainseg_bids.interfaces.raters import find_adapter, find_rated
from brainseg_bids.nets.bundle import BundleError, ModelBundle, find_bundle
from brainseg_bids.volumes import InputError
from brainseg_bids.workflows.plan import read_object

NO_REFERENCE = ": labels without a reference: "
"""In notes of `find_rated`."""
OURS = "brainseg"
"""Name of this app's own segmentations among raters."""


@dataclass(frozen=True)
class Rater:
    """Somebody who labelled images: this app, another tool, a person.

    Parameters
    ----------
    name : str
        As tables call it.
    who : str
        What its adapter is found by.
    root : Path
    adapter : Adapter
    """

    name: str
    who: str
    root: Path
    adapter: Adapter

    @classmethod
    def of(cls, who: str, root: Path) -> Rater:
        """From the two sides of NAME=PATH."""
        name = Path(who).stem if who.endswith(".toml") else who
        return cls(name, who, root, find_adapter(who))


@dataclass(frozen=True)
class ImagePlan:
    """One image of a reference, and all who labelled it.

    Parameters
    ----------
    reference : Rater
    case : Case
        The reference's.
    rated : dict of str to Case
        By rater.
    adapters : dict of str to Adapter
        Of the raters.
    """

    reference: Rater
    case: Case
    rated: dict[str, Case]
    adapters: dict[str, Adapter]

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.case.key} ({self.reference.name})"

    @property
    def name(self) -> str:
        """Its step's name."""
        words = f"{self.reference.name}_{self.case.key}"
        return "compare_" + "".join(c if c.isalnum() else "_" for c in words)


@dataclass(frozen=True)
class EvaluationPlan:
    """What is compared, and what cannot be.

    Parameters
    ----------
    images : tuple of ImagePlan
    raters : dict of str to Rater
    found_references, found_raters : dict of str to tuple of str
        Images that were found, by name.
    notes : tuple of str
    """

    images: tuple[ImagePlan, ...]
    raters: dict[str, Rater]
    found_references: dict[str, tuple[str, ...]]
    found_raters: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = field(default=())


def plan_evaluation(
    output_dir: Path,
    *,
    references: Mapping[str, Path],
    derivatives: Mapping[str, Path],
    participants: tuple[str, ...] = (),
) -> EvaluationPlan:
    """Find the references, and every rater's maps of their images.

    Raises
    ------
    InputError
        If there is no reference, nobody labelled any of its images, or names clash.
    """
    if not references:
        raise InputError(
            "--stages evaluate: say what to compare with: --reference NAME=PATH, e.g. "
            "ultracortex=/data/ds005216."
        )
    raters = {one.name: one for one in (Rater.of(n, Path(p)) for n, p in derivatives.items())}
    if list(output_dir.glob(f"sub-*/**/*_seg-{OURS}_dseg.nii.gz")):
        raters[OURS] = Rater.of(OURS, output_dir)
    if not raters:
        raise InputError(
            f"{output_dir}: no segmentations are in it. Run the participant level into it first, "
            "or name others' with -d NAME=PATH."
        )
    wanted = {label.removeprefix("sub-") for label in participants}
    images, notes = [], []
    found_references: dict[str, tuple[str, ...]] = {}
    found_raters: dict[str, set[str]] = {name: set() for name in raters}
    for who, path in references.items():
        reference = Rater.of(who, Path(path))
        cases, said = find_cases(reference.adapter, reference.root)
        notes += said
        cases = {k: c for k, c in cases.items() if not wanted or c.subject in wanted}
        found_references[reference.name] = tuple(cases)
        rated = {}
        for rater in raters.values():
            rated[rater.name], said = find_rated(rater.adapter, rater.root, cases)
            # With several references each has some of a rater's images only.
            several = len(references) > 1
            notes += [note for note in said if not (several and NO_REFERENCE in note)]
            found_raters[rater.name] |= set(rated[rater.name])
        images += [
            ImagePlan(
                reference,
                case,
                {name: theirs[key] for name, theirs in rated.items() if key in theirs},
                {name: rater.adapter for name, rater in raters.items()},
            )
            for key, case in cases.items()
        ]
    images = [image for image in images if image.rated]
    if not images:
        raise InputError(
            f"nobody has labelled any image of {', '.join(found_references)}: "
            f"{'; '.join(notes) or 'the names do not fit'}"
        )
    return EvaluationPlan(
        tuple(images),
        raters,
        found_references,
        {name: tuple(sorted(keys)) for name, keys in found_raters.items()},
        tuple(dict.fromkeys(notes)),
    )


def seen_by(labels: Path, model: str) -> tuple[frozenset[str] | None, str]:
    """What the model that made a segmentation was trained or fitted on, and the model's name.

    Returns
    -------
    seen : frozenset of str or None
        `volumes.voxel_hash` each; None if the model is not there or does not say.
    name : str
        Empty if the JSON beside the labels names no model.
    """
    said = read_object(sidecar(labels))
    name = str(said.get("ModelName", ""))
    for candidate in filter(None, (model, name)):
        try:
            bundle = ModelBundle.read(find_bundle(candidate))
        except BundleError:
            continue
        if bundle.digest == said.get("ModelDigest"):
            return bundle.seen, name
    return None, name
