# SPDX-License-Identifier: Apache-2.0
"""Scripts for batch systems: an array over participants, the group level after it, training.

What the scripts look like stands in ``templates``; here is what is filled in.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from brainseg_bids import __version__
from brainseg_bids.bids.inputs import find_participants, label_error
from brainseg_bids.documents import InputError
from brainseg_bids.exit_codes import SAVED
from brainseg_bids.hpc.command import Launch, bash_lines, job_flags
from brainseg_bids.hpc.memory import APP_GIB, participant_gib
from brainseg_bids.hpc.profiles import Profile, Resources
from brainseg_bids.hpc.schedulers import SCHEDULERS, clock
from brainseg_bids.options import memory_gb
from brainseg_bids.settings import Settings

LARGEST_ARRAY = 1000
"""Tasks of one array; Slurm's own limit (MaxArraySize) is 1001 unless the site has raised it."""

MOST_RESTARTS = 100
"""A training that was put back into the queue as often as this has another fault."""

CPUS, MOST_THREADS = 8, 8
"""CPUs of a job if nobody says, and threads of one segmentation."""


@dataclass(frozen=True)
class Job:
    """One call of sbatch.

    Parameters
    ----------
    name : str
    log : Path
        Where its output goes; Slurm replaces ``%A`` and the like in the last part only.
    script : str
        What sbatch is given.
    tasks : tuple of str
        Participants of each task of an array, with spaces between.
    """

    name: str
    log: Path
    script: str
    tasks: tuple[str, ...] = ()


def make_job(
    template: str, name: str, log: Path, *, tasks: Sequence[str] = (), **values: object
) -> Job:
    """A job from a template of this package and what is filled in."""
    folder = str(log.parent).replace("%", "%%")
    logs = quoted(str(log.parent))[1:-1]
    script = _fill(
        template, name=name, log=quoted(f"{folder}/{log.name}"), logs=logs, tasks=tasks, **values
    )
    return Job(name, log, script.rstrip("\n"), tuple(tasks))


def submit_script(
    title: str, jobs: Sequence[Job], last: Job | None = None, *, scheduler: str = "slurm"
) -> str:
    """Bash that submits some jobs and, when they have ended one way or another, a last one."""
    logs = {str(job.log.parent) for job in [*jobs, *([last] if last else [])]}
    return _fill(
        "submit.sh",
        title=title,
        version=__version__,
        logs=sorted(logs),
        jobs=jobs,
        last=last,
        scheduler=SCHEDULERS[scheduler],
    )


def quoted(path: str) -> str:
    """A path as sbatch reads it in its own lines.

    >>> print(quoted('/data/my "study"'))
    "/data/my \\"study\\""
    """
    if "\n" in path:
        raise InputError(f"{path!r}: a line break cannot be in this path.")
    for letter in '\\"':
        path = path.replace(letter, f"\\{letter}")
    return f'"{path}"'


def _fill(template: str, **values: object) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("brainseg_bids.hpc"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # bash, no HTML
    )
    environment.filters |= {"quote": shlex.quote, "lines": bash_lines, "mib": _mib}
    return environment


# -- jobs of this app ---------------------------------------------------------------------


def make_script(settings: Settings, profile: Profile) -> str:
    """Bash that submits everything.

    Parameters
    ----------
    settings : Settings
    profile : Profile

    Raises
    ------
    InputError
        If a participant is not there, or a filter cannot be handed on.
    """
    if settings.analysis_level == "participant":
        return _participants_script(settings, profile)
    title = f"Submits brainseg's group level ({', '.join(settings.stages)})"
    make = _group_job
    if "train" in settings.stages:
        make = _train_job
        if profile.scheduler != "slurm":
            raise InputError(
                f"--slurm-profile {profile.name}: training is submitted to Slurm alone. Start it "
                "in a job script of your own."
            )
    return submit_script(title, [make(settings, profile)], scheduler=profile.scheduler)


