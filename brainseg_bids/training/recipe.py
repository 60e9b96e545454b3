# SPDX-License-Identifier: Apache-2.0
"""``TrainRecipe``: settings of a training run, and the recipe spaces of its pairs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from brainseg_bids.documents import (
    InputError,
    Items,
    Kind,
    Number,
    Text,
    check,
    parse_toml,
    read_text,
)
from brainseg_bids.training.deadline import MOST_STEPS
from brainseg_bids.training.plan import OPTIMIZERS

VOXEL_SIZE = Number(0.1, 10, "mm")
"""Voxel size of label maps and of pairs: smaller voxels would not fit into any memory."""

_STEPS = Number(1, 1e9, whole=True)
_COUNT = Number(1, 1e9, whole=True)

KEYS: dict[str, Kind] = {
    "target_table": Text(),
    "voxel_size_mm": VOXEL_SIZE,
    "largest_patch_mm": Items(Number(10, 500, "mm"), count=3),
    "net_size": Text(("small", "medium", "large")),
    "loss": Text(("chosen", "dense")),
    "per_label": _COUNT,
    "anywhere": _COUNT,
    "dice_weight": Number(0, 1000),
    "optimizer": Text(OPTIMIZERS),
    "learning_rate": Number(0, 1, above=True),
    "warmup_steps": _STEPS,
    "total_steps": Number(1, MOST_STEPS - 1, whole=True),
    "decay_steps": _STEPS,
    "batch": Number(1, 256, whole=True),
    "ema_decay": Number(0, 1, above=True, below=True),
    "validate_every": _STEPS,
    "validation_pairs": Number(1, 10_000, whole=True),
    "validation_space": Text(),
    "agnostic": Text(),
    "center_frac": Items(Number(0, 1), count=2, rising=True),
    "contrasts": Items(Text()),
}
"""Keys of a training recipe, besides ``base`` and the table ``[spaces]``, and their valid values.
Patches are limited to the size of a head; whether they fit a memory is found out when it is
planned."""

ABOUT_SPACES = ("agnostic", "center_frac", "contrasts", "largest_patch_mm", "net_size")
"""Keys that are not fields of a `TrainPlan`, but determine some of them."""

BY_STEPS = ("total_steps", "decay_steps", "validate_every", "ema_decay")
"""Keys that `TrainRecipe.with_steps` changes, also when a run is resumed."""


@dataclass(frozen=True)
class TrainRecipe:
    """Training recipe: settings, and the recipe spaces that pairs are drawn from.

    Parameters
    ----------
    base : str
        Recipe of the package that provides all other settings.
    values : dict
        Settings by key of `KEYS`.
    spaces : dict of str to float
        Weight of each recipe space (name in the package, TOML file, or ``prior``); may be empty.
    given : frozenset of str
        Keys that are given in the user's file.
    """

    base: str
    values: dict[str, Any]
    spaces: dict[str, float]
    given: frozenset[str] = field(default=frozenset())

    @classmethod
    def packaged(cls, name: str) -> TrainRecipe:
        """Training recipe of the package: ``default`` or ``cpu``.

        Raises
        ------
        InputError
            If there is no such recipe.

        Examples
        --------
        >>> TrainRecipe.packaged("cpu").values["voxel_size_mm"]
        1.5
        """
        source = resources.files("brainseg_bids") / "data" / "training" / f"{name}.toml"
        if not source.is_file():
            raise InputError(f"no training recipe {name!r}; known: default, cpu.")
        values, spaces = _parse(source.read_text(encoding="utf-8"), f"{name}.toml")
        return cls(name, values, spaces)

    @classmethod
    def read(cls, path: Path, base: str) -> TrainRecipe:
        """Training recipe from a user's file; other settings come from a recipe of the package.

        A file may name another one as its ``base``: it then has all settings of that file except
        those that it gives itself. ``[spaces]`` replaces the spaces of the other file.
        With another number of steps, what depends on them comes in proportion; see `with_steps`.

        Parameters
        ----------
        path : Path
        base : str
            Recipe of the package, unless a file names one.

        Raises
        ------
        InputError
            If a key is unknown or has an invalid value, a recipe space is given twice, or a file
            is its own base; the message names file and key.
        """
        under, values, spaces = _read_with_bases(path, base)
        if "total_steps" in values:
            under = under.with_steps(values["total_steps"])
        given = frozenset(values) | ({"spaces"} if spaces else set())
        return cls(under.base, under.values | values, spaces or under.spaces, given)

    def slow_rate(self) -> str:
        """A sentence if the learning rate is never reached; empty if it is."""
        steps = self.values["total_steps"]
        keys = [key for key in ("warmup_steps", "decay_steps") if self.values[key] > steps]
        if not keys:
            return ""
        said = " and ".join(f"{key} = {self.values[key]}" for key in keys)
        return (
            f"{said}: more than the {steps} steps, so that the learning rate is never reached. "
            "Without them in the recipe they are made to fit."
        )

    def with_steps(self, steps: int) -> TrainRecipe:
        """Recipe with another number of steps, and warm-up and decay in proportion.

        Apply it to the original recipe, not to one whose steps have been changed. The moving
        average of the weights covers at most a tenth of the steps, since a longer average would be
        dominated by the initial weights.

        >>> recipe = TrainRecipe.packaged("cpu").with_steps(430)
        >>> recipe.values["total_steps"], recipe.values["decay_steps"] < 430
        (430, True)
        """
        share = steps / self.values["total_steps"]
        scaled = {
            key: max(1, round(self.values[key] * share)) for key in ("warmup_steps", "decay_steps")
        }
        scaled["validate_every"] = min(self.values["validate_every"], steps)
        scaled["ema_decay"] = min(self.values["ema_decay"], max(0.0, 1 - 10 / steps))
        kept = {key: value for key, value in scaled.items() if key not in self.given}
        return TrainRecipe(
            self.base,
            self.values | kept | {"total_steps": steps},
            self.spaces,
            self.given | {"total_steps"},
        )

    def by_time(self, *, at_most: int = 0) -> TrainRecipe:
        """Recipe for a run with a deadline: decay does not depend on steps, see `DecayByTime`.

        The number of steps of the recipe is ignored; ``at_most`` limits the steps if it is given.

        >>> recipe = TrainRecipe.packaged("cpu")
        >>> [recipe.by_time(at_most=n).values["total_steps"] for n in (0, 9)]
        [1000000, 9]
        """
        by_time = {"total_steps": at_most or MOST_STEPS, "decay_steps": 1}
        return replace(self, values=self.values | by_time)


def _read_with_bases(
    path: Path, otherwise: str, above: tuple[Path, ...] = ()
) -> tuple[TrainRecipe, dict[str, Any], dict[str, float]]:
    """Recipe of the package; values and spaces of a recipe file and of those it is based on."""
    values, shares = _parse(read_text(path), str(path))
    spaces: dict[str, float] = {}
    for name, share in shares.items():
        if (place := _absolute(name, path.parent)) in spaces:
            raise InputError(f"{path}: [spaces] has {name} twice. Give each space one share.")
        spaces[place] = share
    for key in ("validation_space", "agnostic"):
        if key in values:
            values[key] = _absolute(values[key], path.parent)
    base, here = values.pop("base", otherwise), path.resolve()
    if not base.endswith(".toml"):
        try:
            return TrainRecipe.packaged(base), values, spaces
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    file = (here.parent / base).resolve()
    wrong = "leads back to this file" if file in (*above, here) else "there is no such file"
    if file in (*above, here) or not file.exists():
        raise InputError(
            f"{path}: base = {base}: {wrong}. Name another file, or a recipe of the package."
        )
    package, under, under_spaces = _read_with_bases(file, otherwise, (*above, here))
    return package, under | values, spaces or under_spaces


def _absolute(name: str, folder: Path) -> str:
    return str((folder / name).resolve()) if name.endswith(".toml") else name


def _parse(text: str, what: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Values and spaces of a recipe file; ``base`` is among the values if it is there."""
    raw = parse_toml(text, what)
    spaces = raw.pop("spaces", {})
    kinds = {"base": Text(), **KEYS}
    unknown = sorted(set(raw) - set(kinds))
    if unknown:
        raise InputError(
            f"{what}: unknown key {', '.join(unknown)}. Known: base, [spaces], "
            f"{', '.join(sorted(KEYS))}."
        )
    check(raw, kinds, what)
    share = Number(0, 1e6, above=True)
    if not isinstance(spaces, dict) or any(map(share.error_of, spaces.values())):
        raise InputError(
            f"{what}: [spaces] gives each recipe space a share above 0, e.g. t1w = 1.0."
        )
    values = {key: _value(kinds[key], value) for key, value in raw.items()}
    return values, {name: float(share) for name, share in spaces.items()}


def _value(kind: Kind, value: Any) -> Any:
    """A value in the type that its kind has everywhere else.

    >>> _value(KEYS["learning_rate"], 1), _value(KEYS["center_frac"], [0, 1])
    (1.0, (0.0, 1.0))
    """
    if isinstance(kind, Items):
        return tuple(_value(kind.kind, one) for one in value)
    return float(value) if isinstance(kind, Number) and not kind.whole else value
