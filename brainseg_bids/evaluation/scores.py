# SPDX-License-Identifier: Apache-2.0
"""Rows of agreements as arrays, and the structures on which raters are compared."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from brainseg_bids.units import natural_order

Row = Mapping[str, str | int | float | None]

STATUSES = ("both", "reference only", "prediction only", "neither")
NO_ROW = -1
ALL = "all"
"""Name of all strata together."""
NAN = float("nan")
KEYS = ("reference", "rater", "image", "subject", "name", "status")


@dataclass(frozen=True)
class Metric:
    """A metric, and its handling of structures that are in one map only.

    Parameters
    ----------
    name : str
        Name of its column.
    better : {"higher", "lower", "nearer 0"}
    counts : tuple of str
        Statuses for which it is defined; for others it is left out.
    """

    name: str
    better: str
    counts: tuple[str, ...]

    def cost(self, values: np.ndarray) -> np.ndarray:
        """Values transformed so that lower is better for every metric."""
        return -values if self.better == "higher" else self.size(values)

    def size(self, values: np.ndarray) -> np.ndarray:
        """Values for comparing raters: absolute values if 0 is best."""
        return np.abs(values) if self.better == "nearer 0" else values

    @property
    def compared_name(self) -> str:
        """Name of the values for comparing raters.

        >>> metric("volume_error_frac").compared_name
        '|volume_error_frac|'
        """
        return f"|{self.name}|" if self.better == "nearer 0" else self.name


_OVERLAPS = ("dice", "iou")
_DISTANCES = (
    "assd_mm",
    "hd95_mm",
    "hd100_mm",
    "reference_to_prediction_mm",
    "prediction_to_reference_mm",
)


def metric(name: str) -> Metric:
    """Metric of a column.

    Overlaps and NSD are 0 if one map only has the structure. Distances are defined if both maps
    have it, relative volume errors if the reference has it, volume errors if either has it.

    Raises
    ------
    ValueError
        If there is no such metric.

    Examples
    --------
    >>> metric("dice").better, metric("hd95_mm").counts
    ('higher', ('both',))
    """
    if name in _OVERLAPS or (name.startswith("nsd_") and name.endswith("mm")):
        return Metric(name, "higher", STATUSES[:3])
    if name in _DISTANCES:
        return Metric(name, "lower", STATUSES[:1])
    if name in ("volume_error_mm3", "volume_error_frac"):
        return Metric(name, "nearer 0", STATUSES[: 3 if name.endswith("mm3") else 2])
    known = ", ".join((*_OVERLAPS, *_DISTANCES, "nsd_..mm", "volume_error_mm3 or _frac"))
    raise ValueError(f"no rule for the metric {name!r}; known: {known}")


@dataclass(frozen=True, eq=False)
class Scores:
    """Rows of one reference as arrays.

    Parameters
    ----------
    reference : str
    raters, images, names : tuple of str
        Raters, images and structures, in an order that does not depend on that of the rows.
    subjects, strata : (images,) tuple of str
        Subject and stratum of each image.
    single : (names,) tuple of bool
        Whether a structure is one label (its row has a code), not a group of labels.
    status : (raters, images, names) int8
        Index in `STATUSES`, or `NO_ROW`.
    columns : dict of str to (raters, images, names) float
        NaN if a row has no value.
    kept : dict of str to array
        Cache of `values`.
    """

    reference: str
    raters: tuple[str, ...]
    images: tuple[str, ...]
    names: tuple[str, ...]
    subjects: tuple[str, ...]
    strata: tuple[str, ...]
    single: tuple[bool, ...]
    status: np.ndarray
    columns: dict[str, np.ndarray]
    kept: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Columns that are metrics."""
        return tuple(name for name in self.columns if _has_rule(name))

    def values(self, wanted: Metric) -> np.ndarray:
        """Values of a metric, (raters, images, names) float; NaN only where it is not defined.

        Raises
        ------
        ValueError
            If there is no such column, or a value is missing although it is defined.
        """
        if wanted.name in self.kept:
            return self.kept[wanted.name]
        if wanted.name not in self.columns:
            raise ValueError(f"{self.reference}: rows have no column {wanted.name!r}")
        counts = np.isin(self.status, [STATUSES.index(status) for status in wanted.counts])
        values = np.where(counts, self.columns[wanted.name], NAN)
        bad = counts & ~np.isfinite(values)
        if bad.any():
            rater, image, name = np.argwhere(bad)[0]
            status = STATUSES[self.status[rater, image, name]]
            raise ValueError(
                f"{self.images[image]}, {self.names[name]}, rater {self.raters[rater]}: "
                f"{wanted.name} is missing although the status is {status!r}; compare again"
            )
        self.kept[wanted.name] = values
        return values

    def of_stratum(self, stratum: str) -> Scores:
        """Scores of the images of one stratum, or of all images for `ALL`."""
        if stratum == ALL:
            return self
        keep = [k for k, name in enumerate(self.strata) if name == stratum]
        return replace(
            self,
            images=tuple(self.images[k] for k in keep),
            subjects=tuple(self.subjects[k] for k in keep),
            strata=tuple(self.strata[k] for k in keep),
            status=self.status[:, keep],
            columns={name: values[:, keep] for name, values in self.columns.items()},
            kept={},
        )

    def by_stratum(self) -> list[tuple[str, Scores]]:
        """Scores of all images, then those of each named stratum."""
        named = sorted(set(self.strata) - {""})
        return [(stratum, self.of_stratum(stratum)) for stratum in (ALL, *named)]

    def indices_of(self, names: Iterable[str]) -> list[int]:
        """Index of structures along the last axis."""
        return [self.names.index(name) for name in names]


