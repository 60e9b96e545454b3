# SPDX-License-Identifier: Apache-2.0
"""Who is compared with which reference on which image by stage ``evaluate``, and what came of it.

No Nipype here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from brainseg_bids.bids.names import image_title
from brainseg_bids.documents import InputError

if TYPE_CHECKING:
    from brainseg_bids.bids.adapters import Adapter
    from brainseg_bids.bids.references import Case
    from brainseg_bids.interfaces.raters import Rater
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")

OWN_MAPS = "sub-*/**/*_seg-brainseg_dseg.nii.gz"
"""This app's own segmentations in a derivative."""
BYTES_PER_VOXEL = 14
"""Memory of a label map that is compared: codes, translated codes, void, boxes around labels."""
MOST_REASONS = 3
"""Reasons in a message that nothing could be compared."""


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
    segmented : tuple of Path
        Images that the raters say they have labelled: a model has seen these, and not what a
        program has made of them.
    """

    reference: Rater
    case: Case
    rated: dict[str, Case]
    adapters: dict[str, Adapter]
    segmented: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.case.key} ({self.reference.name})"

    @property
    def name(self) -> str:
        """Its step's name."""
        words = f"{self.reference.name}_{self.case.key}"
        return "compare_" + "".join(c if c.isalnum() else "_" for c in words)

    def asked(self, choices: Mapping) -> dict:
        """All that decides a step's result: an earlier run's counts only if it fits."""
        from brainseg_bids.files import sha256
        from brainseg_bids.interfaces.ratings import meaning_digest

        files = {"": (self.case.labels, self.reference.adapter)}
        files |= {name: (case.labels, self.adapters[name]) for name, case in self.rated.items()}
        return {**choices} | {
            "files": {
                name: [str(path), sha256(path), meaning_digest(path, adapter)]
                for name, (path, adapter) in files.items()
            }
        }

    @property
    def memory_gib(self) -> float:
        """Memory of comparing it."""
        from brainseg_bids.images import read_grid

        try:
            n_voxels = math.prod(read_grid(self.case.labels).shape)
        except InputError:
            return 2.0  # the step will say what is wrong
        return 0.3 + BYTES_PER_VOXEL * n_voxels * (1 + len(self.rated)) / 2**30


@dataclass(frozen=True)
class EvaluationPlan:
    """What is compared, and what cannot be.

    Parameters
    ----------
    images : tuple of ImagePlan
    raters : dict of str to Rater
    rated : dict of str to dict of str to tuple of str
        By reference, then by rater: images that both have. What the reference itself has stands
        under its own name in ``references``.
    references : dict of str to tuple of str
    notes : tuple of str
    """

    images: tuple[ImagePlan, ...]
    raters: dict[str, Rater]
    rated: dict[str, dict[str, tuple[str, ...]]]
    references: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    @property
    def sideless(self) -> set[str]:
        """Raters that do not tell left from right."""
        return {name for name, rater in self.raters.items() if not rater.adapter.sides}


class Choice(NamedTuple):
    """Images of the references that are compared; of what is empty, all.

    Parameters
    ----------
    participants, sessions : tuple of str
        Labels, with or without leading zeros.
    suffixes : tuple of str
        Such as ``T1w``.
    """

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

    def of(self, cases: Mapping[str, Case]) -> dict[str, Case]:
        """Those of some cases; what has no session is of none."""
        from brainseg_bids.bids.matching import parse_key

        entities = {key: parse_key(key) for key in cases}
        subjects = _meant(self.participants, {case.subject for case in cases.values()})
        sessions = _meant(self.sessions, {about.get("ses", "") for about, _ in entities.values()})
        return {
            key: case
            for key, case in cases.items()
            if (not self.participants or case.subject in subjects)
            and (not self.sessions or entities[key][0].get("ses", "") in sessions)
            and (not self.suffixes or entities[key][1] in self.suffixes)
        }

    def __str__(self) -> str:
        flags = ("--participant-label", "--session-label", "--contrasts")
        return " ".join(" ".join([f, *said]) for f, said in zip(flags, self, strict=True) if said)


EVERYTHING = Choice()


def _meant(asked: Iterable[str], there: Collection[str]) -> set[str]:
    """Labels that are there of those asked for: exactly, else but for leading zeros.

    >>> sorted(_meant(["1", "02", "A"], ["01", "2", "002", "0A"]))
    ['002', '01', '2']
    """
    from brainseg_bids.bids.matching import without_zeros

    return {
        label
        for one in asked
        for label in ({one} & set(there) or there)
        if without_zeros(label) == without_zeros(one)
    }


@dataclass(frozen=True)
class _Search:
    """Images of one reference, and each source's maps of them."""

    reference: Rater
    cases: Mapping[str, Case]
    rated: list[Mapping[str, Case]]


