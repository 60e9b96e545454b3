# SPDX-License-Identifier: Apache-2.0
"""What the page of an evaluation says besides numbers: what is missing, worst cases, sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from brainseg_bids.evaluation.bootstrap import FEW
from brainseg_bids.reports import page, tables
from brainseg_bids.reports.evaluation_sections import number_table
from brainseg_bids.reports.evaluation_tables import Found

LONE = {"missed": "structure in the reference only", "extra": "structure in the prediction only"}
MOST_NAMED = 12
"""More images than this are counted in a line, and named in a fold."""
WORST_NOTE = (
    "Lowest Dice first. Rows: outlines of the reference, of the prediction, differences, and each "
    "structure's surface in the prediction, coloured by its distance in mm to that structure's "
    "surface in the reference: positive outside, negative inside it (surfaces by the definition: "
    "voxels that lack one of six neighbours). Where two structures touch, both surfaces are drawn."
)


def _named(images: Sequence[str]) -> Markup:
    """Images, the most of them folded away."""
    first, rest = images[:MOST_NAMED], images[MOST_NAMED:]
    shown = escape(", ".join(first))
    return shown + page.fold(f"and {len(rest)} more", ", ".join(rest)) if rest else shown


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """What could not be compared.

    Parameters
    ----------
    failures : sequence of str
        A line each.
    silent : sequence of str
        Raters without a comparison.
    missing, lone : dict of tuple to list of str
        See `evaluation_tables.missing` and `evaluation_tables.lone`.
    """

    failures: Sequence[str]
    silent: Sequence[str]
    missing: Found
    lone: Found

    def __bool__(self) -> bool:
        return any((self.failures, self.silent, self.missing, self.lone))

    def summary(self) -> Markup:
        """What is missing, counted."""
        items = []
        if self.failures:
            items.append(page.plural(len(self.failures), "failure"))
        if self.silent:
            items.append(f"no comparison at all: {', '.join(self.silent)}")
        missing, lone = _counts(self.missing), _counts(self.lone)
        items += [f"{kind}: {n}" for kind, n in sorted(missing.items())]
        for kind, words in (
            ("missed", "missed by a rater (Dice 0)"),
            ("extra", "that the reference does not have (Dice 0)"),
        ):
            if kind in lone:
                items.append(f"structures {words}: {lone[kind]}")
        all_of_it = Markup('<a href="#missing">All of it, by name</a>')
        return page.box("Not everything could be compared", items, kind="warn", note=all_of_it)

    def section(self) -> Markup:
        """All of it, by name."""
        rows = [
            {
                "What": titles.get(kind, kind),
                "Rater": name,
                "Structure": structure,
                "Images": len(images),
                "Which": _named(images),
            }
            for titles, found in (({}, self.missing), (LONE, self.lone))
            for (kind, name, structure), images in found.items()
        ]
        css = {"What": "", "Rater": "", "Structure": "", "Which": "why"}
        silent = f"No comparison at all: {', '.join(self.silent)}"
        return page.section(
            "missing",
            page.heading("Missing and failed", level=2),
            page.box("Failed", self.failures, kind="bad") if self.failures else "",
            page.box(silent, kind="warn") if self.silent else "",
            number_table(rows, css) if rows else "",
            "" if self else page.text("Nothing."),
        )


def _counts(found: Found) -> Counter:
    counts: Counter[str] = Counter()
    for (kind, _, _), images in found.items():
        counts[kind] += len(images)
    return counts


def summary(
    facts: Mapping[str, str], leaks: Mapping[str, Sequence[str]], n_subjects: int, gaps: Gaps
) -> Markup:
    """What was compared, and what stands against the numbers."""
    seen = (
        "These raters have seen images they are judged on: their numbers, marked †, say nothing "
        "about new images"
    )
    leaky = [f"{name}: {', '.join(images)}" for name, images in leaks.items()]
    whole = (
        "Nothing is missing: each rater has each image, and each structure is in both maps or in "
        "neither."
    )
    return page.section(
        "summary",
        page.facts(facts),
        page.box(seen, leaky, kind="bad") if leaky else "",
        _few(n_subjects),
        gaps.summary() if gaps else page.box(whole) if n_subjects else "",
    )


def _few(n_subjects: int) -> Markup:
    """What so many subjects allow to say."""
    if not n_subjects:
        words = "<strong>Nothing could be compared.</strong> What is missing is listed "
        return page.box(Markup(words + '<a href="#missing">below</a>.'), kind="bad")
    if n_subjects == 1:
        alone = tables.strong(
            "One subject only: there are no intervals, no tests, no limits of agreement and no "
            "chances of ranks."
        )
        words = Markup("{} Nothing here says how raters would do on other people.").format(alone)
        return page.box(words, kind="warn")
    if n_subjects < FEW:
        few = tables.strong(f"{n_subjects} subjects only:")
        return page.box(Markup("{} intervals are likely too narrow.").format(few), kind="warn")
    return Markup()


def worst(cases: Sequence[Mapping]) -> Markup:
    """Pictures of the worst cases."""
    if not cases:
        return Markup()
    parts: list[Markup | str] = []
    for case in cases:
        title = Markup("{}, {}").format(case["image"], case["shown_rater"])
        parts += [page.heading(title), page.text("; ".join(case["structures"]))]
        if case["figure"] is not None:
            alt = "Outlines of reference and prediction, differences and distances of surfaces: "
            alt += f"{case['image']}, {case['rater']}"
            gone = f"This picture is missing: {case['figure'].name}"
            parts.append(page.figure(case["figure"], alt, missing=gone))
    title = page.heading("Worst cases", level=2)
    return page.section("worst", title, *parts, page.text(WORST_NOTE, faint=True))


def sources(notes: Sequence) -> Markup:
    """Reference and raters: where they come from, and what can be judged by them."""
    if not notes:
        return Markup()
    parts: list[Markup | str] = []
    for note in notes:
        judged = f"; can be judged: {', '.join(note.judged)}" if note.judged else ""
        parts += [
            page.heading(note.name, note.role),
            page.text(note.citation or "No citation was given."),
            page.text(f"Licence: {note.licence or 'not stated'}{judged}", faint=True),
            page.bullets(note.notes) if note.notes else "",
        ]
    title = page.heading("Reference and raters", level=2, stay=True)
    return page.section("sources", title, *parts)
