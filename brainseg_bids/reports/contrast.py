# SPDX-License-Identifier: Apache-2.0
"""How one image looks, in rows and words: each label's intensities, noise, field, blur."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.contrast.measured import BiasField, ContrastStatistics, NoiseLaw
from brainseg_bids.reports.densities import CLASSES, class_labels, parts
from brainseg_bids.reports.volume_table import anatomical

_LAWS = {
    "rician": "Rician",
    "chi": "non-central chi",
    "gaussian": "Gaussian",
    "ratio": "ratio of two inversions",
    "none": "no law",
}
POOR_FIT = 0.1
"""Where data and components are further apart than this (Kolmogorov-Smirnov), look again."""


def contrast_rows(statistics: ContrastStatistics, table: LabelTable | None = None) -> list[dict]:
    """One row per label that was measured, in anatomical order, left and right neighbours.

    Parameters
    ----------
    statistics : ContrastStatistics
    table : LabelTable, optional
        That the names belong to; the packaged one of that name if it is not given.

    Returns
    -------
    list of dict
        ``index``, ``name``, ``hemisphere``, ``color``, ``group``, ``volume_mm3``, ``voxels``,
        ``interior_voxels``, ``location``, ``scale``, ``components`` (list of Component),
        ``grain_mm``, ``fit``, ``poor`` (whether the fit is), ``source``, ``imputed``.

    Raises
    ------
    UnknownLabelError
        If the table lacks a name.

    Examples
    --------
    >>> from brainseg_bids.contrast.measured import LabelStatistics
    >>> own = LabelStatistics(9, 4, 80.0, 5.0, 79.0, 6.0)
    >>> flat, none = BiasField(0.0, 60.0, (((0.0,),),), (1, 1, 1)), NoiseLaw("none", 0.0)
    >>> found = ContrastStatistics("fullhead", {"Right-Putamen": own, "Left-Putamen": own},
    ...     none, flat, (1, 1, 1), (1, 1, 1), 0.0, 100.0)
    >>> [(row["name"], row["location"], row["imputed"]) for row in contrast_rows(found)]
    [('Left-Putamen', 80.0, False), ('Right-Putamen', 80.0, False)]
    """
    table = table or LabelTable.packaged(statistics.table)
    voxel_mm3 = math.prod(statistics.voxel_size_mm)
    rows = []
    for name, own in statistics.labels.items():
        measured = own.source == "measured"
        rows.append(
            label_row(table[name], own.voxels * voxel_mm3)
            | {
                "voxels": own.voxels,
                "interior_voxels": own.interior_voxels,
                "location": own.location,
                "scale": own.scale,
                "components": list(parts(own)),
                "grain_mm": own.grain_mm,
                "fit": own.fit,
                "poor": measured and own.fit > POOR_FIT,
                "source": own.source,
                "imputed": not measured,
            }
        )
    return anatomical(rows)


def label_row(label: Label, volume_mm3: float) -> dict:
    """What `brainseg_bids.reports.volume_table` needs of a label."""
    return {
        "index": label.index,
        "name": label.name,
        "hemisphere": label.hemisphere,
        "color": label.color,
        "mapping": label.mapping,
        "volume_mm3": volume_mm3,
    }


# -- in words -----------------------------------------------------------------------------


def noise_words(noise: NoiseLaw, *, short: bool = False) -> str:
    """Law of the noise for people, and what it rests on unless ``short``.

    >>> noise_words(NoiseLaw("rician", 4.23, voxels=120000, fit=0.021))
    'Rician, sigma 4.23; from 120,000 background voxels, fit 0.02'
    >>> noise_words(NoiseLaw("chi", 4.23, channels=3.96), short=True)
    'non-central chi of 4.0 channels, sigma 4.23'
    >>> noise_words(NoiseLaw("none", 2.0))
    'background is a constant: no law; sigma 2'
    """
    if noise.kind == "none":
        sigma = f"; sigma {number(noise.sigma)}" if noise.sigma > 0 else ""
        return f"background is a constant: no law{sigma}"
    law = _LAWS.get(noise.kind, noise.kind)
    if noise.kind == "chi":
        law += f" of {noise.channels:.1f} channels"
    if short:
        return f"{law}, sigma {number(noise.sigma)}"
    unit = " of UNI (−0.5 to 0.5) in white matter" if noise.kind == "ratio" else ""
    origin = f"; from {noise.voxels:,} background voxels" if noise.voxels else ""
    fit = f", fit {noise.fit:.2f}" if noise.voxels else ""
    return f"{law}, sigma {number(noise.sigma)}{unit}{origin}{fit}"


def noise_kinds(kinds: Mapping[str, float]) -> str:
    """Laws of the noise of many images, most frequent first.

    >>> noise_kinds({"chi": 0.25, "rician": 0.75})
    'Rician 75 %, non-central chi 25 %'
    """
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    words = [f"{_LAWS.get(kind, kind)} {100 * share:.0f} %" for kind, share in ordered]
    return ", ".join(words) or "unknown"


def bias_words(bias: BiasField) -> str:
    """Strength of the smooth field for people.

    >>> bias_words(BiasField(0.1, 62.0, (((0.0,),),), (1.0, 1.0, 1.0)))
    'factor 0.82 to 1.22 in 95 % of the head (log sd 0.10), nodes 62 mm apart'
    """
    low, high = math.exp(-1.96 * bias.log_sd), math.exp(1.96 * bias.log_sd)
    return (
        f"factor {low:.2f} to {high:.2f} in 95 % of the head (log sd {bias.log_sd:.2f}), "
        f"nodes {bias.smoothness_mm:.0f} mm apart"
    )


def times_words(sizes_mm) -> str:
    """Three lengths along the axes.

    >>> times_words((1, 1.25, 0.9))
    '1.00 × 1.25 × 0.90 mm'
    """
    return " × ".join(f"{size:.2f}" for size in sizes_mm) + " mm"


def contrast_facts(statistics: ContrastStatistics, table: LabelTable) -> dict[str, str]:
    """Noise, blur and field of an image, in words."""
    facts = {
        "Noise (units of the image)": noise_words(statistics.noise),
        "Point spread (FWHM, R × A × S)": (
            f"{times_words(statistics.fwhm_mm)}, from {statistics.fwhm_method}"
        ),
        "Voxel size (R × A × S)": times_words(statistics.voxel_size_mm),
        "Smooth field": bias_words(statistics.bias),
        "Head's intensities (0.5 to 99.5 %)": (
            f"{number(statistics.head_low)} to {number(statistics.head_high)}"
        ),
    }
    white = [
        statistics[label.name]
        for label in class_labels(table, CLASSES[0])
        if label.name in statistics.labels
    ]
    noise = statistics.noise
    if white and noise.sigma > 0 and noise.kind != "ratio":
        largest = max(white, key=lambda label: label.voxels)
        facts["White matter over sigma"] = f"{largest.location / noise.sigma:.0f}"
    return facts


def mixture_words(parts: Iterable[tuple[float, str, str]]) -> str:
    """Weights, means and spreads of several Gaussians; empty for one.

    >>> mixture_words([(0.6, "87.3", "5"), (0.4, "60", "9")])
    '60 % at 87.3 ± 5 + 40 % at 60 ± 9'
    """
    lines = [f"{100 * weight:.0f} % at {mean} ± {sd}" for weight, mean, sd in parts]
    return " + ".join(lines) if len(lines) > 1 else ""


def number(value: float) -> str:
    """Three significant digits, thousands apart, a true minus.

    >>> number(1234.5), number(-0.0421), number(87.26)
    ('1,234', '−0.0421', '87.3')
    """
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")
