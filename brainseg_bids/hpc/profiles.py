# SPDX-License-Identifier: Apache-2.0
"""What a site's Slurm wants: profiles in TOML, packaged ones and a user's own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from brainseg_bids.documents import InputError, Items, Kind, Number, Object, Text, check, read_toml
from brainseg_bids.hpc.schedulers import SCHEDULERS


@dataclass(frozen=True)
class Resources:
    """What one kind of job asks Slurm for. Empty: the site's default.

    Parameters
    ----------
    partition, account, qos, constraint, time, mem : str
        As sbatch takes them. ``mem`` empty, for participants: what the plan needs.
    gres : str
        How accelerators are asked for, with ``{gpus}``; empty: ``--gpus-per-node``.
    gpus, cpus : int
        Per node; per task. 0 CPUs: as many as a segmentation uses.
    at_once : int
        Jobs of an array that may run at the same time; 0: any number.
    options : tuple of str
        Further lines ``#SBATCH OPTION``.
    pe : str
        Parallel environment of Grid Engine; empty: ``smp``.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: str = ""
    mem: str = ""
    gres: str = ""
    gpus: int = 0
    cpus: int = 0
    at_once: int = 0
    options: tuple[str, ...] = ()
    pe: str = ""

    def directives(self) -> list[str]:
        """sbatch options except those for CPUs and memory."""
        named = ("partition", "account", "qos", "constraint", "time")
        lines = [f"--{name}={getattr(self, name)}" for name in named if getattr(self, name)]
        if self.gpus and self.gres:
            lines.append(f"--gres={self.gres.replace('{gpus}', str(self.gpus))}")
        elif self.gpus:
            lines.append(f"--gpus-per-node={self.gpus}")
        return lines


@dataclass(frozen=True)
class Profile:
    """What a site wants, read from TOML.

    Parameters
    ----------
    name : str
    scheduler : str
        One of `SCHEDULERS`.
    program : tuple of str
        What starts brainseg there; ``~`` and ``$NAME`` are expanded when the script is made, and
        ``{folders}`` stands for all folders that a container has to see, with commas between.
        Empty: this very program.
    prologue : tuple of str
        Lines of bash before it.
    environment : dict of str to str
        Exported before the prologue; ``$NAME`` is expanded on the node.
    scratch : str
        Scratch folder, such as ``$TMPDIR``, expanded on the node; ``-w`` wins.
    participant, group, train : Resources
    """

    name: str
    scheduler: str = "slurm"
    program: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    environment: dict = field(default_factory=dict)
    scratch: str = ""
    participant: Resources = Resources()
    group: Resources = Resources()
    train: Resources = Resources()


@dataclass(frozen=True)
class Line:
    """One line of text that has some form.

    >>> Line(r"[a-z]+", "a name").error_of("a\\nb")
    "is 'a\\\\nb': give a name"
    """

    form: str = r"[^\n]*"
    wanted: str = "a text without line breaks"

    def error_of(self, value: object) -> str:
        """As of `Kind`."""
        fits = isinstance(value, str) and re.fullmatch(self.form, value)
        return "" if fits else f"is {value!r}: give {self.wanted}"


JOBS = ("participant", "group", "train")
COUNT = Number(0, 1e6, whole=True)
TIME = Line(r"(?:(?:\d+-)?\d+(?::\d+){0,2})?", "e.g. 04:00:00 or 1-00:00:00")
RESOURCE_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("partition", "account", "qos", "constraint", "mem", "gres", "pe"), Line()),
    **dict.fromkeys(("gpus", "cpus", "at_once"), COUNT),
    "time": TIME,
    "options": Items(Line()),
}
SITE_KINDS: dict[str, Kind] = {
    "description": Line(),
    "scheduler": Text(tuple(SCHEDULERS)),
    "program": Items(Line()),
    "prologue": Items(Line()),
    "environment": Object(Line()),
    "scratch": Line(),
    **dict.fromkeys(JOBS, Object()),
}


def read_profile(name: str) -> Profile:
    """A packaged profile by its name, or a TOML file.

    What stands above the tables of jobs holds for each of them, unless its table says otherwise.

    Raises
    ------
    InputError
        If there is none, or a key or a value means nothing.

    Examples
    --------
    >>> read_profile("a100").train.gpus
    4
    """
    packaged = resources.files("brainseg_bids") / "data" / "slurm"
    known = sorted(path.name.removesuffix(".toml") for path in packaged.iterdir())
    path = packaged / f"{name}.toml" if name in known else Path(name)
    try:
        values = read_toml(path)
    except InputError as error:
        raise InputError(f"--slurm-profile: {error} Packaged are {', '.join(known)}.") from error
    where = f"--slurm-profile {name}"
    common = {key: values.pop(key) for key in list(values) if key in RESOURCE_KINDS}
    _check(values, SITE_KINDS, where, further=RESOURCE_KINDS)
    for key in values.get("environment", {}):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise InputError(f"{where}: environment: {key!r} is not a name of a variable.")
    values.pop("description", None)
    jobs = {job: _resources(common, values.pop(job, {}), f"{where}: [{job}]") for job in JOBS}
    _check_words(values.get("scheduler", "slurm"), jobs, where)
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Profile(name, **values | lists, **jobs)


def _check_words(scheduler: str, jobs: dict[str, Resources], where: str) -> None:
    """Refuse a key that the site's batch system has no word for: it would do nothing."""
    for key in SCHEDULERS[scheduler].unknown:
        if any(getattr(resources, key) for resources in jobs.values()):
            raise InputError(
                f"{where}: {key} means nothing to {scheduler}. Give a line of its own in options."
            )


def _resources(common: dict, own: dict, where: str) -> Resources:
    _check(common | own, RESOURCE_KINDS, where)
    options = (*common.get("options", ()), *own.get("options", ()))
    return Resources(**common | own | {"options": options})


def _check(
    values: dict, kinds: dict[str, Kind], where: str, *, further: dict[str, Kind] | None = None
) -> None:
    """A key that is not known, or a value of another kind, is an error."""
    for key in values:
        if key not in kinds:
            known = ", ".join([*kinds, *(further or {})])
            raise InputError(f"{where}: unknown key {key!r}. Known: {known}.")
    check(values, kinds, where)
