# SPDX-License-Identifier: Apache-2.0
"""Plans to a finished Nipype workflow, with progress and failures told in one line each."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from brainseg_bids.bids.description import write_once
from brainseg_bids.console import Progress, at_work, one_line
from brainseg_bids.documents import InputError
from brainseg_bids.exit_codes import DONE, NOT_BUILT
from brainseg_bids.resources import PROGRAM_GIB, memory_gib
from brainseg_bids.scratch import explain, scratch_dir
from brainseg_bids.settings import Settings
from brainseg_bids.stages import PARTICIPANT
from brainseg_bids.stages.base import ExecutionOptions, Run
from brainseg_bids.stages.jobs import Job, SubjectPlan
from brainseg_bids.stages.segment import SegmentJob

log = logging.getLogger("brainseg")

LEAST_STEPS_GIB = 0.1
"""Memory for steps where the process with the models leaves none: they run one at a time."""

PASS_ON = ("inputnode", "outputnode")
"""Nodes that hand on what others have made; Nipype leaves them out when it runs."""


def run_plans(
    run: Run,
    plans: list[SubjectPlan],
    so_far: list[SubjectPlan],
    tables: Mapping[str, Path],
    run_dir: Path,
    on_participant: Callable[[str], None] = lambda label: None,
) -> tuple[dict[str, str], int]:
    """Build and run; failures by title, and an exit code.

    ``so_far`` are these plans and those of earlier passes, for the methods text;
    ``on_participant`` is told the label of each participant when all of these plans is done.
    """
    settings = run.settings
    errors = {title: why for plan in plans for title, why in plan.errors.items()}
    if settings.reports_only:
        missing = "there are no results of it. Run without --reports-only."
        return errors | {scan.title: missing for plan in plans for scan in plan.to_run}, DONE
    citation = settings.output_dir / "logs" / "CITATION.md"
    to_run = sum(len(plan.to_run) for plan in plans)
    if not to_run and citation.is_file() and not settings.boilerplate_only:
        return errors, DONE
    if settings.fs_license_file:
        os.environ["FS_LICENSE"] = str(settings.fs_license_file)  # tools look there
    will_run = to_run and not settings.boilerplate_only
    if will_run:
        try:
            # Before the workflow is built, which copies Nipype's settings.
            crash_dir = _prepare(settings, run_dir)
        except OSError as error:
            why = explain(str(error), settings.work_dir)
            return errors | {scan.title: why for plan in plans for scan in plan.to_run}, DONE
    with contextlib.ExitStack() as stack:
        program, held_gib = run.program, 0.0
        if will_run and not program and settings.nipype_plugin_file is None:
            program, held_gib = stack.enter_context(_segmenting_program(plans))
        try:
            workflow, description = _build(run, plans, so_far, tables, program)
        except Exception as error:  # whatever it is, it is an error of this program
            _log_build_error(error)
            return errors, NOT_BUILT
        _write_citation(citation, description)
        if settings.write_graph:
            _draw_graph(workflow, run_dir / "graph.dot")
        if not will_run:
            return errors, DONE
        workflow.base_dir = str(scratch_dir(settings))
        failures, code = _run_workflow(
            settings, workflow, plans, crash_dir, _steps_gib(settings, held_gib), on_participant
        )
    with contextlib.suppress(OSError, shutil.Error):
        if failures:
            shutil.copytree(crash_dir, run_dir / "crash", dirs_exist_ok=True)
        shutil.rmtree(crash_dir)
    return errors | failures, code


def _log_build_error(error: Exception) -> None:
    log.error(
        "the workflow could not be built (%s: %s). This is a fault of brainseg; please report it.",
        type(error).__name__,
        error,
    )
    log.debug("workflow", exc_info=True)


def _prepare(settings: Settings, run_dir: Path) -> Path:
    """Scratch folder and Nipype's settings; where crashes are told."""
    from brainseg_bids.runner import configure_nipype  # late: nipype

    # In the scratch folder: the disk of the results may be what is full. One for each pass of a
    # run: what is in it is what failed in that pass.
    scratch_dir(settings).mkdir(parents=True, exist_ok=True)
    crash_dir = Path(tempfile.mkdtemp(prefix=f"crash_{run_dir.name}_", dir=settings.work_dir))
    configure_nipype(
        crash_dir=crash_dir,
        stop_on_first_crash=settings.stop_on_first_crash,
        resource_monitor=settings.resource_monitor,
    )
    return crash_dir


