# SPDX-License-Identifier: Apache-2.0
"""Tables and plots on the page of an evaluation, of the texts that `evaluation_tables` gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from brainseg_bids.reports import evaluation_tables as texts
from brainseg_bids.reports import page, tables
from brainseg_bids.reports.evaluation_figures import metric_title

NAME_LETTERS = 18
"""Longer names of raters may be broken into lines."""
OPEN_ROWS = 24
"""More rows of volumes than these are folded away."""

PLOTS = {
    "headline": "Mean over structures of each subject, by rater, with quartiles and median",
    "structures": "Each structure of each subject, by rater, with quartiles and median; strata by "
    "their markers",
    "volumes": "Predicted less reference volume of each image over their mean, with bias and "
    "limits of agreement by rater",
}
"""What each plot shows."""
VOLUMES_NOTE = (
    "Predicted − reference; bias with its 95 % interval by Student's t, limits hold 95 % of "
    "single differences. Per cent are of the mean of both. Left out: images in which a map has "
    "none of it. p of slope: whether the difference grows with the volume."
)
PAIR_NOTE = (
    "Mean over structures, paired over the subjects that both have. Wilcoxon's signed-rank test, "
    "adjusted after Holm over all pairs within a metric and stratum; bold below 0.05. "
    "Rank-biserial correlation: −1 to 1; signs are those of the difference. Of distances the "
    "smaller is favoured."
)


# -- cells --------------------------------------------------------------------------------


def rater(one: Mapping) -> Markup:
    """A rater behind its colour, marked if it has seen images that it is judged on."""
    name = tables.swatch(one["color"], one["name"])
    if not one["leaky"]:
        return name
    seen = Markup('<strong class="far" title="has seen images it is judged on">† seen</strong>')
    return Markup("{} {}").format(name, seen)


def _cell(one: Mapping) -> Markup:
    """A number, with its interval beneath it."""
    return _interval(Markup("{}").format(one["text"]), one)


def _league_cell(one: Mapping) -> Markup:
    """The same; bold if it is the best, with how many images were left out."""
    number = tables.strong(one["text"]) if one["best"] else Markup("{}").format(one["text"])
    if one["left_out"]:
        number += tables.faint(f" (−{one['left_out']})")
    return _interval(number, one)


def _interval(number: Markup, one: Mapping) -> Markup:
    if one["interval"]:
        number += Markup("<br/>{}").format(tables.faint(one["interval"]))
    return number


def _firm(words: str, firm: bool) -> Markup | str:
    return tables.strong(words) if firm else words


def _breakable(name: str) -> Markup:
    """An image's name that may be broken at its entities."""
    return tables.faint(Markup("_<wbr/>").join(name.split("_")))


def number_table(
    rows: Sequence[Mapping],
    texts_of: Mapping[str, str],
    *,
    groups: Sequence[str] | None = None,
) -> Markup:
    """A table whose columns are numbers, but for those of ``texts_of`` (with their classes)."""
    frame = pd.DataFrame(rows)
    numbers = [name for name in frame.columns if name not in texts_of]
    css = {name: kind for name, kind in texts_of.items() if name in frame.columns}
    return tables.html_table(frame, numbers=numbers, css=css, groups=groups)


