# SPDX-License-Identifier: Apache-2.0
"""``Tool`` and ``ToolInterface``: what is known of an external tool, and how each is run.

A tool is run without a shell, in the folder of its Nipype node, with all it says in
``NAME.log`` there. The program can be anything that takes the tool's arguments: the tool
itself, ``apptainer exec image.sif run_samseg``, or a script of the user's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nipype.interfaces.base import (
    CommandLine,
    CommandLineInputSpec,
    File,
    TraitedSpec,
    isdefined,
    traits,
)

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.images import holds_numbers_only, is_at_one_place, read_again, write_volume
from brainseg_bids.interfaces.tools._failures import MissingToolError, ToolError, error_in, failure
from brainseg_bids.interfaces.tools._process import Ended, run_program

PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")
"""Paths that no tool chokes on. Some split at spaces, or take a bracket for a pattern."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)

COPY = "input.nii.gz"
"""Of an image whose file has another unit of length than mm, or voxels that are no numbers."""

SUBJECT = re.compile(r"[A-Za-z0-9+_-]+")


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What is known of an external tool.

    Parameters
    ----------
    name : str
        As in ``--head-tool`` and in ``seg-NAME``; the name of its file.
    program : tuple of str
        Default command; empty for tools whose results are only reused.
    regions : frozenset of str
        What it is trusted for: ``"head"``, ``"brain"``.
    same_grid : bool
        Its result must lie on the image's grid.
    posteriors : bool
        It gives probabilities.
    licence : str
    about : str
        How the methods text calls it: Markdown, with the BibTeX key of its paper.
    how_to_get : str
        One sentence.
    mem_base_gb, mem_gb_per_mvox : float
        Memory it needs: a line through what was measured, and a margin.
    max_threads : int
        More do not help.
    gpu : bool
        It can use one.
    existing : tuple of str
        Where its results lie below a folder given by ``-d NAME=PATH``, best first: patterns
        with ``{id}`` (what the subject may be called) or ``{bids}`` (BIDS folder and first
        entities).
    interface : type
        Nipype interface.
    """

    name: str
    program: tuple[str, ...] = ()
    regions: frozenset[str]
    same_grid: bool = False
    posteriors: bool = False
    licence: str
    about: str
    how_to_get: str
    mem_base_gb: float = 1.0
    mem_gb_per_mvox: float = 0.0
    max_threads: int = 1
    gpu: bool = False
    existing: tuple[str, ...]
    interface: type[ToolInterface]

    def mem_gb(self, n_voxels: int) -> float:
        """Memory to set aside for an image of so many voxels."""
        return round(self.mem_base_gb + self.mem_gb_per_mvox * n_voxels / 1e6, 2)

    def crosswalk(self) -> Crosswalk:
        """Its codes in terms of ``fullhead``; codes that are not there are errors."""
        return Crosswalk.packaged(self.name, "fullhead")


def find_program(tool: Tool, command: Sequence[str] = ()) -> tuple[str, ...]:
    """Program and first arguments, the program by its absolute path.

    Parameters
    ----------
    tool : Tool
    command : sequence of str
        From ``--tool NAME=COMMAND``. Without one: ``tools/NAME/bin`` beside this Python (where
        ``make tools-samseg`` puts SAMSEG), then PATH.

    Raises
    ------
    ToolError
        With ``exit_code`` 127 and how to get the tool, if there is no such program.
    """
    if command:
        found = shutil.which(command[0])
        if found is None and os.path.isfile(command[0]):
            raise MissingToolError(
                f"--tool {tool.name}: {command[0]} is not executable. Allow it with chmod +x, or "
                "give the program that runs it first."
            )
        if found is None:
            raise MissingToolError(
                f"--tool {tool.name}: there is no program {command[0]!r}. Give one that is on "
                "PATH, or its full path."
            )
        # The program runs in another folder: an image file named after `exec` must be found.
        rest = [os.path.abspath(w) if os.path.isfile(w) else w for w in command[1:]]
        return (os.path.abspath(found), *rest)
    if not tool.program:
        raise MissingToolError(
            f"{tool.name} is never run here, only its results are used. {tool.how_to_get}"
        )
    beside = Path(sys.prefix) / "tools" / tool.name / "bin" / tool.program[0]
    found = shutil.which(beside) or shutil.which(tool.program[0])
    if found is None:
        raise MissingToolError(
            f"{tool.name}: there is no program {tool.program[0]} on PATH. {tool.how_to_get} "
            f'Or say how it is called: --tool {tool.name}="COMMAND".'
        )
    return (os.path.abspath(found), *tool.program[1:])


class ToolInputSpec(CommandLineInputSpec):
    """What every tool is told; tools add ``argstr`` and inputs of their own."""

    image = File(exists=True, mandatory=True, desc="image, 3D")
    subject = traits.Str(mandatory=True, desc="what files are named after, e.g. sub-01_ses-A")
    # A container that is named there has gigabytes: its state is hashed instead.
    command = traits.List(
        traits.Str(), hash_files=False, desc="program and first arguments; default: the tool's"
    )
    command_state = traits.List(traits.Str(), desc="`files.file_state` of the files among them")
    threads = traits.Int(1, usedefault=True, nohash=True, desc="CPU threads")
    timeout_s = traits.Float(nohash=True, desc="end it after this time")
    # Nipype counts a node with this input as one that needs a GPU slot.
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)


class ToolOutputSpec(TraitedSpec):
    """What every tool leaves."""

    labels = File(exists=True, desc="the tool's own codes on its own grid")
    posteriors = traits.List(File(exists=True), desc="probabilities, one 3D file a code or one 4D")
    posterior_codes = traits.List(traits.Int(), desc="the tool's code of each")
    log = File(exists=True, desc="its log")
    facts = File(exists=True, desc="tool, version, command, time, memory: JSON")


class ToolInterface(CommandLine):
    """Runs one tool on one image.

    A tool's class says its name, where it leaves its labels, and what it needs prepared.
    """

    input_spec = ToolInputSpec
    output_spec = ToolOutputSpec
    _cmd = "tool"
    _folder: Path | None = None
    _as_it_is = True
    name = ""
    labels_file = ""
    """Where the labels are, below the node's folder; ``{subject}`` is filled in."""

    def __init__(self, command: Sequence[str] = (), **inputs) -> None:
        super().__init__(**inputs)  # Nipype's own `command` is a string and no input
        if command:
            self.inputs.command = list(command)

    @property
    def tool(self) -> Tool:
        """What is known of the tool: its module says it."""
        return sys.modules[type(self).__module__].TOOL  # type: ignore[no-any-return]

    # What tools may say otherwise

    @classmethod
    def version(cls, program: Sequence[str]) -> str:
        """Version if files beside the program, the last word, tell; it is not started."""
        return ""

    def prepare(self, folder: Path) -> None:
        """Lay out what the tool needs; leave nothing of an earlier try."""

    def commands(self) -> list[list[str]]:
        """Command lines, run one after another."""
        return [[*self.program(), *self.arguments()]]

    def environment(self) -> dict[str, str]:
        """Variables that this tool needs beside the numbers of threads."""
        return {}

    def finish(self, folder: Path) -> None:
        """Make of the tool's files what the outputs promise."""

    def posterior_files(self, folder: Path) -> dict[int, Path]:
        """File of each code's probabilities; the same file for all if it is 4D."""
        return {}

    def facts(self, folder: Path) -> dict:
        """What else is worth recording."""
        return {}

    # The same for all

    @property
    def cmd(self) -> str:
        """Program and first arguments, quoted."""
        return shlex.join(self.inputs.command or self.tool.program)

    def program(self) -> tuple[str, ...]:
        """Program and first arguments; `ToolError` if there is none."""
        return find_program(self.tool, self.inputs.command or ())

    def arguments(self) -> list[str]:
        """What the tool is told."""
        return shlex.split(" ".join(self._parse_inputs()))

    @property
    def image(self) -> str:
        """The image's path, or what `_provide_image` leaves in the node's folder."""
        path = os.path.abspath(self.inputs.image)
        if not self._as_it_is:
            return COPY
        return path if PLAIN.fullmatch(path) else f"input{ending(path)}"

    def _format_arg(self, name, spec, value):
        if name == "image":
            value = self.image
        elif name == "threads":
            value = min(value, self.tool.max_threads)
        if isinstance(value, str) and not spec.is_trait_type(File):  # Nipype quotes files only
            value = shlex.quote(value)
        return super()._format_arg(name, spec, value)

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        self._check_mandatory_inputs()
        if not SUBJECT.fullmatch(self.inputs.subject):
            raise ToolError(
                f"{self.inputs.image}: files cannot be named after {self.inputs.subject!r}; use "
                "letters, digits, +, - and _."
            )
        folder = self._folder = Path(runtime.cwd)
        log = folder / f"{self.name}.log"
        log.write_bytes(b"")
        self._provide_image(folder)
        self.prepare(folder)
        environment = {**runtime.environ, **self.inputs.environ, **self._environment()}
        runtime.stdout = runtime.stderr = runtime.merged = ""
        runtime.success_codes = correct_return_codes
        ended = Ended(0)
        for command in self.commands():
            runtime.cmdline = shlex.join(command)
            last = run_program(
                command,
                folder=folder,
                log=log,
                timeout_s=self._limit_s,
                environment=environment,
            )
            ended = Ended(
                last.code,
                last.timed_out,
                ended.seconds + last.seconds,
                max(ended.peak_gib, last.peak_gib),
            )
            runtime.returncode = ended.code
            if ended.code or ended.timed_out:
                raise self._failure(ended, log)
        self._require(folder, log)
        self.finish(folder)
        self._write_facts(folder, ended)
        return runtime

    def _failure(self, ended: Ended, log: Path) -> ToolError:
        return failure(self.tool, self.inputs.image, ended, log, limit_s=self._limit_s)

    @property
    def _limit_s(self) -> float | None:
        return self.inputs.timeout_s if isdefined(self.inputs.timeout_s) else None

    def _environment(self) -> dict[str, str]:
        threads = str(min(self.inputs.threads, self.tool.max_threads))
        return dict.fromkeys(THREAD_VARIABLES, threads) | self.environment()

    def _provide_image(self, folder: Path) -> None:
        """A link where the path is not plain; a copy where header or voxels may be misunderstood.

        Most tools take every number of a header for mm, NaN spreads through their sums, and some
        go by the qform: their labels would lie elsewhere if the sform differs.
        """
        # What is wrong with the image is told now, not after hours.
        image, grid = read_again(self.inputs.image)
        self._as_it_is = (
            grid.file_unit == "mm"
            and is_at_one_place(self.inputs.image)
            and holds_numbers_only(self.inputs.image)
        )
        link = folder / f"input{ending(self.inputs.image)}"
        link.unlink(missing_ok=True)
        if not self._as_it_is:
            write_volume(image, replace(grid, file_unit="mm"), folder / COPY)
        elif self.image == link.name:
            link.symlink_to(os.path.abspath(self.inputs.image))

    def _written(self, folder: Path) -> Path:
        return folder / self.labels_file.format(subject=self.inputs.subject)

    def _require(self, folder: Path, log: Path) -> None:
        for path in [self._written(folder), *self.posterior_files(folder).values()]:
            if not path.is_file() or path.stat().st_size == 0:
                raise ToolError(
                    f"{self.inputs.image}: {self.name} ended without a fault but wrote no "
                    f"{path.relative_to(folder)}{error_in(log)}. Its log: {log}"
                )

    def _write_facts(self, folder: Path, ended: Ended) -> None:
        commands = self.commands()
        facts = {
            "Tool": self.name,
            "ToolVersion": tool_version(self.tool, self.program()),
            "Command": "; ".join(shlex.join(command) for command in commands),
            "Seconds": round(ended.seconds, 1),
            "PeakMemoryGiB": ended.peak_gib,
            "Threads": min(self.inputs.threads, self.tool.max_threads),
        } | self.facts(folder)
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        (folder / "facts.json").write_text(text + "\n", encoding="utf-8")

    def _list_outputs(self):
        folder = self._folder or Path.cwd()
        posteriors = self.posterior_files(folder)
        return self.output_spec().get() | {
            "labels": str(self.labels_output(folder)),
            # A 4D file stands once for all codes.
            "posteriors": list(dict.fromkeys(str(path) for path in posteriors.values())),
            "posterior_codes": list(posteriors),
            "log": str(folder / f"{self.name}.log"),
            "facts": str(folder / "facts.json"),
        }

    def labels_output(self, folder: Path) -> Path:
        """The labels that are handed on: the tool's file as it is."""
        return self._written(folder)

    @classmethod
    def second_map(cls, labels: Path) -> Path | None:
        """What `whole_map` adds to a map, if there is such a file beside it."""
        return None

    @classmethod
    def whole_map(cls, labels: Path, folder: Path) -> Path:
        """A map that is given, in one file: itself, or one made of several in ``folder``."""
        return labels


