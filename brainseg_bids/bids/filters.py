# SPDX-License-Identifier: Apache-2.0
"""Filter files: conditions on images, written for this app or for fMRIPrep and its kin.

A file gives conditions by query (``t1w``), an entity and its values each: a label with or without
its key (``sub-01`` or ``01``), a number, null for images without that entity, ``"*"`` for those
with it, or a list of these. Conditions that every image of a query fulfils (``"suffix": "T1w"``
under ``t1w``) change nothing, and queries for images that this app does not take are passed over.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from brainseg_bids.bids.names import STRUCTURAL, Scan
from brainseg_bids.documents import InputError

log = logging.getLogger("brainseg")

ENTITIES = {  # pybids' name: BIDS' key
    "subject": "sub",
    "session": "ses",
    "sample": "sample",
    "task": "task",
    "tracksys": "tracksys",
    "acquisition": "acq",
    "nucleus": "nuc",
    "volume": "voi",
    "ceagent": "ce",
    "tracer": "trc",
    "staining": "stain",
    "reconstruction": "rec",
    "direction": "dir",
    "run": "run",
    "modality": "mod",
    "echo": "echo",
    "flip": "flip",
    "inv": "inv",
    "mt": "mt",
    "part": "part",
    "proc": "proc",
    "hemi": "hemi",
    "space": "space",
    "split": "split",
    "recording": "recording",
    "chunk": "chunk",
    "atlas": "atlas",
    "segmentation": "seg",
    "scale": "scale",
    "res": "res",
    "resolution": "res",
    "den": "den",
    "density": "den",
    "label": "label",
    "desc": "desc",
    "from": "from",
    "to": "to",
    "mode": "mode",
}
INDICES = frozenset({"run", "echo", "flip", "inv", "split", "chunk"})
"""BIDS keys whose labels are numbers: ``run-01`` is run 1."""

ABOUT_FILES = ("suffix", "datatype", "extension", "scope")
"""What a filter may name beside entities."""

OF_OTHER_FILES = ("fmap", "scans")
"""Entities of pybids that no image here has: kinds of field maps, tables of scans."""

ELSEWHERE = frozenset(
    {"asl", "bold", "cbf", "dwi", "epi", "fmap", "m0scan", "magref", "mask", "perf", "pet", "roi"}
    | {"sbref", "t1map", "xfm"}
    | {suffix.lower() for suffix in STRUCTURAL}
)
"""Queries of other apps, or for images that were not asked for."""

EXTENSIONS = (".nii", ".nii.gz")

Value = str | int | None


@dataclass(frozen=True)
class Filter:
    """Conditions on the images of one query.

    Parameters
    ----------
    entities : dict of str to tuple
        BIDS key to the values that do: a label, a number, None (absent) or ``"*"`` (present).
    datatypes : tuple of str or None
        Folders such as ``anat``; None: any.
    extensions : tuple of str
    """

    entities: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    datatypes: tuple[str, ...] | None = ("anat",)
    extensions: tuple[str, ...] = EXTENSIONS

    def passes(self, scan: Scan) -> bool:
        """Whether an image fulfils the conditions on its entities.

        >>> scan = Scan.from_path("sub-01_ses-A_run-02_T1w.nii.gz")
        >>> [Filter({"run": (run,), "acq": (None, "x")}).passes(scan) for run in (2, "02", 1)]
        [True, True, False]
        """
        return all(self._holds(key, scan) for key in self.entities)

    def _holds(self, key: str, scan: Scan) -> bool:
        """Whether an image fulfils the condition on one entity."""
        return any(_is(key, scan.entities.get(key), value) for value in self.entities[key])

    def missed(self, scans: Iterable[Scan]) -> str:
        """What was asked for and what there is, in words; what some image fulfils is left out."""
        scans = list(scans)
        never = [key for key in self.entities if not any(self._holds(key, s) for s in scans)]
        parts = []
        for key in never or self.entities:
            values = self.entities[key]
            there = sorted({scan.entities.get(key) or "" for scan in scans})
            shown = ", ".join(label or "none" for label in there[:10])
            more = ", ..." if len(there) > 10 else ""
            asked = " or ".join("none" if value is None else str(value) for value in values)
            parts.append(f"{key}- is to be {asked}, and there is {shown}{more}")
        return "; ".join(parts)


def _is(key: str, label: str | None, wanted: Value) -> bool:
    if wanted is None or label is None:
        return label is wanted
    if wanted == "*" or label == str(wanted):
        return True
    numbers = label.isdecimal() and str(wanted).isdecimal()
    return key in INDICES and numbers and int(label) == int(wanted)


def make_filters(
    filters: Mapping[str, object], suffixes: Collection[str], *, what: str = "--bids-filter-file"
) -> dict[str, Filter]:
    """Conditions by suffix; one without conditions has an empty `Filter`.

    Parameters
    ----------
    filters : mapping
        Content of a filter file.
    suffixes : collection of str
        Images that are looked for; a query's name is one of them, in small letters or as it is.
    what : str
        The file, for messages.

    Raises
    ------
    InputError
        If an entity or a value means nothing, a condition contradicts its query, or the name of a
        query looks like a slip of the pen.
    """
    by_key = {suffix.lower(): suffix for suffix in suffixes}
    made = {suffix: Filter() for suffix in suffixes}
    for key, values in filters.items():
        suffix = by_key.get(key.lower())
        if suffix is None:
            _check_query(key, by_key, what)
        elif not isinstance(values, Mapping):
            raise InputError(f'{what}: {key}: give an object, e.g. {{"session": "A"}}.')
        else:
            made[suffix] = _filter(values, suffix, f"{what}: {key}")
    return made


def log_ignored(filters: Iterable[str], suffixes: Collection[str]) -> None:
    """Say which queries of a filter file are of no concern to these images."""
    ours = sorted(suffix.lower() for suffix in suffixes)
    others = [key for key in filters if key.lower() not in ours]
    usual = [key for key in others if key.lower() in ELSEWHERE]
    if usual:
        log.debug("--bids-filter-file: %s: not for these images, ignored", ", ".join(usual))
    for key in others:
        if key not in usual:
            known = ", ".join(ours)
            log.warning("--bids-filter-file: %s is ignored; queries here are %s", key, known)


def _check_query(key: str, ours: Iterable[str], what: str) -> None:
    """Refuse a query that is not ours, but was perhaps meant to be."""
    if key.lower() in ELSEWHERE:
        return
    close = difflib.get_close_matches(key.lower(), ours, n=3, cutoff=0.6)
    if close:
        raise InputError(f"{what}: unknown query {key!r}. Did you mean {' or '.join(close)}?")


def _filter(conditions: Mapping[str, object], suffix: str, what: str) -> Filter:
    entities: dict[str, tuple[Value, ...]] = {}
    files: dict[str, tuple[Value, ...]] = {}
    for name, given in conditions.items():
        values = _values(name, given, what)
        if name in ABOUT_FILES:
            files[name] = values
        elif name in (*ENTITIES, *ENTITIES.values(), *OF_OTHER_FILES):
            key = ENTITIES.get(name, name)
            entities[key] = tuple(_label(key, value) for value in values)
        else:
            known = ", ".join([*ABOUT_FILES, *ENTITIES])
            raise InputError(f"{what}: unknown entity {name!r}. Known: {known}.")
    _check_files(files, suffix, what)
    datatypes = files.get("datatype", ("anat",))
    extensions = [f".{str(one).lstrip('.')}" for one in files.get("extension", ("*",))]
    return Filter(
        entities,
        None if "*" in datatypes else tuple(str(one) for one in datatypes if one is not None),
        EXTENSIONS if ".*" in extensions else tuple(extensions),
    )


def _check_files(files: Mapping[str, tuple[Value, ...]], suffix: str, what: str) -> None:
    """Refuse what no image of the query can be."""
    given = {str(value).lower() for value in files.get("suffix", ("*",))}
    if not given & {"*", suffix.lower()}:
        raise InputError(
            f"{what}: its images have suffix {suffix}, not {' or '.join(sorted(given))}. Choose "
            "images with --contrasts."
        )
    if not {"raw", "all", "self"} & set(files.get("scope", ("raw",))):
        raise InputError(f"{what}: scope: images are taken from the dataset itself: give raw.")
    if files.get("datatype", ("anat",)) == (None,):
        raise InputError(f"{what}: datatype: every image has one: give anat.")


def _values(name: str, given: object, what: str) -> tuple[Value, ...]:
    """Values of one condition, a single one as a list of one."""
    values = given if isinstance(given, list | tuple) else [given]
    for value in values:
        fits = value is None or (isinstance(value, str | int) and not isinstance(value, bool))
        if not fits:
            shown = "an object" if isinstance(value, Mapping) else repr(value)
            raise InputError(
                f'{what}: {name} is {shown}: give a label, a number, null, "*" or a list of them.'
            )
    if not values:
        raise InputError(f"{what}: {name} is an empty list: give at least one value.")
    return tuple(values)


def _label(key: str, value: Value) -> Value:
    return value.removeprefix(f"{key}-") if isinstance(value, str) else value
