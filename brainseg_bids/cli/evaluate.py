# SPDX-License-Identifier: Apache-2.0
"""Stage ``evaluate``: how good, with what certainty, compared with what."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids import __version__
from brainseg_bids.documents import InputError
from brainseg_bids.resources import memory_gib
from brainseg_bids.scratch import explain, scratch_dir, working_alone
from brainseg_bids.settings import Settings
from brainseg_bids.stages.jobs import read_object
from brainseg_bids.stages.raters import EvaluationPlan, ImagePlan, plan_evaluation

if TYPE_CHECKING:
    from brainseg_bids.interfaces.raters import Rater
    from brainseg_bids.reports.evaluation import SourceNote, WorstCase

FOLDER = "evaluation"
MOST_REASONS = 3
"""Reasons in a message that nothing could be compared."""
WORST = 6
"""Cases of each reference that are drawn."""

log = logging.getLogger("brainseg")


def evaluate(settings: Settings, run_dir: Path) -> dict[str, str]:
    """Compare, summarise, write tables and pages; what could not be compared, and why.

    Raises
    ------
    InputError
        If nothing can be compared.
    """
    plan = plan_evaluation(
        settings.output_dir,
        bids_dir=settings.bids_dir,
        references={name: Path(path) for name, path in settings.references.items()},
        derivatives={name: Path(path) for name, path in settings.derivatives.items()},
        participants=settings.participant_label,
    )
    for name, rater in plan.raters.items():
        if rater.is_named_by_model:
            log.info("%s: called %s, by the model that made these maps", rater.root, name)
    for note in plan.notes:
        log.warning("%s", note)
    if settings.reports_only:
        compared = earlier_results(settings, plan)
    else:
        with working_alone(settings, ["evaluation"]):
            compared = compare_all(settings, plan, run_dir)
    results = collect(settings, plan, compared)
    results.check()
    tables = results.tables(plan)
    _clear(settings.output_dir)
    if not settings.reports_only:
        write_tables(settings, plan, results.rows, tables)
    pages = write_pages(settings, plan, results, tables)
    _log_headline(plan, tables["headline"])
    for page in pages:
        log.info("report: %s", page)
    return {_title(*key): why for key, why in results.faults.items()}


def _choices(settings: Settings) -> dict:
    """What of the settings decides how two maps are compared."""
    return {
        "tolerances_mm": list(settings.nsd_tolerances_mm),
        "definition": settings.surfaces,
        "on_other_grid": settings.on_other_grid,
        "protocol": settings.protocol,
    }


def compare_all(settings: Settings, plan: EvaluationPlan, run_dir: Path) -> dict[str, dict]:
    """Metadata of each image's step, or why it failed, by the step's name."""
    from brainseg_bids.runner import configure_nipype, run_workflow
    from brainseg_bids.workflows.evaluate import init_evaluate_wf

    crash_dir = settings.work_dir / f"crash_{run_dir.name}"
    configure_nipype(
        crash_dir=crash_dir,
        stop_on_first_crash=settings.stop_on_first_crash,
        resource_monitor=settings.resource_monitor,
    )
    workflow = init_evaluate_wf(plan, _choices(settings))
    workflow.base_dir = str(scratch_dir(settings))
    crashed = run_workflow(
        workflow,
        nprocs=settings.nprocs,
        memory_gb=settings.memory_gb or 0.9 * memory_gib(),
        crash_dir=crash_dir,
        plugin=None,
        on_end=lambda step, metadata: None,
        on_progress=lambda step, percent: None,
    )
    return _kept(settings, plan) | {
        step.split(".")[-1]: {"Crash": explain(crash.reason, settings.work_dir)}
        for step, crash in crashed.items()
    }


def earlier_results(settings: Settings, plan: EvaluationPlan) -> dict[str, dict]:
    """Metadata that an earlier run left of every image.

    Raises
    ------
    InputError
        If it did not leave all of them.
    """
    kept = _kept(settings, plan)
    missing = [image.title for image in plan.images if image.name not in kept]
    if missing:
        raise InputError(
            f"{scratch_dir(settings)}: what was found of {missing[0]} is not there, or other "
            "files or settings were compared. Run without --reports-only, or give the scratch "
            "folder of that run with -w."
        )
    return kept


def _kept(settings: Settings, plan: EvaluationPlan) -> dict[str, dict]:
    """What the scratch folder holds of this very comparison, by the step's name."""
    from brainseg_bids.workflows.evaluate import WORKFLOW

    kept, choices = {}, _choices(settings)
    for image in plan.images:
        metadata = read_object(scratch_dir(settings) / WORKFLOW / image.name / "facts.json")
        # An earlier run's, of another question, may lie there.
        if metadata and metadata.get("Asked") == image.asked(choices):
            kept[image.name] = metadata
    return kept


