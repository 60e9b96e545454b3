# SPDX-License-Identifier: Apache-2.0
"""A label map on a page: figure, run, volumes, sides. For every stage that makes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from brainseg_bids.anatomy.cohort import OUTLIER_Z
from brainseg_bids.anatomy.intracranial import STRIPPED
from brainseg_bids.bids.names import sidecar
from brainseg_bids.documents import read_object
from brainseg_bids.reports import page, tables
from brainseg_bids.reports.page import Section
from brainseg_bids.reports.ratings import rating_form
from brainseg_bids.reports.volume_table import Asymmetry, anatomical, asymmetries, totals_mm3

NO_ASYMMETRY = (
    "Not compared: the network saw this image once, not mirrored as well, and one pass makes one "
    "side of a symmetric structure up to a sixth larger than the other. Segment without "
    "--no-test-time-flips to compare the sides."
)
"""Whatever the side of the larger structure, it changes when the image is mirrored: it is the
network's, not the head's."""

SHARE, OF_INSIDE = "percent_of_intracranial", "% of intracranial"
TOTALS = ("Brain (ml)", "CSF (ml)", "Intracranial (ml)")
"""In the table at the top of a page."""

CALIBRATED = (
    "Confidence: the Dice that is expected of a structure, by the model's probabilities and by "
    "what they were worth on label maps that it was not trained on. Bold: below 0.7, or lower "
    "than usual there; look at the structure before using its volume."
)
NOT_CALIBRATED = (
    "Confidence: the Dice that is expected of a structure if the model's probabilities are taken "
    "at their word. They are not calibrated for this model, or not for the way in which it was "
    "used, so nothing is flagged."
)


def image_section(
    *,
    title: str,
    source: str,
    figure: Path,
    volumes: Sequence[dict] = (),
    intracranial: Mapping | None = None,
    run: Mapping[str, object] | None = None,
    warnings: Sequence[str] = (),
    outputs: Sequence[str] = (),
    what: str = "Segmented image",
    caption: str = "Each cut three times: the image alone, with its labels, with their outlines.",
    counted: tuple[str, str] = ("image", "segmented"),
    no_asymmetry: str = "",
    look: Markup | str = "",
) -> Section:
    """One label map.

    Parameters
    ----------
    title, source : str
        Heading, e.g. ``T1w, session 1``; what the map was made of, which ``what`` names.
    figure : Path
        PNG, explained by ``caption``. A missing file is said in its place.
    volumes : sequence of dict
        Rows of a volume table, see `brainseg_bids.reports.volume_table`.
    intracranial : mapping, optional
        Row of the inside of the skull, see `read_intracranial` there.
    run : mapping of str to str, optional
        Time, memory, device, ... What is called ``Model`` is repeated in the summary.
    warnings, outputs : sequence of str
        Quality warnings; files that were written.
    counted : (str, str)
        How maps are counted: "2 images segmented".
    no_asymmetry : str
        Why left and right are not compared; empty if they are.
    look : Markup
        What stands below the figure, see `viewer_and_rating`.
    """
    run = run or {}
    plural = "s" * (len(warnings) != 1)
    body = page.blocks(
        source_line(what, source),
        page.box(f"Warning{plural}", warnings, kind="warn") if warnings else "",
        _cuts(figure, title, caption),
        look,
        page.facts(run, "Run"),
        page.beside(
            volumes_block(volumes, intracranial=intracranial), sides_block(volumes, no_asymmetry)
        ),
        page.files(outputs),
    )
    overview = {
        "File": page.code(source),
        "Model": run.get("Model") or "n/a",
        **totals_ml(volumes, intracranial),
        "Warnings": len(warnings) or "none",
    }
    return Section("scan", title, body, "", counted, warnings, overview, (*TOTALS, "Warnings"))


def _cuts(figure: Path, title: str, caption: str) -> Markup:
    return page.figure(
        figure,
        f"Sagittal, coronal and axial cuts of {title}, plain, with the labels filled in, and with "
        "their outlines",
        caption=caption,
        missing="The picture of this segmentation could not be made.",
    )


def source_line(what: str, source: str, labels: str = "") -> Markup:
    """Which file a section is about, and with which labels."""
    words = Markup("{}: {}").format(what, page.code(source))
    if labels:
        words = Markup("{}, with the labels of {}").format(words, page.code(labels))
    return page.text(words, faint=True)


def viewer_and_rating(outputs: Mapping[str, Path], output_dir: Path) -> Markup:
    """A link to a job's viewer if it has one, and a form to rate its labels."""
    viewer, labels = outputs.get("viewer"), outputs["labels"]
    line = Markup()
    if viewer is not None and viewer.is_file():
        where = quote(viewer.relative_to(output_dir).as_posix())
        link = Markup('<a href="{}">Open the viewer</a>').format(where)
        words = Markup("{}: interactive view of image and labels.").format(link)
        line = page.text(words)
    return page.blocks(line, rating_form(labels, labels.relative_to(output_dir).as_posix()))


