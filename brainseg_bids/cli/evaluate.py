# SPDX-License-Identifier: Apache-2.0
"""Stage ``evaluate``: how good, with what certainty, compared with what."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.bids.description import write_json, write_text
from brainseg_bids.settings import Settings
from brainseg_bids.volumes import InputError, whole_or_nothing
from brainseg_bids.workflows.evaluate_plan import (
    OURS,
    EvaluationPlan,
    ImagePlan,
    plan_evaluation,
    seen_by,
)
from brainseg_bids.workflows.resources import memory_gib

log = logging.getLogger("brainseg")

FOLDER = "evaluation"
WORST = 3
"""Cases of each rater that are drawn."""


@dataclass(frozen=True)
class Results:
    """What comparing gave.

    Parameters
    ----------
    rows : list of dict
    known : dict of str to set of str
        Structures that a rater can say, by name.
    notes : list of str
    faults : dict of str to str
        What could not be compared, and why.
    leaks : list of str
        Ratings by a model of what it has seen.
    """

    rows: list[dict]
    known: dict[str, set[str]]
    notes: list[str]
    faults: dict[str, str]
    leaks: list[str]


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
    from brainseg_bids.evaluation.summary import tables

    plan = plan_evaluation(
        settings.output_dir,
        references={name: Path(path) for name, path in settings.references.items()},
        derivatives={name: Path(path) for name, path in settings.derivatives.items()},
        participants=settings.participant_label,
    )
    for note in plan.notes:
        log.warning("%s", note)
    results = collect(settings, plan, _run(settings, plan, run_dir))
    for leak in results.leaks:
        log.warning("%s", leak)
    if not results.rows:
        why = "; ".join([*results.faults.values(), *results.leaks])
        raise InputError(f"nothing could be compared: {why}")
    made = tables(
        results.rows,
        structures=common_structures(results.rows),
        known=results.known,
        references=plan.found_references,
        raters=plan.found_raters,
    )
    write_tables(settings.output_dir / FOLDER, results.rows, made, settings)
    page = write_page(settings, plan, results, made)
    for line in made["headline"]:
        if line["stratum"] == "all" and line["metric"] == "dice" and line["mean"] is not None:
            interval = (
                f" ({line['low']:.3f} to {line['high']:.3f})" if line["low"] is not None else ""
            )
            log.info(
                "%s against %s: Dice %.3f%s, %s, %d subject(s)",
                line["rater"],
                line["reference"],
                line["mean"],
                interval,
                line["name"],
                line["n_subjects"],
            )
    log.info("report: %s", page)
    return results.faults


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
    workflow = init_evaluate_wf(
        plan,
        tolerances_mm=settings.nsd_tolerances_mm,
        definition=settings.surfaces,
        on_other_grid=settings.on_other_grid,
        protocol=settings.protocol,
    )
    workflow.base_dir = str(settings.work_dir)
    crashed = run_workflow(
        workflow,
        nprocs=settings.nprocs,
        memory_gb=settings.memory_gb or 0.9 * memory_gib(),
        crash_dir=crash_dir,
        plugin=None,
        on_end=lambda step, facts: None,
        on_progress=lambda step, percent: None,
    )
    told: dict[str, dict] = {
        step.split(".")[-1]: {"Crash": crash.reason} for step, crash in crashed.items()
    }
    for image in plan.images:
        path = settings.work_dir / workflow.name / image.name / "facts.json"
        if image.name not in told and path.is_file():
            told[image.name] = json.loads(path.read_text(encoding="utf-8"))
    return told


def collect(settings: Settings, plan: EvaluationPlan, told: Mapping[str, dict]) -> Results:
    """Rows of all images; what a model has seen is left out unless it is asked for."""
    results = Results([], {}, [], {}, [])
    for image in plan.images:
        facts = told.get(image.name, {"Crash": "it gave no result"})
        if "Crash" in facts:
            results.faults[image.title] = facts["Crash"]
            continue
        results.notes.extend(note for note in facts["Notes"] if note not in results.notes)
        for name, why in facts["Faults"].items():
            results.faults[f"{image.title}, {name}"] = why
        for name, rows in facts["Compared"].items():
            leak = _leak(settings, image, name, facts["Hashes"], results.notes)
            if leak:
                results.leaks.append(leak)
                if not settings.include_seen:
                    continue
            known = set(facts["Known"][name])
            results.known[name] = results.known.get(name, known) & known
            results.rows.extend(
                {
                    "reference": image.reference.name,
                    "rater": name,
                    "image": image.case.key,
                    "subject": image.case.subject,
                    "stratum": image.case.stratum,
                    "seen": bool(leak),
                    **_numbers(row),
                }
                for row in rows
            )
    return results


def _leak(
    settings: Settings, image: ImagePlan, rater: str, hashes: Sequence[str], notes: list[str]
) -> str:
    """Why a rating is no test: its model was trained or fitted on it."""
    seen, model = seen_by(image.rated[rater].labels, settings.model if rater == OURS else "")
    if model and seen is None:
        note = f"{rater}: model {model} does not say what it was trained on; nothing is checked."
        if note not in notes:
            notes.append(note)
    if not seen or not seen & set(hashes):
        return ""
    done = "marked" if settings.include_seen else "left out; --include-seen takes it in, marked"
    return (
        f"{image.title}: {rater}'s model {model} was trained or fitted on it, so this is no test "
        f"of it. It is {done}."
    )


def _numbers(row: dict) -> dict:
    """A row with NaN where JSON had none, but for the index of a group."""
    return {
        key: float("nan") if value is None and key != "index" else value
        for key, value in row.items()
    }


def common_structures(rows: Sequence[dict]) -> set[str] | None:
    """Structures to average over if raters differ in what they call one; None: single labels.

    A rater without sides has ``Thalamus`` as a label, one with sides as a group of two.
    """
    single: dict[str, set[str]] = {}
    every: dict[str, set[str]] = {}
    for row in rows:
        every.setdefault(row["rater"], set()).add(row["name"])
        if row["index"] is not None:
            single.setdefault(row["rater"], set()).add(row["name"])
    if all(names == next(iter(single.values())) for names in single.values()):
        return None
    sideless = min(single.values(), key=len)  # its labels are the others' groups
    shared = set.intersection(*every.values())
    return (shared & sideless) or shared


def write_tables(
    folder: Path, rows: Sequence[dict], made: Mapping[str, list[dict]], settings: Settings
) -> None:
    """Every number, as TSV and as JSON."""
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
            "OnOtherGrid": settings.on_other_grid,
            "NsdTolerancesMm": list(settings.nsd_tolerances_mm),
            "References": {name: str(path) for name, path in settings.references.items()},
            "Raters": {name: str(path) for name, path in settings.derivatives.items()},
        },
    )


def write_tsv(path: Path, lines: Sequence[dict]) -> Path:
    """A table, whole or not at all; what is not there is n/a."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with whole_or_nothing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(line.get(column)) for column in columns] for line in lines)
    return path


def _cell(value) -> str:
    if value is None or value == "" or value != value:
        return "n/a"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(lines: Sequence[dict]) -> list[dict]:
    """Without NaN, which JSON has not."""
    return [{k: None if v != v else v for k, v in line.items()} for line in lines]


def write_page(
    settings: Settings, plan: EvaluationPlan, results: Results, made: Mapping[str, list[dict]]
) -> Path:
    """``group_evaluation.html``."""
    raise NotImplementedError
