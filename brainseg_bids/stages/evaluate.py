# SPDX-License-Identifier: Apache-2.0
"""Stage ``evaluate``: compare label maps with manual ones."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids import __version__
from brainseg_bids.bids.description import finite, write_description, write_json
from brainseg_bids.console import working
from brainseg_bids.documents import InputError, Items, Number
from brainseg_bids.files import write_text
from brainseg_bids.options import OptionGroup, above_zero, folder_by_name, option
from brainseg_bids.scratch import explain, scratch_dir, working_alone
from brainseg_bids.stages.base import GroupResult, GroupStage
from brainseg_bids.stages.jobs import read_object
from brainseg_bids.stages.raters import (
    Choice,
    EvaluationPlan,
    ImagePlan,
    Results,
    collect,
    plan_evaluation,
)

if TYPE_CHECKING:
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.interfaces.raters import Rater
    from brainseg_bids.options import Settings
    from brainseg_bids.reports.evaluation import SourceNote, WorstCase

log = logging.getLogger("brainseg")

FOLDER = "evaluation"
WORKFLOW = "evaluate_wf"
WORST = 6
"""Cases of each reference that are drawn."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(OptionGroup):
    """Comparison with manual labels."""

    title: ClassVar[str] = "evaluation (group: --stages evaluate)"
    belongs_to: ClassVar[tuple[str, ...]] = ("evaluate",)

    references: dict = option(
        "--reference",
        default={},
        many=True,
        action="extend",
        parse=folder_by_name,
        stages=("evaluate", "train"),
        metavar="NAME=PATH",
        help="what to compare with: a packaged adapter (ultracortex, oasis_manual, "
        "freesurfer_aseg), FILE.toml of your own, or any other name for a BIDS derivative",
    )
    nsd_tolerances_mm: tuple[float, ...] = option(
        "--nsd-tolerance",
        default=(0.6, 1.0),
        parse=above_zero("millimetres", below=100),
        fits=Items(Number(0, 100, "mm", above=True)),
        metavar="MM",
        help="tolerances of the normalised surface distance; default: 0.6 1.0",
    )
    surfaces: str = option(
        "--surfaces",
        default="surface",
        choices=("surface", "voxel"),
        help="definition of surface distances: of surfels, as DeepMind's surface-distance "
        "(default), or of border voxels, as MONAI",
    )
    on_other_grid: str = option(
        "--on-other-grid",
        default="resample",
        choices=("resample", "refuse"),
        help="label maps on another grid than the reference's; default: resample",
    )
    protocol: str = option(
        "--protocol",
        default="label-restricted",
        choices=("label-restricted", "within-evaluable"),
        help="if a reference labels only part of the brain: evaluate its labels over all voxels "
        "(default), or exclude voxels that it leaves at 0 and any map calls other brain tissue",
    )
    include_seen: bool = option(
        "--include-seen",
        default=False,
        help="also evaluate a model on what it was trained or fitted on, and mark it",
    )


