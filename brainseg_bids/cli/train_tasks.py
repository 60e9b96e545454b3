# SPDX-License-Identifier: Apache-2.0
"""Several tasks of one Slurm step that all run the same command: one decides, all train.

``srun brainseg ... --stages train`` starts the whole command once per accelerator. The first task
finds, checks, plans, and later bundles; the others wait until it tells them what to run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids.bids.description import write_json
from brainseg_bids.stages.jobs import read_object
from brainseg_bids.volumes import InputError

log = logging.getLogger("brainseg")

LONGEST_WAIT_S = 6 * 3600.0
"""For the first task to read label maps and plan; beyond it is taken for dead."""
LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Tasks:
    """This process among those that train together.

    Parameters
    ----------
    rank, count : int
    call : Path
        Where the first one leaves what the others shall run.
    """

    rank: int
    count: int
    call: Path

    def tell(self, what: Mapping) -> None:
        """Tell the others, once: ``argv`` and ``folder`` to run, or the ``code`` to end with."""
        if self.rank == 0 and self.count > 1 and not self.call.exists():
            write_json(self.call, dict(what))

    def hear(self) -> dict:
        """What the first one tells.

        Raises
        ------
        InputError
            If it does not within `LONGEST_WAIT_S`.
        """
        until_s = time.monotonic() + LONGEST_WAIT_S
        while not (said := read_object(self.call)):
            if time.monotonic() > until_s:
                raise InputError(f"{self.call}: the first task has not said what to run.")
            time.sleep(LOOK_EVERY_S)
        return said

    def check(self, devices: int, nodes: int) -> None:
        """Raise `InputError` unless there is a task for each device of each node."""
        if self.count > 1 and self.count != devices * nodes:
            raise InputError(
                f"srun has started {self.count} tasks, but --devices {devices} --nodes {nodes} "
                f"are {devices * nodes}. Start as many, or run the command once without srun."
            )


def find_tasks(environ: Mapping[str, str], folder: Path) -> Tasks:
    """Who this process is; alone unless ``srun`` has started several.

    Parameters
    ----------
    environ : mapping of str to str
    folder : Path
        That all tasks see.

    Examples
    --------
    >>> find_tasks({"SLURM_JOB_ID": "7"}, Path("logs")).count
    1
    >>> env = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    >>> tasks = find_tasks(env | {"SLURM_PROCID": "3"}, Path("logs"))
    >>> tasks.rank, tasks.count, tasks.call.name
    (3, 4, 'train_7_0_0.json')
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    key = "_".join(environ.get(name, "0") for name in names)
    # Set by srun only; a batch script's own processes have the others, but not this.
    count = int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
    rank = int(environ.get("SLURM_PROCID", "0")) if count > 1 else 0
    return Tasks(rank, count, folder / f"train_{key}.json")
