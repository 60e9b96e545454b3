# SPDX-License-Identifier: Apache-2.0
"""Files of recipe spaces: reading any of them, and writing those from a prior."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import tomli_w

from brainseg_bids.documents import read_toml
from brainseg_bids.files import write_text
from brainseg_bids.synth.prior_space import PriorSpace
from brainseg_bids.synth.space import RecipeSpace


def read_space(name_or_path: str) -> RecipeSpace | PriorSpace:
    """Recipe space of the package, by its name, or from a TOML file.

    A file with the key ``prior`` gives a `PriorSpace`.

    Raises
    ------
    ValueError
        If there is no such space, or the file cannot be used.
    """
    if name_or_path.endswith(".toml") and "prior" in read_toml(Path(name_or_path)):
        return PriorSpace.read(name_or_path)
    return RecipeSpace.named(name_or_path)


def write_space(path: str | Path, space: RecipeSpace) -> Path:
    """Write all values of a recipe space into a file that has no ``base``, and return its path."""
    values = asdict(space)
    del values["name"]
    return write_text(path, tomli_w.dumps(values))


def write_prior_space(
    path: str | Path, prior_path: str | Path, kappa: float, agnostic: str = "agnostic"
) -> Path:
    """Write the file of a `PriorSpace` for `read_space`, and return its path.

    Parameters
    ----------
    path : path
    prior_path : path
        JSON file of the prior; the file has its path relative to ``path``.
    kappa : float
        Prior weight.
    agnostic : str
        Recipe space of the package, or TOML file. Its values are copied into a file beside
        ``path``.

    Raises
    ------
    ValueError
        If ``kappa`` is outside 0 to 1, or the agnostic space cannot be read.
    """
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa is {kappa!r}: choose a number from 0 (any contrast) to 1")
    path = Path(path)
    if agnostic.endswith(".toml"):
        own = path.with_name(f"{path.stem}_agnostic.toml")
        agnostic = write_space(own, RecipeSpace.read(agnostic)).name
    prior = os.path.relpath(prior_path, path.parent).replace(os.sep, "/")
    lines = [
        "# Recipe space between any contrast and a measured one.",
        "# What images of the contrast look like; the path starts at this file.",
        f"prior = {json.dumps(prior)}",
        "# Prior weight: 0 any contrast, 1 as measured.",
        f"kappa = {float(kappa)!r}",
        "# Space at 0; what a prior does not measure (geometry, view, motion) is always its.",
        f"agnostic = {json.dumps(agnostic)}",
        "# Further lines change that space, such as flip_p = 0.0",
    ]
    return write_text(path, "\n".join(lines) + "\n")