# -- results ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """What comparing gave.

    Parameters
    ----------
    rows : list of dict
    known : dict of (str, str) to set of str
        Structures that a rater can say of those that a reference has, by reference and rater.
    notes : list of str
    faults : dict of (str, str, str) to str
        What could not be compared, by reference, rater (or nothing: all) and image, and why.
    leaks : dict of (str, str, str) to str
        Likewise: ratings by a model of what it has seen, and what is said of it.
    """

    rows: list[dict] = field(default_factory=list)
    known: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: dict[tuple[str, str, str], str] = field(default_factory=dict)
    leaks: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def check(self) -> None:
        """Log what is odd; raise `InputError` if nothing could be compared."""
        for note in self.notes:
            log.info("%s", note)
        for leak in self.leaks.values():
            log.warning("%s", leak)
        if not self.rows:
            reasons = [*self.faults.values(), *self.leaks.values()]
            n_more = len(reasons) - MOST_REASONS
            more = f"; and {n_more} more" if n_more > 0 else ""
            raise InputError(
                f"nothing could be compared: {'; '.join(reasons[:MOST_REASONS])}{more}"
            )

    def of(self, reference: str) -> list[dict]:
        """Rows of one reference."""
        return [row for row in self.rows if row["reference"] == reference]

    def tables(self, plan: EvaluationPlan) -> dict[str, list[dict]]:
        """All tables; each reference is summarised for itself."""
        from brainseg_bids.evaluation.summary import Missing, common_structures, tables

        every: dict[str, list[dict]] = {}
        for name, keys in plan.references.items():
            rows = self.of(name)
            own = tables(
                rows,
                structures=common_structures(rows, plan.sideless),
                known={who: known for (ref, who), known in self.known.items() if ref == name},
                references={name: keys},
                raters=plan.rated[name],
            )
            for table, lines in own.items():
                every.setdefault(table, []).extend(lines)
        gone = [("failed", key) for key in self.faults]
        if not any(row["seen"] for row in self.rows):
            gone += [("left out: seen in training", key) for key in self.leaks]
        every["missing"] += [Missing(kind, *key).row() for kind, key in gone]
        return every


def collect(settings: Settings, plan: EvaluationPlan, compared: Mapping[str, dict]) -> Results:
    """Rows of all images; what a model has seen is left out unless it is asked for."""
    results = Results()
    for image in plan.images:
        reference, key = image.reference.name, image.case.key
        metadata = compared.get(image.name, {"Crash": "it gave no result"})
        if "Crash" in metadata:
            results.faults[reference, "", key] = metadata["Crash"]
            continue
        results.notes.extend(note for note in metadata["Notes"] if note not in results.notes)
        for name, why in metadata["Faults"].items():
            results.faults[reference, name, key] = why
        for name, rows in metadata["Compared"].items():
            leak = _leak(settings, plan, image, name, metadata["Hashes"], results.notes)
            if leak:
                results.leaks[reference, name, key] = leak
                if not settings.include_seen:
                    continue
            known = set(metadata["Known"][name])
            results.known[reference, name] = results.known.get((reference, name), known) | known
            about = {
                "reference": reference,
                "rater": name,
                "image": key,
                "subject": image.case.subject,
                "stratum": image.case.stratum,
                "protocol": settings.protocol,
                "seen": bool(leak),
            }
            results.rows.extend(about | _with_nan(row) for row in rows)
    return results


def _with_nan(row: Mapping) -> dict:
    """A row with NaN where JSON had none, but for the index of a group."""
    return {
        key: math.nan if value is None and key != "index" else value for key, value in row.items()
    }


def _leak(
    settings: Settings,
    plan: EvaluationPlan,
    image: ImagePlan,
    rater: str,
    hashes: Sequence[str],
    notes: list[str],
) -> str:
    """Why a rating is no test: its model was trained or fitted on it."""
    from brainseg_bids.interfaces.raters import seen_by

    folders = (plan.raters[rater].root, settings.output_dir, settings.bids_dir)
    seen, why_unknown = seen_by(image.rated[rater].labels, settings.model, folders)
    if why_unknown:
        note = f"{rater}: {why_unknown}; whether it has seen these images is not checked."
        if note not in notes:
            notes.append(note)
    if not seen & set(hashes):
        return ""
    done = "marked" if settings.include_seen else "left out; --include-seen takes it in, marked"
    return (
        f"{image.title}: {rater}'s model was trained or fitted on it, so this is no test of it. "
        f"It is {done}."
    )


def _title(reference: str, rater: str, image: str) -> str:
    """How messages call a comparison.

    >>> _title("manual", "ours", "sub-01"), _title("manual", "", "sub-01")
    ('sub-01 (manual), ours', 'sub-01 (manual)')
    """
    return f"{image} ({reference})" + (f", {rater}" if rater else "")


def _log_headline(plan: EvaluationPlan, lines: Sequence[Mapping]) -> None:
    """The mean Dice of each rater, on the console."""
    named = set()
    for line in lines:
        if line["stratum"] != "all" or line["metric"] != "dice" or line["mean"] is None:
            continue
        named.add(line["reference"])
        interval = f" ({line['low']:.3f} to {line['high']:.3f})" if line["low"] is not None else ""
        log.info(
            "%s against %s: Dice %.3f%s, %s, %d subject(s)",
            line["rater"],
            line["reference"],
            line["mean"],
            interval,
            line["name"],
            line["n_subjects"],
        )
    for name in set(plan.references) - named:
        log.warning("%s: there is no structure that it and all raters know, so no mean", name)


# -- files --------------------------------------------------------------------------------


def _clear(output_dir: Path) -> None:
    """Remove pages and pictures of an earlier evaluation, which may be of others."""
    for pattern in ("group_evaluation*.html", f"{FOLDER}/figures/*.png"):
        for path in output_dir.glob(pattern):
            path.unlink()


def write_tables(
    settings: Settings, plan: EvaluationPlan, rows: list[dict], tables: Mapping[str, list[dict]]
) -> None:
    """Every number, as TSV and as JSON."""
    from brainseg_bids.bids.description import finite, write_json
    from brainseg_bids.files import write_text
    from brainseg_bids.reports.tables import write_tsv

    every = {"agreement": rows, **tables}
    folder = settings.output_dir / FOLDER
    for name, lines in every.items():
        write_tsv(folder / f"{name}.tsv", lines)
    write_text(folder / "evaluation.json", json.dumps(finite(every)) + "\n")
    write_json(
        folder / "settings.json",
        {
            "BrainsegVersion": __version__,
            "Surfaces": settings.surfaces,
            "Protocol": settings.protocol,
            "Participants": list(settings.participant_label),
            "IncludeSeen": settings.include_seen,
            "OnOtherGrid": settings.on_other_grid,
            "NsdTolerancesMm": list(settings.nsd_tolerances_mm),
            "References": {name: str(path) for name, path in settings.references.items()},
            "Raters": {name: str(rater.root) for name, rater in plan.raters.items()},
        },
    )


def write_pages(
    settings: Settings, plan: EvaluationPlan, results: Results, tables: Mapping[str, list[dict]]
) -> list[Path]:
    """``group_evaluation.html``; with several references one page each, by their names."""
    from brainseg_bids.evaluation.summary import Missing
    from brainseg_bids.reports.evaluation import Evidence, methods_text, write_evaluation_page

    references = {image.reference.name: image.reference for image in plan.images}
    shown = ("reference without prediction", "no row of the structure")
    pages = []
    for name, reference in references.items():
        rows = results.of(name)
        if not rows:
            continue
        mark = f"_{name}" if len(references) > 1 else ""
        leaks = {key: why for key, why in results.leaks.items() if key[0] == name}
        left_out = () if settings.include_seen else leaks.values()
        faults = [f"{_title(*k)}: {why}" for k, why in results.faults.items() if k[0] == name]
        evidence = Evidence(
            title=settings.bids_dir.name,
            rows=rows,
            reference=name,
            raters=sorted(plan.raters),
            worst=_draw_worst(settings, plan, rows, name),
            missing=[Missing(**line) for line in tables["missing"] if line["kind"] in shown],
            notes=_notes(reference, plan, results),
            methods=methods_text(settings.surfaces, settings.protocol),
            version=__version__,
            leaks=[key[1:] for key in leaks if settings.include_seen],
            failures=[*faults, *left_out],
            tables=tables,
        )
        path = settings.output_dir / f"group_evaluation{mark}.html"
        pages.append(write_evaluation_page(path, evidence))
    return pages


def _notes(reference: Rater, plan: EvaluationPlan, results: Results) -> list[SourceNote]:
    """What adapters and files say, of the reference and of each rater."""
    from brainseg_bids.reports.evaluation import SourceNote

    sources = [("reference", reference), *(("rater", rater) for rater in plan.raters.values())]
    notes = []
    for role, rater in sources:
        adapter = rater.adapter
        where = (f"Label maps in {rater.root}.",) if rater.is_named_by_model else ()
        judged = tuple(adapter.evaluable or ()) if role == "reference" else ()
        notes.append(
            SourceNote(
                rater.name, role, adapter.citation, adapter.licence, judged, adapter.notes + where
            )
        )
    odd = tuple(dict.fromkeys([*plan.notes, *results.notes]))
    return [*notes, SourceNote("This run", notes=odd)] if odd else notes


def _draw_worst(
    settings: Settings, plan: EvaluationPlan, rows: Sequence[dict], reference: str
) -> list[WorstCase]:
    """The worst cases, each with its picture."""
    from brainseg_bids.evaluation.summary import common_structures
    from brainseg_bids.reports.evaluation import find_worst

    images = {i.case.key: i for i in plan.images if i.reference.name == reference}
    names = common_structures(rows, plan.sideless)
    folder = settings.output_dir / FOLDER / "figures"
    drawn = []
    for case in find_worst(rows, reference, n_cases=WORST, names=names):
        path = folder / f"{reference}_{case.rater}_{case.image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _draw(settings, images[case.image], case, path)
        except (OSError, ValueError) as error:  # numbers and page do not hang on a picture
            log.warning("%s: not drawn (%s)", path.name, error)
            drawn.append(case)
        else:
            drawn.append(replace(case, figure=path))
    return drawn


def _draw(settings: Settings, plan: ImagePlan, case: WorstCase, path: Path) -> None:
    """Read a case again as it was compared, and draw it."""
    from brainseg_bids.evaluation.protocols import comparison
    from brainseg_bids.interfaces.ratings import read_rating, read_ratings
    from brainseg_bids.reports.evaluation_cases import draw_case
    from brainseg_bids.volumes import read_again

    reference, _ = read_rating(plan.case.labels, plan.reference.adapter)
    needed = plan.rated if settings.protocol == "within-evaluable" else (case.rater,)
    maps = {name: (plan.rated[name].labels, plan.adapters[name]) for name in needed}
    read = read_ratings(maps, reference.labels.grid, settings.on_other_grid)
    judged = comparison(
        reference,
        read.ratings.pop(case.rater),
        plan.reference.adapter,
        name=case.rater,
        protocol=settings.protocol,
        others=list(read.ratings.values()),
    )
    image = None
    if plan.case.image is not None:
        with contextlib.suppress(InputError):  # without the image there are labels to look at
            voxels, grid = read_again(plan.case.image)
            image = voxels if grid.is_close(judged.reference.grid) else None
    known = case.structure in {label.name for label in judged.reference.table}
    draw_case(
        path,
        image,
        judged.reference,
        judged.prediction,
        title=f"{plan.case.key}: {case.rater} against {plan.reference.name}",
        within=judged.within,
        focus=case.structure if known else "",
    )
