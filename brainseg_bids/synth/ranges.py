# SPDX-License-Identifier: Apache-2.0
"""Groups of settings of recipe spaces: changes, checks and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from brainseg_bids.documents import Kind


def digest_of(values: dict[str, Any]) -> str:
    """SHA-256 of numbers and names in a canonical form, in which 1 and 1.0 are equal.

    >>> digest_of({"p": 1, "q": [2]}) == digest_of({"q": (2.0,), "p": 1.0})
    True
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return float(value) if isinstance(value, int) else value

    return hashlib.sha256(json.dumps(plain(values), sort_keys=True).encode()).hexdigest()


def tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Copy of values read from TOML, with tuples instead of lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def changed(group: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """Copy of a dataclass with other values, also in nested dataclasses.

    Raises
    ------
    ValueError
        If a key is unknown, or a group is not given as a table.
    """
    known = {f.name: getattr(group, f.name) for f in fields(group)}
    new = {}
    for key, value in tuples(values).items():
        if key not in known or key == "tissues":
            raise ValueError(
                f"{prefix + key!r} is not a setting of a recipe space; known: "
                f"{', '.join(sorted(set(known) - {'tissues'}))}"
            )
        is_group = hasattr(known[key], "__dataclass_fields__")
        if is_group and not isinstance(value, dict):
            raise ValueError(f"{key!r} is a group of settings: write [{key}]")
        new[key] = changed(known[key], value, f"{key}.") if is_group else value
    return replace(group, **new)


def check_ranges(group: Any, kinds: Mapping[str, Kind], prefix: str = "") -> None:
    """Raise an error for the first field with an invalid value.

    Parameters
    ----------
    group : dataclass
        Nested dataclasses are checked as well.
    kinds : mapping of str to Kind
        Kind of each field; fields of nested dataclasses are named ``group.field``.

    Raises
    ------
    ValueError
        If a value is not of its kind.
    """
    for item in fields(group):
        name, value = prefix + item.name, getattr(group, item.name)
        if hasattr(value, "__dataclass_fields__"):
            check_ranges(value, kinds, f"{name}.")
        elif name in kinds and (why := kinds[name].error_of(value)):
            raise ValueError(f"{name} {why}")
