# SPDX-License-Identifier: Apache-2.0
"""Label maps of a training run: chosen, read, held out; what is odd about them is logged."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.head_maps import HeadMap, choose_maps, hold_out
from brainseg_bids.documents import InputError, read_object
from brainseg_bids.nets.bundle import MANIFEST, ModelBundle
from brainseg_bids.programs.map_cache import read_facts
from brainseg_bids.programs.map_cache_pruning import prune
from brainseg_bids.training.targets import MapFacts, absent_labels
from brainseg_bids.units import listed, natural_order

if TYPE_CHECKING:
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")


def warn_of_seen(start: ModelBundle, held_out: Iterable[tuple[str, str]]) -> None:
    """Name held-out maps that the model to start from may have learned from.

    Parameters
    ----------
    held_out : iterable of (str, str)
        Name and digest of each map.
    """
    manifest = read_object(start.path / MANIFEST)
    before = (manifest.get("training") or {}).get("maps") or {}
    kept_back = {said["digest"] for said in before.values() if said.get("held_out")}
    learned = (start.seen or frozenset()) - kept_back
    seen = [name for name, digest in held_out if digest in learned]
    if seen:
        log.warning(
            "%s: held out, but model %s or one that it began from may have learned from it: then "
            "validation says too much. Hold out others with --validation-label",
            listed(seen, 3),
            start.name,
        )


def _warn_of_copies(chosen: Iterable[HeadMap], facts: Mapping[Path, MapFacts]) -> None:
    """Name maps of several participants that hold the same voxels."""
    known: dict[str, HeadMap] = {}
    for one in chosen:
        other = known.setdefault(facts[one.path].digest, one)
        if other.subject != one.subject:
            log.warning(
                "%s: has the same voxels as %s. The head counts twice, or is validated on though "
                "it was learned from. Remove one with --participant-label",
                one.path.name,
                other.path.name,
            )


def check_maps(
    settings: Settings,
    maps: Sequence[HeadMap],
    voxel_size_mm: float,
    target: LabelTable,
    cache: Path,
    *,
    start: ModelBundle | None = None,
) -> tuple[tuple[HeadMap, ...], tuple[HeadMap, ...], dict[Path, MapFacts]]:
    """Maps to learn from and held out, read and found fit; what is odd is logged.

    ``start`` is the model whose weights a run begins from.
    """
    chosen = choose_maps(maps, voxel_size_mm)
    held = hold_out(chosen, settings.validation_label)
    log.info("%d label maps are read and checked", len(chosen))
    facts, errors = read_facts(chosen, target, cache, readers=settings.nprocs)
    for error in errors:
        log.error("%s", error)
    if errors:
        raise InputError(
            f"{len(errors)} of {len(chosen)} label maps cannot be used; nothing was trained. "
            "Mend them, or choose others with --participant-label."
        )
    prune(cache, settings.bids_dir, [one.path for one in chosen])
    heads = tuple(one for one in chosen if one.subject not in held)
    held_out = tuple(one for one in chosen if one.subject in held)
    if start is not None:
        warn_of_seen(start, [(one.path.name, facts[one.path].digest) for one in held_out])
    if absent := absent_of(heads, facts, target):
        log.warning(
            "%d of %d labels are in no map to learn from, so the model will never say them: %s",
            len(absent),
            len(target) - 1,
            ", ".join(absent),
        )
    _warn_of_copies(chosen, facts)
    coarse = [one for one in chosen if max(one.voxel_size_mm) > voxel_size_mm * 1.05]
    if coarse:
        log.warning(
            "%d of %d label maps are coarser than %g mm (%s, ...): borders in pairs will have "
            "steps. Run the participant level with --stages upsample first, or choose larger "
            "voxels with --target-voxel-size.",
            len(coarse),
            len(chosen),
            voxel_size_mm,
            coarse[0].path.name,
        )
    log.info(
        "learn from %d label map(s) of %d participant(s); held out: %s",
        len(heads),
        len({one.subject for one in heads}),
        ", ".join(f"sub-{label}" for label in sorted(held, key=natural_order)),
    )
    return heads, held_out, facts


def absent_of(
    heads: Sequence[HeadMap], facts: Mapping[Path, MapFacts], target: LabelTable
) -> tuple[str, ...]:
    """Labels that no map to learn from has."""
    return absent_labels([facts[one.path] for one in heads], target)