def ending(path: str | Path) -> str:
    """What tells the format.

    >>> ending("/data/sub-01_T1w.nii.gz"), ending("orig.mgz")
    ('.nii.gz', '.mgz')
    """
    return ".nii.gz" if str(path).endswith(".nii.gz") else Path(path).suffix


def tool_version(tool: Tool, program: Sequence[str]) -> str:
    """Version of an installed tool, or nothing where it cannot be told, as in a container.

    >>> from brainseg_bids.interfaces.tools import find_tool
    >>> tool_version(find_tool("samseg"), ["/bin/apptainer", "exec", "s.sif", "run_samseg"])
    ''
    """
    return tool.interface.version(program) if os.path.isabs(program[-1]) else ""


def installed_version(home: Path, distribution: str) -> str:
    """Version of a Python distribution in the environment ``home``.

    >>> installed_version(Path("/nowhere"), "samseg")
    ''
    """
    found = sorted(home.glob(f"lib/python3*/site-packages/{distribution}-*.dist-info"))
    return found[-1].name.removesuffix(".dist-info").partition("-")[2] if found else ""


def freesurfer_version(home: Path) -> str:
    """What the build stamp of a FreeSurfer installation says.

    >>> freesurfer_version(Path("/nowhere"))
    ''
    """
    stamp = home / "build-stamp.txt"
    return stamp.read_text(errors="replace").strip() if stamp.is_file() else ""
