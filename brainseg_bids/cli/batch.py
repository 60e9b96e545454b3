# SPDX-License-Identifier: Apache-2.0
"""``--slurm``: a command as jobs of a cluster, one participant a job, and what follows them."""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.bids.description import write_once
from brainseg_bids.bids.inputs import STRUCTURAL, find_participants, label_fault
from brainseg_bids.bids.names import Scan
from brainseg_bids.documents import read_toml
from brainseg_bids.exit_codes import DONE, FAILED, NO_PROGRAM, SAVED, UNUSABLE
from brainseg_bids.nets.bundle import BundleError
from brainseg_bids.options import memory_gb, to_arguments
from brainseg_bids.settings import Settings
from brainseg_bids.volumes import InputError, read_grid

LARGEST_ARRAY = 1000
"""Tasks of one array; Slurm's own limit (MaxArraySize) is 1001 unless the site has raised it."""

MOST_RESTARTS = 100
"""A training that was put back into the queue as often as this has another fault."""

CPUS, MOST_THREADS = 8, 8
"""CPUs of a job if nobody says, and threads of one segmentation."""

APP_GIB = 1.0
"""Memory of the app itself and its workers beside the largest step: 0.3 GiB were measured."""

MARGIN = 1.25
"""What is asked for, of what the largest step is predicted to take: predictions of segmentations
are within a quarter of what was measured."""

PICTURES_GIB = 1.0
"""Memory set aside for the largest of the small steps: volumes, pictures."""

UNKNOWN_VOXELS = 256**3
"""Size of an image to plan with if no header can be read."""

CONTAINERS = ("apptainer", "singularity")


# -- profiles -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
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

    def directives(self) -> list[str]:
        """sbatch options but for CPUs and memory."""
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
    participant, group, train : Kind
    """

    name: str
    program: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    environment: dict = field(default_factory=dict)
    scratch: str = ""
    participant: Kind = Kind()
    group: Kind = Kind()
    train: Kind = Kind()


KINDS = ("participant", "group", "train")


def read_profile(name: str) -> Profile:
    """A packaged profile by its name, or a TOML file.

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
        said = read_toml(path)
    except InputError as error:
        raise InputError(f"--slurm-profile: {error} Packaged are {', '.join(known)}.") from error
    said.pop("description", None)
    common = {key: said.pop(key) for key in list(said) if key in _types(Kind)}
    kinds = {}
    for kind in KINDS:
        own = said.pop(kind, {})
        if not isinstance(own, dict):
            raise InputError(f"--slurm-profile {name}: {kind} is a table: [{kind}].")
        options = [*common.get("options", []), *own.get("options", [])]
        values = common | own | ({"options": options} if options else {})
        kinds[kind] = Kind(**_checked(values, Kind, f"--slurm-profile {name}: [{kind}] "))
    return Profile(name, **_checked(said, Profile, f"--slurm-profile {name}: "), **kinds)


def _types(kind: type) -> dict[str, type]:
    names = {"str": str, "int": int, "dict": dict, "tuple[str, ...]": list}
    return {f.name: names[f.type] for f in fields(kind) if f.type in names and f.name != "name"}


def _checked(values: dict, kind: type, where: str) -> dict:
    """Values in their types; a key that is not known, or a value of another type, is an error."""
    types = _types(kind)
    checked = {}
    for key, value in values.items():
        if key not in types:
            known = ", ".join([*types, *(KINDS if kind is Profile else ())])
            raise InputError(f"{where}unknown key {key!r}. Known: {known}.")
        texts = _texts(value)
        if type(value) is not types[key] or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{where}{key} = {value!r}: give {SHAPES[types[key]]}.")
        if any("\n" in text for text in texts):
            raise InputError(f"{where}{key}: a line break cannot be in it.")
        checked[key] = tuple(value) if types[key] is list else value
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}|", str(checked.get("time", ""))):
        raise InputError(f"{where}time = {checked['time']!r}: give e.g. 04:00:00 or 1-00:00:00.")
    if any(checked.get(key, 0) < 0 for key in ("gpus", "cpus", "at_once")):
        raise InputError(f"{where}a number is below 0.")
    for key in checked.get("environment", {}):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise InputError(f"{where}environment: {key!r} is no name of a variable.")
    return checked


