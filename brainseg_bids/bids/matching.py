# SPDX-License-Identifier: Apache-2.0
"""Keys of cases, and which cases of two raters are of the same image."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from brainseg_bids.bids.inputs import STRUCTURAL
from brainseg_bids.bids.names import Scan, stem
from brainseg_bids.documents import InputError

OWN_SPACE = frozenset({"T1w", "orig"})
RAW = frozenset({*STRUCTURAL, "MP2RAGE", "MPM", "MEGRE", "inplaneT1", "angio"})
"""Suffixes that ``space-`` may name; a label that is none of them is a template's."""

NUMBERED = frozenset({"sub", "ses", "run"})
"""Entities whose labels are the same with and without leading zeros."""


def key_of(scan: Scan) -> str:
    """What a scan is called across raters, whether it is an image or made from one.

    >>> key_of(Scan.from_path("sub-01_ses-A_T1w.nii.gz"))
    'sub-01_ses-A'
    >>> key_of(Scan.from_path("sub-01_acq-a_T2w.nii.gz"))
    'sub-01_acq-a_T2w'
    >>> key_of(Scan.from_path("sub-01_acq-a_space-T2w_seg-brainseg_dseg.nii.gz"))
    'sub-01_acq-a_T2w'
    """
    space = scan.entities.get("space")
    suffix = scan.suffix if scan.suffix in RAW or scan.suffix.endswith(("w", "map")) else "T1w"
    if space is not None and space not in OWN_SPACE:
        suffix = space
    plain = {k: v for k, v in scan.entities.items() if k not in ("space", "seg", "desc", "res")}
    named = stem(replace(scan, entities=plain, suffix="T1w"))
    return named if suffix == "T1w" else f"{named}_{suffix}"


def parse_key(name: str) -> tuple[dict[str, str], str]:
    """Entities and suffix of a key, or of a name in which only the subject may stand.

    >>> parse_key("sub-3_ses-1_T2w"), parse_key("bert_2")
    (({'sub': '3', 'ses': '1'}, 'T2w'), ({'sub': 'bert2'}, 'T1w'))
    """
    if not name.startswith("sub-"):
        return {"sub": re.sub(r"[^0-9A-Za-z+]", "", name)}, "T1w"
    scan = Scan.from_path(f"{name}_T1w" if "-" in name.rpartition("_")[2] else name)
    suffix = scan.entities.get("space", scan.suffix)
    suffix = scan.suffix if suffix in OWN_SPACE else suffix
    return {k: v for k, v in scan.entities.items() if k != "space"}, suffix


def without_zeros(label: str) -> str:
    """Label without leading zeros, if it is a number.

    >>> without_zeros("003"), without_zeros("0"), without_zeros("A03")
    ('3', '0', 'A03')
    """
    return str(int(label)) if label.isdigit() else label


@dataclass(frozen=True)
class Matching:
    """Which cases of two raters are of the same image.

    Parameters
    ----------
    pairs : mapping of str to str
        Key of the reference's case to that of the rater's.
    missing, extra : tuple of str
        Keys of the reference and of the rater that are without a partner.
    notes : tuple of str
    """

    pairs: Mapping[str, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    notes: tuple[str, ...]


def match_cases(reference: Iterable[str], rater: Iterable[str], *, name: str) -> Matching:
    """Pair the keys of two raters: same image, whether or not labels are padded with zeros.

    A rater's only case of a subject without a session is that of the reference's only session.

    Parameters
    ----------
    reference, rater : iterable of str
        Keys.
    name : str
        Of the rater, for messages.

    Raises
    ------
    InputError
        If labels that differ by zeros only could both be meant.

    Examples
    --------
    >>> matching = match_cases(["sub-3_ses-1", "sub-9_ses-1"], ["sub-03_ses-1"], name="mine")
    >>> dict(matching.pairs), matching.missing
    ({'sub-3_ses-1': 'sub-03_ses-1'}, ('sub-9_ses-1',))
    """
    wanted, there = list(reference), list(rater)
    pairs = {key: key for key in wanted if key in there}
    notes = []
    for canonical in (_canonical, _without_session):
        left = _grouped([key for key in there if key not in pairs.values()], canonical)
        still = _grouped([key for key in wanted if key not in pairs], canonical)
        whole = _grouped(wanted, _without_session), _grouped(there, _without_session)
        for same, keys in still.items():
            mates = left.get(same, [])
            if canonical is _without_session and not _single(keys, mates, same, whole):
                continue
            if mates:
                pairs[keys[0]] = _only_mate(keys, mates, name)
                notes.append(f"{name}: {mates[0]} is taken as {keys[0]}.")
    used = set(pairs.values())
    return Matching(
        {key: pairs[key] for key in wanted if key in pairs},
        tuple(key for key in wanted if key not in pairs),
        tuple(key for key in there if key not in used),
        tuple(notes),
    )


def partners(reference: Collection[str], rater: Collection[str], *, name: str) -> frozenset[str]:
    """Keys of a rater that `match_cases` would pair, or that are ambiguous.

    Unlike there, nothing is an error: it is for images that nobody asked for.

    Examples
    --------
    >>> sorted(partners(["sub-3", "sub-4"], ["sub-03", "sub-4", "sub-5"], name="mine"))
    ['sub-03', 'sub-4']
    """
    wanted, there = (
        _grouped(dict.fromkeys(keys), _without_session) for keys in (reference, rater)
    )
    result: set[str] = set()
    for same in wanted.keys() & there.keys():
        try:
            result |= set(match_cases(wanted[same], there[same], name=name).pairs.values())
        except InputError:
            result |= set(there[same])
    return frozenset(result)


def _only_mate(keys: list[str], mates: list[str], name: str) -> str:
    """The rater's case of a reference's, if there is one of each only."""
    if len(mates) > 1:
        raise InputError(
            f"{name}: {' and '.join(mates)} may both be {keys[0]}. Rename or remove one of them."
        )
    if len(keys) > 1:
        raise InputError(
            f"{name}: {mates[0]} may be {' or '.join(keys)} of the reference. Rename it."
        )
    return mates[0]


def _grouped(keys: Iterable[str], canonical: Callable[[str], tuple]) -> dict[tuple, list[str]]:
    groups: dict[tuple, list[str]] = {}
    for key in keys:
        groups.setdefault(canonical(key), []).append(key)
    return groups


def _single(keys: list[str], mates: list[str], same: tuple, whole: tuple[dict, dict]) -> bool:
    """Whether one side lacks the session, and neither has another case that it could be."""
    alone = all(len(groups.get(same, ())) == 1 for groups in whole)
    return bool(mates) and alone and ("_ses-" in keys[0]) != ("_ses-" in mates[0])


def _canonical(key: str) -> tuple:
    """Entities without leading zeros, and suffix.

    >>> _canonical("sub-03_ses-1") == _canonical("sub-3_ses-01")
    True
    """
    entities, suffix = parse_key(key)
    plain = {k: without_zeros(v) if k in NUMBERED else v for k, v in entities.items()}
    return (*sorted(plain.items()), suffix)


def _without_session(key: str) -> tuple:
    return tuple(part for part in _canonical(key) if part[0] != "ses")