def plan_evaluation(
    output_dir: Path,
    *,
    bids_dir: Path,
    references: Mapping[str, Path],
    derivatives: Mapping[str, Path],
    choice: Choice = EVERYTHING,
) -> EvaluationPlan:
    """Find the references, and every rater's maps of their images.

    Raises
    ------
    InputError
        If there is no reference, nobody labelled any of its images, or names clash.
    """
    from brainseg_bids.interfaces.raters import named_by_models, raters_by_name
    from brainseg_bids.stages.origins import doubts

    if not references:
        raise InputError(
            "--stages evaluate: say what to compare with: --reference NAME=PATH, e.g. "
            "ultracortex=/data/ds005216."
        )
    sources, notes = _sources(output_dir, derivatives), []
    searches = [
        _search(reference, sources, choice, len(references) == 1, notes)
        for reference in raters_by_name(references, "--reference").values()
    ]
    maps = [[case.labels for one in searches for case in one.rated[n].values()]
            for n in range(len(sources))]  # fmt: skip
    raters = named_by_models(sources, maps)
    for (name, rater), theirs in zip(raters.items(), maps, strict=True):
        # Others' maps may be of images that lie elsewhere.
        images_in = bids_dir if rater.root == output_dir else None
        by_title = {image_title(path): path for path in theirs}
        notes += [f"{name}: {doubt}" for doubt in doubts(by_title, images_in)]
    images = [image for one in searches for image in _images(one, raters, bids_dir)]
    if not images:
        raise InputError(
            f"nobody has labelled any image of {', '.join(s.reference.name for s in searches)}: "
            f"{'; '.join(notes) or 'the names do not fit'}"
        )
    return EvaluationPlan(
        tuple(images),
        raters,
        {
            one.reference.name: {who: tuple(one.rated[n]) for n, who in enumerate(raters)}
            for one in searches
        },
        {one.reference.name: tuple(one.cases) for one in searches},
        tuple(dict.fromkeys(notes)),
    )


def _sources(output_dir: Path, derivatives: Mapping[str, Path]) -> list[Rater]:
    """Whose maps are compared: those of ``-d``, and this app's own if there are any."""
    from brainseg_bids.interfaces.raters import Rater, raters_by_name

    sources = list(raters_by_name(derivatives, "-d").values())
    if any(output_dir.glob(OWN_MAPS)):
        sources.append(Rater.of("brainseg", output_dir))
    if not sources:
        raise InputError(
            f"{output_dir}: no segmentations are in it. Run the participant level into it first, "
            "or name others' with -d NAME=PATH."
        )
    return sources


def _search(
    reference: Rater,
    sources: Sequence[Rater],
    choice: Choice,
    is_only: bool,
    notes: list[str],
) -> _Search:
    """Find one reference's images, and every source's maps of them; what is odd is noted."""
    from brainseg_bids.bids.references import find_cases
    from brainseg_bids.interfaces.raters import find_rated

    every, odd = find_cases(reference.adapter, reference.root)
    cases = _wanted(every, choice, reference)
    notes += odd
    rated = []
    for source in sources:
        # With several references each has some of a rater's images only.
        theirs, odd = find_rated(
            source.adapter, source.root, cases, all_reference_keys=every, name_extra=is_only
        )
        rated.append(theirs)
        notes += odd
    return _Search(reference, cases, rated)


def _images(search: _Search, raters: Mapping[str, Rater], bids_dir: Path) -> list[ImagePlan]:
    """Images of a reference that somebody has labelled."""
    adapters = {who: rater.adapter for who, rater in raters.items()}
    images = []
    for key, case in search.cases.items():
        rated = {
            who: theirs[key]
            for who, theirs in zip(raters, search.rated, strict=True)
            if key in theirs
        }
        if rated:
            segmented = _segmented(rated.values(), bids_dir)
            if case.image is None and segmented:
                case = replace(case, image=segmented[0])
            images.append(ImagePlan(search.reference, case, rated, adapters, segmented))
    return images


def _wanted(cases: Mapping[str, Case], choice: Choice, reference: Rater) -> dict[str, Case]:
    """Cases that were asked for."""
    chosen = choice.of(cases)
    if cases and not chosen:
        keys = ", ".join(list(cases)[:10])
        raise InputError(f"{choice}: {reference.name} has none of them. It has {keys}.")
    return chosen


def _segmented(rated: Iterable[Case], bids_dir: Path) -> tuple[Path, ...]:
    """Images that raters say they have labelled, as far as they are in the dataset."""
    from brainseg_bids.bids.description import raw_path
    from brainseg_bids.interfaces.raters import metadata_of

    said = (metadata_of(theirs.labels).get("Input", "") for theirs in rated)
    images = dict.fromkeys(raw_path(str(uri), bids_dir) for uri in said)
    return tuple(image for image in images if image is not None and image.is_file())


