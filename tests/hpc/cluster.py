# SPDX-License-Identifier: Apache-2.0
"""A Slurm of one node, with its own key, ports and folders, that ends with the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MinJobAge=3600
OverTimeLimit=0
KillWait=30
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=20000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
DAEMONS = ("munged", "slurmctld", "slurmd")


class Slurm:
    """What tests ask of the cluster."""

    def __init__(self, root: Path) -> None:
        self.environment = os.environ | {"SLURM_CONF": str(root / "slurm.conf")}
        self.environment.pop("LOGNAME", None)  # as in many containers

    def ask(self, *command: str) -> str:
        """What a program of Slurm prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def jobs(self) -> dict[str, dict[str, str]]:
        """State and exit code of all jobs, by ``ID`` or ``ARRAY_TASK``."""
        found = {}
        for line in self.ask("scontrol", "show", "job", "--oneliner").splitlines():
            said = dict(word.split("=", 1) for word in line.split() if "=" in word)
            name = said["JobId"]
            if "ArrayJobId" in said:
                name = f"{said['ArrayJobId']}_{said['ArrayTaskId']}"
            found[name] = said
        return found

    def wait(self, seconds: float) -> dict[str, dict[str, str]]:
        """All jobs when none is left in the queue."""
        end = time.monotonic() + seconds
        while self.ask("squeue", "--noheader").strip():
            assert time.monotonic() < end, self.ask("squeue")
            time.sleep(0.5)
        return self.jobs()


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running_slurm(root: Path) -> Iterator[Slurm]:
    """Start munge, the controller and a node; end them afterwards."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    programs = {name: shutil.which(name, path=path) for name in (*DAEMONS, "sbatch")}
    missing = [name for name, program in programs.items() if program is None]
    if missing:
        pytest.skip(
            f"{', '.join(missing)}: not installed "
            "(apt-get install slurmctld slurmd slurm-client munge)"
        )
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
    for name in ("munge", "state", "spool"):
        (root / name).mkdir(parents=True)
    key = root / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    conf = CONF.format(host=host, ports=_free_ports(2), root=root)
    (root / "slurm.conf").write_text(conf)
    munge = [f"--{what}-file={root}/munge/{what}" for what in ("key", "log", "pid", "seed")]
    munge += ["--force", "--foreground", f"--socket={root}/munge/socket"]
    with contextlib.ExitStack() as stack:
        for name, arguments in (
            ("munged", munge),
            ("slurmctld", ["-D", "-f", str(root / "slurm.conf")]),
            ("slurmd", ["-D", "-f", str(root / "slurm.conf")]),
        ):
            log = stack.enter_context((root / f"{name}.out").open("w"))
            process = subprocess.Popen(
                [programs[name], *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
            stack.callback(_end, process)
            time.sleep(0.5)
        slurm = Slurm(root)
        for _ in range(40):
            if "idle" in slurm.ask("sinfo", "--noheader"):
                break
            time.sleep(0.5)
        else:
            pytest.fail("\n".join(path.read_text()[-2000:] for path in root.glob("*.out")))
        yield slurm


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
