# SPDX-License-Identifier: Apache-2.0
"""HTML pages that open anywhere: one file, no script, nothing fetched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brainseg_bids.reports.contrast import ContrastReport, contrast_section
from brainseg_bids.reports.head import HeadReport, head_section
from brainseg_bids.reports.html import embedded, render_page
from brainseg_bids.reports.prose import prose, references
from brainseg_bids.reports.volume_table import (
    BRAIN,
    CSF,
    anatomical,
    asymmetries,
    grouped,
    widest_percent,
)


@dataclass(frozen=True)
class ScanReport:
    """What the page says about one segmented image.

    Parameters
    ----------
    title : str
        Heading, e.g. ``T1w, session 1``.
    source : str
        The image that was segmented.
    figure : Path
        PNG; it is copied into the page. A missing file is said in its place.
    volumes : list of dict
        Rows with ``index``, ``name``, ``hemisphere``, ``color``, ``volume_mm3``; the
        background may be among them and is left out. An optional ``mapping`` (code of the BIDS
        standard label table) groups structures of tables that are not packaged.
    facts : dict of str to str
        Shown in the given order, e.g. time, memory, device, model, voxel size. What is called
        ``Model`` is repeated in the summary.
    warnings : list of str
    outputs : list of str
        Files that were written.
    what, caption : str
        What ``source`` is, and what the figure shows.
    noun, done : str
        How it is counted: "2 images segmented".
    no_asymmetry : str
        Why left and right are not compared; empty if they are.
    """

    title: str
    source: str
    figure: Path
    volumes: list[dict]
    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    what: str = "Segmented image"
    caption: str = "Each cut three times: the image alone, with its labels, with their outlines."
    noun: str = "image"
    done: str = "segmented"
    no_asymmetry: str = ""


def write_page(
    path: Path,
    *,
    subject: str,
    scans: list[ScanReport],
    settings: str,
    errors: list[str],
    methods: str,
    version: str,
    heads: Sequence[HeadReport] = (),
    contrasts: Sequence[ContrastReport] = (),
) -> Path:
    """Write one subject's report as a single HTML file, whole or not at all.

    Figures are embedded; the page has no script, asks the network for nothing (its own content
    policy forbids it), follows the reader's light or dark setting, and prints. Whatever is
    passed in is escaped.

    Parameters
    ----------
    path : Path
        HTML file.
    subject : str
        Participant label, without ``sub-``.
    scans : list of ScanReport
        In the order of the page; may be empty when everything failed.
    settings : str
        TOML text.
    errors : list of str
        One per thing that failed; line breaks are kept.
    methods : str
        Markdown; blank lines separate paragraphs.
    version : str
        Of this software.
    heads : sequence of HeadReport
        Head label maps, shown before the segmentations.
    contrasts : sequence of ContrastReport
        How images look, shown after the segmentations.
    """
    head_sections = [head_section(head) for head in heads]
    contrast_sections = [contrast_section(contrast) for contrast in contrasts]
    return render_page(
        path,
        "report.html.j2",
        subject=subject.removeprefix("sub-"),
        scans=[_scan(scan) for scan in scans],
        counts=_counts(scans),
        heads=head_sections,
        contrasts=contrast_sections,
        n_warnings=sum(len(scan.warnings) for scan in scans)
        + sum(len(section["flags"]) for section in (*head_sections, *contrast_sections)),
        settings=settings,
        errors=errors,
        methods=[prose(paragraph) for paragraph in _paragraphs(methods)],
        references=references(methods),
        version=version,
    )


def _counts(scans: Sequence[ScanReport]) -> list[str]:
    """How many there are of each kind.

    >>> one = ScanReport("sub-01 T1w", "x", Path(), [])
    >>> finer = ScanReport("at 0.5 mm", "x", Path(), [], noun="label map", done="made finer")
    >>> _counts([one, one, finer])
    ['2 images segmented', '1 label map made finer']
    """
    kinds = Counter((scan.noun, scan.done) for scan in scans)
    return [f"{n} {noun}{'s' if n != 1 else ''} {done}" for (noun, done), n in kinds.items()]


def _scan(scan: ScanReport) -> dict:
    """What the template needs of one scan."""
    rows = anatomical(scan.volumes)
    pairs = [] if scan.no_asymmetry else asymmetries(rows)
    groups = grouped(rows)
    totals = {group["name"]: group["total_mm3"] for group in groups}
    return {
        "title": scan.title,
        "source": scan.source,
        "what": scan.what,
        "caption": scan.caption,
        "figure": embedded(Path(scan.figure)),
        "groups": groups,
        "brain_mm3": totals.get(BRAIN),
        "csf_mm3": totals.get(CSF),
        "asymmetries": pairs,
        "widest_percent": widest_percent(pairs),
        "no_asymmetry": scan.no_asymmetry,
        "model": next((v for k, v in scan.facts.items() if k.strip().lower() == "model"), None),
        "facts": scan.facts,
        "warnings": scan.warnings,
        "outputs": scan.outputs,
    }


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
