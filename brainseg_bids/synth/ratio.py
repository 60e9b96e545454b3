# SPDX-License-Identifier: Apache-2.0
"""MP2RAGE's UNI image: the ratio of two noisy inversion images, with its noise in air."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.intensity import draw_noise
from brainseg_bids.synth.interpolate import slabs
from brainseg_bids.synth.recipe import Ratio
from brainseg_bids.synth.relaxation import Relaxation, relaxation, relaxation_of
from brainseg_bids.synth.transmit import MP2RAGE, train_signals


def second_inversion(table: LabelTable, field_t: float = 7.0) -> Tensor:
    """Magnitude of the second inversion image for each label, (n_labels,) float32.

    Relative to cortical grey matter: proton density x |GRE(TI2)| x exp(-TE / T2*), with the
    relaxation times of ``data/relaxation.tsv`` and the protocol `transmit.MP2RAGE`.

    Examples
    --------
    >>> table = LabelTable.packaged("tissue")
    >>> values = dict(zip([label.name for label in table], second_inversion(table).tolist()))
    >>> values["Background"], round(values["Cortical Gray Matter"], 3)
    (0.0, 1.0)
    """
    tissue = relaxation(table, field_t)
    grey = relaxation_of("Left-Cerebral-Cortex", field_t)
    return torch.from_numpy(_magnitude(tissue) / _magnitude(grey)).float()


def _magnitude(tissue: Relaxation) -> np.ndarray:
    decay = np.exp(-MP2RAGE.echo_time_ms / np.asarray(tissue.t2star_ms))
    return np.abs(train_signals(tissue.t1_s, cycle=MP2RAGE)[1]) * tissue.proton_density * decay


def take_ratio(painted: Tensor, second: Tensor, ratio: Ratio) -> Tensor:
    """UNI image of two noisy inversion images, from the UNI image without noise.

    UNI = Re(S1* S2) / (|S1|^2 + |S2|^2). A value u without noise corresponds to S1 = r S2 with
    u = r / (1 + r^2), |r| <= 1. Complex Gaussian noise is added to both inversion images.

    Without signal, S1 + S2 and S1 - S2 are independent with the same standard deviation, and
    UNI + 0.5 = |S1 + S2|^2 / (|S1 + S2|^2 + |S1 - S2|^2). This is one chi-square variable with 2n
    degrees of freedom, divided by the sum of two: Beta(n, n) for n coil channels that are summed
    before the division. For one complex image it is Beta(1, 1): air is uniform between ``low`` and
    ``high``, independent of the noise.

    Parameters
    ----------
    painted : (X, Y, Z) float
        UNI image without noise; ``ratio.low`` to ``ratio.high`` stands for -0.5 to +0.5. Values
        outside are clipped.
    second : (X, Y, Z) float
        Magnitude of the second inversion image, relative to grey matter.
    ratio : Ratio

    Returns
    -------
    (X, Y, Z) float32
        In the units of ``painted``; ``painted`` itself if ``noise_frac`` is 0.

    Raises
    ------
    ValueError
        If shapes differ or ``low`` is not below ``high``.

    Examples
    --------
    >>> box = torch.full((8, 8, 8), 200.0)
    >>> noisy = take_ratio(box, torch.ones(8, 8, 8), Ratio(0.02, low=0.0, high=255.0))
    >>> bool((noisy - 200).abs().max() < 30)
    True
    """
    if painted.shape != second.shape:
        raise ValueError(
            f"ratio: image {tuple(painted.shape)} and second inversion {tuple(second.shape)} "
            "have to have one shape"
        )
    if not ratio.low < ratio.high:
        raise ValueError(f"ratio: low {ratio.low} has to be below high {ratio.high}")
    return painted if ratio.noise_frac <= 0 else _noisy_ratio(painted, second, ratio)


def _noisy_ratio(painted: Tensor, second: Tensor, ratio: Ratio) -> Tensor:
    """`take_ratio` with noise, by slabs."""
    span = ratio.high - ratio.low
    # Four streams in one, side by side: real and imaginary parts of both inversions.
    n_x, n_y, n_z = painted.shape
    noise = draw_noise((n_x, 4 * n_y, n_z), ratio.seed, painted.device)
    taken = torch.empty_like(painted, dtype=torch.float32)
    for start, stop in slabs(n_x):
        doubled = painted[start:stop].sub(ratio.low).mul_(2 / span).sub_(1).clamp_(-1, 1)
        two = second[start:stop]
        one = _first_over_second(doubled).mul_(two)
        # Never in place: on a GPU slabs are views, and the last one may overlap the one before.
        parts = (noise(start, stop) * ratio.noise_frac).view(stop - start, 4, n_y, n_z)
        real_one = parts[:, 0].add_(one)
        real_two = parts[:, 1].add_(two)
        power = real_one.square().addcmul_(real_two, real_two)
        dot = real_one.mul_(real_two).addcmul_(parts[:, 2], parts[:, 3])
        parts[:, 2:].square_()
        power.add_(parts[:, 2]).add_(parts[:, 3])
        out = torch.div(dot, power.clamp_(min=1e-20), out=taken[start:stop])
        out.mul_(span).add_(ratio.low + span / 2)
    return taken


def _first_over_second(doubled: Tensor) -> Tensor:
    """r of u = r / (1 + r^2) with |r| <= 1, from 2u; stable where u is 0."""
    return doubled / (doubled.square().neg_().add_(1).clamp_(min=0).sqrt_().add_(1))
