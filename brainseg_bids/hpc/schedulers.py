# SPDX-License-Identifier: Apache-2.0
"""Batch systems: how each takes a script, and how jobs of one wait for others.

Slurm has all that the app can do. PBS, LSF and Grid Engine run the participant level and the group
level; their templates follow their manuals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Scheduler:
    """What the script that submits jobs has to say.

    Parameters
    ----------
    submit : str
        Command that reads a job from its input.
    number : str
        Bash that turns what it prints, ``$job``, into the job's number.
    each : str
        How a number is added to ``$jobs``.
    index : str
        Bash for a task's place in its array, from 0.
    after : str
        Options of ``submit`` for a job that waits until ``$jobs`` have ended.
    asks : str
        Program that lists what waits and runs.
    unknown : tuple of str
        Keys of a site's profile that it has no word for.
    account : str
        Option that names who pays.
    """

    submit: str
    number: str
    each: str
    index: str
    after: str
    asks: str
    unknown: tuple[str, ...] = ()
    account: str = "-P"

    @property
    def program(self) -> str:
        """The program that has to be there."""
        return self.submit.split()[0]


SCHEDULERS = {
    "slurm": Scheduler(
        "sbatch --parsable",
        "job=${job%%;*}",
        ":$job",
        "SLURM_ARRAY_TASK_ID",
        '--dependency="afterany$jobs"',
        "squeue",
        ("pe",),
        "-A",
    ),
    "pbs": Scheduler(
        "qsub",
        "",
        ":$job",
        "${PBS_ARRAY_INDEX:-0}",
        '-W depend="afterany$jobs"',
        "qstat",
        ("qos", "constraint", "gres", "pe"),
        "-A",
    ),
    "lsf": Scheduler(
        "bsub",
        "job=${job#*<}; job=${job%%>*}",
        " && ended($job)",
        "LSB_JOBINDEX - 1",
        '-w "${jobs# && }"',
        "bjobs",
        ("qos", "constraint", "gres", "pe"),
    ),
    "sge": Scheduler(
        "qsub -terse",
        "job=${job%%.*}",
        ",$job",
        "SGE_TASK_ID - 1",
        '-hold_jid "${jobs#,}"',
        "qstat",
        ("qos", "constraint", "gres", "gpus"),
    ),
}
"""By the name that a site's profile gives as ``scheduler``."""


def clock(time: str) -> str:
    """A time as Slurm takes it, in hours, minutes and seconds, as the others do.

    >>> clock("1-02:00:00"), clock("90"), clock("04:00:00"), clock("1-1"), clock("")
    ('26:00:00', '01:30:00', '04:00:00', '25:00:00', '')
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not found:
        return ""
    days, *parts = (int(part or 0) for part in found.groups())
    if found[1] or found[4]:
        hours, minutes, seconds = parts
    else:  # minutes, with seconds or without
        hours, minutes, seconds = 0, parts[0], parts[1]
    total = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    return f"{total // 3600:02d}:{total // 60 % 60:02d}:{total % 60:02d}"
