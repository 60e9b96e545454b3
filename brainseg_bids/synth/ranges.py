# SPDX-License-Identifier: Apache-2.0
"""Groups of ranges and probabilities: read, changed, checked, and named by their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from brainseg_bids.documents import Kind


def digest_of(values: dict[str, Any]) -> str:
    """SHA-256 of numbers and names in a canonical form, in which 1 is 1.0.

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
    """TOML's lists as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def changed(group: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """Copy of a dataclass with other values, groups within it likewise."""
    known = {f.name: getattr(group, f.name) for f in fields(group)}
    new = {}
    for key, value in tuples(values).items():
        if key not in known or key == "tissues":
            raise ValueError(
                f"{prefix + key!r} is no setting of a recipe space; known: "
                f"{', '.join(sorted(set(known) - {'tissues'}))}"
            )
        is_group = hasattr(known[key], "__dataclass_fields__")
        if is_group and not isinstance(value, dict):
            raise ValueError(f"{key!r} is a group of settings: write [{key}]")
        new[key] = changed(known[key], value, f"{key}.") if is_group else value
    return replace(group, **new)


def check_ranges(group: Any, kinds: Mapping[str, Kind], prefix: str = "") -> None:
    """Raise ``ValueError`` for the first field whose value is not of its kind.

    Parameters
    ----------
    group : dataclass
        Groups within it are checked, too.
    kinds : mapping of str to Kind
        By field; those of a group by ``group.field``.
    """
    for item in fields(group):
        name, value = prefix + item.name, getattr(group, item.name)
        if hasattr(value, "__dataclass_fields__"):
            check_ranges(value, kinds, f"{name}.")
        elif name in kinds and (why := kinds[name].fault(value)):
            raise ValueError(f"{name} {why}")
