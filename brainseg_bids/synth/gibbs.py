# SPDX-License-Identifier: Apache-2.0
"""Gibbs ringing: truncation of the outer part of k-space."""

from __future__ import annotations

import torch
from torch import Tensor

from brainseg_bids.synth.interpolate import multiply_along
from brainseg_bids.synth.recipe import Gibbs

ALL_READ = Gibbs()
"""No ringing: k-space is complete."""


def truncate(image: Tensor, gibbs: Gibbs) -> Tensor:
    """Image without spatial frequencies above a fraction of the highest one along each axis.

    The fraction is ``gibbs.kept_frac``. Edges overshoot by 9 % of their height (Wilbraham 1848;
    Gibbs, Nature 59, 1899), with a period of ``2 / kept_frac`` voxels.

    Parameters
    ----------
    image : (X, Y, Z) float
    gibbs : Gibbs

    Raises
    ------
    ValueError
        If a fraction is outside 0 to 1.
    """
    for axis, kept_frac in enumerate(gibbs.kept_frac):
        if not 0 < kept_frac <= 1:
            raise ValueError(f"the share of k-space has to lie in 0..1, not be {kept_frac:g}")
        if kept_frac < 1:
            image = multiply_along(image, truncation_matrix(image.shape[axis], kept_frac), axis)
    return image


def truncation_matrix(n: int, kept_frac: float) -> Tensor:
    """Matrix (n, n) that keeps the lowest ``kept_frac`` of the frequencies of ``n`` samples.

    The samples are extended by reflection: periodic extension would cause ringing between opposite
    ends of a crop. This is the Dirichlet kernel of ``2 n`` samples, folded at both ends. In the
    basis of the cosine transform it keeps the first ``kept_frac * n`` coefficients.

    Examples
    --------
    >>> truncation_matrix(4, 0.25)  # only the mean is left
    tensor([[0.2500, 0.2500, 0.2500, 0.2500],
            [0.2500, 0.2500, 0.2500, 0.2500],
            [0.2500, 0.2500, 0.2500, 0.2500],
            [0.2500, 0.2500, 0.2500, 0.2500]])
    """
    waves = torch.arange(max(1, round(kept_frac * n)), dtype=torch.float64)
    places = torch.arange(n, dtype=torch.float64) + 0.5
    basis = torch.cos(torch.pi / n * waves[:, None] * places) * (2 / n) ** 0.5
    basis[0] /= 2**0.5
    return (basis.T @ basis).float()
