# SPDX-License-Identifier: Apache-2.0
"""What a page says about how one image looks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.names import sidecar
from brainseg_bids.contrast.measured import ContrastStatistics
from brainseg_bids.documents import read_json
from brainseg_bids.reports import page, tables
from brainseg_bids.reports.contrast import (
    POOR_FIT,
    contrast_facts,
    contrast_rows,
    mixture_words,
    noise_words,
    number,
    times_words,
)
from brainseg_bids.reports.image_section import made_by, source_line, worded, written
from brainseg_bids.reports.page import Section


def section(job, *, output_dir: Path, bids_dir: Path) -> Section:
    """The contrast of one image, from the files that its run left."""
    metadata = read_json(sidecar(job.outputs["statistics"]))
    return contrast_section(
        title=job.scan.title,
        labels=metadata.get("LabelsOf", ""),
        source=job.scan.path.relative_to(bids_dir).as_posix(),
        figure=job.outputs["figure"],
        statistics=ContrastStatistics.from_json(json.dumps(metadata["Statistics"])),
        run={
            "Skull-stripped": "yes: the brain alone was measured"
            * bool(metadata.get("SkullStripped")),
            "Time": worded(metadata.get("Seconds"), "{:.0f} s"),
            **made_by(metadata),
        },
        warnings=[*metadata.get("Warnings", []), *metadata.get("MetadataWarnings", [])],
        outputs=written(job.outputs, output_dir),
    )


def contrast_section(
    *,
    title: str,
    source: str,
    figure: Path,
    statistics: ContrastStatistics,
    labels: str = "",
    run: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> Section:
    """The contrast of one image.

    Parameters
    ----------
    title, source : str
        Heading, e.g. ``T1w, session 1``; the image that was measured.
    figure : Path
        PNG of `brainseg_bids.reports.contrast_figures.draw_contrast`.
    statistics : ContrastStatistics
        Its warnings are shown first.
    labels : str
        The label map that it was measured with.
    run : mapping of str to str, optional
    warnings : sequence of str
        Of the run, beside those of the statistics; what is in both is said once.
    outputs : sequence of str
    """
    # The run may have put the image's name before a warning of the statistics.
    own = [one for one in statistics.warnings if not any(one in words for words in warnings)]
    flags = [*own, *warnings]
    table = LabelTable.packaged(statistics.table)
    rows = contrast_rows(statistics, table)
    body = page.blocks(
        source_line("Measured image", source, labels),
        page.warnings_box(flags, "Look at this before using the statistics"),
        _figure(figure, title),
        page.facts(contrast_facts(statistics, table), "How the image looks"),
        page.facts(run or {}, "Run"),
        _labels(rows) if rows else "",
        page.files(outputs),
    )
    overview = {
        "File": page.code(source),
        "Noise": noise_words(statistics.noise, short=True),
        "FWHM (R × A × S)": times_words(statistics.fwhm_mm),
        "Field (log sd)": f"{statistics.bias.log_sd:.2f}",
        "Labels": len(rows),
        "Flags": len(flags) or "none",
    }
    numbers = ("FWHM (R × A × S)", "Field (log sd)", "Labels", "Flags")
    counted = ("contrast", "measured")
    return Section("contrast", title, body, "Contrast", counted, flags, overview, numbers)


def _figure(figure: Path, title: str) -> Markup:
    return page.figure(
        figure,
        f"Contrast of {title}: six cuts with the smooth field and without it, "
        "histograms of each tissue with the fitted Gaussians, and location and spread "
        "of every label",
        caption="The image, the smooth field in it as a factor, and the image without it; "
        "histograms of each tissue with the Gaussians of its labels (thin) and their "
        "sum; location and spread of every label.",
        missing="The picture of this contrast could not be made.",
    )


def _labels(rows: list[dict]) -> Markup:
    """A line for each label that was measured."""
    frame = pd.DataFrame(
        {
            "Structure": [tables.swatch(row["color"], row["name"]) for row in rows],
            "Label": [row["index"] for row in rows],
            "Voxels": [f"{row['voxels']:,}" for row in rows],
            "Interior": [f"{row['interior_voxels']:,}" for row in rows],
            "Location": [number(row["location"]) for row in rows],
            "Spread": [number(row["scale"]) for row in rows],
            "Mixture": [
                mixture_words(
                    (part.weight, number(part.mean), number(part.sd)) for part in row["components"]
                )
                or tables.faint("one Gaussian")
                for row in rows
            ],
            "Texture (mm)": [
                "n/a" if row["grain_mm"] is None else f"{row['grain_mm']:.1f}" for row in rows
            ],
            "Fit": [_fit(row) for row in rows],
            "Source": [
                row["source"] if row["imputed"] else tables.faint(row["source"]) for row in rows
            ],
        }
    )
    words = (
        "Location and spread: robust mean and standard deviation away from the label's "
        "borders, in units of the image, with the smooth field removed; the spread "
        "holds the noise. Interior: voxels that they rest on. Texture: distance at which "
        "the correlation within the label has halved. Fit: largest distance between "
        f"the cumulative histograms of data and Gaussians, 0 to 1; above {POOR_FIT} it "
        "is marked."
    )
    imputed = sum(row["imputed"] for row in rows)
    if imputed:
        words += f" {page.plural(imputed, 'label')} with too few voxels imputed from another."
    table = tables.html_table(
        frame,
        numbers=("Voxels", "Interior", "Location", "Spread", "Texture (mm)", "Fit"),
        css={"Structure": "name", "Label": "n faint"},
        groups=[row["group"] for row in rows],
    )
    return page.blocks(page.heading("Labels"), table, page.text(words, faint=True))


def _fit(row: dict) -> str:
    if row["imputed"]:
        return "n/a"
    words = f"{row['fit']:.2f}"
    return tables.strong(words, far=True) if row["poor"] else words
