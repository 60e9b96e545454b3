# SPDX-License-Identifier: Apache-2.0
"""A page about what images of each contrast look like, pooled over participants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.measured import ContrastStatistics
from brainseg_bids.contrast.prior import ContrastPrior, Spread
from brainseg_bids.reports import page, tables
from brainseg_bids.reports.comparison import distance_text, method_colors
from brainseg_bids.reports.contrast import (
    label_row,
    mixture_words,
    noise_kinds,
    number,
    times_words,
)
from brainseg_bids.reports.densities import IntensityComparison
from brainseg_bids.reports.page import Section
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
    comparisons: Mapping[str, Sequence[IntensityComparison]] | None = None,
    previews: Mapping[str, Sequence[Path]] | None = None,
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
    comparisons : mapping of str to sequence of IntensityComparison, optional
        By the prior's name: real heads against synthetic ones, label by label.
    previews : mapping of str to sequence of Path, optional
        By the prior's name: PNG sheets of synthetic pairs. A missing file is said in its place.

    Raises
    ------
    ValueError
        If two priors share a name.
    """
    _refuse_twins(path, [prior.name for prior in priors])
    sections = [
        prior_section(
            prior,
            statistics.get(prior.name, {}),
            comparisons=(comparisons or {}).get(prior.name, ()),
            previews=(previews or {}).get(prior.name, ()),
            table=LabelTable.packaged(prior.table),
        )
        for prior in priors
    ]
    n = f"{len(sections) or 'No'} contrast{'s' * (len(sections) != 1)}."
    return page.write_page(
        path,
        page.section("summary", page.text(n), *page.overviews(sections)),
        *page.anchored(sections),
        title=title,
        name=f"{title}: brainseg contrasts",
        version=version,
    )


