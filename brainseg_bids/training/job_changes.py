# SPDX-License-Identifier: Apache-2.0
"""What of a training job has changed since it was begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IDENTITY = ("table", "voxel_size_mm", "architecture", "seed", "start_from", "spaces", "maps")
"""What of ``job.json`` a run that goes on may not change."""

LEARNED_BY = (
    "loss",
    "per_label",
    "anywhere",
    "dice_weight",
    "optimizer",
    "learning_rate",
    "warmup_steps",
)
"""And of its recipe. How long it trains (`BY_STEPS`) may change."""

NOT_SAID = {"optimizer": "adamw"}
"""What a recipe means that does not say it."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of two descriptions of a job differs, a few words each; names of files stay short.

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
        one, other = (own.get(key, NOT_SAID.get(key)) for own in values)
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
    def shown(spaces: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {space['share']:g}" for name, space in spaces.items())

    if shown(before) != shown(now):
        return [f"recipe spaces {shown(before)} (now {shown(now)})"]
    changed = [name for name in before if before[name]["digest"] != now[name]["digest"]]
    return [f"content of recipe space {', '.join(changed)}"] if changed else []


def _shown(value: object) -> str:
    return "none" if value in (None, "") else str(value)
