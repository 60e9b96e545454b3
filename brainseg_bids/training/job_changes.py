# SPDX-License-Identifier: Apache-2.0
"""Changes of a training job since its start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IDENTITY = ("table", "voxel_size_mm", "architecture", "seed", "start_from", "spaces", "maps")
"""Values of ``job.json`` that must not change when a run is resumed."""

LEARNED_BY = (
    "loss",
    "per_label",
    "anywhere",
    "dice_weight",
    "optimizer",
    "learning_rate",
    "warmup_steps",
)
"""Settings of its recipe that must not change. The duration (`BY_STEPS`) may."""

IMPLIED = {"optimizer": "adamw"}
"""Values of settings that a recipe does not contain."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences of two descriptions of a job, as short texts.

    Examples
    --------
    >>> differences({"seed": 1, "maps": {"a": {"digest": "1"}, "b": {"digest": "2"}}},
    ...     {"seed": 2, "maps": {"a": {"digest": "1"}, "c": {"digest": "3"}}})
    ['seed 1 (now 2)', 'label maps: 1 new (c), 1 gone (b)']
    """
    found = []
    for key in IDENTITY:
        one, other = before.get(key), now.get(key)
        if key == "maps":
            found += _changed_maps(one or {}, other or {})
        elif key == "spaces":
            found += _changed_spaces(one or {}, other or {})
        elif one != other:
            found.append(f"{key} {_shown(one)} (now {_shown(other)})")
    values = [job.get("recipe", {}).get("values", {}) for job in (before, now)]
    for key in LEARNED_BY:
        one, other = (own.get(key, IMPLIED.get(key)) for own in values)
        if one != other:
            found.append(f"{key} {_shown(one)} (now {_shown(other)})")
    return found


def _changed_maps(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    kinds = {
        "new": sorted(set(now) - set(before)),
        "gone": sorted(set(before) - set(now)),
        "changed": sorted(
            name
            for name in set(before) & set(now)
            if before[name]["digest"] != now[name]["digest"]
        ),
        "held out or no longer": sorted(
            name
            for name in set(before) & set(now)
            if before[name].get("held_out") != now[name].get("held_out")
        ),
    }
    words = [
        f"{len(names)} {kind} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for kind, names in kinds.items()
        if names
    ]
    return [f"label maps: {', '.join(words)}"] if words else []


def _changed_spaces(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Content decides: files of recipe spaces may have moved."""

    def by_content(spaces: Mapping[str, Any]) -> list[tuple[str, float]]:
        return sorted((space["digest"], space["share"]) for space in spaces.values())

    def shown(spaces: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {space['share']:g}" for name, space in spaces.items())

    if by_content(before) == by_content(now):
        return []
    if shown(before) != shown(now):
        return [f"recipe spaces {shown(before)} (now {shown(now)})"]
    changed = [name for name in before if before[name]["digest"] != now[name]["digest"]]
    return [f"content of recipe space {', '.join(changed)}"]


def same_validation(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether pairs for validation are drawn from a space of the same content, if that is known.

    >>> spaces = [{"a/own.toml": {"digest": "1"}}, {"b/own.toml": {"digest": "1"}}]
    >>> before, now = ({"spaces": one, "validation_space": next(iter(one))} for one in spaces)
    >>> same_validation(before, now), same_validation(before, now | {"validation_space": "t1w"})
    (True, False)
    """
    one, other = (
        job.get("spaces", {}).get(job.get("validation_space"), {}).get("digest")
        for job in (before, now)
    )
    return one is not None and one == other


def _shown(value: object) -> str:
    return "none" if value in (None, "") else str(value)
