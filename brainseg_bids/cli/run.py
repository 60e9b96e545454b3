# SPDX-License-Identifier: Apache-2.0
"""`Settings` to exit code: find, decide, run, and always leave a report."""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from brainseg_bids.anatomy.cohort import Cohort
from brainseg_bids.bids.names import is_label
from brainseg_bids.cli.execute import read_plugin, run_plans
from brainseg_bids.cli.group import log_finished, run_group
from brainseg_bids.cli.stages import chosen_stages, plan_stages, write_root
from brainseg_bids.console import logging_to, working
from brainseg_bids.documents import InputError
from brainseg_bids.exit_codes import DONE, FAILED, INTERRUPTED, NOT_BUILT, UNUSABLE
from brainseg_bids.files import DAY_S, DISK_FAULTS, remove_unfinished, write_text
from brainseg_bids.hpc.runs import recorded
from brainseg_bids.nets.bundle import BundleError
from brainseg_bids.scratch import TOO_MANY, participants_of, working_alone
from brainseg_bids.settings import Settings
from brainseg_bids.stages import passes
from brainseg_bids.stages.base import Refused, Run
from brainseg_bids.stages.jobs import SubjectPlan, image_of, joined, to_review
from brainseg_bids.units import listed

log = logging.getLogger("brainseg")


def run(settings: Settings, *, program: Sequence[str] | None = None) -> int:
    """Do what the settings say.

    Parameters
    ----------
    settings : Settings
    program : sequence of str, optional
        What segments one image, instead of ``brainseg_bids.programs.segment``.

    Returns
    -------
    int
        Exit code; see ``brainseg --help``.
    """
    if settings.slurm:
        from brainseg_bids.hpc.submit import submit

        return submit(settings)
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4().hex[:8]}"
    try:
        run_dir = settings.output_dir / "logs" / run_id
        write_text(run_dir / "settings.toml", settings.to_toml())
        log_path = run_dir / "brainseg.log"
        with (
            logging_to(log_path, verbose=settings.verbose, debug=settings.debug),
            recorded(run_dir) as ended,
        ):
            code = _at_level(settings, run_dir, program)
            ended(code)
            return code
    except OSError as error:  # the disk that the log is on is full, or gone
        where = error.filename or settings.output_dir
        remedy = "Check that it exists and can be written"
        if error.errno in DISK_FAULTS:
            remedy = "Make room or choose another folder"
        if error.errno in TOO_MANY:
            remedy = TOO_MANY[error.errno][1]
        print(
            f"brainseg: ERROR: {where}: {error.strerror or error}. {remedy}, and run it again.",
            file=sys.stderr,
        )
        return FAILED


def _at_level(settings: Settings, run_dir: Path, program: Sequence[str] | None) -> int:
    """Do it at the level that was asked for; what cannot be done for anyone is told in a line."""
    try:
        if settings.analysis_level == "group":
            return run_group(settings, run_dir)
        return _participants(settings, run_dir, program)
    except (InputError, BundleError) as error:
        log.error("%s", error)
        return UNUSABLE
    except Refused as error:
        log.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        log.error("interrupted; run the same command again to go on")
        return INTERRUPTED


def _participants(settings: Settings, run_dir: Path, program: Sequence[str] | None) -> int:
    if settings.reports_only or settings.boilerplate_only:
        return _plan_and_run(settings, run_dir, program)
    # Before anything is decided: another run's results are reused, not made again.
    names, sessions = participants_of(settings), settings.session_label
    with working_alone(settings, names, sessions=sessions) as alone:
        if alone:
            _remove_unfinished(settings.output_dir, names, sessions)
        return _plan_and_run(settings, run_dir, program)


def _remove_unfinished(home: Path, names: Sequence[str], sessions: Sequence[str]) -> None:
    """Remove what a run that was killed has left half-written of these participants."""
    inside = [f"ses-{label.removeprefix('ses-')}" for label in sessions] or ["."]
    for root in (home, *home.glob("derivatives/*")):
        for name in names:
            for folder in inside:
                remove_unfinished((root / name / folder).rglob(".*"))
    remove_unfinished(home.glob(".*"), older_than_s=DAY_S)  # pages: any run may be writing them


def _plan_and_run(settings: Settings, run_dir: Path, program: Sequence[str] | None) -> int:
    shared = Run(settings, tuple(program or ()))
    stages = chosen_stages(settings)
    # Whatever is asked for, what is named has to be there and to be right.
    shared.models  # noqa: B018
    read_plugin(settings.nipype_plugin_file)
    for stage in stages:
        stage.check(shared)
    plans: list[SubjectPlan] = []
    failures: dict[str, str] = {}  # what messages call it: why
    code = DONE
    pages = _Pages(settings)

    def participant_done(label: str) -> None:
        (plan,) = [plan for plan in plans if plan.label == label]
        pages.write(plan, failures | plan.errors)

    try:
        for together in passes({stage.name for stage in stages}):
            try:
                new = plan_stages(shared, together)
            except InputError:
                if not failures:
                    raise
                break  # nothing came out of the pass before, and that has been reported
            tables = {} if settings.reports_only else write_root(shared, stages)
            plans = joined([*plans, *new])
            failed, ended = run_plans(shared, new, plans, tables, run_dir, participant_done)
            failures |= failed
            shared.failed |= failed.keys()
            code = ended if code == NOT_BUILT else max(code, ended)
            if ended == NOT_BUILT or (failures and settings.stop_on_first_crash):
                break
    finally:
        failures |= pages.write_rest(plans, failures)
    if not settings.boilerplate_only:
        _say_outdated(settings, plans)
    return _conclude(settings, plans, failures, code)


