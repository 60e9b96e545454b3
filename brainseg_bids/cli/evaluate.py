# SPDX-License-Identifier: Apache-2.0
"""Stage ``evaluate``: how good, with what certainty, compared with what."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids import __version__
from brainseg_bids.bids.description import write_json
from brainseg_bids.cli.scratch import explain, scratch_dir, working_alone
from brainseg_bids.evaluation.protocols import comparison
from brainseg_bids.evaluation.summary import Missing, tables
from brainseg_bids.files import write_text
from brainseg_bids.interfaces.raters import read_rating
from brainseg_bids.resources import memory_gib
from brainseg_bids.settings import Settings
from brainseg_bids.stages.jobs import read_object
from brainseg_bids.volumes import InputError, read_again
from brainseg_bids.workflows.evaluate_plan import (
    EvaluationPlan,
    ImagePlan,
    Rater,
    plan_evaluation,
    seen_by,
)

if TYPE_CHECKING:
    from brainseg_bids.reports.evaluation import SourceNote, WorstCase

log = logging.getLogger("brainseg")

FOLDER = "evaluation"
PROTOCOLS = {
    "label-restricted": "Protocol label-restricted: the reference's labels were judged over all "
    "voxels; what a rater calls other tissue counts as background.",
    "within-evaluable": "Protocol within-evaluable: voxels that the reference leaves unlabelled "
    "and any rater calls brain tissue that it does not label were left out, for all raters alike.",
}
MOST_REASONS = 3
"""Reasons in a message that nothing could be compared."""
WORST = 6
"""Cases of each reference that are drawn."""


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

    rows: list[dict]
    known: dict[tuple[str, str], set[str]]
    notes: list[str]
    faults: dict[tuple[str, str, str], str]
    leaks: dict[tuple[str, str, str], str]


def evaluate(settings: Settings, run_dir: Path) -> dict[str, str]:
    """Compare, summarise, write tables and page.

    Returns
    -------
    dict of str to str
        What could not be compared, and why.

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
        if _is_called_by_model(rater):
            log.info("%s: called %s, by the model that made these maps", rater.root, name)
    for note in plan.notes:
        log.warning("%s", note)
    if settings.reports_only:
        told = _earlier_results(settings, plan)
    else:
        with working_alone(settings, ["evaluation"]):
            told = _run(settings, plan, run_dir)
    results = collect(settings, plan, told)
    for note in results.notes:
        log.info("%s", note)
    for leak in results.leaks.values():
        log.warning("%s", leak)
    if not results.rows:
        reasons = [*results.faults.values(), *results.leaks.values()]
        more = f"; and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
        raise InputError(f"nothing could be compared: {'; '.join(reasons[:MOST_REASONS])}{more}")
    made = summarise(plan, results)
    _clear(settings.output_dir)
    if not settings.reports_only:
        write_tables(settings.output_dir / FOLDER, results.rows, made, settings, plan)
    pages = write_pages(settings, plan, results, made)
    _tell(plan, made)
    for page in pages:
        log.info("report: %s", page)
    return {_title(*where): why for where, why in results.faults.items()}


def _title(reference: str, rater: str, image: str) -> str:
    """What messages call a comparison.

    >>> _title("manual", "ours", "sub-01"), _title("manual", "", "sub-01")
    ('sub-01 (manual), ours', 'sub-01 (manual)')
    """
    return f"{image} ({reference})" + (f", {rater}" if rater else "")


def _is_called_by_model(rater: Rater) -> bool:
    """Whether a rater has another name than the user gave it."""
    return rater.name != rater.adapter.name


def _clear(output_dir: Path) -> None:
    """Remove pages and pictures of an earlier evaluation, which may be of others."""
    for pattern in ("group_evaluation*.html", f"{FOLDER}/figures/*.png"):
        for path in output_dir.glob(pattern):
            path.unlink()


def _tell(plan: EvaluationPlan, made: Mapping[str, list[dict]]) -> None:
    """The headline, on the console."""
    told = set()
    for line in made["headline"]:
        if line["stratum"] != "all" or line["metric"] != "dice" or line["mean"] is None:
            continue
        told.add(line["reference"])
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
    for name in set(plan.references) - told:
        log.warning("%s: there is no structure that it and all raters know, so no mean", name)


def summarise(plan: EvaluationPlan, results: Results) -> dict[str, list[dict]]:
    """All tables; each reference is summarised for itself."""
    made: dict[str, list[dict]] = {}
    sideless = {name for name, rater in plan.raters.items() if not rater.adapter.sides}
    for name, keys in plan.references.items():
        rows = [row for row in results.rows if row["reference"] == name]
        own = tables(
            rows,
            structures=common_structures(rows, sideless),
            known={who: known for (ref, who), known in results.known.items() if ref == name},
            references={name: keys},
            raters=plan.found[name],
        )
        for table, lines in own.items():
            made.setdefault(table, []).extend(lines)
    kinds = {"failed": results.faults, "left out: seen in training": results.leaks}
    for kind, found in kinds.items():
        made["missing"] += [
            Missing(kind, reference, rater, image).row()
            for reference, rater, image in found
            if kind == "failed" or not any(row["seen"] for row in results.rows)
        ]
    return made