def totals_ml(volumes: Sequence[dict], intracranial: Mapping | None = None) -> dict[str, str]:
    """Volumes of brain, CSF and the inside of the skull, for the table at the top of a page."""
    totals = totals_mm3(volumes)
    found = {f"{name} (ml)": tables.ml(totals.get(name)) for name in ("Brain", "CSF")}
    if intracranial:
        found["Intracranial (ml)"] = tables.ml(intracranial["volume_mm3"])
    return found


def no_asymmetry(*labels: Path) -> str:
    """Why sides are not compared, if a network made any of these label maps without flips."""
    metadata = [metadata_of(path) for path in labels]
    one_pass = any("ModelDigest" in one and not one.get("TestTimeFlips") for one in metadata)
    return NO_ASYMMETRY if one_pass else ""


def metadata_of(path: Path) -> dict:
    """The JSON beside a result, empty if there is none."""
    return read_object(sidecar(path))


def written(outputs: Mapping[str, Path], output_dir: Path) -> list[str]:
    """Which of a job's outputs are there."""
    return [path.relative_to(output_dir).as_posix() for path in outputs.values() if path.is_file()]


def made_by(metadata: Mapping) -> dict[str, str]:
    """The version that made a result."""
    return {"Made by": f"brainseg-bids {metadata.get('BrainsegVersion')}"}


def worded(value: object, pattern: str) -> str:
    """A value of the metadata in words, empty if there is none.

    >>> worded(41.2, "{:.0f} s"), worded([1, 1.25, 0.9], "{} mm"), worded(None, "{}")
    ('41 s', '1 × 1.25 × 0.9 mm', '')
    """
    if value is None:
        return ""
    if isinstance(value, list):
        value = " × ".join(f"{size:g}" for size in value)
    return pattern.format(value)


# -- on a page ----------------------------------------------------------------------------


def volumes_block(
    rows: Sequence[dict],
    z: Mapping[int, float] | None = None,
    *,
    intracranial: Mapping | None = None,
) -> Markup:
    """Volumes by group, and of the inside of the skull.

    With their share of it, robust z among other heads, and confidence, if there are any.
    """
    found = pd.DataFrame(anatomical(rows))
    if found.empty:
        return Markup()
    frame = pd.DataFrame(
        {
            "Structure": list(map(tables.swatch, found["color"], found["name"])),
            "Label": found["index"],
            "mm³": found["volume_mm3"].map(tables.mm3),
            "ml": found["volume_mm3"].map(tables.ml),
        }
    )
    total = pd.Series(totals_mm3(rows))
    totals = pd.DataFrame({"mm³": total.map(tables.mm3), "ml": total.map(tables.ml)})
    words = "Number of voxels times the volume of one."
    if intracranial and intracranial["volume_mm3"] and SHARE in found:
        shares = found[SHARE].astype(float)
        frame[OF_INSIDE] = shares.map(_share)
        # Of a group that partly lies outside there is no share.
        of_groups = shares.groupby(found["group"]).agg(lambda group: group.sum(skipna=False))
        totals[OF_INSIDE] = of_groups.map(_share)
    if z is not None:
        frame["Robust z"] = [_far(z.get(index)) for index in found["index"]]
        totals["Robust z"] = ""
        words += (
            " Robust z: distance from the cohort's median in robust standard deviations; n/a "
            "where too few heads have the label."
        )
    if "confidence" in found and found["confidence"].notna().any():
        frame["Confidence"] = list(
            map(_confidence, found["confidence"], found["low_confidence"] == "yes")
        )
        totals["Confidence"] = ""
        is_calibrated = found["low_confidence"].isin(["yes", "no"]).any()
        words += f" {CALIBRATED if is_calibrated else NOT_CALIBRATED}"
    table = tables.html_table(
        frame,
        numbers=("mm³", "ml", OF_INSIDE, "Robust z", "Confidence"),
        css={"Label": "n faint"},
        groups=found["group"],
        totals=totals,
        last=_inside_line(intracranial, list(frame)),
    )
    if intracranial:
        words += f" {_inside_words(intracranial)}"
    return page.blocks(page.heading("Volumes"), table, page.text(words, faint=True))


