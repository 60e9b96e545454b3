# SPDX-License-Identifier: Apache-2.0
"""Contrast priors: statistics of all images, pooled by contrast."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_json
from brainseg_bids.contrast.pool import pool
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.documents import InputError
from brainseg_bids.files import sha256, write_text
from brainseg_bids.reports.densities import IntensityComparison
from brainseg_bids.stages.jobs import read_object
from brainseg_bids.stages.measured import (
    Measured,
    find_measured,
    image_key,
    outdated,
    readable,
)
from brainseg_bids.stages.priors_page import write_priors_page
from brainseg_bids.units import listed

log = logging.getLogger("brainseg")

SYNTHETIC = "_synth.json"
UNITS = {"MagneticFieldStrength": "T", "VoxelSizeMm": "mm"}
USUAL_KEYS = ("Suffix", "MagneticFieldStrength", "Sequence", "VoxelSizeMm")
"""Facts that an image may lack."""
NAMED = 10
"""Images that a line names at most."""


def by_contrast(measured: Iterable[Measured], keys: Sequence[str]) -> dict[str, list[Measured]]:
    """Images that agree in all ``keys``, by a name made of what they agree in.

    Raises
    ------
    InputError
        If no image says anything about a key.
    """
    measured = list(measured)
    for key in keys:
        if key not in USUAL_KEYS and all(one.value(key) is None for one in measured):
            raise InputError(
                f"--contrast-by {key}: no image has a number or a word for it. Known: "
                f"{', '.join(_known_keys(measured))}."
            )
    groups: dict[tuple, list[Measured]] = {}
    for one in measured:
        groups.setdefault(tuple(one.value(key) for key in keys), []).append(one)
    named = {values: contrast_name(group[0], keys) for values, group in groups.items()}
    taken = list(named.values())
    return {
        # What differs in letters that no file name may hold is told apart by a hash.
        name if taken.count(name) == 1 else f"{name}+{_short_hash(values)}": groups[values]
        for values, name in named.items()
    }


def _known_keys(measured: Iterable[Measured]) -> list[str]:
    known: set[str] = set(USUAL_KEYS)
    for one in measured:
        contrast = one.metadata.get("Contrast") or {}
        for where in (contrast.get("Entities"), contrast.get("Metadata")):
            known |= {k for k, v in (where or {}).items() if isinstance(v, str | int | float)}
    return sorted(known)


def _short_hash(values: tuple) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:6]


def contrast_name(one: Measured, keys: Sequence[str]) -> str:
    """Name of an image's contrast; what is not known is left out.

    Letters, digits, plus and p (for the point) only, so that it can be part of a BIDS name.
    """
    parts = []
    for key in keys:
        value = one.value(key)
        if value is None:
            continue
        text = f"{value:g}" if isinstance(value, int | float) else str(value)
        clean = re.sub(r"[^0-9A-Za-z]", "", text.replace(".", "p"))
        parts.append((clean or _short_hash((text,))) + UNITS.get(key, ""))
    return "+".join(parts) or "any"


def make_priors(
    output_dir: Path,
    *,
    bids_dir: Path,
    keys: Sequence[str],
    participants: Iterable[str] = (),
    sessions: Iterable[str] = (),
    suffixes: Sequence[str] = (),
    ratings: Path | None = None,
) -> dict[str, tuple[ContrastPrior, list[Measured]]]:
    """Pool by contrast and write ``priors/contrast-NAME_prior.{tsv,json}``.

    Raises
    ------
    InputError
        If there are no statistics, or images of one contrast cannot be pooled.
    """
    measured = find_measured(
        output_dir,
        participants,
        sessions=sessions,
        suffixes=suffixes,
        bids_dir=bids_dir,
        ratings=ratings,
    )
    (output_dir / "priors").mkdir(parents=True, exist_ok=True)
    made = {}
    for name, group in by_contrast(measured, keys).items():
        try:
            prior = _pooled(name, group, keys)
        except ValueError as error:
            raise InputError(
                f"contrast {name}: {error} Images can be separated with --contrast-by, or left "
                "out with --participant-label and --contrasts."
            ) from error
        notes = (*unknown_facts(group, keys), *mixed(group), *stripped_images(group))
        prior = replace(prior, warnings=(*prior.warnings, *notes))
        prior.write(output_dir / "priors", brainseg_version=__version__)
        made[name] = prior, group
    return made


def unknown_facts(group: Sequence[Measured], keys: Sequence[str]) -> list[str]:
    """A line for each key that images of a contrast were grouped without, naming the images."""
    notes = []
    for key in keys:
        images = [one.image for one in group if one.value(key) is None]
        # The sequence is optional in BIDS, and many sidecars lack it.
        if not images or key == "Sequence":
            continue
        shown = listed(images, NAMED)
        notes.append(
            f"{key} of {len(images)} image{'s' * (len(images) > 1)} is not known ({shown}): they "
            "may be of several. Write it into the JSON files beside them, run --stages contrast "
            "again, and then priors."
        )
    return notes


def mixed(group: Sequence[Measured]) -> list[str]:
    """Lines that name the images of a contrast by suffix, and by whose labels, if these differ."""
    found = []
    if shown := _apart(group, lambda one: one.value("Suffix")):
        found.append(
            f"Images of several suffixes are pooled: {shown}. The prior, and models that learn "
            "from it, count as of the most frequent one; --contrast-by Suffix separates them."
        )
    if shown := _apart(group, lambda one: one.metadata.get("LabelsTool")):
        found.append(
            f"Images were measured with labels of several tools: {shown}. What one label holds "
            "may differ; --labels measures all with the same."
        )
    return found


def _apart(group: Sequence[Measured], fact: Callable[[Measured], object]) -> str:
    """Images by a fact about them, in words; empty if they agree."""
    images: dict[str, list[str]] = {}
    for one in group:
        images.setdefault(str(fact(one)), []).append(one.image)
    shown = [f"{len(own)} {value} ({listed(own, 3)})" for value, own in images.items()]
    return "; ".join(shown) if len(shown) > 1 else ""


def stripped_images(group: Sequence[Measured]) -> list[str]:
    """A line that names the skull-stripped images of a contrast, if there are any."""
    images = [one.image for one in group if one.statistics.stripped]
    if not images:
        return []
    if len(images) == len(group):
        return [
            "All images are skull-stripped: bone, soft tissue and the fluid around the brain were "
            "not measured and are imputed from tissues that look alike."
        ]
    return [
        f"{len(images)} of {len(group)} images are skull-stripped and show the brain alone: "
        f"{listed(images, NAMED)}."
    ]


def _pooled(name: str, group: Sequence[Measured], keys: Sequence[str]) -> ContrastPrior:
    stripped = {one.image for one in group if one.statistics.stripped}
    return pool(
        {one.image: one.statistics for one in group},
        name=name,
        table=LabelTable.packaged("fullhead"),
        subjects={one.image: one.subject for one in group},
        metadata={
            "BrainsegVersion": __version__,
            **{key: group[0].value(key) for key in keys if group[0].value(key) is not None},
            "Suffix": Counter(one.value("Suffix") or "T1w" for one in group).most_common(1)[0][0],
            "SkullStripped": len(stripped) / len(group),
        },
        images=tuple(
            {
                "image": one.metadata.get("Input", one.image),
                "sha256": one.metadata.get("InputSHA256", ""),
                "voxels": one.metadata.get("VoxelHash", ""),
                "labels": one.metadata.get("LabelsOf", ""),
                "statistics": one.digest,
                "subject": one.subject,
                "name": one.image,
                "stripped": one.image in stripped,
            }
            for one in group
        ),
    )


def read_priors(output_dir: Path, wanted: str = "") -> dict[str, tuple[Path, ContrastPrior]]:
    """Priors in the derivative, or the wanted one, by name.

    A copy under another name is a prior of that name.

    Raises
    ------
    InputError
        If there are none, the wanted one is not there, or a file is damaged.
    """
    paths = sorted((output_dir / "priors").glob("contrast-*_prior.json"))
    names = {p.name.removeprefix("contrast-").removesuffix("_prior.json"): p for p in paths}
    if not names:
        raise InputError(
            f"{output_dir}: no contrast priors are in it. Run group --stages priors first."
        )
    if wanted and wanted not in names:
        raise InputError(f"--prior {wanted}: there is none. Known: {', '.join(names)}.")
    try:
        return {
            name: (path, replace(ContrastPrior.read(path), name=name))
            for name, path in names.items()
            if not wanted or name == wanted
        }
    except ValueError as error:
        raise InputError(str(error)) from error


def write_prior_spaces(output_dir: Path, names: Iterable[str]) -> list[Path]:
    """A recipe file per prior, ``priors/contrast-NAME_recipe.toml``, that training can name.

    One that is there stays: its weight may have been changed by hand.
    """
    written = []
    for name in names:
        path = output_dir / "priors" / f"contrast-{name}_recipe.toml"
        if not path.is_file():
            write_text(path, RECIPE_SPACE.format(name=name))
            written.append(path)
    return written


RECIPE_SPACE = """\
# Recipes of contrast {name}, for training: name this file as a recipe space.
# Prior weight: 0 is any contrast, 1 the one that was measured; in between, in between.
kappa = 1.0
# What the measured images look like; beside this file.
prior = "contrast-{name}_prior.json"
# Recipe space for all that is not contrast (deformation, field of view), and for kappa = 0.
agnostic = "agnostic"
"""


def write_synthetic(
    prior: Path, pictures: Sequence[Path], comparisons: Sequence[IntensityComparison]
) -> Path:
    """Keep what a page shows of pairs that were made from a prior, for when it is written again.

    ``contrast-NAME_synth.json``; it counts as long as the prior is the same.
    """
    return write_json(
        prior.with_name(prior.name.replace("_prior.json", SYNTHETIC)),
        {
            "PriorSHA256": sha256(prior),
            "Pictures": [path.relative_to(prior.parent).as_posix() for path in pictures],
            "Likeness": [asdict(one) for one in comparisons],
        },
    )


def read_synthetic(
    output_dir: Path,
) -> tuple[dict[str, list[Path]], dict[str, list[IntensityComparison]]]:
    """Pictures and comparisons of pairs, by prior, as far as they are of the priors there now."""
    pictures, comparisons = {}, {}
    for name, (path, _) in read_priors(output_dir).items():
        said = read_object(path.with_name(path.name.replace("_prior.json", SYNTHETIC)))
        if said.get("PriorSHA256") != sha256(path):
            continue
        found = [path.parent / picture for picture in said["Pictures"]]
        pictures[name] = [picture for picture in found if picture.is_file()]
        comparisons[name] = [IntensityComparison(**one) for one in said["Likeness"]]
    return pictures, comparisons


def write_page(
    output_dir: Path,
    title: str,
    *,
    previews: Mapping[str, Sequence[Path]] | None = None,
    comparisons: Mapping[str, Sequence[IntensityComparison]] | None = None,
    bids_dir: Path | None = None,
    ratings: Path | None = None,
) -> Path:
    """Write ``group_priors.html``: all priors, the images behind them, and what they give.

    Those that are `outdated` say so; ``bids_dir`` and ``ratings`` as of it.
    """
    measured = readable(output_dir)
    priors = [prior for _, prior in read_priors(output_dir).values()]
    old = outdated(priors, output_dir, bids_dir=bids_dir, ratings=ratings)
    priors = [
        replace(prior, warnings=(old[prior.name], *prior.warnings)) if prior.name in old else prior
        for prior in priors
    ]
    statistics = {
        prior.name: {
            measured[key].image: measured[key].statistics
            for image in prior.images
            if (key := image_key(image["image"], image.get("labels"))) in measured
        }
        for prior in priors
    }
    return write_priors_page(
        output_dir / "group_priors.html",
        title=title,
        priors=priors,
        statistics=statistics,
        comparisons=comparisons,
        previews=previews or {},
        version=__version__,
    )