def _run(settings: Settings, plan: EvaluationPlan, run_dir: Path) -> dict[str, dict]:
    """What each image's step has to tell, or why it failed, by the step's name."""
    from brainseg_bids.workflows.evaluate import init_evaluate_wf  # late: nipype
    from brainseg_bids.workflows.runner import configure_nipype, run_workflow

    crash_dir = settings.work_dir / f"crash_{run_dir.name}"
    configure_nipype(
        crash_dir=crash_dir,
        stop_on_first_crash=settings.stop_on_first_crash,
        resource_monitor=settings.resource_monitor,
    )
    workflow = init_evaluate_wf(plan, **_choices(settings))
    workflow.base_dir = str(scratch_dir(settings))
    crashed = run_workflow(
        workflow,
        nprocs=settings.nprocs,
        memory_gb=settings.memory_gb or 0.9 * memory_gib(),
        crash_dir=crash_dir,
        plugin=None,
        on_end=lambda step, facts: None,
        on_progress=lambda step, percent: None,
    )
    failed = {
        step.split(".")[-1]: {"Crash": explain(crash.reason, settings.work_dir)}
        for step, crash in crashed.items()
    }
    return _kept(settings, plan) | failed


def _choices(settings: Settings) -> dict:
    return {
        "tolerances_mm": settings.nsd_tolerances_mm,
        "definition": settings.surfaces,
        "on_other_grid": settings.on_other_grid,
        "protocol": settings.protocol,
    }


def _kept(settings: Settings, plan: EvaluationPlan) -> dict[str, dict]:
    """What the scratch folder holds of this very comparison, by the step's name."""
    from brainseg_bids.workflows.evaluate import NAME, asked  # late: nipype

    told = {}
    for image in plan.images:
        facts = read_object(scratch_dir(settings) / NAME / image.name / "facts.json")
        # An earlier run's, of another question, may lie there.
        if facts and facts.get("Asked") == asked(image, **_choices(settings)):
            told[image.name] = facts
    return told


def _earlier_results(settings: Settings, plan: EvaluationPlan) -> dict[str, dict]:
    """What an earlier run found of every image.

    Raises
    ------
    InputError
        If it did not find all of them.
    """
    told = _kept(settings, plan)
    missing = [image.title for image in plan.images if image.name not in told]
    if missing:
        raise InputError(
            f"{scratch_dir(settings)}: what was found of {missing[0]} is not there, or other "
            "files or settings were compared. Run without --reports-only, or give the scratch "
            "folder of that run with -w."
        )
    return told


def collect(settings: Settings, plan: EvaluationPlan, told: Mapping[str, dict]) -> Results:
    """Rows of all images; what a model has seen is left out unless it is asked for."""
    results = Results([], {}, [], {}, {})
    for image in plan.images:
        reference, key = image.reference.name, image.case.key
        facts = told.get(image.name, {"Crash": "it gave no result"})
        if "Crash" in facts:
            results.faults[reference, "", key] = facts["Crash"]
            continue
        results.notes.extend(note for note in facts["Notes"] if note not in results.notes)
        for name, why in facts["Faults"].items():
            results.faults[reference, name, key] = why
        for name, rows in facts["Compared"].items():
            leak = _leak(settings, plan, image, name, facts["Hashes"], results.notes)
            if leak:
                results.leaks[reference, name, key] = leak
                if not settings.include_seen:
                    continue
            known = set(facts["Known"][name])
            results.known[reference, name] = results.known.get((reference, name), known) | known
            results.rows.extend(
                {
                    "reference": reference,
                    "rater": name,
                    "image": key,
                    "subject": image.case.subject,
                    "stratum": image.case.stratum,
                    "protocol": settings.protocol,
                    "seen": bool(leak),
                    **_numbers(row),
                }
                for row in rows
            )
    return results


def _leak(
    settings: Settings,
    plan: EvaluationPlan,
    image: ImagePlan,
    rater: str,
    hashes: Sequence[str],
    notes: list[str],
) -> str:
    """Why a rating is no test: its model was trained or fitted on it."""
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


def _numbers(row: dict) -> dict:
    """A row with NaN where JSON had none, but for the index of a group."""
    return {
        key: float("nan") if value is None and key != "index" else value
        for key, value in row.items()
    }


def common_structures(rows: Sequence[dict], sideless: Collection[str]) -> set[str] | None:
    """Structures to average over beside raters without sides; None: single labels.

    A rater without sides has ``Thalamus`` as a label, one with sides as a group of two.
    """
    every: dict[str, set[str]] = {}
    merged: set[str] = set()
    for row in rows:
        every.setdefault(row["rater"], set()).add(row["name"])
        if row["rater"] in sideless and row["index"] is not None:
            merged.add(row["name"])
    if not merged:
        return None
    return set.intersection(merged, *every.values())