class TableLine:
    """Base of dataclasses that are rows of a table: their fields are its columns."""

    def row(self) -> dict[str, Any]:
        """Row of a table: values by column."""
        return dict(vars(self))


def _has_rule(name: str) -> bool:
    """Whether `metric` knows a column."""
    try:
        return bool(metric(name))
    except ValueError:
        return False


def read_scores(rows: Sequence[Row]) -> list[Scores]:
    """Scores from rows of agreements, one for each reference.

    Parameters
    ----------
    rows : sequence of mapping
        `Agreement.row()` with ``reference``, ``rater``, ``image``, ``subject`` and ``stratum``
        (empty or absent if there are none), in any order.

    Raises
    ------
    ValueError
        If a row lacks one of these keys or has an unknown status, two rows have the same
        reference, rater, image and structure, an image has two subjects or strata, a stratum is
        called "all", or a reference has rows with both definitions of surfaces.
    """
    by_reference: dict[str, dict[tuple[str, str, str], Row]] = {}
    for row in rows:
        _check(row)
        cells = by_reference.setdefault(str(row["reference"]), {})
        key = (str(row["rater"]), str(row["image"]), str(row["name"]))
        if key in cells:
            raise ValueError(f"two rows of rater {key[0]}, {key[1]}, {key[2]}: keep one")
        cells[key] = row
    return [_scores(reference, by_reference[reference]) for reference in sorted(by_reference)]


def _check(row: Row) -> None:
    """Refuse a row that cannot be placed."""
    lacking = [key for key in KEYS if row.get(key) in (None, "")]
    if lacking:
        raise ValueError(f"a row of {row.get('image')} has no {', '.join(lacking)}")
    if row["status"] not in STATUSES:
        raise ValueError(
            f"{row['image']}, {row['name']}: unknown status {row['status']!r}; "
            f"known: {', '.join(STATUSES)}"
        )
    if row.get("stratum") == ALL:
        raise ValueError(f"{row['image']}: no stratum can be called {ALL!r}; rename it")


def _scores(reference: str, cells: Mapping[tuple[str, str, str], Row]) -> Scores:
    """Arrays of one reference."""
    definitions = sorted({str(row["definition"]) for row in cells.values() if "definition" in row})
    if len(definitions) > 1:
        mixed = " and ".join(definitions)
        raise ValueError(f"{reference}: rows mix the definitions {mixed}; compare with one")
    about: dict[str, tuple[str, str]] = {}
    codes: dict[str, tuple[bool, int]] = {}
    for (_, image, name), row in cells.items():
        origin = (str(row["subject"]), str(row.get("stratum") or ""))
        if about.setdefault(image, origin) != origin:
            raise ValueError(f"{image} has two subjects or strata: {about[image]} and {origin}")
        index = row.get("index")
        code = (index is None, 0 if index is None else int(index))
        codes[name] = min(code, codes.get(name, code))
    images = sorted(
        about, key=lambda image: [natural_order(about[image][0]), natural_order(image)]
    )
    names = sorted(codes, key=lambda name: (codes[name], name))
    raters = sorted({rater for rater, _, _ in cells})
    status = np.full((len(raters), len(images), len(names)), NO_ROW, np.int8)
    keys = {key for row in cells.values() for key in row if _is_number(row[key])}
    order = sorted(keys - {"index"}, key=_column_order(cells))
    columns = {key: np.full(status.shape, NAN) for key in order}
    ranks = [{key: k for k, key in enumerate(axis)} for axis in (raters, images, names)]
    for key, row in cells.items():
        place = tuple(rank[part] for rank, part in zip(ranks, key, strict=True))
        status[place] = STATUSES.index(str(row["status"]))
        for column in order:
            value = row.get(column)
            columns[column][place] = value if _is_number(value) else NAN
    subjects, strata = zip(*(about[image] for image in images), strict=True)
    single = tuple(not codes[name][0] for name in names)
    return Scores(
        reference,
        tuple(raters),
        tuple(images),
        tuple(names),
        subjects,
        strata,
        single,
        status,
        columns,
    )


