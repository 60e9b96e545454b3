# SPDX-License-Identifier: Apache-2.0
"""Contrast statistics in a derivative: found, read, and whether they may be pooled."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_path
from brainseg_bids.contrast.measured import ContrastStatistics
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.documents import InputError
from brainseg_bids.files import sha256
from brainseg_bids.stages.jobs import fingerprint, read_object
from brainseg_bids.stages.rated import rated_bad
from brainseg_bids.units import natural_order

log = logging.getLogger("brainseg")

ENDING = "_desc-contrast_morph.json"
SHOWN = 3
"""Reasons that a line names at most."""
PREFERRED = ("brainseg", "fullhead")
"""Labels of an image that was measured with several; the last wins, any other before both."""


@dataclass(frozen=True)
class Measured:
    """Statistics of one image.

    Parameters
    ----------
    image : str
        What its results are called, such as ``sub-01_space-T2w``.
    subject : str
        Without ``sub-``.
    statistics : ContrastStatistics
    metadata : dict
        The JSON that they come from, without them.
    """

    image: str
    subject: str
    statistics: ContrastStatistics
    metadata: dict

    def value(self, key: str):
        """What says the image's contrast: a fact, an entity, or a metadata key; None: nothing.

        Field strengths are rounded to half a tesla: 2.89 T is 3 T.
        """
        contrast = self.metadata.get("Contrast") or {}
        for where in (contrast, contrast.get("Entities"), contrast.get("Metadata")):
            found = (where or {}).get(key)
            if isinstance(found, str | int | float):
                if key == "MagneticFieldStrength" and isinstance(found, int | float) and found > 1:
                    return round(2 * found) / 2
                return found
        return None

    @property
    def digest(self) -> str:
        """SHA-256 of the statistics, as 64 hexadecimal digits."""
        return hashlib.sha256(self.statistics.to_json().encode()).hexdigest()


def find_measured(
    output_dir: Path,
    participants: Iterable[str] = (),
    *,
    sessions: Iterable[str] = (),
    suffixes: Sequence[str] = (),
    bids_dir: Path | None = None,
    ratings: Path | None = None,
) -> list[Measured]:
    """Statistics of every image in the derivative, each image once.

    An image whose label map in the derivative has changed, or is rated as bad, is passed over with
    a warning, and so is a copy of another one; with ``bids_dir`` also one that is gone or has
    changed since.

    Parameters
    ----------
    output_dir : Path
    participants, sessions, suffixes : iterable of str
        That are wanted; none: all.
    bids_dir : Path, optional
        Root of the images.
    ratings : Path, optional
        Folder with rating files; default: beside the figures of the participants.

    Raises
    ------
    InputError
        If there are none, or a file is damaged.
    """
    wanted, wanted_sessions = set(participants), set(sessions)
    every: list[tuple[int, Measured]] = []
    for path in sorted(output_dir.glob(f"sub-*/**/*_seg-*{ENDING}"), key=natural_order):
        image, labels = path.name.removesuffix(ENDING).split("_seg-", 1)
        entities = dict(part.split("-", 1) for part in image.split("_") if "-" in part)
        subject = entities.get("sub", "")
        if wanted and subject not in wanted:
            continue
        if wanted_sessions and entities.get("ses") not in wanted_sessions:
            continue
        rank = PREFERRED.index(labels) if labels in PREFERRED else len(PREFERRED)
        every.append((rank, _read(path, image, subject)))
    bad = rated_labels((one for _, one in every), output_dir, ratings)
    found: dict[str, tuple[int, Measured]] = {}
    for rank, one in every:
        if one.image in found and found[one.image][0] > rank:
            continue
        if why := why_unfit(one, output_dir, bids_dir=bids_dir, bad=bad):
            log.warning("%s: %s; its statistics are not pooled", one.image, why)
            continue
        if not suffixes or one.value("Suffix") in suffixes:
            found[one.image] = rank, one
    if not found:
        raise InputError(
            f"{output_dir}: no contrast statistics that can be pooled are in it. Run the "
            "participant level with --stages segment contrast into it first."
        )
    return _without_copies([one for _, one in found.values()])


def _without_copies(measured: Iterable[Measured]) -> list[Measured]:
    """Images whose voxels no image before has: a copy would count as another participant."""
    kept: dict[str, Measured] = {}
    for one in measured:
        voxels = one.metadata.get("VoxelHash") or one.image
        if voxels in kept:
            same = kept[voxels].image
            log.warning("%s: has the same voxels as %s; it is not pooled again", one.image, same)
        else:
            kept[voxels] = one
    return list(kept.values())


def rated_labels(
    measured: Iterable[Measured], output_dir: Path, ratings: Path | None
) -> frozenset[Path]:
    """Label maps of the derivative that images were measured with and that are rated as bad."""
    maps = (own for one in measured if (own := _own_labels(one, output_dir)))
    return frozenset(rated_bad(dict.fromkeys(maps), ratings))


def why_unfit(
    one: Measured, output_dir: Path, *, bids_dir: Path | None, bad: Collection[Path]
) -> str:
    """Why statistics are not to be pooled: their labels are bad, or labels or image have changed.

    Without ``bids_dir`` the image is not looked at. Empty if nothing is wrong.
    """
    labels, known = _own_labels(one, output_dir), one.metadata.get("LabelsSHA256")
    if labels in bad:
        return f"{labels} is rated as bad"
    if labels and known and sha256(labels) != known:
        return f"{labels} has changed since it was measured with (--stages contrast)"
    path = bids_dir and raw_path(str(one.metadata.get("Input", "")), bids_dir)
    if path is None:
        return ""
    try:
        now = fingerprint(path, known=one.metadata)
    except OSError:
        return f"{path} is not there"
    return "" if now["InputSHA256"] == one.metadata.get("InputSHA256") else f"{path} has changed"


def _own_labels(one: Measured, output_dir: Path) -> Path | None:
    """Label map of the derivative that an image was measured with, if it is there."""
    _, is_own, inside = str(one.metadata.get("LabelsOf", "")).partition("bids::")
    return output_dir / inside if is_own and (output_dir / inside).is_file() else None


def _read(path: Path, image: str, subject: str) -> Measured:
    said = read_object(path)
    try:
        statistics = ContrastStatistics.from_json(json.dumps(said.pop("Statistics")))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: holds no contrast statistics ({error}). Remove it and run --stages contrast "
            "again."
        ) from error
    return Measured(image, subject, statistics, said)


def readable(output_dir: Path) -> dict[str, Measured]:
    """Statistics by `image_key`; damaged ones, which may be of others, are passed over."""
    found = {}
    for path in sorted(output_dir.glob(f"sub-*/**/*_seg-*{ENDING}"), key=natural_order):
        image = path.name.removesuffix(ENDING).split("_seg-", 1)[0]
        try:
            one = _read(path, image, image.split("_")[0].removeprefix("sub-"))
        except InputError as error:
            log.warning("%s", error)
            continue
        found[image_key(one.metadata.get("Input"), one.metadata.get("LabelsOf"))] = one
    return found


def image_key(image: object, labels: object) -> str:
    """What tells statistics apart: URIs of an image and of the labels it was measured with."""
    return f"{image} {labels or ''}"


def outdated(
    priors: Iterable[ContrastPrior],
    output_dir: Path,
    *,
    bids_dir: Path | None = None,
    ratings: Path | None = None,
) -> dict[str, str]:
    """Why priors are no longer those of their images: a sentence by the name of each that is not.

    Parameters
    ----------
    priors : iterable of ContrastPrior
    output_dir : Path
        With the statistics that they were pooled from; without any, nothing can be compared.
    bids_dir : Path, optional
        Root of the images; without it they are not looked at.
    ratings : Path, optional
        Folder with rating files, as of `find_measured`.
    """
    if not (now := readable(output_dir)):
        return {}
    bad = rated_labels(now.values(), output_dir, ratings)
    found = {}
    for prior in priors:
        reasons = []
        version = (prior.metadata or {}).get("BrainsegVersion", __version__)
        if version != __version__:
            reasons.append(f"version {version} pooled it")
        for image in prior.images:
            one = now.get(image_key(image["image"], image.get("labels")))
            why = _why_another(image, one) or (
                one and why_unfit(one, output_dir, bids_dir=bids_dir, bad=bad)
            )
            if why:
                reasons.append(f"{image.get('name', image['image'])}: {why}")
        if reasons:
            found[prior.name] = (
                f"This prior is outdated ({'; '.join(reasons[:SHOWN])}"
                f"{'; and more' * (len(reasons) > SHOWN)}). Run --stages contrast, then priors, "
                f"or remove priors/contrast-{prior.name}_*."
            )
    return found


def warn_of_outdated(
    priors: Iterable[ContrastPrior],
    output_dir: Path,
    *,
    bids_dir: Path | None = None,
    ratings: Path | None = None,
) -> None:
    """Log a warning for each prior that is `outdated`."""
    for name, why in outdated(priors, output_dir, bids_dir=bids_dir, ratings=ratings).items():
        log.warning("contrast %s: %s", name, why)


def _why_another(image: Mapping, now: Measured | None) -> str:
    """Why statistics that went into a prior are not those that are there now, or nothing."""
    if now is None:
        return "its statistics are no longer there"
    same = image.get("statistics", now.digest) == now.digest  # earlier versions said none
    if same and image.get("sha256", "") == now.metadata.get("InputSHA256", ""):
        return ""
    return "it was measured again since"