def refused_labels(settings: Settings) -> list[str]:
    """Why participants that a run of all would refuse are not in a script, a line each."""
    if settings.analysis_level != "participant":
        return []
    labels = find_participants(settings.bids_dir, settings.participant_label)
    return [fault for label in labels if (fault := label_error(settings.bids_dir, label))]


def _participants_script(settings: Settings, profile: Profile) -> str:
    labels = find_participants(settings.bids_dir, settings.participant_label)
    labels = [label for label in labels if not label_error(settings.bids_dir, label)]
    if not labels:
        raise InputError(f"{settings.bids_dir}: no participant has a BIDS label. Rename them.")
    together = settings.participants_per_job
    if settings.resubmit_failed:
        labels = _to_resubmit(settings, labels)
    tasks = [
        " ".join(labels[first : first + together]) for first in range(0, len(labels), together)
    ]
    memory = partial(participant_gib, labels=labels)
    jobs = [
        _array_job(settings, profile, tasks[first : first + LARGEST_ARRAY], memory)
        for first in range(0, len(tasks), LARGEST_ARRAY)
    ]
    each = "one" if together == 1 else f"{together}"
    title = f"Submits brainseg for {len(labels)} participant(s), {each} a job"
    if not {"segment", "headlabels"} & set(settings.stages):  # nothing new to sum up
        return submit_script(title, jobs, scheduler=profile.scheduler)
    summary = Settings(
        bids_dir=settings.bids_dir,
        output_dir=settings.output_dir,
        analysis_level="group",
        stages=("summary",),
        nprocs=0,
        omp_nthreads=0,
        participant_label=settings.participant_label,
        session_label=settings.session_label,
        work_dir=settings.work_dir,
        offline=settings.offline,
        verbose=settings.verbose,
    )
    return submit_script(
        f"{title}, and the group level after them",
        jobs,
        _group_job(summary, profile),
        scheduler=profile.scheduler,
    )


def _to_resubmit(settings: Settings, labels: list[str]) -> list[str]:
    """Of some participants those that failed or were never started.

    Raises
    ------
    InputError
        If there is none.
    """
    from brainseg_bids.hpc.status import TO_SUBMIT, UNKNOWN, counted, states_of  # late: nibabel

    states = states_of(replace(settings, participant_label=tuple(labels)))
    chosen = [one.participant.removeprefix("sub-") for one in states if one.state in TO_SUBMIT]
    if not chosen:
        raise InputError(
            f"--resubmit-failed: there is nobody to submit ({counted(states)}). brainseg status "
            f"{settings.output_dir} tells more."
        )
    unknown = [one for one in states if one.state == UNKNOWN]
    if unknown:
        print(
            f"brainseg: WARNING: --resubmit-failed leaves out {len(unknown)} participant(s) whose "
            f"jobs cannot be seen from here ({unknown[0].participant}: {unknown[0].reason}).",
            file=sys.stderr,
        )
    return chosen


def _array_job(
    settings: Settings, profile: Profile, tasks: list[str], memory: Callable[..., float]
) -> Job:
    resources = profile.participant
    own = _with_cpus(settings, resources)
    at_once = own.nprocs // own.omp_nthreads
    mem = _chosen_memory(settings, resources) or _megabytes(memory(own, at_once=at_once))
    launch = Launch(own, profile)
    flags = [
        '--participant-label "${participants[@]}"',
        # One folder a job: --clean-workdir empties that of nobody else.
        f'--work-dir {launch.scratch}/"sub-${{participants[0]}}"',
        *([] if settings.memory_gb else [f"--mem {app_memory(mem)}"]),
        *job_flags(own, leave_out=("participant_label", "work_dir")),
    ]
    return make_job(
        _template(profile, "participant.sh"),
        "brainseg",
        _log(settings, profile, "%A_%a"),
        tasks=tasks,
        index=SCHEDULERS[profile.scheduler].index,
        at_once=resources.at_once,
        cpus=own.nprocs,
        mem=mem,
        command=launch.command(flags),
        **_of_every_job(launch, resources),
    )


