# SPDX-License-Identifier: Apache-2.0
"""``Relaxation``: T1, T2* and proton density of each label at any field strength."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib import resources
from math import log

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable, UnknownLabelError

FIELDS_T = {"3t": 3.0, "7t": 7.0, "9t4": 9.4}
"""Field strengths of the columns of the table."""

FIELD_RANGE_T = (1.0, 12.0)

LONE_EXPONENT = {"t1_s": 1 / 3, "t2star_ms": -1.0}
"""Power of B0 where one field was measured only.

T1 of most tissues grows with its third root (Bottomley et al., Med Phys 1984; 0.34 to 0.38 for
blood, white and grey matter in Rooney et al., MRM 2007); R2* grows linearly (Li et al., MRM 2009).
"""


@dataclass(frozen=True)
class Relaxation:
    """Relaxation times and proton density of one tissue or of n_labels tissues.

    Parameters
    ----------
    t1_s : float or ndarray
        Longitudinal relaxation time.
    proton_density : float or ndarray
        Density of MR-visible water and fat, relative to water.
    t2star_ms : float or ndarray
        Effective transverse relaxation time.
    """

    t1_s: float | np.ndarray
    proton_density: float | np.ndarray
    t2star_ms: float | np.ndarray


@dataclass(frozen=True)
class _Row:
    tissue: str
    patterns: tuple[str, ...]
    proton_density: float
    measured: dict[str, tuple[tuple[float, float], ...]]


@lru_cache(maxsize=1024)  # the same few labels and fields for every pair
def relaxation_of(name: str, field_t: float) -> Relaxation:
    """Relaxation of one label, by its name in any label table of the package.

    The first line of ``data/relaxation.tsv`` with a matching pattern is used. Times are
    interpolated and extrapolated by a power of B0 through the nearest two measured field
    strengths; if there is only one, see `LONE_EXPONENT`.

    Raises
    ------
    UnknownLabelError
        If no line matches the name.
    ValueError
        If the field strength is outside of 1 to 12 T.

    Examples
    --------
    >>> relaxation_of("Left-Cerebral-White-Matter", 7.0)
    Relaxation(t1_s=1.126, proton_density=0.7, t2star_ms=26.8)
    >>> round(relaxation_of("Left-Cerebral-White-Matter", 9.4).t1_s, 2)
    1.25
    """
    low, high = FIELD_RANGE_T
    if not low <= field_t <= high:
        raise ValueError(f"field strength {field_t} T: relaxation times are known from {low} to "
                         f"{high} T; give the field in tesla")  # fmt: skip
    for row in _rows():
        if any(fnmatchcase(name, pattern) for pattern in row.patterns):
            t1_s, t2star_ms = (
                _at_field(row.measured[what], field_t, LONE_EXPONENT[what])
                for what in ("t1_s", "t2star_ms")
            )
            return Relaxation(t1_s, row.proton_density, t2star_ms)
    raise UnknownLabelError(f"data/relaxation.tsv: no line for {name!r}; add its tissue")


def relaxation(table: LabelTable, field_t: float) -> Relaxation:
    """Relaxation of all labels of a table, in the order of its codes.

    Examples
    --------
    >>> relaxation(LabelTable.packaged("tissue"), 3.0).t1_s.shape
    (10,)
    """
    each = [relaxation_of(label.name, field_t) for label in table]
    return Relaxation(
        np.array([one.t1_s for one in each]),
        np.array([one.proton_density for one in each]),
        np.array([one.t2star_ms for one in each]),
    )


def _at_field(
    measured: tuple[tuple[float, float], ...], field_t: float, lone_exponent: float
) -> float:
    """Power law through the two measured (field, time) that enclose or are nearest to a field."""
    for known_t, time in measured:
        if known_t == field_t:
            return time
    if len(measured) == 1:
        (known_t, time), exponent = measured[0], lone_exponent
    else:
        above = [i for i, (known_t, _) in enumerate(measured) if known_t > field_t]
        last = max(above[0], 1) if above else len(measured) - 1
        (known_t, time), (next_t, next_time) = measured[last - 1], measured[last]
        exponent = log(next_time / time) / log(next_t / known_t)
    return time * (field_t / known_t) ** exponent


@cache
def _rows() -> tuple[_Row, ...]:
    """The table; read once."""
    source = resources.files("brainseg_bids") / "data" / "relaxation.tsv"
    rows = []
    with source.open(encoding="utf-8") as file:
        for raw in csv.DictReader(file, delimiter="\t"):
            measured = {
                what: tuple(
                    (field_t, float(raw[f"{what}_{suffix}"]))
                    for suffix, field_t in FIELDS_T.items()
                    if raw[f"{what}_{suffix}"] != "n/a"
                )
                for what in LONE_EXPONENT
            }
            patterns = tuple(raw["labels"].split(";"))
            rows.append(_Row(raw["tissue"], patterns, float(raw["proton_density"]), measured))
    return tuple(rows)