class Evaluate(GroupStage):
    """Label maps against manual ones: how good, with what certainty, compared with what."""

    name = "evaluate"
    after = ("train",)
    options = EvaluateOptions
    heeds_contrasts = True

    def run(self, settings: Settings, run_dir: Path, began_s: float) -> GroupResult:
        with working("stage evaluate"):
            if not settings.reports_only:
                write_description(settings.bids_dir, settings.output_dir)
            return self._evaluate(settings, run_dir)

    def _evaluate(self, settings: Settings, run_dir: Path) -> GroupResult:
        """Compare, summarise, write tables and pages."""
        plan = plan_evaluation(
            settings.output_dir,
            bids_dir=settings.bids_dir,
            references={name: Path(path) for name, path in settings.references.items()},
            derivatives={name: Path(path) for name, path in settings.derivatives.items()},
            choice=Choice(settings.participant_label, settings.session_label, settings.contrasts),
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
        return GroupResult(failures={_title(*key): why for key, why in results.errors.items()})

    def workflow(self, plan: EvaluationPlan, choices: Mapping) -> Workflow:
        """One node for each image of each reference; ``choices`` are inputs of `CompareRaters`."""
        from nipype.pipeline import engine as pe
        from niworkflows.engine.workflows import LiterateWorkflow as Workflow

        from brainseg_bids.interfaces.evaluate import CompareRaters

        workflow = Workflow(name=WORKFLOW)
        for image in plan.images:
            compare = pe.Node(
                CompareRaters(
                    reference=image.reference.who,
                    labels=str(image.case.labels),
                    raters=list(image.rated),
                    who=[plan.raters[name].who for name in image.rated],
                    maps=[str(case.labels) for case in image.rated.values()],
                    segmented=list(map(str, image.segmented)),
                    asked=image.asked(choices),
                    **choices,
                ),
                name=image.name,
                mem_gb=image.memory_gib,
            )
            if image.case.image is not None:
                compare.inputs.image = str(image.case.image)
            workflow.add_nodes([compare])
        return workflow


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
    from brainseg_bids.resources import memory_gib
    from brainseg_bids.runner import configure_nipype, run_workflow  # late: nipype

    crash_dir = settings.work_dir / f"crash_{run_dir.name}"
    configure_nipype(
        crash_dir=crash_dir,
        stop_on_first_crash=settings.stop_on_first_crash,
        resource_monitor=settings.resource_monitor,
    )
    workflow = Evaluate().workflow(plan, _choices(settings))
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
    kept, choices = {}, _choices(settings)
    for image in plan.images:
        metadata = read_object(scratch_dir(settings) / WORKFLOW / image.name / "facts.json")
        # An earlier run's, of another question, may lie there.
        if metadata and metadata.get("Asked") == image.asked(choices):
            kept[image.name] = metadata
    return kept


# -- messages -----------------------------------------------------------------------------


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


WHY_EMPTY = {
    "comparisons": "it compares raters in pairs, on the same images",
    "ranks": "it ranks several raters on the same images",
    "missing": "every label map has its counterpart",
}
"""Why an evaluation may have no line for a table."""


def write_tables(
    settings: Settings, plan: EvaluationPlan, rows: list[dict], tables: Mapping[str, list[dict]]
) -> None:
    """Every number, as TSV and as JSON."""
    from brainseg_bids.reports.tables import write_tsv

    every = {"agreement": rows, **tables}
    folder = settings.output_dir / FOLDER
    for name, lines in every.items():
        write_tsv(folder / f"{name}.tsv", lines)
        if not lines:
            why = WHY_EMPTY.get(name, "no structure is in all label maps")
            log.info("%s.tsv: not written, it would be empty (%s)", folder / name, why)
    write_text(folder / "evaluation.json", json.dumps(finite(every)) + "\n")
    write_json(
        folder / "settings.json",
        {
            "BrainsegVersion": __version__,
            "Surfaces": settings.surfaces,
            "Protocol": settings.protocol,
            "Participants": list(settings.participant_label),
            "Sessions": list(settings.session_label),
            "Contrasts": list(settings.contrasts),
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
        errors = [f"{_title(*k)}: {why}" for k, why in results.errors.items() if k[0] == name]
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
            failures=[*errors, *left_out],
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
    odd = tuple(dict.fromkeys([*plan.notes, *results.warnings, *results.notes]))
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
    from brainseg_bids.images import noting, read_again
    from brainseg_bids.interfaces.ratings import read_rating, read_ratings
    from brainseg_bids.reports.evaluation_cases import draw_case

    with noting():  # the comparison has told it
        reference, _ = read_rating(plan.case.labels, plan.reference.adapter)
    needed = plan.rated if settings.protocol == "within-evaluable" else (case.rater,)
    maps = {name: (plan.rated[name].labels, plan.adapters[name]) for name in needed}
    with noting():
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