@contextlib.contextmanager
def _segmenting_program(plans: Sequence[SubjectPlan]) -> Iterator[tuple[tuple[str, ...], float]]:
    """The program that segments, with the network loaded once if there are several images.

    With it the memory that is held for it all the time, GiB. While an image is segmented most of
    it is shared, but beside other steps it counts in full.
    """
    jobs = [job for plan in plans for job in plan.to_run if isinstance(job, SegmentJob)]
    if len(jobs) < 2:
        yield (), 0.0
        return
    from brainseg_bids.programs.preload import SEGMENT, preloaded

    models = {one.path: None for job in jobs for one in (job.model, *job.ensemble)}
    with preloaded(list(map(str, models))) as program:
        yield program, 0.0 if program == SEGMENT else PROGRAM_GIB


def _steps_gib(settings: Settings, held_gib: float) -> float:
    """Memory for the steps of a workflow, beside what is held all the time."""
    # Nipype's own guess does not know the limit of a container or a batch job.
    return max((settings.memory_gb or 0.9 * memory_gib()) - held_gib, LEAST_STEPS_GIB)


def _build(
    run: Run,
    plans: list[SubjectPlan],
    so_far: list[SubjectPlan],
    tables: Mapping[str, Path],
    program: tuple[str, ...],
):
    """The workflow, and the methods text of all that the plans so far stand for."""
    from brainseg_bids.stages.workflow import init_brainseg_wf  # late: nipype

    settings = run.settings
    if settings.omp_nthreads > settings.nprocs:
        log.warning(
            "--omp-nthreads %d is more than --nprocs %d", settings.omp_nthreads, settings.nprocs
        )
    execution = ExecutionOptions(
        tables=dict(tables),
        output_dir=settings.output_dir,
        device=settings.device,
        threads=min(settings.omp_nthreads, settings.nprocs),
        tool_timeout_s=3600 * settings.tool_timeout_h,
        program=program,
        register=tuple(settings.tools.get("ants", ())),
    )
    everything = init_brainseg_wf([plan.redone() for plan in so_far], execution)
    return init_brainseg_wf(plans, execution), everything.visit_desc()


class _Steps:
    """Steps of a workflow as they begin and end: what is at work, and which participant is done.

    Parameters
    ----------
    workflow : nipype Workflow
    plans : sequence of SubjectPlan
    on_participant : callable
        Told the label of each participant whose steps have all ended well.
    """

    def __init__(
        self, workflow, plans: Sequence[SubjectPlan], on_participant: Callable[[str], None]
    ) -> None:
        self.on_participant = on_participant
        self.jobs = {
            f"{workflow.name}.{plan.name}.{job.name}.": job
            for plan in plans
            for job in plan.to_run
        }
        self.labels = {plan.name: plan.label for plan in plans}
        self.left: dict[str, set[str]] = {}
        for name in workflow.list_node_names():
            if name.rpartition(".")[2] not in PASS_ON:
                step = f"{workflow.name}.{name}"
                self.left.setdefault(self._participant(step), set()).add(step)

    @staticmethod
    def _participant(step: str) -> str:
        return step.split(".")[1]

    def job(self, step: str) -> Job | None:
        """The job that a step belongs to."""
        found = (job for prefix, job in self.jobs.items() if f"{step}.".startswith(prefix))
        return next(found, None)

    def result_file(self, step: str) -> str:
        """The file in which a step leaves metadata of its result, if its stage says so."""
        job = self.job(step)
        kept = PARTICIPANT[job.stage].result_files if job else {}
        return kept.get(step.rpartition(".")[2], "")

    def title(self, step: str) -> str:
        """What messages call the image that a step is about."""
        job = self.job(step)
        return job.title if job else step

    def words(self, step: str) -> str:
        """What messages call the step."""
        return f"{self.title(step)}: {step.rpartition('.')[2]}"

    def __call__(self, step: str, status: str) -> None:
        """Told each step with ``start``, ``end`` or ``exception``."""
        if status == "start":
            at_work.begin(self.words(step))
            return
        at_work.end(self.words(step))
        left = self.left.get(self._participant(step), set())
        if status == "end" and step in left:
            left.discard(step)
            if not left:
                self.on_participant(self.labels[self._participant(step)])


