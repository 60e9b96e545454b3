# SPDX-License-Identifier: Apache-2.0
"""Who is compared with which reference on which image. No Nipype here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from brainseg_bids.bids.adapters import Adapter
from brainseg_bids.bids.description import raw_path
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
        """From the two sides of NAME=PATH.

        Raises
        ------
        InputError
            If the adapter cannot be used, or the name cannot be part of a file's.
        """
        own_file = who.endswith(".toml")
        name = Path(who).stem if own_file else who
        if not re.fullmatch(r"[0-9A-Za-z+_.-]+", name):
            raise InputError(f"{who}: give a name of letters, digits, dots and dashes.")
        # Steps run in folders of their own.
        who = str(Path(who).absolute()) if own_file else who
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
    found : dict of str to dict of str to tuple of str
        By reference, then by rater: images that both have. What the reference itself has stands
        under its own name in ``references``.
    references : dict of str to tuple of str
    notes : tuple of str
    """

    images: tuple[ImagePlan, ...]
    raters: dict[str, Rater]
    found: dict[str, dict[str, tuple[str, ...]]]
    references: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = field(default=())


def plan_evaluation(
    output_dir: Path,
    *,
    bids_dir: Path,
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
    raters = _by_name(derivatives, "-d")
    if list(output_dir.glob(f"sub-*/**/*_seg-{OURS}_dseg.nii.gz")):
        if OURS in raters:
            raise InputError(
                f"-d {OURS}=...: this is what this app's own segmentations in {output_dir} are "
                "called. Give them through a TOML of another name."
            )
        raters[OURS] = Rater.of(OURS, output_dir)
    if not raters:
        raise InputError(
            f"{output_dir}: no segmentations are in it. Run the participant level into it first, "
            "or name others' with -d NAME=PATH."
        )
    images: list[ImagePlan] = []
    notes: list[str] = []
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    listed: dict[str, tuple[str, ...]] = {}
    for name, reference in _by_name(references, "--reference").items():
        every, said = find_cases(reference.adapter, reference.root)
        cases = _wanted(every, participants, reference)
        notes += said
        rated = {}
        for rater in raters.values():
            rated[rater.name], said = find_rated(
                rater.adapter, rater.root, cases, all_reference_keys=tuple(every)
            )
            # With several references each has some of a rater's images only.
            notes += [n for n in said if len(references) == 1 or NO_REFERENCE not in n]
        listed[name] = tuple(cases)
        found[name] = {rater: tuple(theirs) for rater, theirs in rated.items()}
        images += [
            ImagePlan(
                reference,
                _with_image(case, rated, bids_dir),
                {who: theirs[key] for who, theirs in rated.items() if key in theirs},
                {who: rater.adapter for who, rater in raters.items()},
            )
            for key, case in cases.items()
        ]
    images = [image for image in images if image.rated]
    if not images:
        raise InputError(
            f"nobody has labelled any image of {', '.join(listed)}: "
            f"{'; '.join(notes) or 'the names do not fit'}"
        )
    return EvaluationPlan(tuple(images), raters, found, listed, tuple(dict.fromkeys(notes)))


def _by_name(given: Mapping[str, Path], flag: str) -> dict[str, Rater]:
    """Raters by name; two of one name are refused."""
    raters: dict[str, Rater] = {}
    for who, path in given.items():
        rater = Rater.of(who, Path(path))
        if rater.name in raters:
            raise InputError(f"{flag} {who}: {rater.name} is there already. Rename one of them.")
        raters[rater.name] = rater
    return raters


def _wanted(
    cases: Mapping[str, Case], participants: tuple[str, ...], reference: Rater
) -> dict[str, Case]:
    """Cases of the participants that were asked for, with or without leading zeros."""
    wanted = {label.removeprefix("sub-").lstrip("0") for label in participants}
    if not wanted:
        return dict(cases)
    there = {case.subject.lstrip("0") for case in cases.values()}
    if not wanted & there:
        has = ", ".join(sorted({f"sub-{case.subject}" for case in cases.values()})[:10])
        raise InputError(
            f"--participant-label {' '.join(participants)}: {reference.name} has none of them. "
            f"It has {has}."
        )
    return {key: case for key, case in cases.items() if case.subject.lstrip("0") in wanted}


def _with_image(case: Case, rated: Mapping[str, Mapping[str, Case]], bids_dir: Path) -> Case:
    """A case with the image that a rater says it has labelled, if the reference names none."""
    if case.image is not None:
        return case
    for theirs in rated.values():
        if case.key in theirs:
            said = read_object(sidecar(theirs[case.key].labels))
            image = raw_path(str(said.get("Input", "")), bids_dir)
            if image is not None and image.is_file():
                return replace(case, image=image)
    return case


def seen_by(labels: Path, model: str) -> tuple[frozenset[str], str]:
    """What the model that made a segmentation was trained or fitted on.

    Returns
    -------
    seen : frozenset of str
        `volumes.voxel_hash` each.
    why_unknown : str
        Why that is not known; empty if it is, or if no model made the segmentation.
    """
    said = read_object(sidecar(labels))
    name, digest = str(said.get("ModelName", "")), said.get("ModelDigest")
    if not name:
        return frozenset(), ""
    for candidate in filter(None, (model, name)):
        try:
            bundle = ModelBundle.read(find_bundle(candidate))
        except BundleError:
            continue
        if bundle.digest == digest:
            if bundle.seen is None:
                return frozenset(), f"model {name} does not say what it was trained on"
            return bundle.seen, ""
    return frozenset(), f"model {name} of this digest is not here; give its folder with --model"
