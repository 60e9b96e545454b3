# SPDX-License-Identifier: Apache-2.0
"""`Settings` to exit code: find, decide, run, and always leave a report."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from tqdm import tqdm

from brainseg_bids import __version__
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_description, write_label_tables, write_text
from brainseg_bids.bids.inputs import dataset_notes, find_participants, find_subjects
from brainseg_bids.nets.bundle import DEFAULT_MODEL, BundleError, ModelBundle, find_bundle
from brainseg_bids.settings import Settings
from brainseg_bids.volumes import InputError
from brainseg_bids.workflows.plan import (
    Model,
    SubjectPlan,
    describe_plans,
    plan_subject,
)

log = logging.getLogger("brainseg")

DONE, FAILED, UNUSABLE, NOT_BUILT, INTERRUPTED = 0, 1, 2, 70, 130


def run(settings: Settings, *, program: Sequence[str] | None = None) -> int:
    """Do what the settings say.

    Parameters
    ----------
    settings : Settings
    program : sequence of str, optional
        What segments one image, instead of ``brainseg_bids.cli.predict``.

    Returns
    -------
    int
        Exit code; see ``brainseg --help``.
    """
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4().hex[:8]}"
    try:
        run_dir = settings.output_dir / "logs" / run_id
        write_text(run_dir / "settings.toml", settings.to_toml())
        with _logging(run_dir / "brainseg.log", settings.verbose, settings.debug):
            try:
                level = _participants if settings.analysis_level == "participant" else _group
                return level(settings, run_dir, program)
            except (InputError, BundleError) as error:
                log.error("%s", error)
                return UNUSABLE
            except KeyboardInterrupt:
                log.error("interrupted; run the same command again to go on")
                return INTERRUPTED
    except OSError as error:  # the disk that the log is on is full, or gone
        where = error.filename or settings.output_dir
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        remedy = "Make room or choose another folder" if full else "Check that it is there for you"
        print(
            f"brainseg: ERROR: {where}: {error.strerror or error}. {remedy}, and run it again.",
            file=sys.stderr,
        )
        return FAILED


def _group(settings: Settings, run_dir: Path, program: Sequence[str] | None) -> int:
    from brainseg_bids.workflows.pages import write_group  # late: matplotlib

    page, n_images = write_group(
        settings.output_dir, title=settings.bids_dir.name, participants=settings.participant_label
    )
    log.info("%d images compared: %s", n_images, page)
    return DONE


def _participants(settings: Settings, run_dir: Path, program: Sequence[str] | None) -> int:
    model, table = _read_model(settings.model or DEFAULT_MODEL)
    plans = _plan(settings, model)
    if not any(plan.scans or plan.faults for plan in plans):
        wanted = ", ".join(settings.contrasts) or "structural"
        raise InputError(
            f"{settings.bids_dir}: no {wanted} image was found for {len(plans)} participant(s). "
            "Check --contrasts, --session-label and --bids-filter-file."
        )
    output_dir = settings.output_dir
    write_description(settings.bids_dir, output_dir)
    tables = write_label_tables(
        output_dir, {"brainseg": table, "tissue": LabelTable.packaged("tissue")}
    )
    failures: dict[str, str] = {}  # what messages call it: why
    code = NOT_BUILT
    try:
        failures, code = _run_plans(settings, plans, model, tables["brainseg"], run_dir, program)
    finally:
        failures |= _write_pages(settings, plans, failures)
    for title, reason in failures.items():
        log.error("%s: failed: %s", title, reason)
    if failures:
        total = sum(len(plan.scans) + len(plan.faults) for plan in plans)
        others = len(failures) < total and not settings.stop_on_first_crash
        rest = "; the others are complete" if others else ""
        log.error("%d of %d could not be done%s", len(failures), total, rest)
        return FAILED if code == DONE else code
    if code == DONE:
        log.info("finished successfully!")
        log.info(
            "report: %s",
            output_dir / f"sub-{plans[0].label}.html"
            if len(plans) == 1
            else output_dir / "sub-*.html",
        )
    return code


def _read_model(name: str) -> tuple[Model, LabelTable]:
    bundle = ModelBundle.read(find_bundle(name))
    codes = {label.index for label in bundle.table}
    unknown = sorted(codes - set(Crosswalk.packaged("brainseg", "tissue").pairs))
    if unknown:
        raise BundleError(
            f"{bundle.path}: label codes {', '.join(map(str, unknown))} have no tissue in table "
            "brainseg. Use a model that was trained for it."
        )
    names = tuple(label.name for label in bundle.table)
    return Model(bundle.path, bundle.name, bundle.digest, bundle.contrasts, names), bundle.table


def _plan(settings: Settings, model: Model) -> list[SubjectPlan]:
    if not settings.skip_bids_validation:
        for note in dataset_notes(settings.bids_dir):
            log.warning("%s", note)
    labels = find_participants(settings.bids_dir, settings.participant_label)
    subjects = find_subjects(
        settings.bids_dir,
        labels,
        sessions=settings.session_label,
        contrasts=settings.contrasts,
        filters=settings.bids_filters,
        database_dir=settings.bids_database_dir,
    )
    plans = []
    for subject in subjects:
        if not subject.scans and not subject.faults:
            log.warning("sub-%s: no image was found, skipped", subject.label)
        plans.append(
            plan_subject(
                subject,
                bids_dir=settings.bids_dir,
                output_dir=settings.output_dir,
                model=model,
                probseg=settings.probseg,
            )
        )
    for line in describe_plans(plans):
        log.info("%s", line)
    for plan in plans:
        for scan in plan.to_run:
            if model.contrasts and scan.scan.suffix not in model.contrasts:
                log.warning(
                    "%s: model %s was made for %s; look at the result with care",
                    scan.scan.title,
                    model.name,
                    ", ".join(model.contrasts),
                )
    return plans


def _run_plans(
    settings: Settings,
    plans: list[SubjectPlan],
    model: Model,
    table: Path,
    run_dir: Path,
    program: Sequence[str] | None,
) -> tuple[dict[str, str], int]:
    """Build and run; failures by title, and an exit code."""
    faults = {title: why for plan in plans for title, why in plan.faults.items()}
    citation = settings.output_dir / "logs" / "CITATION.md"
    to_run = sum(len(plan.to_run) for plan in plans)
    if (
        (settings.reports_only or not to_run)
        and citation.is_file()
        and not settings.boilerplate_only
    ):
        return faults, DONE

    from brainseg_bids.interfaces.segment import PREDICT  # late: nipype
    from brainseg_bids.workflows.base import HowToRun, init_brainseg_wf
    from brainseg_bids.workflows.runner import configure_nipype

    # In the scratch folder: the disk of the results may be what is full.
    if settings.clean_workdir:
        _empty(settings.work_dir)
    crash_dir = settings.work_dir / f"crash_{run_dir.name}"
    configure_nipype(
        crash_dir=crash_dir,
        stop_on_first_crash=settings.stop_on_first_crash,
        resource_monitor=settings.resource_monitor,
    )
    if settings.omp_nthreads > settings.nprocs:
        log.warning(
            "--omp-nthreads %d is more than --nprocs %d", settings.omp_nthreads, settings.nprocs
        )
    how = HowToRun(
        model=model,
        table=table,
        output_dir=settings.output_dir,
        device=settings.device,
        threads=min(settings.omp_nthreads, settings.nprocs),
        program=tuple(program or PREDICT),
    )
    try:
        workflow = init_brainseg_wf(plans, how)
        everything = init_brainseg_wf([plan.redone() for plan in plans], how)
    except Exception as error:  # whatever it is, it is ours to mend
        log.error(
            "the workflow could not be built (%s: %s). This is a fault of brainseg; "
            "please report it.",
            type(error).__name__,
            error,
        )
        log.debug("workflow", exc_info=True)
        return faults, NOT_BUILT
    _write_citation(citation, everything.visit_desc())
    if settings.write_graph:
        _draw_graph(workflow, run_dir / "graph.dot")
    if settings.boilerplate_only or settings.reports_only or not to_run:
        return faults, DONE
    workflow.base_dir = str(settings.work_dir)
    failures = _run_workflow(settings, workflow, plans, crash_dir, to_run)
    with contextlib.suppress(OSError):
        shutil.copytree(crash_dir, run_dir / "crash") if failures else shutil.rmtree(crash_dir)
    return faults | failures, DONE


def _run_workflow(
    settings: Settings, workflow, plans: list[SubjectPlan], crash_dir: Path, to_run: int
) -> dict[str, str]:
    from brainseg_bids.workflows.runner import run_workflow

    titles = {
        f"{workflow.name}.{plan.name}.{scan.name}.": scan.scan.title
        for plan in plans
        for scan in plan.to_run
    }

    def title_of(step: str) -> str:
        return next(
            (title for prefix, title in titles.items() if f"{step}.".startswith(prefix)), step
        )

    with _Progress(to_run) as progress:

        def segmented(step: str, report: dict) -> None:
            title = title_of(step)
            progress(title, 100)
            for note in report["warnings"]:
                log.warning("%s", note)
            took_s, peak_gib = report["took_s"], report["peak_gib"]
            log.info("%s: segmented in %.0f s, peak %.1f GiB", title, took_s, peak_gib)

        crashed = run_workflow(
            workflow,
            nprocs=settings.nprocs,
            memory_gb=settings.memory_gb,
            crash_dir=crash_dir,
            plugin=_read_plugin(settings.nipype_plugin_file),
            on_segmented=segmented,
            on_progress=lambda step, percent: progress(title_of(step), percent),
        )
    failures: dict[str, str] = {}
    for step, reason in crashed.items():
        if "No space left on device" in reason:
            where = f"{settings.work_dir} or {settings.output_dir}"
            reason = f"{reason}. The disk of {where} is full; make room."
        failures.setdefault(title_of(step), reason)
    return failures


class _Progress:
    """A bar on a terminal; elsewhere a line per image and quarter of the way."""

    def __init__(self, n_images: int) -> None:
        self.percent: dict[str, int] = {}
        self.bar = tqdm(
            total=100 * n_images,
            disable=not sys.stderr.isatty(),
            bar_format="{percentage:3.0f} %|{bar}| {elapsed}{postfix}",
        )

    def __call__(self, title: str, percent: int) -> None:
        before = self.percent.get(title, 0)
        if percent <= before:
            return
        self.percent[title] = percent
        self.bar.update(percent - before)
        self.bar.set_postfix_str(title)
        if self.bar.disable and percent < 100 and percent // 25 > before // 25:
            log.info("%s: %d %%", title, percent)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()


def _write_pages(
    settings: Settings, plans: list[SubjectPlan], failures: dict[str, str]
) -> dict[str, str]:
    """One page per participant; returns what could not be written."""
    if settings.boilerplate_only:
        return {}
    from brainseg_bids.workflows.pages import write_subject_page  # late: jinja2, numpy

    citation = settings.output_dir / "logs" / "CITATION.md"
    methods = citation.read_text(encoding="utf-8") if citation.is_file() else ""
    missed = {}
    for plan in plans:
        own = {scan.scan.title for scan in plan.scans} | set(plan.faults)
        errors = [f"{title}: {why}" for title, why in failures.items() if title in own]
        if not plan.scans and not errors:
            continue
        try:
            write_subject_page(
                plan,
                output_dir=settings.output_dir,
                bids_dir=settings.bids_dir,
                errors=errors,
                settings=settings.to_toml(),
                methods=methods,
            )
        except (OSError, ValueError, KeyError) as error:
            missed[f"sub-{plan.label} report"] = (
                f"it could not be written ({error}). Run with --reports-only."
            )
    return missed


def _draw_graph(workflow, path: Path) -> None:
    try:
        workflow.write_graph(str(path), graph2use="colored", format="png")
    except OSError as error:  # the text is written before Graphviz is called
        log.warning("%s: not drawn (%s); install Graphviz", path, _one_line(error))


def _write_citation(path: Path, description: str) -> None:
    paragraphs = "\n".join(
        ["# Methods", "", description.strip(), "", "References: `CITATION.bib`.", ""]
    )
    write_text(path, paragraphs)
    source = resources.files("brainseg_bids") / "data" / "methods.bib"
    write_text(path.with_suffix(".bib"), source.read_text(encoding="utf-8"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_plugin(path: Path | None) -> dict | None:
    if path is None:
        return None
    import yaml

    try:
        plugin = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--use-plugin {path}: this is no YAML ({_one_line(error)}).") from error
    if not isinstance(plugin, dict) or "plugin" not in plugin:
        raise InputError(f"--use-plugin {path}: the key plugin is missing.")
    if str(plugin["plugin"]).endswith("Graph"):
        raise InputError(
            f"--use-plugin {path}: {plugin['plugin']} returns before its jobs have ended. "
            "Run one job per participant with --participant-label instead."
        )
    return plugin


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class _ConsoleHandler(logging.Handler):
    """Lines on stdout that do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _FileHandler(logging.FileHandler):
    """A log on a disk that is full shall not hide what went wrong under tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        return f"{clock} {level}{record.getMessage()}"


@contextlib.contextmanager
def _logging(path: Path, verbose: int, debug: bool) -> Iterator[None]:
    """Console and file handlers on our logger; Nipype's goes to the file, or with -v to both."""
    console = _ConsoleHandler()
    console.setFormatter(_ConsoleFormatter())
    file = _FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    log.setLevel(logging.DEBUG if verbose or debug else logging.INFO)
    log.propagate = False
    log.handlers[:] = [console, file]
    os.environ.setdefault("NIPYPE_NO_ET", "1")
    nipype = logging.getLogger("nipype")
    nipype.handlers[:] = [file, console] if verbose else [file]
    nipype.propagate = False
    try:
        log.info("brainseg-bids %s, log: %s", __version__, path)
        yield
    finally:
        log.handlers[:] = []
        nipype.handlers[:] = []
        with contextlib.suppress(OSError):
            file.close()
