# SPDX-License-Identifier: Apache-2.0
"""Groups of ranges and probabilities: read, changed, checked, and named by their digest."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import fields, replace
from pathlib import Path


def read_toml(path: Path) -> dict:
    """Content of a TOML file; ``ValueError`` names it where it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such recipe file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: this is no TOML ({error})") from error


def digest_of(values: dict) -> str:
    """SHA-256 of numbers and names in a canonical form, in which 1 is 1.0.

    >>> digest_of({"p": 1, "q": [2]}) == digest_of({"q": (2.0,), "p": 1.0})
    True
    """

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return float(value) if isinstance(value, int) else value

    return hashlib.sha256(json.dumps(plain(values), sort_keys=True).encode()).hexdigest()


def tuples(values: dict) -> dict:
    """TOML's lists as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def changed(group, values: dict, prefix: str = ""):
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


def _is_range(value) -> bool:
    """Whether it is two numbers, the lower first."""
    numbers = isinstance(value, tuple) and all(isinstance(v, int | float) for v in value)
    return numbers and len(value) == 2 and value[0] <= value[1]


def _are_counts(value) -> bool:
    return all(isinstance(v, int) and v >= 1 for v in value)


def check_ranges(group, prefix: str = "") -> None:
    """Probabilities lie in 0..1, ranges have two ends in order, numbers are numbers."""
    for item in fields(group):
        name, value, kind = prefix + item.name, getattr(group, item.name), type(item.default)
        if hasattr(value, "__dataclass_fields__"):
            check_ranges(value, f"{name}.")
        elif kind is float:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{name} has to be a number, not {value!r}")
            if (item.name == "p" or item.name.endswith("_p")) and not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability: {value!r} is outside 0..1")
        elif kind is tuple and isinstance(item.default[0], int | float) and not _is_range(value):
            raise ValueError(f"{name} has to be [low, high], not {value!r}")
        elif kind is tuple and isinstance(item.default[0], int) and not _are_counts(value):
            raise ValueError(f"{name} counts: whole numbers of 1 or more, not {value!r}")
    sequences = getattr(group, "sequences", ())
    wrong = [one for one in sequences if one not in ("none", "mprage", "mp2rage")]
    if wrong or ("sequences" in {f.name for f in fields(group)} and not sequences):
        raise ValueError(f"{prefix}sequences has to hold 'mprage' or 'mp2rage', not {sequences!r}")