def _share(percent: float) -> Markup | str:
    return f"{percent:.2f}" if percent == percent else tables.faint("n/a")


def _inside_line(intracranial: Mapping | None, columns: Sequence[str]) -> list[list[str]]:
    """Cells of the inside of the skull, below the structures."""
    if not intracranial:
        return []
    volume_mm3 = intracranial["volume_mm3"]
    cells = {
        "Structure": "Intracranial",
        "mm³": tables.mm3(volume_mm3),
        "ml": tables.ml(volume_mm3),
        OF_INSIDE: "100.00",
    }
    return [[cells.get(name, "") for name in columns]]


def no_intracranial(intracranial: Mapping | None) -> list[str]:
    """A warning if there is no intracranial volume, and the image has a skull."""
    why = (intracranial or {}).get("note", "")
    return [f"No intracranial volume: {why}"] if why not in ("", STRIPPED) else []


def _inside_words(intracranial: Mapping) -> str:
    if why := intracranial["note"]:
        return f"No intracranial volume: {why}."
    return (
        "Intracranial: all that lies inside of the inner skull; what the head had room for, "
        "whatever the brain has lost since. What lies outside has no percentage (n/a)."
    )


def _confidence(value: float, low: bool) -> Markup | str:
    if value != value:
        return tables.faint("n/a")
    return tables.strong(f"{value:.2f}", far=True) if low else f"{value:.2f}"


def _far(z: float | None) -> Markup | str:
    if z is None:
        return tables.faint("n/a")
    return tables.strong(tables.percent(z), far=True) if abs(z) > OUTLIER_Z else tables.percent(z)


def sides_block(rows: Sequence[dict], no_asymmetry: str = "", *, found: bool = False) -> Markup:
    """Left and right of each structure, or why they are not compared.

    With ``found`` structures that neither side has are left out.
    """
    if no_asymmetry:
        return page.blocks(page.heading("Left and right"), page.text(no_asymmetry))
    pairs = [pair for pair in asymmetries(rows) if pair.left_mm3 or pair.right_mm3 or not found]
    if not pairs:
        return Markup()
    # One scale for all bars; 20 % at least, so that small differences look small.
    widest = max([20.0, *(abs(pair.percent) for pair in pairs if pair.percent is not None)])
    frame = pd.DataFrame(
        {
            "Structure": [pair.name for pair in pairs],
            "Left (ml)": [tables.ml(pair.left_mm3) for pair in pairs],
            "Right (ml)": [tables.ml(pair.right_mm3) for pair in pairs],
            "Asymmetry": [
                tables.percent(pair.percent) + " %" * (pair.percent is not None) for pair in pairs
            ],
            "Larger side": [_larger_side(pair, widest) for pair in pairs],
        }
    )
    numbers = ("Left (ml)", "Right (ml)", "Asymmetry")
    return page.blocks(
        page.heading("Left and right"),
        tables.html_table(frame, numbers=numbers, css={"Structure": "name"}),
        page.text(
            "100 · (L − R) / ((L + R) / 2): positive where the left is larger, ±200 where one "
            "side is empty. Healthy brains are not symmetric.",
            faint=True,
        ),
    )


def _larger_side(pair: Asymmetry, widest: float) -> Markup:
    if pair.percent is not None:
        return tables.side_bar(pair.percent, widest)
    if pair.left_mm3 is not None and pair.right_mm3 is not None:
        return tables.faint("both empty")
    return tables.faint(f"no {'left' if pair.left_mm3 is None else 'right'} counterpart")
