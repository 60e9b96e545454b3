# SPDX-License-Identifier: Apache-2.0
"""Files of recipe spaces: reading any of them, and writing those from a prior."""

from __future__ import annotations

import json
import os
from pathlib import Path

from brainseg_bids.documents import read_toml
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
        Recipe space of the package, or TOML file.

    Raises
    ------
    ValueError
        If ``kappa`` is outside 0 to 1.
    """
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa is {kappa!r}: choose a number from 0 (any contrast) to 1")
    path = Path(path)

    def relative(to: str | Path) -> str:
        return json.dumps(os.path.relpath(to, path.parent).replace(os.sep, "/"))

    space = relative(agnostic) if agnostic.endswith(".toml") else json.dumps(agnostic)
    lines = [
        "# Recipe space between any contrast and a measured one.",
        "# What images of the contrast look like; the path starts at this file.",
        f"prior = {relative(prior_path)}",
        "# Prior weight: 0 any contrast, 1 as measured.",
        f"kappa = {float(kappa)!r}",
        "# Space at 0; what a prior does not measure (geometry, view, motion) is always its.",
        f"agnostic = {space}",
        "# Further lines change that space, such as flip_p = 0.0",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
