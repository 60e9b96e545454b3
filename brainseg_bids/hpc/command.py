# SPDX-License-Identifier: Apache-2.0
"""How brainseg is started on a node: its program, its flags, what comes before it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids.bids.description import write_once
from brainseg_bids.documents import InputError
from brainseg_bids.hpc.profiles import Profile
from brainseg_bids.options import declared, to_arguments
from brainseg_bids.settings import Settings, SlurmOptions

CONTAINERS = {"apptainer": ("APPTAINERENV",), "singularity": ("SINGULARITYENV", "APPTAINERENV")}
"""Programs that start a container, and what begins the names of variables that they hand into it,
whatever ``--cleanenv`` keeps out. On many sites Apptainer is called singularity, too."""

OF_SLURM = tuple(item.name for item in declared(Settings) if item.group is SlurmOptions)
"""Settings that a job is not given again."""


@dataclass(frozen=True)
class Launch:
    """How brainseg is started with some settings at some site.

    Parameters
    ----------
    settings : Settings
    profile : Profile
    """

    settings: Settings
    profile: Profile

    @property
    def scratch(self) -> str:
        """Scratch folder for bash; that of the profile unless the user chose one."""
        if self.profile.scratch and self.settings.work_dir == Path("work").absolute():
            return '"' + re.sub(r'(["\\`])', r"\\\1", self.profile.scratch) + '"'
        return shlex.quote(str(self.settings.work_dir))

    @property
    def handed_in(self) -> tuple[str, ...]:
        """What begins the names of variables for a container; nothing if none is started."""
        program = self.profile.program or _own_container()
        return CONTAINERS.get(Path(program[0]).name, ()) if program else ()

    @property
    def prologue(self) -> list[str]:
        """Lines of bash that come before it."""
        lines = []
        for name, value in self.profile.environment.items():
            # In double quotes, so that $TMPDIR and $SLURM_JOB_ID are those of the node.
            for letter in '\\"`':
                value = value.replace(letter, f"\\{letter}")
            lines.append(f'export {name}="{value}"')
            lines += [f'export {prefix}_{name}="${name}"' for prefix in self.handed_in]
        return [*lines, *self.profile.prologue]

    def command(self, flags: Sequence[str]) -> list[str]:
        """The command for bash, in the lines that it is written in."""
        folders = (self.settings.bids_dir, self.settings.output_dir)
        given = shlex.join(map(str, folders))
        return [self._program(), f"{given} {self.settings.analysis_level}", *flags]

    def _program(self) -> str:
        if self.profile.program:
            words = [os.path.expanduser(os.path.expandvars(word)) for word in self.profile.program]
            return self._words(words)
        if container := _own_container():
            program, image = container
            return self._words((program, "run", "--cleanenv", "-B", "{folders}", image))
        return shlex.join([sys.executable, "-m", "brainseg_bids"])

    def _words(self, words: Iterable[str]) -> str:
        """Words quoted for bash, with the folders of a container filled in."""
        folders = ",".join([*map(shlex.quote, _folders(self.settings)), self.scratch])
        return " ".join(
            "".join(
                folders if part == "{folders}" else shlex.quote(part) for part in parts if part
            )
            for parts in (re.split(r"(\{folders\})", word) for word in words)
        )


def bash_lines(parts: Iterable[str]) -> str:
    """One command over several lines."""
    return " \\\n    ".join(parts)


def _own_container() -> tuple[str, ...]:
    """Program and image of the container that this process runs in, or nothing."""
    for program in CONTAINERS:  # Apptainer tells both names
        if image := os.environ.get(f"{program.upper()}_CONTAINER"):
            return program, image
    return ()


def _folders(settings: Settings) -> list[str]:
    """Folders that a container has to see, each once, none inside another."""
    paths_of = [item.name for item in declared(Settings) if item.kind.startswith("Path")]
    given = [getattr(settings, name) for name in paths_of if name != "work_dir"]
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


def job_flags(
    settings: Settings, *, leave_out: Sequence[str] = (), always: Sequence[str] = ()
) -> list[str]:
    """The flags that make the parser give these settings, as `options.to_arguments`.

    What a settings file (``--config-file``) says is among them, and every path is absolute.

    Examples
    --------
    >>> job_flags(Settings(Path("/in"), Path("/out"), probseg=True, session_label=("A", "B")))
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
    leave_out = (*leave_out, *OF_SLURM)
    return to_arguments(settings, leave_out=leave_out, always=always, words=words)