def _group_job(settings: Settings, profile: Profile) -> Job:
    resources = profile.group
    own = _with_cpus(settings, resources, usual=1 if settings.stages == ("summary",) else CPUS)
    launch = Launch(own, profile)
    return make_job(
        _template(profile, "group.sh"),
        "brainseg-group",
        _log(settings, profile, "group_%j"),
        cpus=own.nprocs,
        mem=_chosen_memory(settings, resources),
        command=launch.command(_flags(own, launch)),
        **_of_every_job(launch, resources),
    )


def _train_job(settings: Settings, profile: Profile) -> Job:
    resources = profile.train
    devices = settings.devices or resources.gpus or 1
    own = replace(_with_cpus(settings, resources), devices=devices)
    wants_gpus = resources.gpus and settings.device != "cpu"
    launch = Launch(own, profile)
    return make_job(
        "train.sh",
        "brainseg-train",
        _log(settings, profile, "train_%j"),
        nodes=settings.nodes,
        devices=devices,
        cpus=own.nprocs,
        mem=_chosen_memory(settings, resources),
        command=launch.command(_flags(own, launch, always=("devices", "nodes"))),
        saved=SAVED,
        most_restarts=MOST_RESTARTS,
        **_of_every_job(launch, replace(resources, gpus=devices if wants_gpus else 0)),
    )


def _of_every_job(launch: Launch, resources: Resources) -> dict[str, object]:
    # Relative names of models and programs mean the same there. The scratch folder is made: a
    # container cannot be given one that is not there, and each node may have its own.
    common = {
        "options": resources.options,
        "prologue": launch.prologue,
        "scratch": launch.scratch,
    }
    if launch.profile.scheduler == "slurm":
        return common | {
            "site": resources.directives(),
            "folder": quoted(os.getcwd()),
            "handed_in": launch.handed_in,
        }
    site = [f"-q {resources.partition}"] if resources.partition else []
    if resources.account:
        account = SCHEDULERS[launch.profile.scheduler].account
        site.append(f"{account} {resources.account}")
    return common | {
        "options": (*site, *resources.options),
        "gpus": resources.gpus,
        "pe": resources.pe,
        "time": clock(resources.time),
        "folder": os.getcwd(),
    }


def _template(profile: Profile, of_slurm: str) -> str:
    """Name of a job's template."""
    return of_slurm if profile.scheduler == "slurm" else f"{profile.scheduler}.sh"


def _flags(settings: Settings, launch: Launch, always: Sequence[str] = ()) -> list[str]:
    flags = job_flags(settings, leave_out=("work_dir",), always=always)
    return [f"--work-dir {launch.scratch}", *flags]


def _log(settings: Settings, profile: Profile, name: str) -> Path:
    return settings.output_dir / "logs" / profile.scheduler / f"{name}.log"


def _with_cpus(settings: Settings, resources: Resources, *, usual: int = CPUS) -> Settings:
    """CPUs and threads of a job: as the user says, as the profile says, or the usual."""
    cpus = settings.nprocs or resources.cpus or usual
    return replace(
        settings, nprocs=cpus, omp_nthreads=min(settings.omp_nthreads or MOST_THREADS, cpus)
    )


def _chosen_memory(settings: Settings, resources: Resources) -> str:
    return _megabytes(settings.memory_gb) if settings.memory_gb else resources.mem


def _mib(mem: str) -> int:
    """Memory as Slurm takes it, in MiB; 0 if there is none.

    >>> _mib("30G"), _mib("2560M"), _mib("")
    (30720, 2560, 0)
    """
    return math.ceil(1024 * memory_gb(mem)) if mem else 0


def _megabytes(gib: float) -> str:
    return f"{math.ceil(gib * 1024)}M"


def app_memory(mem: str) -> str:
    """What the app may plan with: the job's memory less its own.

    >>> app_memory("8192M"), app_memory("64G")
    ('7680M', '65024M')
    """
    try:
        total_gib = memory_gb(mem)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--slurm-profile: mem = {error}") from error
    return f"{max(int(1024 * (total_gib - APP_GIB / 2)), 512)}M"