SHAPES = {
    str: "a text",
    int: "a whole number",
    list: "a list of texts",
    dict: "a table of texts, such as environment.NAME = 'value'",
}


def _texts(value) -> list:
    """What has to be text in a value of a profile."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


# -- scripts ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One call of sbatch.

    Parameters
    ----------
    name : str
    log : Path
        Where its output goes; Slurm replaces ``%A`` and the like in the last part only.
    directives : tuple of str
        Options of sbatch, a line each.
    body : str
        Bash.
    """

    name: str
    log: Path
    directives: tuple[str, ...]
    body: str

    def text(self) -> str:
        """The script that sbatch is given."""
        folder = str(self.log.parent).replace("%", "%%")
        log = _quoted(f"{folder}/{self.log.name}")
        lines = [f"--job-name={self.name}", *self.directives, f"--output={log}"]
        return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), self.body])


def _quoted(path: str) -> str:
    """A path as sbatch reads it in its own lines.

    >>> print(_quoted('/data/my "study"'))
    "/data/my \\"study\\""
    """
    if "\n" in path:
        raise InputError(f"{path!r}: a line break cannot be in this path.")
    for letter in '\\"':
        path = path.replace(letter, f"\\{letter}")
    return f'"{path}"'


def submit_script(title: str, jobs: Sequence[Job], then: Job | None = None) -> str:
    """Bash that submits some jobs and, when they have ended one way or another, a last one."""
    logs = sorted({str(job.log.parent) for job in [*jobs, *([then] if then else [])]})
    lines = [
        "#!/bin/bash",
        f"# {title}. Run it with bash.",
        f"# Made by brainseg-bids {__version__}.",
        "set -euo pipefail",
        f"mkdir -p {shlex.join(logs)}",
        "jobs=",
    ]
    for job in jobs:
        lines += [
            "job=$(sbatch --parsable <<'END_OF_JOB'", job.text().rstrip("\n"), "END_OF_JOB", ")",
            'jobs="$jobs:${job%%;*}"',
            f'echo "{job.name}: job ${{job%%;*}}"',
        ]  # fmt: skip
    if then:
        lines += [
            f"# {then.name}: also after failures, so that there is a summary of what went well.",
            "sbatch --dependency=\"afterany$jobs\" <<'END_OF_JOB'",
            then.text().rstrip("\n"),
            "END_OF_JOB",
        ]
    return "\n".join(lines) + "\n"


def batch(settings: Settings) -> int:
    """Print the script that does what the settings say, or with ``submit`` hand it to Slurm.

    Returns
    -------
    int
        0; 1 if Slurm refuses it or a participant's label is none; 2 if the settings cannot be
        used; 127 if there is no sbatch.
    """
    try:
        script = make_script(settings, read_profile(settings.slurm_profile or "default"))
        refused = refused_labels(settings)
        for line in refused:
            print(f"brainseg: ERROR: {line} The others are in the script.", file=sys.stderr)
        done = FAILED if refused else DONE
        if not settings.submit:
            print(script, end="")
            return done
        return _submit(script) or done
    except (InputError, BundleError, OSError) as error:
        print(f"brainseg: ERROR: {' '.join(str(error).split())}", file=sys.stderr)
        return UNUSABLE


def _submit(script: str) -> int:
    if shutil.which("sbatch") is None:
        print(
            "brainseg: ERROR: there is no program sbatch here. Where there is (outside of the "
            "container, on a login node), give the script to bash: brainseg ... --slurm | bash",
            file=sys.stderr,
        )
        return NO_PROGRAM
    done = subprocess.run(["bash", "-s"], input=script, text=True)
    if done.returncode:
        print("brainseg: ERROR: Slurm refused it; its own words are above.", file=sys.stderr)
    return FAILED if done.returncode else DONE