# -- results ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """What comparing gave.

    Parameters
    ----------
    rows : list of dict
    known : dict of (str, str) to set of str
        Structures that a rater can say of those that a reference has, by reference and rater.
    notes : list of str
    warnings : list of str
        What makes a map doubtful.
    errors : dict of (str, str, str) to str
        What could not be compared, by reference, rater (or nothing: all) and image, and why.
    leaks : dict of (str, str, str) to str
        Likewise: ratings by a model of what it has seen, and what is said of it.
    """

    rows: list[dict] = field(default_factory=list)
    known: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: dict[tuple[str, str, str], str] = field(default_factory=dict)
    leaks: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def check(self) -> None:
        """Log what is odd; raise `InputError` if nothing could be compared."""
        for note in self.notes:
            log.info("%s", note)
        for warning in (*self.warnings, *self.leaks.values()):
            log.warning("%s", warning)
        if not self.rows:
            reasons = [*self.errors.values(), *self.leaks.values()]
            n_more = len(reasons) - MOST_REASONS
            more = f"; and {n_more} more" if n_more > 0 else ""
            raise InputError(
                f"nothing could be compared: {'; '.join(reasons[:MOST_REASONS])}{more}"
            )

    def of(self, reference: str) -> list[dict]:
        """Rows of one reference."""
        return [row for row in self.rows if row["reference"] == reference]

    def tables(self, plan: EvaluationPlan) -> dict[str, list[dict]]:
        """All tables; each reference is summarised for itself."""
        from brainseg_bids.evaluation.summary import Missing, common_structures, tables

        every: dict[str, list[dict]] = {}
        for name, keys in plan.references.items():
            rows = self.of(name)
            own = tables(
                rows,
                structures=common_structures(rows, plan.sideless),
                known={who: known for (ref, who), known in self.known.items() if ref == name},
                references={name: keys},
                raters=plan.rated[name],
            )
            for table, lines in own.items():
                every.setdefault(table, []).extend(lines)
        gone = [("failed", key) for key in self.errors]
        if not any(row["seen"] for row in self.rows):
            gone += [("left out: seen in training", key) for key in self.leaks]
        every["missing"] += [Missing(kind, *key).row() for kind, key in gone]
        return every


def collect(settings: Settings, plan: EvaluationPlan, compared: Mapping[str, dict]) -> Results:
    """Rows of all images; what a model has seen is left out unless it is asked for."""
    results = Results()
    for image in plan.images:
        reference, key = image.reference.name, image.case.key
        metadata = compared.get(image.name, {"Crash": "it gave no result"})
        if "Crash" in metadata:
            results.errors[reference, "", key] = metadata["Crash"]
            continue
        results.notes.extend(note for note in metadata["Notes"] if note not in results.notes)
        results.warnings.extend(metadata.get("Warnings", ()))
        for name, why in metadata["Faults"].items():
            results.errors[reference, name, key] = why
        for name, rows in metadata["Compared"].items():
            leak = _leak(settings, plan, image, name, metadata["Hashes"], results.notes)
            if leak:
                results.leaks[reference, name, key] = leak
                if not settings.include_seen:
                    continue
            known = set(metadata["Known"][name])
            results.known[reference, name] = results.known.get((reference, name), known) | known
            about = {
                "reference": reference,
                "rater": name,
                "image": key,
                "subject": image.case.subject,
                "stratum": image.case.stratum,
                "protocol": settings.protocol,
                "seen": bool(leak),
            }
            results.rows.extend(about | _with_nan(row) for row in rows)
    return results


def _with_nan(row: Mapping) -> dict:
    """A row with NaN where JSON had none, but for the index of a group."""
    return {
        key: math.nan if value is None and key != "index" else value for key, value in row.items()
    }


def _leak(
    settings: Settings,
    plan: EvaluationPlan,
    image: ImagePlan,
    rater: str,
    hashes: Sequence[str],
    notes: list[str],
) -> str:
    """Why a rating is no test: its model was trained or fitted on it."""
    from brainseg_bids.interfaces.raters import seen_by

    folders = (plan.raters[rater].root, settings.output_dir, settings.bids_dir)
    seen, why_unknown = seen_by(image.rated[rater].labels, settings.model, folders)
    if why_unknown:
        note = f"{rater}: {why_unknown}; whether it has seen these images is not checked."
        if note not in notes:
            notes.append(note)
    if seen and image.case.image is None:
        note = (
            f"{rater}: the images that it has labelled are not in {settings.bids_dir}; whether "
            "its model has seen them is told by the reference's labels alone."
        )
        if note not in notes:
            notes.append(note)
    if not seen & set(hashes):
        return ""
    done = "marked" if settings.include_seen else "left out; --include-seen takes it in, marked"
    return (
        f"{image.title}: {rater}'s model was trained or fitted on it, so this does not test it. "
        f"It is {done}."
    )