def _is_number(value: object) -> bool:
    """Whether a cell is a number; truth values are not."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def _column_order(cells: Mapping[tuple[str, str, str], Row]) -> Any:
    """Order of columns as in a row, whichever row came first."""
    longest = cells[max(cells, key=lambda key: (len(cells[key]), key))]
    rank = {key: k for k, key in enumerate(longest)}
    return lambda key: (rank.get(key, len(rank)), key)


@dataclass(frozen=True)
class Judged(TableLine):
    """Whether a structure is part of the mean over structures.

    Parameters
    ----------
    reference, name : str
    used : bool
        Whether it is.
    reason : str
        Reason why it is not used; empty if it is.
    """

    reference: str
    name: str
    used: bool
    reason: str = ""


def structures_of_mean(
    scores: Scores,
    structures: Collection[str] | None,
    known: Mapping[str, Collection[str]] | None,
) -> dict[str, list[str]]:
    """Structures of the mean over structures, see `judge`, by the name of this mean in tables."""
    names = [one.name for one in judge(scores, structures=structures, known=known) if one.used]
    return {f"mean of {len(names)} structures": names}


def judge(
    scores: Scores,
    *,
    structures: Collection[str] | None = None,
    known: Mapping[str, Collection[str]] | None = None,
) -> list[Judged]:
    """Structures of the mean over structures: those of the reference and of all raters.

    Parameters
    ----------
    scores : Scores
    structures : collection of str, optional
        Names to choose from. Default: single labels, since groups would count them twice, or
        groups if there are no single labels.
    known : mapping of rater to names, optional
        Structures in the label table of each rater. Without it, a structure that a rater never
        labels counts as missed in every image.

    Returns
    -------
    list of Judged
        All structures with rows, then requested structures without rows.

    Examples
    --------
    If a rater does not know a structure, this is the reason, rather than that it was not
    requested:

    >>> whole = {"reference": "manual", "image": "sub-1", "subject": "1", "status": "both"}
    >>> rows = [whole | {"rater": rater, "name": name, "index": index, "dice": 0.9}
    ...     for rater, name, index in (("a", "Thalamus", 10), ("b", "Thalamus", 10),
    ...     ("a", "Pallidum", 13), ("b", "Pallidum", 13), ("b", "Left-Putamen", 12))]
    >>> [scores] = read_scores(rows)
    >>> {one.name: one.reason for one in judge(scores, structures=["Thalamus"])}
    {'Thalamus': '', 'Left-Putamen': 'not known to a', 'Pallidum': 'not asked for'}
    """
    if structures is None:
        wanted = {n for n, one in zip(scores.names, scores.single, strict=True) if one}
        wanted = wanted or set(scores.names)
    else:
        wanted = set(structures)
    tables = {rater: set(names) for rater, names in (known or {}).items()}
    return [
        Judged(scores.reference, name, not reason, reason)
        for k, name in enumerate(scores.names)
        for reason in [_why_not(scores, k, name in wanted, structures is not None, tables)]
    ] + [
        Judged(scores.reference, name, False, "no row is of it")
        for name in sorted(wanted - set(scores.names))
    ]


def _why_not(
    scores: Scores, k: int, wanted: bool, asked: bool, tables: Mapping[str, set[str]]
) -> str:
    """Reason against the structure at place ``k``, or nothing."""
    name, status = scores.names[k], scores.status[:, :, k]
    if not wanted and not asked:
        return "not asked for" if scores.single[k] else "a group, or not asked for"
    if wanted and not np.isin(status, (0, 1)).any():
        return "the reference has it in no image"
    ignorant = [
        rater
        for rater, statuses in zip(scores.raters, status, strict=True)
        if (statuses == NO_ROW).all() or (rater in tables and name not in tables[rater])
    ]
    if ignorant:  # who asks leaves out what somebody does not know: that is the reason, then
        return f"not known to {', '.join(ignorant)}"
    if wanted:
        return ""
    return "not asked for" if scores.single[k] else "a group, or not asked for"
