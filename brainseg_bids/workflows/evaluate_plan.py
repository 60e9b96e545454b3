# SPDX-License-Identifier: Apache-2.0
"""Who is compared with which reference on which image. No Nipype here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from brainseg_bids.bids.adapters import Adapter
from brainseg_bids.bids.description import raw_path
from brainseg_bids.bids.names import sidecar
from brainseg_bids.bids.references import Case, find_cases
from brainseg_bids.interfaces.raters import find_adapter, find_rated
from brainseg_bids.nets.bundle import BundleError, ModelBundle, find_bundle
from brainseg_bids.stages.jobs import read_object
from brainseg_bids.volumes import InputError

NO_REFERENCE = ": labels without a reference: "
"""In notes of `find_rated`."""
OURS = "brainseg"
"""Label of ``seg-`` of this app's own segmentations."""


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
    sources = list(_by_name(derivatives, "-d").values())
    if list(output_dir.glob(f"sub-*/**/*_seg-{OURS}_dseg.nii.gz")):
        sources.append(Rater.of(OURS, output_dir))
    if not sources:
        raise InputError(
            f"{output_dir}: no segmentations are in it. Run the participant level into it first, "
            "or name others' with -d NAME=PATH."
        )
    notes: list[str] = []
    found: list[tuple[Rater, Mapping[str, Case], list[Mapping[str, Case]]]] = []
    for reference in _by_name(references, "--reference").values():
        every, said = find_cases(reference.adapter, reference.root)
        cases = _wanted(every, participants, reference)
        notes += said
        rated = []
        for source in sources:
            theirs, said = find_rated(
                source.adapter, source.root, cases, all_reference_keys=tuple(every)
            )
            rated.append(theirs)
            # With several references each has some of a rater's images only.
            notes += [n for n in said if len(references) == 1 or NO_REFERENCE not in n]
        found.append((reference, cases, rated))
    raters = _called_by_models(
        sources,
        [
            [case.labels for _, _, rated in found for case in rated[n].values()]
            for n in range(len(sources))
        ],
    )
    images = [
        image
        for reference, cases, rated in found
        for image in _images(
            reference, cases, dict(zip(raters, rated, strict=True)), raters, bids_dir
        )
    ]
    if not images:
        raise InputError(
            f"nobody has labelled any image of {', '.join(r.name for r, _, _ in found)}: "
            f"{'; '.join(notes) or 'the names do not fit'}"
        )
    return EvaluationPlan(
        tuple(images),
        raters,
        {
            reference.name: {who: tuple(rated[n]) for n, who in enumerate(raters)}
            for reference, _, rated in found
        },
        {reference.name: tuple(cases) for reference, cases, _ in found},
        tuple(dict.fromkeys(notes)),
    )


def _images(
    reference: Rater,
    cases: Mapping[str, Case],
    rated: Mapping[str, Mapping[str, Case]],
    raters: Mapping[str, Rater],
    bids_dir: Path,
) -> list[ImagePlan]:
    """Images of a reference that somebody has labelled."""
    adapters = {who: rater.adapter for who, rater in raters.items()}
    plans = [
        ImagePlan(
            reference,
            _with_image(case, rated, bids_dir),
            {who: theirs[key] for who, theirs in rated.items() if key in theirs},
            adapters,
        )
        for key, case in cases.items()
    ]
    return [plan for plan in plans if plan.rated]


def _called_by_models(
    sources: Sequence[Rater], maps: Sequence[Sequence[Path]]
) -> dict[str, Rater]:
    """Raters by what tables call them: the model that made their maps, else NAME of NAME=PATH.

    Whose model is also another's is told apart by NAME, as ``head-1mm_mine``.

    Parameters
    ----------
    sources : sequence of Rater
    maps : sequence of sequence of Path
        What is compared of each.

    Raises
    ------
    InputError
        If two have the same model and the same NAME.
    """
    wanted = [
        rater.name if rater.who.endswith(".toml") else models_in(theirs) or rater.name
        for rater, theirs in zip(sources, maps, strict=True)
    ]
    raters: dict[str, Rater] = {}
    for rater, name in zip(sources, wanted, strict=True):
        if wanted.count(name) > 1 and name != rater.name:
            name = f"{name}_{rater.name}"
        if name in raters:
            raise InputError(
                f"-d {rater.name}={raters[name].root}: {name} is what {rater.root} is called. "
                "Give it another NAME."
            )
        raters[name] = replace(rater, name=name)
    return raters


def models_in(maps: Iterable[Path]) -> str:
    """Names of the models that made some label maps, by their sidecars; those of an ensemble
    with plus signs between. Empty if a map is not of a model, or there are more than three.
    """
    names = set()
    for path in maps:
        said = read_object(sidecar(path))
        members = [said, *(m for m in said.get("Ensemble") or () if isinstance(m, dict))]
        name = "+".join(dict.fromkeys(str(m.get("ModelName", "")) for m in members))
        names.add(re.sub(r"[^0-9A-Za-z+_.-]", "-", name))
    return "" if "" in names or len(names) > 3 else "_and_".join(sorted(names))


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


def seen_by(labels: Path, model: str, folders: Iterable[Path] = ()) -> tuple[frozenset[str], str]:
    """What the model that made a segmentation was trained or fitted on.

    Parameters
    ----------
    labels : Path
    model : str
        As ``--model`` names it.
    folders : iterable of Path
        Derivatives in which a model of that name may have been trained.

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
    trained = [folder / "derivatives" / f"model-{name}" / "bundle" for folder in folders]
    for candidate in filter(None, (model, name, *(str(path) for path in trained))):
        try:
            bundle = ModelBundle.read(find_bundle(candidate))
        except BundleError:
            continue
        if bundle.digest == digest:
            if bundle.seen is None:
                return frozenset(), f"model {name} does not say what it was trained on"
            return bundle.seen, ""
    return frozenset(), f"model {name} of this digest is not here; give its folder with --model"
