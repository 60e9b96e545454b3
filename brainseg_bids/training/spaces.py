# SPDX-License-Identifier: Apache-2.0
"""Choice of recipe spaces and voxel size of a training run, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from brainseg_bids.documents import InputError
from brainseg_bids.training.recipe import TrainRecipe

CONTRAST_OF = {"t1w": "T1w", "t2w": "T2w", "flair": "FLAIR", "mp2rage7t": "UNIT1"}
"""BIDS suffix of each recipe space of the package; ``agnostic`` spaces stand for all."""
PRIOR = "prior"
"""Name of the recipe space of the chosen contrast prior in training recipes."""


@dataclass(frozen=True)
class Spaces:
    """Recipe spaces of a training run.

    Parameters
    ----------
    shares : dict of str to float
        Weight of each recipe space, by name in the package, TOML file, or ``prior``.
    validation : str
        Recipe space of validation pairs, given in the same way.
    contrasts : tuple of str
        BIDS suffixes that the model is meant for.
    prior : str
        Name of the contrast prior; empty if there is none.
    """

    shares: dict[str, float]
    validation: str
    contrasts: tuple[str, ...]
    prior: str = ""

    @cached_property
    def largest(self) -> str:
        """Recipe space with the largest weight."""
        return max(self.shares, key=self.shares.__getitem__)


def choose_spaces(
    recipe: TrainRecipe,
    *,
    priors: Mapping[str, str],
    any_contrast: Sequence[str] = (),
    of_files: Mapping[str, str] = {},
    wanted: str = "",
    weight_given: bool = False,
) -> tuple[Spaces, str]:
    """Recipe spaces of a training run, and the reason in one line.

    The order of precedence is: the prior given by the user, the user's recipe, the only available
    prior, the recipe of the package.

    Parameters
    ----------
    recipe : TrainRecipe
    priors : mapping of str to str
        BIDS suffix of each available contrast prior.
    any_contrast : sequence of str
        BIDS suffixes that a contrast-agnostic recipe space stands for.
    of_files : mapping of str to str
        BIDS suffix of each recipe space of the recipe that is a file made from a prior.
    wanted : str
        Name of the prior given by the user; empty: none.
    weight_given : bool
        Whether the user gave a prior weight, which requires a prior.

    Raises
    ------
    InputError
        If the given prior does not exist, none is given but several exist, or a prior is required
        but none exists.

    Examples
    --------
    >>> recipe = TrainRecipe("default", {}, {"t1w": 0.8, "flair": 0.2})
    >>> choose_spaces(recipe, priors={})[0].contrasts
    ('T1w', 'FLAIR')
    >>> choose_spaces(recipe, priors={"mine": "T2w"})[0].shares
    {'prior': 1.0}
    """
    own = recipe.spaces if "spaces" in recipe.given else {}
    name = _prior_name(wanted, priors, own)
    if weight_given and not name:
        raise InputError(
            "--kappa: the prior weight needs a contrast prior. Run group --stages priors first, "
            "or choose one with --prior."
        )
    shares, why = _shares(recipe, own, name, is_wanted=bool(wanted))
    contrasts = recipe.values.get("contrasts") or _contrasts(
        shares, priors.get(name, "T1w"), any_contrast, of_files
    )
    asked = recipe.values.get("validation_space", "")
    largest = max(shares, key=shares.__getitem__)
    validation = asked if "validation_space" in recipe.given else largest
    return Spaces(dict(shares), validation, contrasts, name), why


def _shares(
    recipe: TrainRecipe, own: Mapping[str, float], prior: str, *, is_wanted: bool
) -> tuple[Mapping[str, float], str]:
    """Shares of recipe spaces, and why."""
    if PRIOR in own:
        return own, f"recipe, with contrast prior {prior}"
    if prior:
        chosen = "asked for" if is_wanted else "the only one there is"
        return {PRIOR: 1.0}, f"contrast prior {prior} ({chosen})"
    why = "recipe" if own else f"packaged recipe {recipe.base}: there is no contrast prior"
    return recipe.spaces, why


def _prior_name(wanted: str, priors: Mapping[str, str], own: Mapping[str, float]) -> str:
    """Name of the prior that is drawn from; empty if none is."""
    known = ", ".join(sorted(priors))
    if wanted and wanted not in priors:
        advice = f"Known: {known}." if priors else "Run group --stages priors first."
        raise InputError(f"--prior {wanted}: there is none. {advice}")
    if wanted or not (PRIOR in own or (priors and not own)):
        return wanted
    if len(priors) == 1:
        return next(iter(priors))
    raise InputError(
        f"there are several contrast priors ({known}): choose one with --prior, or other "
        "recipe spaces with --recipe."
        if priors
        else "--recipe: [spaces] names prior, but there is none. Run group --stages priors first."
    )


def _contrasts(
    shares: Mapping[str, float],
    suffix: str,
    any_contrast: Sequence[str] = (),
    of_files: Mapping[str, str] = {},
) -> tuple[str, ...]:
    """BIDS suffixes of spaces; one that imitates any contrast stands for all.

    >>> _contrasts({"t1w": 1.0, "flair": 1.0}, "T2w"), _contrasts({"prior": 1.0}, "T2w")
    (('T1w', 'FLAIR'), ('T2w',))
    """
    known = {**CONTRAST_OF, **of_files, PRIOR: suffix}
    if any(name not in known for name in shares):
        return tuple(any_contrast)
    return tuple(dict.fromkeys(known[name] for name in shares))


def voxel_size_of(
    flag_mm: Sequence[float],
    recipe: TrainRecipe,
    prior_mm: Sequence[float] | None,
    usual_mm: float,
) -> tuple[float, str]:
    """Isotropic voxel size of the pairs in mm, and the reason.

    The order of precedence is: command line, the user's recipe, the recipe of the package for
    machines without GPU, prior, label maps.

    Parameters
    ----------
    flag_mm : sequence of float
        From the command line; may be empty.
    recipe : TrainRecipe
    prior_mm : sequence of float or None
        Voxel size of the prior.
    usual_mm : float
        Voxel size of the label maps.

    Examples
    --------
    >>> recipe = TrainRecipe("default", {}, {})
    >>> voxel_size_of((0.5, 0.5, 1.0), recipe, None, 1.0)
    (0.63, '--target-voxel-size')
    >>> voxel_size_of((), recipe, (0.8, 0.8, 0.8), 1.0)
    (0.8, 'that of the contrast')
    """

    def mean_mm(sizes: Sequence[float]) -> float:
        return round(float(np.prod(sizes) ** (1 / len(sizes))), 2)

    if flag_mm:
        return mean_mm(flag_mm), "--target-voxel-size"
    if "voxel_size_mm" in recipe.values:
        return recipe.values["voxel_size_mm"], f"recipe {recipe.base}"
    if prior_mm is not None:
        return mean_mm(prior_mm), "that of the contrast"
    return usual_mm, "that of the label maps"


def model_name(spaces: Spaces, voxel_size_mm: float) -> str:
    """Default name of a model.

    >>> model_name(Spaces({"prior": 1.0}, "prior", ("T1w",), "T1w7T"), 0.8)
    'T1w7T-0.8mm'
    >>> model_name(Spaces({"/a/my own.toml": 1.0}, "", ("T1w",)), 1.0)
    'my-own-1mm'
    """
    base = spaces.prior or Path(spaces.largest).name.removesuffix(".toml")
    return re.sub(r"[^0-9A-Za-z_.-]+", "-", base).strip("-.") + f"-{voxel_size_mm:g}mm"
