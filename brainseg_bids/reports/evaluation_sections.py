# SPDX-License-Identifier: Apache-2.0
"""Tables and plots on the page of an evaluation, of the lines that `evaluation.summary` gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd
from markupsafe import Markup

from brainseg_bids.evaluation.scores import ALL
from brainseg_bids.reports import evaluation_tables as texts
from brainseg_bids.reports import page, tables
from brainseg_bids.reports.evaluation_figures import metric_title
from brainseg_bids.reports.evaluation_tables import Line

NAME_LETTERS = 18
"""Longer names of raters may be broken into lines."""
SIGNIFICANT = 0.05
ERROR = "volume_error_frac"
MEAN = ("mean", "low", "high")
"""Columns of a mean and its interval."""
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

    def _own(self, lines: Mapping[tuple, Line], key: tuple) -> dict[str, Line | None]:
        """Line of each metric; nothing if there is none of any."""
        own = {name: lines.get((*key, name)) for name in self.style.metrics}
        return own if any(line is not None for line in own.values()) else {}

    # -- league ---------------------------------------------------------------------------

    def league(self) -> Markup:
        """Means of all raters side by side, and their ranks.

        What is best by the common images is marked; see `brainseg_bids.evaluation.ranking`.
        """
        lines = texts.by(self.tables["headline"], "stratum", "rater", "metric")
        headline = filter(texts.is_headline, self.tables["ranks"])
        ranks = texts.by(headline, "stratum", "rater", "metric")
        titles = texts.strata_titles(stratum for stratum, _, _ in lines)
        if not titles:
            return Markup()
        found = {
            key: own
            for key in product(titles, self.style.raters)
            if (own := self._own(lines, key))
        }
        rows = [self._league_row(key, own, ranks) for key, own in found.items()]
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
        groups = [titles[stratum] for stratum, _ in found]
        return page.section(
            "league",
            page.heading("League table", level=2, stay=True),
            self._explained(number_table(rows, self._raters(), groups=groups), note),
            self._ranks(titles, list(found), ranks),
            self._figure("headline", f"By rater{' and stratum' * (len(titles) > 1)}"),
            self._judged(judged),
        )

    def _league_row(
        self, key: tuple[str, str], own: Mapping[str, Line | None], ranks: Mapping[tuple, Line]
    ) -> dict:
        some = next(line for line in own.values() if line is not None)
        subjects = str(some["n_subjects"])
        if some["n_images"] != some["n_subjects"]:
            images = tables.faint(f"{some['n_images']} images")
            subjects = Markup("{}<br/>{}").format(subjects, images)
        best = {name: ranks.get((*key, name), {}).get("rank") == 1 for name in own}
        cells = [
            texts.NA
            if line is None
            else texts.between(line, name, MEAN, bold=best[name], left_out=line["n_left_out"])
            for name, line in own.items()
        ]
        return {
            "Rater": self.style.rater(key[1]),
            **self._metrics(cells),
            "Subjects": subjects,
            "Missed": some["n_reference_only"],
            "Extra": some["n_prediction_only"],
            "No row": some["n_no_row"],
        }

    def _ranks(
        self,
        titles: Mapping[str, str],
        keys: Sequence[tuple[str, str]],
        ranks: Mapping[tuple, Line],
    ) -> Markup:
        rows, groups = [], []
        for stratum, title in titles.items():
            if not any(key[0] == stratum for key in ranks):
                continue
            own = [key for key in keys if key[0] == stratum]
            for key in own:
                found = [ranks.get((*key, name)) for name in self.style.metrics]
                cells = [texts.chances_text(line) if line else texts.NA for line in found]
                rows.append({"Rater": self.style.rater(key[1]), **self._metrics(cells, "by {}")})
            firm = [tables.faint(_same_order(ranks, stratum, m)) for m in self.style.metrics]
            rows.append({"Rater": tables.faint("Same order"), **self._metrics(firm, "by {}")})
            groups += [title] * (len(own) + 1)
        if not rows:
            return Markup()
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
        lines = self.tables["comparisons"]
        headline = [line for line in lines if texts.is_headline(line)]
        titles = texts.strata_titles(str(line["stratum"]) for line in headline)
        if not titles:
            return Markup()
        first, *others = [
            (title, self._pair_table([line for line in headline if line["stratum"] == stratum]))
            for stratum, title in titles.items()
        ]
        single = [
            line
            for line in lines
            if not texts.is_headline(line) and (line["stratum"], line["metric"]) == (ALL, "dice")
        ]
        alone = " There is no test with one subject." if self.n_subjects == 1 else ""
        note = (
            "Adjusted after Holm over all structures and pairs. Other metrics and strata are in "
            "the table of comparisons beside this page."
        )
        return page.section(
            "pairs",
            page.heading("Raters against each other", level=2),
            self._explained(first[1], PAIR_NOTE + alone),
            *self._folded(others),
            page.fold(
                "Single structures: Dice, all images",
                self._explained(self._pair_table(single), note),
            )
            if single
            else "",
        )

    def _folded(self, parts: Sequence[tuple[str, Markup]]) -> list[Markup]:
        """Further strata, closed at first."""
        return [page.fold(title, table, self._surfaces()) for title, table in parts]

    def _pair_table(self, lines: Sequence[Line]) -> Markup:
        """Pairs of raters, grouped by the metric, or by the structure if it is a single one."""
        by_group: dict[str, list[dict]] = {}
        for line in lines:
            name, column = str(line["name"]), str(line["metric"])
            group = metric_title(column) if texts.is_headline(line) else name
            by_group.setdefault(group, []).append(self._pair_row(line, column))
        rows = [row for rows in by_group.values() for row in rows]
        groups = [group for group, rows in by_group.items() for _ in rows]
        css = {"First": "name", "Second": "name", "Favours": ""}
        return number_table(rows, css, groups=groups)

    def _pair_row(self, line: Line, column: str) -> dict:
        interval = ("mean_difference", "low", "high")
        shift = ("hodges_lehmann", "hodges_lehmann_low", "hodges_lehmann_high")
        adjusted, favours = line["p_holm"], line["favours"] or "neither"
        is_firm = adjusted is not None and float(adjusted) < SIGNIFICANT
        p_holm = texts.p_text(adjusted)
        return {
            "First": self.style.rater(line["first"]),
            "Second": self.style.rater(line["second"]),
            "Subjects": line["n_subjects"],
            "First − second": texts.between(line, column, interval, sign=True),
            "Hodges-Lehmann": texts.between(line, column, shift, sign=True),
            "Rank-biserial": texts.number(line["rank_biserial"], "rank_biserial", sign=True),
            "p": texts.p_text(line["p"]),
            "p (Holm)": tables.strong(p_holm) if is_firm else p_holm,
            "Favours": tables.strong(favours) if is_firm else tables.faint(favours),
        }

    # -- structures -----------------------------------------------------------------------

    def structures(self) -> Markup:
        """Each structure of each rater, stratum by stratum."""
        lines = texts.by(self.tables["structures"], "stratum", "name", "rater", "metric")
        titles = texts.strata_titles(stratum for stratum, *_ in lines)
        if not titles:
            return Markup()
        first, *others = [
            (title, self._structure_table(lines, stratum)) for stratum, title in titles.items()
        ]
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
            self._explained(first[1], note),
            *self._folded(others),
        )

    def _structure_table(self, lines: Mapping[tuple, Line], stratum: str) -> Markup:
        rows, groups = [], []
        for name, rater in product(self.names, self.style.raters):
            key = (stratum, name, rater)
            error = lines.get((*key, ERROR))
            own = self._own(lines, key)
            if own or error is not None:
                rows.append(self._structure_row(rater, own, error))
                groups.append(self.style.swatch(name))
        return page.small(number_table(rows, {**self._raters(), "in": ""}, groups=groups))

    def _structure_row(
        self, rater: str, own: Mapping[str, Line | None], error: Line | None
    ) -> dict:
        some = next(line for line in (*own.values(), error) if line is not None)
        dice = own.get("dice")
        missed, extra = some["n_reference_only"], some["n_prediction_only"]
        alone = tables.strong(f"{missed} / {extra}", far=True) if missed or extra else ""
        found = [(name, own.get(name)) for name in self.style.metrics]
        cells = [texts.between(line, name, MEAN) if line else texts.NA for name, line in found]
        has_worst = dice is not None and dice["worst_image"]
        return {
            "Rater": self.style.rater(rater),
            "n": some["n_subjects"],
            **self._metrics(cells),
            "Median Dice": texts.NA if dice is None else _median(dice),
            "Volume": texts.NA if error is None else texts.number(error["mean"], ERROR, sign=True),
            Markup("Missed<br/>/ extra"): alone or tables.faint("none"),
            Markup("Worst<br/>Dice"): texts.number(dice["worst"], "dice")
            if has_worst
            else texts.NA,
            "in": _breakable(dice["worst_image"] if dice else ""),
        }

    # -- volumes --------------------------------------------------------------------------

    def volumes(self) -> Markup:
        """Bias and limits of agreement, of all images."""
        lines = texts.by(self.tables["bland_altman"], "stratum", "name", "rater", "unit")
        rows = []
        for name, rater in product(self.names, self.style.raters):
            mm3, percent = (lines.get((ALL, name, rater, unit)) for unit in ("mm3", "percent"))
            if mm3 is not None and percent is not None:
                structure = {
                    "Structure": self.style.swatch(name),
                    "Rater": self.style.rater(rater),
                }
                rows.append(structure | _volume_cells(mm3, percent))
        if not rows:
            return Markup()
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


def _same_order(ranks: Mapping[tuple, Line], stratum: str, metric_name: str) -> str:
    """How often the order is the same, and Kendall's tau."""
    for (where, _, what), line in ranks.items():
        if (where, what) == (stratum, metric_name) and line["same_order"] is not None:
            tau = line["kendall_tau"]
            words = f"{100 * float(line['same_order']):.0f} %"
            return words if tau is None else f"{words}, τ {float(tau):.2f}"
    return texts.NA


def _median(line: Line) -> Markup | str:
    """Median and quartiles, which one subject does not have."""
    if line["n_subjects"] == 1:
        return texts.number(line["median"], "dice")
    return texts.between(line, "dice", ("median", "q1", "q3"))


def _volume_cells(mm3: Line, percent: Line) -> dict:
    """Bias and limits in both units; those in per cent are of the mean of both volumes."""
    bias, *ends = (
        None if percent[key] is None else float(percent[key]) / 100
        for key in ("bias", "lower", "upper")
    )
    return {
        "n": mm3["n_subjects"],
        "Left out": sum(
            int(mm3[f"n_{status}"]) for status in ("reference_only", "prediction_only", "neither")
        ),
        "Bias (mm³)": texts.between(mm3, "_mm3", ("bias", "bias_low", "bias_high"), sign=True),
        "Limits (mm³)": texts.limits(mm3["lower"], mm3["upper"], "_mm3"),
        "Bias": texts.number(bias, ERROR, sign=True),
        "Limits": texts.limits(*ends, ERROR),
        "p of slope": texts.p_text(mm3["slope_p"]),
    }
