# SPDX-License-Identifier: Apache-2.0
"""Real images with labels that training validates on, as the list that `programs.train` takes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.bids.inputs import PARTS_OF_AN_IMAGE, STRUCTURAL
from brainseg_bids.bids.matching import key_of, match_cases
from brainseg_bids.bids.names import Scan
from brainseg_bids.bids.references import Case, find_cases
from brainseg_bids.documents import InputError
from brainseg_bids.files import write_text
from brainseg_bids.images import read_grid, write_label_map
from brainseg_bids.training.targets import SOURCE

if TYPE_CHECKING:
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")

MOST = 4
"""Real images that are looked at; each is segmented whole at every validation."""


def check_real(settings: Settings) -> None:
    """Raise `InputError` if one of the two flags is there without the other."""
    if settings.validate_on and not settings.references:
        raise InputError(
            f"--validate-on {settings.validate_on}: say where the labels of these images are: "
            "--reference NAME=PATH."
        )
    if settings.references and not settings.validate_on and "evaluate" not in settings.stages:
        raise InputError("--reference: say which images it has labelled: --validate-on BIDS_DIR.")
    if settings.validate_on and not settings.validate_on.is_dir():
        raise InputError(f"--validate-on {settings.validate_on}: there is no such folder.")


def write_real(settings: Settings, training: Path) -> Path | None:
    """Find image-label pairs, bring labels to codes of ``fullhead``, list them.

    Returns
    -------
    Path or None
        JSON list for `programs.train`; None if no real images were asked for.

    Raises
    ------
    InputError
        If no image of the dataset has labels that can be used.
    """
    if not settings.validate_on:
        return None
    entries: list[dict] = []
    for name, root in settings.references.items():
        entries += _of_reference(name, Path(root), settings.validate_on, training)
    if not entries:
        raise InputError(
            f"--validate-on {settings.validate_on}: none of its images has labels of "
            f"{', '.join(settings.references)} that training can use."
        )
    if len(entries) > MOST:
        log.info("validate on %d of %d real images, the first ones", MOST, len(entries))
    named = ", ".join(one["name"] for one in entries[:MOST])
    log.info("validate on real images, too: %s", named)
    return write_text(training / "real.json", json.dumps(entries[:MOST], indent=1) + "\n")


def _of_reference(name: str, root: Path, bids_dir: Path, training: Path) -> list[dict]:
    from brainseg_bids.interfaces.raters import find_adapter  # late: nipype's tools
    from brainseg_bids.interfaces.ratings import read_rating

    adapter = find_adapter(name)
    cases, notes = find_cases(adapter, root)
    for note in notes:
        log.warning("%s", note)
    if not adapter.sides:
        log.warning(
            "%s does not tell left from right: training cannot validate on it. Compare with it "
            "afterwards: group --stages evaluate.",
            name,
        )
        return []
    entries: list[dict] = []
    for key, image in _images_of(cases, bids_dir, name).items():
        if len(entries) == MOST:
            break
        try:
            rating, note = read_rating(cases[key].labels, adapter, grid=read_grid(image))
        except InputError as error:
            log.warning("not validated on: %s", error)
            continue
        if note:
            log.info("%s", note)
        labels = training / "real" / f"{Path(name).stem}_{key}_dseg.nii.gz"
        labels.parent.mkdir(exist_ok=True)
        write_label_map(rating.labels, labels)
        entries.append({"name": key, "image": str(image), "labels": str(labels), "table": SOURCE})
    return entries


def _images_of(cases: Mapping[str, Case], bids_dir: Path, name: str) -> dict[str, Path]:
    """Image of the dataset by key of the reference."""
    images: dict[str, Path] = {}
    for path in sorted(bids_dir.glob("sub-*/**/anat/sub-*.nii*")):
        scan = Scan.from_path(path)
        if scan.suffix in STRUCTURAL and not set(scan.entities) & set(PARTS_OF_AN_IMAGE):
            images.setdefault(key_of(scan), path.absolute())
    matching = match_cases(cases, images, name=name)
    for note in matching.notes:
        log.warning("%s", note)
    return {key: images[own] for key, own in matching.pairs.items()}
