# SPDX-License-Identifier: Apache-2.0
"""Contrast priors: statistics of all images, pooled by contrast."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_text
from brainseg_bids.contrast.measured import ContrastStatistics
from brainseg_bids.contrast.pool import pool
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.reports.densities import Comparison
from brainseg_bids.reports.priors import write_priors_page
from brainseg_bids.volumes import InputError
from brainseg_bids.workflows.plan import read_object

log = logging.getLogger("brainseg")

ENDING = "_desc-contrast_morph.json"
UNITS = {"MagneticFieldStrength": "T", "VoxelSizeMm": "mm"}
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
    said : dict
        The JSON that they come from, without them.
    """

    image: str
    subject: str
    statistics: ContrastStatistics
    said: dict

    def value(self, key: str):
        """What says the image's contrast: a fact, an entity, or a metadata key; None: nothing."""
        contrast = self.said.get("Contrast", {})
        for where in (contrast, contrast.get("Entities", {}), contrast.get("Metadata", {})):
            if key in where:
                return where[key]
        return None


def find_measured(
    output_dir: Path, participants: Iterable[str] = (), *, suffixes: Sequence[str] = ()
) -> list[Measured]:
    """Statistics of every image in the derivative, each image once.

    Raises
    ------
    InputError
        If there are none, or a file is damaged.
    """
    wanted = set(participants)
    found: dict[str, tuple[int, Measured]] = {}
    for path in sorted(output_dir.glob(f"sub-*/**/*{ENDING}")):
        image, labels = path.name.removesuffix(ENDING).split("_seg-")
        subject = image.split("_")[0].removeprefix("sub-")
        if wanted and subject not in wanted:
            continue
        rank = PREFERRED.index(labels) if labels in PREFERRED else len(PREFERRED)
        if image in found and found[image][0] > rank:
            continue
        one = _read(path, image, subject)
        if not suffixes or one.value("Suffix") in suffixes:
            found[image] = rank, one
    if not found:
        raise InputError(
            f"{output_dir}: no contrast statistics are in it. Run the participant level with "
            "--stages segment contrast into it first."
        )
    return [one for _, one in found.values()]


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


def by_contrast(measured: Iterable[Measured], keys: Sequence[str]) -> dict[str, list[Measured]]:
    """Images that agree in all ``keys``, by a name made of what they agree in.

    Raises
    ------
    InputError
        If no image says anything about a key.
    """
    measured = list(measured)
    for key in keys:
        if all(one.value(key) is None for one in measured) and key not in UNITS:
            if key == "Sequence":
                continue
            known = sorted(
                {name for one in measured for name in one.said.get("Contrast", {}).get("Entities")}
            )
            raise InputError(
                f"--contrast-by {key}: no image says anything about it. Known besides Suffix, "
                f"VoxelSizeMm, Sequence and JSON keys: {', '.join(known) or 'no entity'}."
            )
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        groups.setdefault(contrast_name(one, keys), []).append(one)
    return groups


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
        parts.append(re.sub(r"[^0-9A-Za-z]", "", text.replace(".", "p")) + UNITS.get(key, ""))
    return "+".join(parts) or "any"


def make_priors(
    output_dir: Path,
    *,
    keys: Sequence[str],
    participants: Iterable[str] = (),
    suffixes: Sequence[str] = (),
) -> dict[str, tuple[ContrastPrior, list[Measured]]]:
    """Pool by contrast and write ``priors/contrast-NAME_prior.{tsv,json}``."""
    groups = by_contrast(find_measured(output_dir, participants, suffixes=suffixes), keys)
    table = LabelTable.packaged("fullhead")
    (output_dir / "priors").mkdir(parents=True, exist_ok=True)
    made = {}
    for name, group in groups.items():
        prior = pool(
            {one.image: one.statistics for one in group},
            name=name,
            table=table,
            subjects={one.image: one.subject for one in group},
            metadata={
                "BrainsegVersion": __version__,
                **{key: group[0].value(key) for key in keys if group[0].value(key) is not None},
            },
            images=tuple(
                {
                    "image": one.said.get("Input", one.image),
                    "sha256": one.said.get("InputSHA256", ""),
                    "voxels": one.said.get("VoxelHash", ""),
                    "labels": one.said.get("LabelsOf", ""),
                    "subject": one.subject,
                }
                for one in group
            ),
        )
        prior.write(output_dir / "priors", brainseg_version=__version__)
        made[name] = prior, group
    return made


def read_priors(output_dir: Path, wanted: str = "") -> dict[str, tuple[Path, ContrastPrior]]:
    """Priors in the derivative, or the wanted one, by name.

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
            name: (path, ContrastPrior.read(path))
            for name, path in names.items()
            if not wanted or name == wanted
        }
    except ValueError as error:
        raise InputError(str(error)) from error


def write_dials(output_dir: Path, names: Iterable[str]) -> list[Path]:
    """A recipe file per prior, ``priors/contrast-NAME_recipe.toml``, that training can name.

    One that is there stays: its dial may have been turned by hand.
    """
    written = []
    for name in names:
        path = output_dir / "priors" / f"contrast-{name}_recipe.toml"
        if not path.is_file():
            write_text(path, DIAL.format(name=name))
            written.append(path)
    return written


DIAL = """\
# Recipes of contrast {name}, for training: name this file as a recipe space.
# Contrast dial: 0 is any contrast, 1 the one that was measured; in between, in between.
kappa = 1.0
# What the measured images look like; beside this file.
prior = "contrast-{name}_prior.json"
# Recipe space for all that is not contrast (deformation, field of view), and for kappa = 0.
agnostic = "agnostic"
"""


def write_page(
    output_dir: Path,
    title: str,
    *,
    previews: Mapping[str, Sequence[Path]] | None = None,
    comparisons: Mapping[str, Sequence[Comparison]] | None = None,
) -> Path:
    """Write ``group_priors.html``: all priors, the images behind them, and what they give."""
    measured = {one.said.get("Input"): one for one in find_measured(output_dir)}
    priors = [prior for _, prior in read_priors(output_dir).values()]
    statistics = {
        prior.name: {
            measured[image["image"]].image: measured[image["image"]].statistics
            for image in prior.images
            if image["image"] in measured
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