def make_script(settings: Settings, profile: Profile) -> str:
    """Bash that submits everything.

    Raises
    ------
    InputError
        If a participant is not there, or a filter cannot be handed on.
    BundleError
        If there is no such model: found now, not in a thousand jobs.
    """
    if settings.analysis_level == "participant":
        from brainseg_bids.cli.stages import models_of  # late: it finds this module's friends

        models_of(settings)
        return _participants_script(settings, profile)
    title = f"Submits brainseg's group level ({', '.join(settings.stages)})"
    if "train" in settings.stages:
        return submit_script(title, [_train_job(settings, profile)])
    return submit_script(title, [_group_job(settings, profile)])


def refused_labels(settings: Settings) -> list[str]:
    """Why participants that a run of all would refuse are not in a script, a line each."""
    if settings.analysis_level != "participant":
        return []
    labels = find_participants(settings.bids_dir, settings.participant_label)
    return [fault for label in labels if (fault := label_fault(settings.bids_dir, label))]


def _participants_script(settings: Settings, profile: Profile) -> str:
    labels = find_participants(settings.bids_dir, settings.participant_label)
    labels = [label for label in labels if not label_fault(settings.bids_dir, label)]
    if not labels:
        raise InputError(f"{settings.bids_dir}: no participant has a BIDS label. Rename them.")
    jobs = [
        _array_job(settings, profile, labels[first : first + LARGEST_ARRAY])
        for first in range(0, len(labels), LARGEST_ARRAY)
    ]
    title = f"Submits brainseg for {len(labels)} participant(s), one a job"
    if not {"segment", "headlabels"} & set(settings.stages):  # nothing new to sum up
        return submit_script(title, jobs)
    summary = Settings(
        bids_dir=settings.bids_dir,
        output_dir=settings.output_dir,
        analysis_level="group",
        stages=("summary",),
        nprocs=0,
        omp_nthreads=0,
        participant_label=settings.participant_label,
        work_dir=settings.work_dir,
        offline=settings.offline,
        verbose=settings.verbose,
    )
    return submit_script(
        f"{title}, and the group level after them", jobs, _group_job(summary, profile)
    )


