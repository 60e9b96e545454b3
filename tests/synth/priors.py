# SPDX-License-Identifier: Apache-2.0
"""Contrast priors with known numbers."""

from __future__ import annotations

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.measured import Component
from brainseg_bids.contrast.prior import ContrastPrior, LabelPrior, NoisePrior, Spread

WHITE, GREY, CSF = "Left-Cerebral-White-Matter", "Left-Cerebral-Cortex", "Left-Lateral-Ventricle"
MEANS = {WHITE: 180.0, GREY: 120.0, CSF: 50.0, "Skin": 140.0, "Unknown": 4.0}
SHARED = 0.9
"""Correlation between the means of any two labels."""


def make_prior(
    table: LabelTable | None = None,
    *,
    name: str = "T1w",
    means: dict[str, float] = MEANS,
    kinds: dict[str, float] | None = None,
    sigma: float = 2.0,
    components: dict[str, tuple[Component, ...]] | None = None,
    metadata: dict | None = None,
) -> ContrastPrior:
    """A prior for every label of a table; labels that ``means`` lacks have a mean of 100."""
    table = table or LabelTable.packaged("fullhead")
    labels = {
        label.name: LabelPrior(
            mean=means.get(label.name, 100.0),
            mean_sd=0.08 * means.get(label.name, 100.0),
            sd=Spread(8.0, 0.2),
            components=(components or {}).get(label.name, (Component(1.0, 0.0, 1.0),)),
            grain_mm=4.0,
            grain_frac=0.2,
            images=3,
            index=label.index,
        )
        for label in table
    }
    n = len(labels)
    return ContrastPrior(
        name=name,
        table=table.name,
        labels=labels,
        correlation=np.full((n, n), SHARED) + (1 - SHARED) * np.eye(n),
        noise=NoisePrior(kinds or {"rician": 1.0}, Spread(sigma, 0.2), 1.0),
        bias_log_sd=Spread(0.15, 0.3),
        bias_smoothness_mm=Spread(70.0, 0.2),
        fwhm_mm=(Spread(1.1, 0.05), Spread(1.1, 0.05), Spread(1.4, 0.05)),
        voxel_size_mm=(1.0, 1.0, 1.2),
        head_low=1.0,
        n_images=3,
        n_subjects=3,
        metadata=metadata,
    )
