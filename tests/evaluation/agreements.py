# SPDX-License-Identifier: Apache-2.0
"""Rows of agreements to summarise."""

from __future__ import annotations

import numpy as np

from brainseg_bids.evaluation.agreement import Agreement

NAN = float("nan")
NAMES = ("Left-Thalamus", "Left-Putamen", "Left-Hippocampus")


def agreement_row(
    image: str,
    name: str = "Left-Thalamus",
    *,
    rater: str = "ours",
    status: str = "both",
    dice: float = 0.9,
    assd_mm: float = 0.5,
    volumes_mm3: tuple[float, float] = (1000.0, 1100.0),
    subject: str = "",
    stratum: str = "",
    index: int | None = 10,
    reference: str = "manual",
) -> dict:
    """A row as the engine makes it; what the status rules out is ruled out."""
    reference_mm3 = volumes_mm3[0] if status in ("both", "reference only") else 0.0
    predicted_mm3 = volumes_mm3[1] if status in ("both", "prediction only") else 0.0
    overlap = {"both": dice, "neither": NAN}.get(status, 0.0)
    distance = assd_mm if status == "both" else NAN
    agreement = Agreement(
        index,
        name,
        status,
        "surface",
        overlap,
        overlap,
        reference_mm3,
        predicted_mm3,
        *[distance] * 5,
        ((1.0, overlap),),
    )
    about = {"reference": reference, "rater": rater, "image": image}
    return about | {"subject": subject or image, "stratum": stratum, **agreement.row()}


def many_rows(
    rng: np.random.Generator,
    *,
    raters: tuple[str, ...] = ("ours", "theirs"),
    n: int = 12,
    gains: dict[str, float] | None = None,
) -> list[dict]:
    """Subjects of two strata with three structures; easy subjects are easy for all raters."""
    rows = []
    for k in range(n):
        ease = rng.normal(0, 0.03)
        for rater in raters:
            for code, name in enumerate(NAMES, start=10):
                dice = 0.85 + ease + (gains or {}).get(rater, 0.0) + rng.normal(0, 0.01)
                truth = 1000 * rng.uniform(0.8, 1.2)
                rows.append(
                    agreement_row(
                        f"sub-{k:02}",
                        name,
                        rater=rater,
                        dice=dice,
                        assd_mm=1.5 - dice,
                        volumes_mm3=(truth, truth * rng.normal(1.02, 0.03)),
                        stratum="MPRAGE" if k % 4 == 0 else "MP2RAGE",
                        index=code,
                    )
                )
    return rows