def _refuse_twins(path: Path, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: two priors are called {twice[0]}; give contrasts their names")


def prior_section(
    prior: ContrastPrior,
    statistics: Mapping[str, ContrastStatistics],
    *,
    comparisons: Sequence[IntensityComparison] = (),
    previews: Sequence[Path] = (),
    table: LabelTable,
) -> Section:
    """One prior; see `write_priors_page`."""
    rows = prior_rows(prior, statistics, table)
    imputed = [row for row in rows if row["imputed"]]
    flags = _flags(prior, statistics)
    body = page.blocks(
        page.warnings_box(flags, "Look at this before drawing from the prior", most=8),
        page.facts(prior_facts(prior)),
        page.text(
            "×/÷: most images (68 %) lie between the median divided and multiplied by the factor.",
            faint=True,
        ),
        *_figures(prior, statistics, table),
        _comparison(prior.name, comparisons),
        _previews(previews),
        _labels([row for row in rows if not row["imputed"]]),
        page.fold(
            f"{page.plural(len(imputed), 'label')} that no image has in sufficient number, "
            "imputed from others",
            labels_table(imputed),
        )
        if imputed
        else "",
        _images(prior),
    )
    overview = {
        "Images": prior.n_images,
        "Subjects": prior.n_subjects,
        "Labels measured": len(rows) - len(imputed),
        "Imputed": len(imputed),
        "Noise": noise_prior_words(prior),
        "FWHM (R × A × S)": times_words(spread.median for spread in prior.fwhm_mm),
        "Field (log sd)": spread_words(prior.bias_log_sd),
        "Flags": len(flags) or "none",
    }
    words = ("Noise", "FWHM (R × A × S)", "Field (log sd)")
    numbers = tuple(name for name in overview if name not in words)
    counted = ("contrast", "pooled")
    return Section("prior", prior.name, body, "Contrast", counted, flags, overview, numbers)


def _images(prior: ContrastPrior) -> Markup:
    images = [
        Markup("{}: {}").format(image.get("subject", ""), page.code(image.get("image", "")))
        for image in prior.images
    ]
    if not images:
        return Markup()
    return page.fold(page.plural(len(images), "image"), page.bullets(images))


def _previews(previews: Sequence[Path]) -> Markup:
    if not previews:
        return Markup()
    return page.blocks(
        page.heading("Synthetic pairs"),
        *(
            page.figure(
                preview,
                f"Synthetic images and their labels, {preview.name}",
                caption=preview.name,
                missing=f"This picture is missing: {preview.name}",
            )
            for preview in previews
        ),
    )


# -- labels -------------------------------------------------------------------------------


def _labels(measured: Sequence[dict]) -> Markup:
    if not measured:
        return page.blocks(page.heading("Labels"), page.text("No label was measured."))
    words = (
        "Mean: location over images in the prior's units, 0 to 255, and its standard deviation. "
        "Spread: median over images of the standard deviation within one image, noise included, "
        "and the factor by which it varies. Texture: distance at which the correlation within the "
        "label has halved."
    )
    return page.blocks(
        page.heading("Labels"), labels_table(measured), page.text(words, faint=True)
    )


def labels_table(rows: Sequence[dict]) -> Markup:
    """A table of `prior_rows`."""
    frame = pd.DataFrame(
        {
            "Structure": [tables.swatch(row["color"], row["name"]) for row in rows],
            "Label": [row["index"] for row in rows],
            "Mean": [row["mean"] for row in rows],
            "± over images": [row["mean_sd"] for row in rows],
            "Spread": [row["sd"] for row in rows],
            "Varies": [row["sd_spread"] for row in rows],
            "Mixture": [row["mixture"] or tables.faint("one Gaussian") for row in rows],
            "Texture (mm)": [row["grain"] for row in rows],
            "Images": [row["images"] for row in rows],
            "Source": [
                row["source"] if row["imputed"] else tables.faint(row["source"]) for row in rows
            ],
        }
    )
    numbers = ("Mean", "± over images", "Spread", "Varies", "Texture (mm)", "Images")
    folded = dict.fromkeys(("± over images", "Texture (mm)"), "n fold")
    table = tables.html_table(
        frame,
        numbers=numbers,
        css={"Structure": "name", "Label": "n faint", **folded},
        groups=[row["group"] for row in rows],
    )
    return page.small(table)


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
        rows.append(
            label_row(table[name], float(np.median(volumes)) if volumes else 0.0)
            | {
                "mean": f"{own.mean:.1f}",
                "mean_sd": f"{own.mean_sd:.1f}",
                "sd": f"{own.sd.median:.1f}",
                "sd_spread": f"× {math.exp(own.sd.log_sd):.2f}",
                "mixture": mixture_words(
                    (
                        part.weight,
                        f"{own.mean + part.mean * own.sd.median:.0f}",
                        f"{part.sd * own.sd.median:.0f}",
                    )
                    for part in own.components
                ),
                "grain": f"{own.grain_mm:.1f}" if own.grain_frac > 0 else "none",
                "images": own.images,
                "source": own.source,
                "imputed": own.source != "measured",
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
    prior: ContrastPrior, statistics: Mapping[str, ContrastStatistics], table: LabelTable
) -> list[Markup]:
    if not statistics:
        return []
    drawn = (
        (
            "Intensities",
            "Histograms of each tissue: every image thin, all together thick, and dashed what "
            "the prior draws on average, labels weighed by their voxels away from borders",
            draw_densities(prior, statistics, table),
        ),
        (
            "What goes together, and what varies",
            "Correlation of the measured labels' locations over images; noise, point spread and "
            "field: a dot per image, and the prior's distribution with its median",
            draw_relations(prior, statistics, table),
        ),
        (
            "Smooth fields",
            "Mean of the smooth fields in three planes, and the field of each image in the "
            "middle axial plane; left of the picture is the person's left",
            draw_fields(prior.name, statistics),
        ),
    )
    return [
        page.blocks(
            page.heading(title),
            page.figure(canvas.png(), f"{words}, {prior.name}", caption=f"{words}."),
        )
        for title, words, canvas in drawn
    ]


def _comparison(name: str, comparisons: Sequence[IntensityComparison]) -> Markup:
    """Real against synthetic: figure and table."""
    if not comparisons:
        return Markup()
    drawable = [comparison for comparison in comparisons if len(comparison.edges) > 1]
    alt = "Histograms of each label in real heads, filled, and in synthetic ones, lines, "
    return page.blocks(
        page.heading("Real and synthetic"),
        page.figure(draw_comparisons(name, drawable).png(), alt + name) if drawable else "",
        _distances(comparisons),
        page.text(
            "Energy distance (Székely and Rizzo 2013) between the intensities of a label in real "
            "heads and in synthetic ones, in the units of the histograms; 0 where they are "
            "alike, the least in bold.",
            faint=True,
        ),
    )


def _distances(comparisons: Sequence[IntensityComparison]) -> Markup:
    colors = method_colors(comparisons)
    headings = {method: tables.swatch(color, method) for method, color in colors.items()}
    frame = pd.DataFrame(
        [
            {
                "Label": one.label,
                **{headings[method]: _distance(one, method) for method in headings},
                "Nearest": one.nearest or "n/a",
            }
            for one in comparisons
        ]
    )
    medians = [distance_text(_median(comparisons, method)) for method in headings]
    nearest = [
        f"{sum(one.nearest == method for one in comparisons)} of {len(comparisons)}"
        for method in headings
    ]
    return tables.html_table(
        frame,
        numbers=tuple(headings.values()),
        css={"Label": "name"},
        last=(("Median over labels", *medians, ""), ("Nearest in", *nearest, "")),
    )


def _distance(one: IntensityComparison, method: str) -> str:
    words = distance_text(one.distances.get(method))
    return tables.strong(words) if method == one.nearest else words


def _median(comparisons: Sequence[IntensityComparison], method: str) -> float | None:
    known = [c.distances[method] for c in comparisons if method in c.distances]
    known = [value for value in known if math.isfinite(value)]
    return float(np.median(known)) if known else None