@dataclass(frozen=True, kw_only=True)
class Sections:
    """What all sections of numbers share.

    Parameters
    ----------
    tables : mapping of str to sequence of mapping
        Lines of one reference; see `brainseg_bids.evaluation.summary.tables`.
    style : Style
    names : sequence of str
        Structures.
    n_subjects : int
    interval : str
        How the intervals were made.
    definition : str
        Of surfaces, in words.
    figures : mapping of str to bytes
        PNG of ``headline``, ``structures`` and ``volumes``, where there is something to draw.
    """

    tables: Mapping[str, Sequence[Mapping]]
    style: texts.Style
    names: Sequence[str]
    n_subjects: int
    interval: str
    definition: str
    figures: Mapping[str, bytes]

    def _metrics(self, cells: Sequence[object], word: str = "{}") -> dict:
        titles = [word.format(metric_title(name)) for name in self.style.metrics]
        return dict(zip(titles, cells, strict=True))

    def _surfaces(self) -> Markup:
        return page.text(f"Surfaces by the definition: {self.definition}.", faint=True)

    def _explained(self, table: Markup, note: str) -> Markup:
        """A table of metrics, with how it is read."""
        return page.blocks(table, page.text(note, faint=True), self._surfaces())

    def _figure(self, key: str, title: str) -> Markup:
        if key not in self.figures:
            return Markup()
        shown = page.figure(self.figures[key], PLOTS[key], caption=f"{PLOTS[key]}.")
        return page.blocks(page.heading(title), shown)

    def _raters(self) -> dict[str, str]:
        """Class of a column of raters."""
        longest = max(map(len, self.style.raters), default=0)
        return {"Rater": "name" if longest <= NAME_LETTERS else ""}

    # -- league ---------------------------------------------------------------------------

    def league(self) -> Markup:
        """Means of all raters side by side, and their ranks."""
        blocks = texts.league(self.tables, self.style)
        if not blocks:
            return Markup()
        lines = [(block["name"], row) for block in blocks for row in block["rows"]]
        rows = [self._league_row(row) for _, row in lines]
        judged = [line["name"] for line in self.tables["judged"] if line["used"]]
        note = f"Mean over {page.plural(len(judged), 'structure')} in each image, then over a "
        note += "subject's images, then over subjects"
        note += f"; in brackets the {self.interval}. " if self.n_subjects > 1 else ". "
        note += (
            "Bold: best on the images that all raters have. Missed: structures in images that "
            "the reference alone has; extra: that the rater alone has (both: Dice and NSD 0, no "
            "distance); no row: that were not compared. (−n): structures in images that have no "
            "number and are left out of the mean."
        )
        return page.section(
            "league",
            page.heading("League table", level=2, stay=True),
            self._explained(
                number_table(rows, self._raters(), groups=[name for name, _ in lines]), note
            ),
            self._ranks([block for block in blocks if block["has_ranks"]]),
            self._figure("headline", f"By rater{' and stratum' * (len(blocks) > 1)}"),
            self._judged(judged),
        )

    def _league_row(self, row: Mapping) -> dict:
        subjects = str(row["n_subjects"])
        if row["n_images"] != row["n_subjects"]:
            images = tables.faint(f"{row['n_images']} images")
            subjects = Markup("{}<br/>{}").format(subjects, images)
        return {
            "Rater": rater(row),
            **self._metrics([_league_cell(one) for one in row["cells"]]),
            "Subjects": subjects,
            "Missed": row["n_missed"],
            "Extra": row["n_extra"],
            "No row": row["n_no_row"],
        }

    def _ranks(self, blocks: Sequence[Mapping]) -> Markup:
        if not blocks:
            return Markup()
        rows, groups = [], []
        for block in blocks:
            rows += [
                {"Rater": rater(row), **self._metrics(row["ranks"], "by {}")}
                for row in block["rows"]
            ]
            firm = [tables.faint(words) for words in block["firm"]]
            rows.append({"Rater": tables.faint("Same order"), **self._metrics(firm, "by {}")})
            groups += [block["name"]] * (len(block["rows"]) + 1)
        note = (
            "Rank on the images that all raters have, and in brackets the chances of rank 1, 2, … "
            "when subjects are drawn again. Same order: share of draws with the same ranks of "
            "all, and Kendall's τ."
        )
        return page.blocks(
            page.heading("Ranks"),
            self._explained(number_table(rows, self._raters(), groups=groups), note),
        )

    def _judged(self, judged: Sequence[str]) -> Markup:
        left_out = [line for line in self.tables["judged"] if not line["used"]]
        summary = f"Structures in the mean: {len(judged)}"
        summary += f"; left out: {len(left_out)}" if left_out else ""
        reasons = [f"{line['name']}: {line['reason']}" for line in left_out]
        return page.fold(
            summary,
            page.text(", ".join(judged) or "none"),
            page.bullets(reasons) if reasons else "",
        )

    # -- pairs of raters ------------------------------------------------------------------

    def pairs(self) -> Markup:
        """Raters against each other: means over structures, then single ones."""
        parts = texts.headline_pairs(self.tables["comparisons"], self.style)
        if not parts:
            return Markup()
        single = texts.structure_pairs(self.tables["comparisons"], self.style)
        alone = " There is no test with one subject." if self.n_subjects == 1 else ""
        note = (
            "Adjusted after Holm over all structures and pairs. Other metrics and strata are in "
            "the table of comparisons beside this page."
        )
        return page.section(
            "pairs",
            page.heading("Raters against each other", level=2),
            self._explained(_pair_table(parts[0]["blocks"]), PAIR_NOTE + alone),
            *self._folded(parts[1:], _pair_table),
            page.fold(
                "Single structures: Dice, all images",
                self._explained(_pair_table(single), note),
            )
            if single
            else "",
        )

    def _folded(
        self, parts: Sequence[Mapping], table: Callable[[Sequence[Mapping]], Markup]
    ) -> list[Markup]:
        """Further strata, closed at first."""
        return [page.fold(part["name"], table(part["blocks"]), self._surfaces()) for part in parts]

    # -- structures -----------------------------------------------------------------------

    def structures(self) -> Markup:
        """Each structure of each rater, stratum by stratum."""
        parts = texts.structures(self.tables["structures"], self.style, self.names)
        if not parts:
            return Markup()
        means = "Means over subjects"
        if self.n_subjects > 1:
            means += f", in brackets their {self.interval}; beneath the median the quartiles"
        note = (
            f"{means}. Volume: mean of (predicted − reference) / reference. Distances are of "
            "images in which both maps have the structure."
        )
        return page.section(
            "structures",
            page.heading("Structures", level=2),
            self._figure("structures", "By rater"),
            self._explained(self._structure_table(parts[0]["blocks"]), note),
            *self._folded(parts[1:], self._structure_table),
        )

    def _structure_table(self, blocks: Sequence[Mapping]) -> Markup:
        lines = [(block, row) for block in blocks for row in block["rows"]]
        rows = [self._structure_row(row) for _, row in lines]
        groups = [tables.swatch(block["color"], block["name"]) for block, _ in lines]
        return page.small(number_table(rows, {**self._raters(), "in": ""}, groups=groups))

    def _structure_row(self, row: Mapping) -> dict:
        missed, extra = row["n_missed"], row["n_extra"]
        alone = tables.strong(f"{missed} / {extra}", far=True) if missed or extra else ""
        return {
            "Rater": rater(row),
            "n": row["n_subjects"],
            **self._metrics([_cell(one) for one in row["cells"]]),
            "Median Dice": _cell(row["median"]),
            "Volume": row["error"],
            Markup("Missed<br/>/ extra"): alone or tables.faint("none"),
            Markup("Worst<br/>Dice"): row["worst"],
            "in": _breakable(row["worst_image"]),
        }

    # -- volumes --------------------------------------------------------------------------

    def volumes(self) -> Markup:
        """Bias and limits of agreement."""
        found = texts.volumes(self.tables["bland_altman"], self.style, self.names)
        if not found:
            return Markup()
        rows = [
            {
                "Structure": tables.swatch(row["swatch"], row["structure"]),
                "Rater": rater(row),
                "n": row["n_subjects"],
                "Left out": row["left_out"],
                "Bias (mm³)": _cell(row["bias"]),
                "Limits (mm³)": row["limits"],
                "Bias": row["bias_percent"],
                "Limits": row["limits_percent"],
                "p of slope": row["slope_p"],
            }
            for row in found
        ]
        css = {"Structure": "name", **self._raters()}
        css |= dict.fromkeys(("Left out", "Limits (mm³)", "Limits", "p of slope"), "n fold")
        return page.section(
            "volumes",
            page.heading("Volumes", level=2),
            self._figure("volumes", "Bland-Altman plots"),
            page.fold(
                "Bias and limits of agreement",
                number_table(rows, css),
                page.text(VOLUMES_NOTE, faint=True),
                is_open=len(rows) <= OPEN_ROWS,
            ),
        )


def _pair_table(blocks: Sequence[Mapping]) -> Markup:
    lines = [(block["name"], line) for block in blocks for line in block["rows"]]
    rows = [
        {
            "First": rater(line["first"]),
            "Second": rater(line["second"]),
            "Subjects": line["n_subjects"],
            "First − second": _cell(line["difference"]),
            "Hodges-Lehmann": _cell(line["shift"]),
            "Rank-biserial": line["effect"],
            "p": line["p"],
            "p (Holm)": _firm(line["p_holm"], line["firm"]),
            "Favours": _firm(line["favours"], True)
            if line["firm"]
            else tables.faint(line["favours"]),
        }
        for _, line in lines
    ]
    css = {"First": "name", "Second": "name", "Favours": ""}
    return number_table(rows, css, groups=[name for name, _ in lines])