def _say_outdated(settings: Settings, plans: Sequence[SubjectPlan]) -> None:
    """Name results of earlier runs that do not belong to the labels that are there now."""
    from brainseg_bids.stages.pages import of_other_labels  # late: jinja2, nipype

    for plan in plans:
        names = of_other_labels(plan.label, settings.output_dir) if is_label(plan.label) else ()
        if names:
            log.warning(
                "sub-%s: made from labels that have been replaced since: %s. Make them again with "
                "the stages or flags that made them, or remove them",
                plan.label,
                listed(names),
            )


def _conclude(
    settings: Settings, plans: list[SubjectPlan], failures: Mapping[str, str], code: int
) -> int:
    """Say how it ended."""
    # An image that several stages could not read is told once.
    steps: dict[tuple[str, str], list[str]] = {}
    for title, reason in failures.items():
        steps.setdefault((image_of(title), reason), []).append(title)
    for (image, reason), titles in steps.items():
        log.error("%s: failed: %s", titles[0] if len(titles) == 1 else image, reason)
    if failures:
        titles = {title for plan in plans for title in plan.errors}
        titles |= {scan.title for plan in plans for scan in plan.scans}
        failed = set(map(image_of, failures))
        images = failed | set(map(image_of, titles))
        others = len(failed) < len(images) and not settings.stop_on_first_crash
        rest = "; the others are complete" if others else ""
        log.error("%d of %d could not be done%s", len(failed), len(images), rest)
        return FAILED if code == DONE else code
    if code == DONE and settings.boilerplate_only:
        log.info("methods text: %s", settings.output_dir / "logs" / "CITATION.md")
    elif code == DONE:
        page = f"sub-{plans[0].label}.html" if len(plans) == 1 else "sub-*.html"
        log_finished(to_review(plans), settings.output_dir / page)
    return code


class _Pages:
    """One page per participant, of this and all other runs.

    Each is written when its participant is done, and those that more is known of in the end,
    then.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.written: set[str] = set()

    def write(self, plan: SubjectPlan, failures: Mapping[str, str]) -> None:
        """Write the page of a participant who is done, while others are not."""
        try:
            self._write(plan, failures)
        except Exception as error:  # it is tried again in the end
            log.debug("sub-%s: page not written yet (%s)", plan.label, error)
        else:
            self.written.add(plan.label)
            page = self.settings.output_dir / f"sub-{plan.label}.html"
            log.info("sub-%s is done: %s", plan.label, page)

    def write_rest(self, plans: list[SubjectPlan], failures: Mapping[str, str]) -> dict[str, str]:
        """Write what is not written or has changed since; what could not be written, and why."""
        settings = self.settings
        if settings.boilerplate_only or not plans:
            return {}
        from brainseg_bids.stages.pages import note_failures  # late: jinja2, nipype
        from brainseg_bids.stages.summary import read_cohort

        # Read once: each page compares its head with all of them.
        missed = {}
        try:
            cohort = read_cohort(settings.output_dir)
        except (OSError, ValueError) as error:  # a table of whichever other subject
            log.warning("heads are not compared: %s", error)
            cohort = None
        if not settings.reports_only:
            try:
                note_failures(plans, failures, output_dir=settings.output_dir)
            except OSError as error:  # a full disk: what failed is in the log, too
                log.debug("failures are not kept (%s)", error)
        for plan in plans:
            if not is_label(plan.label) or self._is_final(plan, failures):
                continue
            try:
                with working(f"sub-{plan.label}: page"):
                    self._write(plan, failures, cohort)
            except (OSError, ValueError, KeyError) as error:
                missed[f"sub-{plan.label} report"] = (
                    f"it could not be written ({error}). Run with --reports-only."
                )
        return missed

    def _is_final(self, plan: SubjectPlan, failures: Mapping[str, str]) -> bool:
        """Whether the page that was written when the participant was done has all there is."""
        compared = any(scan.stage == "headlabels" for scan in plan.scans)
        own = {scan.title for scan in plan.scans} | set(plan.errors)
        return plan.label in self.written and not compared and own.isdisjoint(failures)

    def _write(
        self, plan: SubjectPlan, failures: Mapping[str, str], cohort: Cohort | None = None
    ) -> None:
        from brainseg_bids.stages.pages import update_subject_page  # late: jinja2, nipype

        update_subject_page(
            plan,
            output_dir=self.settings.output_dir,
            bids_dir=self.settings.bids_dir,
            failures=failures,
            settings=self.settings.to_toml(),
            cohort=cohort,
        )
