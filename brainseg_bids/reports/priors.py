# SPDX-License-Identifier: Apache-2.0
"""A page about what images of each contrast look like, pooled over participants."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.measured import ContrastStatistics
from brainseg_bids.contrast.prior import ContrastPrior, Spread
from brainseg_bids.reports.comparison import distance_text, method_colors
from brainseg_bids.reports.contrast import in_groups, label_row, noise_kinds, number, times_words
from brainseg_bids.reports.densities import Likeness
from brainseg_bids.reports.html import embedded, render_page
from brainseg_bids.reports.prior_figures import (
    draw_comparisons,
    draw_densities,
    draw_fields,
    draw_relations,
)
from brainseg_bids.reports.volume_table import anatomical

FEW_SUBJECTS = 5
"""With fewer, how much images vary rests on what is usual more than on these images."""


def write_priors_page(
    path: Path,
    *,
    title: str,
    priors: Sequence[ContrastPrior],
    statistics: Mapping[str, Mapping[str, ContrastStatistics]],
    version: str,
    comparisons: Mapping[str, Sequence[Likeness]] | None = None,
    previews: Mapping[str, Sequence[Path]] | None = None,
    table: LabelTable | None = None,
) -> Path:
    """Write contrast priors as one self-contained HTML file, whole or not at all.

    Figures are drawn here and embedded, as are the previews.

    Parameters
    ----------
    path : Path
        HTML file.
    title : str
        E.g. the dataset's name.
    priors : sequence of ContrastPrior
        One section each.
    statistics : mapping of str to mapping of str to ContrastStatistics
        By the prior's name, then by image: what it was pooled from.
    version : str
        Of this software.
    comparisons : mapping of str to sequence of Likeness, optional
        By the prior's name: real heads against synthetic ones, label by label.
    previews : mapping of str to sequence of Path, optional
        By the prior's name: PNG sheets of synthetic pairs. A missing file is said in its place.
    table : LabelTable, optional
        That the labels belong to; the packaged one of each prior's table if it is not given.

    Raises
    ------
    ValueError
        If two priors share a name.
    """
    names = [prior.name for prior in priors]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: two priors are called {twice[0]}; give contrasts their names")
    with tempfile.TemporaryDirectory() as folder:
        sections = [
            _section(
                prior,
                statistics.get(prior.name, {}),
                list((comparisons or {}).get(prior.name, ())),
                [Path(preview) for preview in (previews or {}).get(prior.name, ())],
                table or LabelTable.packaged(prior.table),
                Path(folder),
            )
            for prior in priors
        ]
    return render_page(path, "priors.html.j2", title=title, priors=sections, version=version)


def _section(
    prior: ContrastPrior,
    statistics: Mapping[str, ContrastStatistics],
    comparisons: list[Likeness],
    previews: list[Path],
    table: LabelTable,
    folder: Path,
) -> dict:
    """What the template needs of one prior."""
    rows = prior_rows(prior, statistics, table)
    measured = [row for row in rows if not row["borrowed"]]
    return {
        "name": prior.name,
        "n_images": prior.n_images,
        "n_subjects": prior.n_subjects,
        "n_measured": len(measured),
        "n_borrowed": len(rows) - len(measured),
        "noise": noise_prior_words(prior),
        "fwhm": times_words(spread.median for spread in prior.fwhm_mm),
        "bias": spread_words(prior.bias_log_sd),
        "facts": prior_facts(prior),
        "flags": _flags(prior, statistics),
        "figures": _figures(prior, statistics, table, folder),
        "measured": in_groups(measured),
        "borrowed": in_groups([row for row in rows if row["borrowed"]]),
        "comparison": _comparison(prior.name, comparisons, folder),
        "previews": [(preview.name, embedded(preview)) for preview in previews],
        "images": [
            {"subject": str(image.get("subject", "")), "image": str(image.get("image", ""))}
            for image in prior.images
        ],
    }


def prior_rows(
    prior: ContrastPrior, statistics: Mapping[str, ContrastStatistics], table: LabelTable
) -> list[dict]:
    """One row per label of a prior, in anatomical order, numbers as text.

    ``volume_mm3`` is the median over the images that have the label.
    """
    rows = []
    for name, own in prior.labels.items():
        volumes = [
            s[name].voxels * math.prod(s.voxel_size_mm)
            for s in statistics.values()
            if name in s.labels
        ]
        several = own.components if len(own.components) > 1 else ()
        rows.append(
            label_row(table[name], float(np.median(volumes)) if volumes else 0.0)
            | {
                "mean": f"{own.mean:.1f}",
                "mean_sd": f"{own.mean_sd:.1f}",
                "sd": f"{own.sd.median:.1f}",
                "sd_spread": f"× {math.exp(own.sd.log_sd):.2f}",
                "mixture": " + ".join(
                    f"{100 * part.weight:.0f} % at {own.mean + part.mean * own.sd.median:.0f}"
                    f" ± {part.sd * own.sd.median:.0f}"
                    for part in several
                ),
                "grain": f"{own.grain_mm:.1f}" if own.grain_frac > 0 else "none",
                "images": own.images,
                "source": own.source,
                "borrowed": own.source != "measured",
            }
        )
    return anatomical(rows)


# -- in words -----------------------------------------------------------------------------


def spread_words(spread: Spread) -> str:
    """Median and factor of a log-normal quantity.

    >>> spread_words(Spread(0.15, 0.4))
    '0.15 (×/÷ 1.49)'
    """
    return f"{number(spread.median)} (×/÷ {math.exp(spread.log_sd):.2f})"


def noise_prior_words(prior: ContrastPrior) -> str:
    """Laws of the noise and their shares, sigma and its spread."""
    return f"{noise_kinds(prior.noise.kinds)}; sigma {spread_words(prior.noise.sigma)}"


def prior_facts(prior: ContrastPrior) -> dict[str, str]:
    """Metadata, noise, blur and field of a contrast, in words."""
    unit = "UNI, −0.5 to 0.5" if prior.is_ratio else "prior's units"
    ends = ("left to right", "back to front", "bottom to top")
    facts = {
        "Images": f"{prior.n_images} of {prior.n_subjects} subject{'s' * (prior.n_subjects != 1)}",
        f"Noise ({unit})": noise_prior_words(prior),
        **{
            f"Point spread, {end} (FWHM, mm)": spread_words(spread)
            for end, spread in zip(ends, prior.fwhm_mm, strict=True)
        },
        "Voxel size (R × A × S)": times_words(prior.voxel_size_mm),
        "Field, sd of its logarithm": spread_words(prior.bias_log_sd),
        "Field, mm between nodes": spread_words(prior.bias_smoothness_mm),
        "Digest": prior.digest[:12],
    }
    return facts | _metadata_facts(prior.metadata or {})


def _metadata_facts(metadata: Mapping) -> dict[str, str]:
    """Metadata as words; what lies a level deeper stands beside the rest.

    >>> _metadata_facts({"Suffix": "T1w", "Metadata": {"EchoTime": 0.003}, "Tags": ["a", "b"]})
    {'Suffix': 'T1w', 'Echo time': '0.003', 'Tags': 'a, b'}

    Of a contrast the share of skull-stripped images is kept.

    >>> _metadata_facts({"SkullStripped": 0.5})
    {'Skull stripped': '50 % of the images'}
    """
    facts = {}
    for key, value in metadata.items():
        if isinstance(value, Mapping):
            facts |= _metadata_facts(value)
        elif isinstance(value, list | tuple):
            facts[_spaced(str(key))] = ", ".join(map(str, value))
        elif key == "SkullStripped" and isinstance(value, float):
            facts[_spaced(key)] = f"{100 * value:.0f} % of the images"
        elif value is not None:
            facts[_spaced(str(key))] = str(value)
    return facts


def _spaced(name: str) -> str:
    """A BIDS key as words.

    >>> _spaced("MagneticFieldStrength"), _spaced("VoxelSizeMm")
    ('Magnetic field strength', 'Voxel size mm')
    """
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).split()
    return name if name.isupper() else " ".join(words).capitalize()


def _flags(prior: ContrastPrior, statistics: Mapping[str, ContrastStatistics]) -> list[str]:
    """What to look at: the pool's warnings, few subjects, then the images' own."""
    flags = list(prior.warnings)
    if prior.n_subjects < FEW_SUBJECTS:
        few = "one subject" if prior.n_subjects == 1 else f"{prior.n_subjects} subjects"
        flags.append(
            f"Only {few}: how much images vary is mostly what is usual, not what was measured."
        )
    by_warning: dict[str, list[str]] = {}
    for image, own in statistics.items():
        for warning in own.warnings:
            by_warning.setdefault(warning, []).append(image)
    for warning, images in by_warning.items():
        more = f" and {len(images) - 1} more" if len(images) > 1 else ""
        flags.append(f"{images[0]}{more}: {warning}")
    return flags


# -- figures ------------------------------------------------------------------------------


def _figures(
    prior: ContrastPrior,
    statistics: Mapping[str, ContrastStatistics],
    table: LabelTable,
    folder: Path,
) -> list[tuple[str, str, str | None]]:
    """Title, words and data URI of each figure."""
    if not statistics:
        return []
    path = folder / "figure.png"
    drawn: list[tuple[str, str, Callable[[], Path]]] = [
        (
            "Intensities",
            "Histograms of each tissue: every image thin, all together thick, and dashed what "
            "the prior draws on average, labels weighed by their voxels away from borders",
            lambda: draw_densities(path, prior, statistics, table),
        ),
        (
            "What goes together, and what varies",
            "Correlation of the measured labels' locations over images; noise, point spread and "
            "field: a dot per image, and the prior's distribution with its median",
            lambda: draw_relations(path, prior, statistics, table),
        ),
        (
            "Smooth fields",
            "Mean of the smooth fields in three planes, and the field of each image in the "
            "middle axial plane; left of the picture is the person's left",
            lambda: draw_fields(path, prior.name, statistics),
        ),
    ]
    return [(title, words, embedded(draw())) for title, words, draw in drawn]


def _comparison(name: str, comparisons: list[Likeness], folder: Path) -> dict | None:
    """Table and figure of real against synthetic, or None."""
    if not comparisons:
        return None
    methods = list(method_colors(comparisons))
    drawable = [comparison for comparison in comparisons if len(comparison.edges) > 1]
    figure = None
    if drawable:
        figure = embedded(draw_comparisons(folder / "comparison.png", name, drawable))
    return {
        "methods": methods,
        "colors": method_colors(comparisons),
        "figure": figure,
        "rows": [
            {
                "label": comparison.label,
                "nearest": comparison.nearest,
                "distances": [
                    (method, distance_text(comparison.distances.get(method))) for method in methods
                ],
            }
            for comparison in comparisons
        ],
        "medians": [(method, distance_text(_median(comparisons, method))) for method in methods],
        "wins": [
            (method, sum(comparison.nearest == method for comparison in comparisons))
            for method in methods
        ],
    }


def _median(comparisons: list[Likeness], method: str) -> float | None:
    known = [c.distances[method] for c in comparisons if method in c.distances]
    known = [value for value in known if math.isfinite(value)]
    return float(np.median(known)) if known else None