def _run_workflow(
    settings: Settings,
    workflow,
    plans: list[SubjectPlan],
    crash_dir: Path,
    steps_gib: float,
    on_participant: Callable[[str], None],
) -> tuple[dict[str, str], int]:
    """Failures by title, and the exit code that their kind asks for, or 0."""
    from brainseg_bids.runner import run_workflow

    steps = _Steps(workflow, plans, on_participant)
    title_of = steps.title

    with Progress(len(steps.jobs)) as progress:

        def worked(step: str, percent: int) -> None:
            at_work.percent[steps.words(step)] = percent
            progress(title_of(step), percent)

        def ended(step: str, result: dict) -> None:
            job = steps.job(step)
            stage = PARTICIPANT[job.stage]
            if step.rpartition(".")[2] == list(stage.result_files)[-1]:
                progress(job.title, 100)
            result = result.get("metadata", result)
            warnings = [
                *result.get("Warnings", []),
                *(f"{job.title}: look at it: {fault}" for fault in result.get("ToLookAt", [])),
            ]
            for text in warnings:
                log.warning("%s", text)
            for message in stage.messages(job.title, result):
                log.log(message.level, "%s", message.text)

        crashed = run_workflow(
            workflow,
            nprocs=settings.nprocs,
            memory_gb=steps_gib,
            crash_dir=crash_dir,
            result_file=steps.result_file,
            plugin=read_plugin(settings.nipype_plugin_file),
            on_end=ended,
            on_progress=worked,
            on_step=steps,
        )
    failures: dict[str, str] = {}
    for step, crash in crashed.items():
        reason = explain(crash.reason, settings.work_dir)
        # What ends all of it is told of each image that it has left undone.
        undone = [scan.title for plan in plans for scan in plan.to_run if not scan.has_results]
        for title in undone if step == workflow.name else [title_of(step)]:
            failures.setdefault(title, reason)
    return failures, max((crash.exit_code for crash in crashed.values()), default=DONE)


def _draw_graph(workflow, path: Path) -> None:
    try:
        workflow.write_graph(str(path), graph2use="colored", format="png")
    except OSError as error:  # the text is written before Graphviz is called
        log.warning("%s: not drawn (%s); install Graphviz", path, one_line(error))


def _write_citation(path: Path, description: str) -> None:
    paragraphs = "\n".join(
        ["# Methods", "", description.strip(), "", "References: `CITATION.bib`.", ""]
    )
    write_once(path, paragraphs)
    source = resources.files("brainseg_bids") / "data" / "methods.bib"
    write_once(path.with_suffix(".bib"), source.read_text(encoding="utf-8"))


def read_plugin(path: Path | None) -> dict | None:
    """Nipype's plugin and its arguments from the file of ``--use-plugin``.

    Raises
    ------
    InputError
        If it is none, or names a plugin that cannot be used.
    """
    if path is None:
        return None
    import yaml

    from brainseg_bids.runner import check_plugin  # late: nipype

    try:
        plugin = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"--use-plugin {path}: this is not valid YAML ({one_line(error)})."
        ) from error
    if not isinstance(plugin, dict) or "plugin" not in plugin:
        raise InputError(f"--use-plugin {path}: the key plugin is missing.")
    try:
        check_plugin(plugin)
    except ValueError as error:
        raise InputError(f"--use-plugin {path}: {error}") from error
    return plugin