def _array_job(settings: Settings, profile: Profile, labels: list[str]) -> Job:
    kind = profile.participant
    own = _with_cpus(settings, kind)
    memory_gib = _memory_gib(own, labels, at_once=own.nprocs // own.omp_nthreads)
    mem = f"{math.ceil(memory_gib * 1024)}M" if settings.memory_gb or not kind.mem else kind.mem
    directives = [
        f"--array=0-{len(labels) - 1}" + (f"%{kind.at_once}" if kind.at_once else ""),
        f"--cpus-per-task={own.nprocs}",
        f"--mem={mem}",
        *kind.directives(),
        *_always(),
        *kind.options,
    ]
    scratch = _scratch(settings, profile)
    body = [
        "participants=(",
        *map(shlex.quote, labels),
        ")",
        "participant=${participants[SLURM_ARRAY_TASK_ID]}",
        *_prologue(profile),
        f"mkdir -p {scratch}",
        "exec " + _lines([
            _program(profile, settings, scratch), *_positional(settings),
            '--participant-label "$participant"',
            # One folder a participant: --clean-workdir empties that of nobody else.
            f'--work-dir {scratch}/"sub-$participant"',
            *(["--mem " + _app_mem(mem)] if not settings.memory_gb else []),
            *flags_of(own, leave_out=("participant_label", "work_dir")),
        ]),
    ]  # fmt: skip
    log = settings.output_dir / "logs" / "slurm" / "%A_%a.log"
    return Job("brainseg", log, tuple(directives), "\n".join(body))


def _always() -> list[str]:
    """Relative names of models and programs mean the same; a job put back adds to its log."""
    return [f"--chdir={_quoted(os.getcwd())}", "--open-mode=append"]


def _group_job(settings: Settings, profile: Profile) -> Job:
    kind = profile.group
    own = _with_cpus(settings, kind, usual=1 if settings.stages == ("summary",) else CPUS)
    mem = _said_memory(settings) or kind.mem
    directives = [
        f"--cpus-per-task={own.nprocs}",
        *([f"--mem={mem}"] if mem else []),
        *kind.directives(),
        *_always(),
        *kind.options,
    ]
    body = "\n".join(
        [*_prologue(profile), "exec " + _command(own, profile, _scratch(settings, profile))]
    )
    log = settings.output_dir / "logs" / "slurm" / "group_%j.log"
    return Job("brainseg-group", log, tuple(directives), body)


TRAIN = """\
export SRUN_CPUS_PER_TASK="${{SLURM_CPUS_PER_TASK:-1}}"
{prologue}
# Before its time is over Slurm signals this shell. It hands the signal to srun, srun to brainseg,
# which saves and ends with {saved}: then the job goes back into the queue and goes on from there.
srun --kill-on-bad-exit=0 --wait=1800 {wrapper}{command} &
step=$!
trap 'again=yes; in_time=yes; kill -USR1 "$step"' USR1
trap 'again=yes; kill -TERM "$step"' TERM
in_time=
again=yes
while [ "$again" ]; do
    again=
    wait "$step"
    code=$?
done
if [ "$in_time" ] && [ "$code" -eq {saved} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ]; then
    echo "saved; back into the queue"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
"""

CONTAINER_WRAPPER = (
    "bash -c 'for name in ${!SLURM_@}; do "
    'export "APPTAINERENV_$name=${!name}"; done; exec "$@"\' brainseg \\\n    '
)
"""Hands each task's own place among the others into a container with a clean environment."""


def _train_job(settings: Settings, profile: Profile) -> Job:
    kind = profile.train
    devices = settings.devices or kind.gpus or 1
    own = replace(_with_cpus(settings, kind), devices=devices)
    kind = replace(kind, gpus=devices if kind.gpus and settings.device != "cpu" else 0)
    mem = _said_memory(settings) or kind.mem
    directives = [
        f"--nodes={settings.nodes}",
        f"--ntasks-per-node={devices}",
        f"--cpus-per-task={own.nprocs}",
        *([f"--mem={mem}"] if mem else []),
        *kind.directives(),
        "--requeue",
        *_always(),
        "--signal=B:USR1@300",
        *kind.options,
    ]
    command = _command(own, profile, _scratch(settings, profile), always=("devices", "nodes"))
    body = TRAIN.format(
        prologue="\n".join(_prologue(profile)),
        wrapper=CONTAINER_WRAPPER if _in_container(profile) else "",
        command=command,
        saved=SAVED,
        most=MOST_RESTARTS,
    )
    log = settings.output_dir / "logs" / "slurm" / "train_%j.log"
    return Job("brainseg-train", log, tuple(directives), body)


# -- what jobs need -----------------------------------------------------------------------


def _with_cpus(settings: Settings, kind: Kind, *, usual: int = CPUS) -> Settings:
    """CPUs and threads of a job: as the user says, as the profile says, or the usual."""
    cpus = settings.nprocs or kind.cpus or usual
    return replace(
        settings, nprocs=cpus, omp_nthreads=min(settings.omp_nthreads or MOST_THREADS, cpus)
    )


def _said_memory(settings: Settings) -> str:
    return f"{math.ceil(settings.memory_gb * 1024)}M" if settings.memory_gb else ""


def _memory_gib(settings: Settings, labels: Iterable[str], *, at_once: int) -> float:
    """Memory of one participant's job: of its largest step, for the largest image there is."""
    if settings.memory_gb:
        return settings.memory_gb
    steps = _steps_gib(settings, list(_scans(settings, labels)), at_once)
    return math.ceil(MARGIN * max(steps) + APP_GIB)


def _steps_gib(
    settings: Settings, images: Sequence[tuple[Scan, Grid]], at_once: int
) -> Iterator[float]:
    """Memory that the app sets aside for its steps, as the plans of its stages do."""
    from brainseg_bids.workflows.contrast_plan import BYTES_PER_VOXEL  # late: nibabel, nipype
    from brainseg_bids.workflows.spaces_plan import REGISTER_GIB

    voxels = max((math.prod(grid.shape) for _, grid in images), default=UNKNOWN_VOXELS)
    yield PICTURES_GIB
    if "segment" in settings.stages:
        yield at_once * _network_gib(settings, images)
    if "headlabels" in settings.stages:
        from brainseg_bids.interfaces.tools import find_tool
        from brainseg_bids.workflows.headlabels import MERGE_GIB

        yield MERGE_GIB
        for name in {settings.head_tool, settings.brain_tool}:
            own = name == "model"
            yield _network_gib(settings, images) if own else find_tool(name).mem_gb(voxels)
    if "upsample" in settings.stages:
        yield from (_finer_gib(settings, grid) for _, grid in images)
    if "contrast" in settings.stages:
        yield 0.5 + BYTES_PER_VOXEL * voxels / 2**30
    if settings.output_spaces:
        yield REGISTER_GIB


def _network_gib(settings: Settings, images: Sequence[tuple[Scan, Grid]]) -> float:
    """The most that a segmentation takes: predicted for each image from its network."""
    from brainseg_bids.cli.stages import models_of, read_ensemble  # late: nibabel
    from brainseg_bids.workflows.segment_plan import SEGMENT_GIB, model_for, predicted_gib

    models, _ = models_of(settings)
    others = read_ensemble(settings, models[0])
    flips = settings.test_time_flips
    needs = (predicted_gib(scan, (model_for(scan, models), *others), flips) for scan, _ in images)
    return max(needs, default=SEGMENT_GIB)


def _finer_gib(settings: Settings, grid) -> float:
    from brainseg_bids.anatomy.upsample import needed_gib
    from brainseg_bids.cli.stages import DEFAULT_TARGET_MM
    from brainseg_bids.workflows.upsample_plan import CERTIFICATE_BYTES

    sizes = settings.target_voxel_size_mm or DEFAULT_TARGET_MM
    finer = grid.with_voxel_size(sizes[0] if len(sizes) == 1 else sizes)
    return needed_gib(finer, grid) + CERTIFICATE_BYTES * math.prod(finer.shape) / 2**30


def _scans(settings: Settings, labels: Iterable[str]) -> Iterator[tuple[Scan, Grid]]:
    """Images that may be taken, one of each kind and size.

    Of those that cannot be read their job will tell.
    """
    suffixes = settings.contrasts or STRUCTURAL
    root = glob.escape(str(settings.bids_dir))
    seen = set()
    for label in labels:
        for path in glob.iglob(f"{root}/sub-{label}/**/anat/*.nii*", recursive=True):
            suffix = Path(path).name.split(".")[0].rpartition("_")[2]
            if suffix not in suffixes:
                continue
            try:
                grid = read_grid(Path(path))
            except (OSError, ValueError):
                continue
            kind = (suffix, grid.shape, tuple(map(float, grid.voxel_size_mm)))
            if kind not in seen:
                seen.add(kind)
                yield Scan.from_path(path), grid


def _app_mem(mem: str) -> str:
    """What the app may plan with: the job's memory less its own.

    >>> _app_mem("8192M"), _app_mem("64G")
    ('7680M', '65024M')
    """
    try:
        total_gib = memory_gb(mem)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--slurm-profile: mem = {error}") from error
    return f"{max(int(1024 * (total_gib - APP_GIB / 2)), 512)}M"


# -- the command of a job -----------------------------------------------------------------


def _program(profile: Profile, settings: Settings, scratch: str) -> str:
    """What starts brainseg on the node, for bash."""
    image = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    if not profile.program and image:
        binds = ["-B", "{folders}"]
        return _words(("apptainer", "run", "--cleanenv", *binds, image), settings, scratch)
    if not profile.program:
        return shlex.join([sys.executable, "-m", "brainseg_bids"])
    words = [os.path.expanduser(os.path.expandvars(word)) for word in profile.program]
    return _words(words, settings, scratch)


def _words(words: Iterable[str], settings: Settings, scratch: str) -> str:
    folders = ",".join([*map(shlex.quote, _folders(settings)), scratch])
    quoted = [
        "".join(folders if part == "{folders}" else shlex.quote(part) for part in parts if part)
        for parts in (re.split(r"(\{folders\})", word) for word in words)
    ]
    return " ".join(quoted)


def _folders(settings: Settings) -> list[str]:
    """Folders that a container has to see, each once, none inside another."""
    given = [settings.bids_dir, settings.output_dir, settings.validate_on]
    given += [settings.recipe, settings.fs_license_file, settings.bids_database_dir]
    given += [*settings.derivatives.values(), *settings.references.values()]
    models = (settings.model, settings.start_from, *settings.ensemble)
    given += [name for name in models if name and Path(name).exists()]
    paths = sorted({str(Path(path).absolute()) for path in given if path})
    for path in paths:
        if re.search("[,:]", path):
            raise InputError(
                f"{path}: commas and colons cannot be in a container's folders. Rename it."
            )
    return [
        path
        for path in paths
        if not any(path != other and Path(path).is_relative_to(other) for other in paths)
    ]


def _in_container(profile: Profile) -> bool:
    inside = "APPTAINER_CONTAINER" in os.environ or "SINGULARITY_CONTAINER" in os.environ
    program = Path(profile.program[0]).name if profile.program else ""
    return program in CONTAINERS or (not program and inside)


def _prologue(profile: Profile) -> list[str]:
    lines = []
    for name, value in profile.environment.items():
        # In double quotes, so that $TMPDIR and $SLURM_JOB_ID are those of the node.
        for letter in '\\"`':
            value = value.replace(letter, f"\\{letter}")
        lines.append(f'export {name}="{value}"')
        if _in_container(profile):  # passes --cleanenv
            lines.append(f'export APPTAINERENV_{name}="${name}"')
    return [*lines, *profile.prologue]


def _scratch(settings: Settings, profile: Profile) -> str:
    """Scratch folder for bash; that of the profile unless the user chose one."""
    if profile.scratch and settings.work_dir == Path("work").absolute():
        return '"' + re.sub(r'(["\\`])', r"\\\1", profile.scratch) + '"'
    return shlex.quote(str(settings.work_dir))


def _positional(settings: Settings) -> list[str]:
    folders = [shlex.quote(str(path)) for path in (settings.bids_dir, settings.output_dir)]
    return [" ".join([*folders, settings.analysis_level])]


def _command(
    settings: Settings, profile: Profile, scratch: str, *, always: Sequence[str] = ()
) -> str:
    flags = flags_of(settings, leave_out=("work_dir",), always=always)
    return _lines([
        _program(profile, settings, scratch), *_positional(settings),
        f"--work-dir {scratch}", *flags,
    ])  # fmt: skip


def _lines(parts: Iterable[str]) -> str:
    return " \\\n    ".join(parts)


def flags_of(
    settings: Settings, *, leave_out: Sequence[str] = (), always: Sequence[str] = ()
) -> list[str]:
    """The flags that make the parser give these settings, as `options.to_arguments`.

    What a settings file (``--config-file``) says is among them, and every path is absolute.

    Examples
    --------
    >>> flags_of(Settings(Path("/in"), Path("/out"), probseg=True, session_label=("A", "B")))
    ['--session-label A B', '--probseg', '--nprocs 1', '--omp-nthreads 1']
    """
    always = list(always)
    if settings.brain_tool != settings.head_tool:  # the parser's default is the head tool
        always.append("brain_tool")
    words = {}
    if settings.bids_filters:
        text = json.dumps(settings.bids_filters, indent=2, sort_keys=True) + "\n"
        # Named after what it says: jobs that wait keep theirs.
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        path = settings.output_dir / "logs" / "slurm" / f"filters_{digest}.json"
        words["bids_filters"] = [str(write_once(path, text))]
    leave_out = (*leave_out, "slurm", "submit", "slurm_profile")
    return to_arguments(settings, leave_out=leave_out, always=always, words=words)