def write_tables(
    folder: Path,
    rows: Sequence[dict],
    made: Mapping[str, list[dict]],
    settings: Settings,
    plan: EvaluationPlan,
) -> None:
    """Every number, as TSV and as JSON."""
    from brainseg_bids.reports.tables import write_tsv  # late: pandas

    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in {"agreement": list(rows), **made}.items():
        write_tsv(folder / f"{name}.tsv", lines)
    text = json.dumps({"agreement": _plain(rows), **{k: _plain(v) for k, v in made.items()}})
    write_text(folder / "evaluation.json", text + "\n")
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


def _plain(lines: Sequence[dict]) -> list[dict]:
    """Without NaN, which JSON has not."""
    return [{k: None if v != v else v for k, v in line.items()} for line in lines]


def write_pages(
    settings: Settings, plan: EvaluationPlan, results: Results, made: Mapping[str, list[dict]]
) -> list[Path]:
    """``group_evaluation.html``; with several references one page each, by their names."""
    from brainseg_bids.reports.evaluation import methods_text, write_evaluation_page

    references = {image.reference.name: image.reference for image in plan.images}
    pages = []
    for name, reference in references.items():
        mark = f"_{name}" if len(references) > 1 else ""
        own = [row for row in results.rows if row["reference"] == name]
        if not own:
            continue
        pages.append(
            write_evaluation_page(
                settings.output_dir / f"group_evaluation{mark}.html",
                title=settings.bids_dir.name,
                rows=own,
                reference=name,
                raters=sorted(plan.raters),
                worst=_draw_worst(settings, plan, own, name, settings.output_dir / FOLDER),
                missing=[
                    Missing(**line)
                    for line in made["missing"]
                    if line["kind"] in ("reference without prediction", "no row of the structure")
                ],
                notes=_notes(reference, plan, results),
                methods=f"{methods_text(settings.surfaces)}\n\n{PROTOCOLS[settings.protocol]}",
                version=__version__,
                leaks=[
                    (rater, image)
                    for ref, rater, image in results.leaks
                    if ref == name and settings.include_seen
                ],
                failures=[
                    *(f"{_title(*w)}: {why}" for w, why in results.faults.items() if w[0] == name),
                    *(
                        why
                        for where, why in results.leaks.items()
                        if where[0] == name and not settings.include_seen
                    ),
                ],
                tables=made,
            )
        )
    return pages


def _notes(reference: Rater, plan: EvaluationPlan, results: Results) -> list[SourceNote]:
    """What adapters and files say, of the reference and of each rater."""
    from brainseg_bids.reports.evaluation import SourceNote

    sources = [("reference", reference)]
    sources += [("rater", rater) for rater in plan.raters.values()]
    found = [
        SourceNote(
            rater.name,
            role,
            rater.adapter.citation,
            rater.adapter.licence,
            tuple(rater.adapter.evaluable or ()) if role == "reference" else (),
            (
                *rater.adapter.notes,
                *((f"Label maps in {rater.root}.",) if _is_called_by_model(rater) else ()),
            ),
        )
        for role, rater in sources
    ]
    said = tuple(dict.fromkeys([*plan.notes, *results.notes]))
    return [*found, SourceNote("This run", notes=said)] if said else found


def _draw_worst(
    settings: Settings, plan: EvaluationPlan, rows: Sequence[dict], reference: str, folder: Path
) -> list:
    """The worst cases, each with its picture."""
    from brainseg_bids.reports.evaluation import find_worst

    images = {i.case.key: i for i in plan.images if i.reference.name == reference}
    sideless = {name for name, rater in plan.raters.items() if not rater.adapter.sides}
    shared = common_structures(rows, sideless)
    drawn = []
    for case in find_worst(rows, reference, n_cases=WORST, names=shared):
        path = folder / "figures" / f"{reference}_{case.rater}_{case.image}.png"
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
    from brainseg_bids.reports.evaluation_cases import draw_case

    judged = judge_again(plan, case.rater, settings)
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


def judge_again(plan: ImagePlan, rater: str, settings: Settings):
    """The two label maps as they were compared."""
    adapter = plan.reference.adapter
    reference, _ = read_rating(plan.case.labels, adapter)
    ratings = {}
    for name, theirs in plan.rated.items():
        if name != rater and settings.protocol != "within-evaluable":
            continue
        with contextlib.suppress(InputError, ValueError):  # told when it was compared
            ratings[name], _ = read_rating(
                theirs.labels,
                plan.adapters[name],
                grid=reference.labels.grid,
                on_other_grid=settings.on_other_grid,
            )
    return comparison(
        reference,
        ratings[rater],
        adapter,
        name=rater,
        protocol=settings.protocol,
        others=[rating for name, rating in ratings.items() if name != rater],
    )
