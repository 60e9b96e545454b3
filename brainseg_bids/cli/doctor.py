# SPDX-License-Identifier: Apache-2.0
"""``brainseg doctor``: which tools, models and accelerators can be seen from here.

Nothing is run, downloaded or changed. Files are looked at, versions are read where they lie.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.exit_codes import DONE, FAILED
from brainseg_bids.machine import allowed_cores, memory_limit_gib
from brainseg_bids.resources import total_memory_gib
from brainseg_bids.stages.headlabels import named_command

PACKAGES = ("torch", "monai", "lightning", "nipype", "niworkflows", "pybids", "nibabel", "numpy")
NEEDED = ("torch", "monai", "safetensors", "nibabel", "numpy", "scipy")
"""Modules without which the packaged models cannot segment."""


def main(argv: list[str] | None = None) -> int:
    """Print what there is.

    Returns
    -------
    int
        0, or 1 if a packaged model cannot run here or a ``--tool`` names no program.
    """
    parser = argparse.ArgumentParser(
        prog="brainseg doctor", description=__doc__.splitlines()[0].partition(": ")[2]
    )
    parser.add_argument(
        "--tool",
        action="append",
        default=[],
        type=named_command,
        metavar="NAME=COMMAND",
        help='look whether this command can be run, e.g. samseg="apptainer exec s.sif run_samseg"',
    )
    commands = dict(parser.parse_args(argv).tool)
    ants = commands.pop("ants", ())
    tools, absent = tool_rows(commands)
    absent += [f"--tool ants: {ants[0]}: there is no such program."] if no_program(ants) else []
    models, errors = model_rows()
    print(f"brainseg {__version__}, {platform.platform()}\n")
    for title, rows in (
        ("Tools for --stages headlabels", tools),
        ("FreeSurfer licence key", [(licence_state(os.environ),)]),
        ("For --output-spaces", space_rows(ants)),
        ("For brainseg fetch", fetch_rows()),
        ("Packaged models", models),
        ("Accelerators", accelerator_rows()),
        ("Machine", machine_rows()),
        ("Packages", package_rows()),
    ):
        print(f"{title}\n{_aligned(rows)}\n", flush=True)
    for error in errors + absent:
        print(f"brainseg: ERROR: {error}", file=sys.stderr)
    if not errors:
        print("The packaged models can run here.")
    return FAILED if errors or absent else DONE


def tool_rows(
    commands: Mapping[str, Sequence[str]],
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Two lines a tool: name, state, what it labels and licence, then its place or how to get it.

    And what is wrong with the given commands.
    """
    from brainseg_bids.interfaces.tools import find_tool, tool_names  # late: nipype
    from brainseg_bids.interfaces.tools._failures import ToolError
    from brainseg_bids.interfaces.tools.base import find_program, tool_version

    rows, errors = [], []
    for name in tool_names():
        tool = find_tool(name)
        regions = "for " + " and ".join(sorted(tool.regions, reverse=True))
        if not tool.program and name not in commands:
            rows += [(name, "results are reused", regions, tool.licence), ("", tool.how_to_get)]
            continue
        try:
            program = find_program(tool, commands.get(name, ()))
        except ToolError as error:
            if name in commands:
                errors.append(str(error))
            rows += [(name, "not found", regions, tool.licence), ("", tool.how_to_get)]
            continue
        version = tool_version(tool, program)
        found = f"found {version}".strip()
        rows += [(name, found, regions, tool.licence), ("", shlex.join(program))]
    return rows, errors


def licence_state(environment: Mapping[str, str]) -> str:
    """Where FreeSurfer's programs would find a licence key. None of the tools we run wants one.

    >>> licence_state({"FS_LICENSE": "/nowhere/license.txt"})
    'FS_LICENSE is /nowhere/license.txt, but there is no such file'
    """
    named = environment.get("FS_LICENSE")
    if named:
        there = Path(named).is_file()
        return f"FS_LICENSE is {named}" + ("" if there else ", but there is no such file")
    home = environment.get("FREESURFER_HOME")
    for name in ("license.txt", ".license"):
        if home and (Path(home) / name).is_file():
            return f"{Path(home) / name}"
    return "none seen; only some programs of FreeSurfer want one (--fs-license-file, FS_LICENSE)"


def space_rows(ants: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """ANTs' Python package or the given command, what applies transforms, and the templates."""
    from brainseg_bids.bids.templates import fetch_command, template_names, templateflow_home
    from brainseg_bids.interfaces.register import remedy  # late: nipype

    home = templateflow_home()
    names = ", ".join(template_names(home)) if home.is_dir() else ""
    if ants:
        found = "not found" if no_program(ants) else shlex.join(ants)
    elif importlib.util.find_spec("ants"):
        found = f"antspyx {_version('antspyx')}"
    else:
        found = f"not found. {remedy()}"
    return [
        ("ANTs", found),
        ("transforms", f"nitransforms {_version('nitransforms')}"),
        ("TemplateFlow", f"client {_version('templateflow')}"),
        ("templates", f"{names or 'none'} in {home}"),
        *([] if names else [("", fetch_command("MNI152NLin2009cAsym", resolution="1"))]),
    ]


def no_program(command: Sequence[str]) -> bool:
    """Whether a command names a program that is not there; none at all is no fault."""
    return bool(command) and shutil.which(command[0]) is None


def fetch_rows() -> list[tuple[str, ...]]:
    """Programs that get datasets; without them HTTP does."""
    from brainseg_bids.fetch import annex

    names = ("git", *reversed(annex.WAYS))
    rows = [(name, annex.find_program(name) or "not found") for name in names]
    if annex.installed_way():
        return rows
    remedy = annex.REMEDIES["git-annex" if annex.find_program("git") else "git"]
    return [*rows, ("", f"by HTTP, then; to clone datasets: {remedy}")]


def model_rows() -> tuple[list[tuple[str, ...]], list[str]]:
    """Name, digest and contrasts of each packaged model; and why a default cannot run."""
    from brainseg_bids.nets.bundle import (
        DEFAULT_MODELS,
        BundleError,
        ModelBundle,
        packaged_models,
    )

    rows, errors = [], []
    models = packaged_models()
    for name, path in models.items():
        try:
            bundle = ModelBundle.read(path)
        except BundleError as error:
            rows.append((name, "damaged"))
            errors.append(str(error))
            continue
        contrasts = ", ".join(bundle.contrasts) or "any contrast"
        rows.append(
            (name, f"digest {bundle.digest[:12]}", contrasts, f"{bundle.voxel_size_mm} mm")
        )
    errors += [
        f"model {name} is not in this installation. Install it again."
        for name in DEFAULT_MODELS
        if name not in models
    ]
    errors += [
        f"Python package {name} is missing. Install it: pip install {name}"
        for name in NEEDED
        if importlib.util.find_spec(name) is None
    ]
    return rows or [("none",)], errors


def accelerator_rows() -> list[tuple[str, ...]]:
    """Name and memory of each accelerator that PyTorch sees."""
    if importlib.util.find_spec("torch") is None:
        return [("PyTorch is missing",)]
    import torch

    rows = []
    if torch.cuda.is_available():
        kind = "rocm" if torch.version.hip else "cuda"
        for number in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(number)
            rows.append((kind, device.name, f"{device.total_memory / 2**30:.0f} GiB"))
    if torch.backends.mps.is_available():
        rows.append(("mps", platform.processor() or "Apple GPU"))
    built = (torch.version.cuda and "CUDA") or (torch.version.hip and "ROCm") or "the CPU"
    return rows or [(f"none; PyTorch is built for {built}",)]


def machine_rows() -> list[tuple[str, ...]]:
    """CPUs and memory, and what a container or a job allows of them."""
    everything = os.cpu_count() or 1
    allowed = allowed_cores()
    cpus = f"{allowed}" + (f" of {everything}" if allowed < everything else "")
    rows = [("CPUs", cpus), ("memory", f"{total_memory_gib():.1f} GiB")]
    limit = memory_limit_gib()
    if limit is not None and limit < total_memory_gib():
        rows.append(("memory limit of this container or job", f"{limit:.1f} GiB"))
    return rows


def package_rows() -> list[tuple[str, ...]]:
    """Versions."""
    rows = [("Python", f"{platform.python_version()} ({sys.executable})")]
    return [*rows, *((name, _version(name)) for name in PACKAGES)]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the last of a row may be as long as it is.

    >>> print(_aligned([("a", "1"), ("longer", "2")]))
      a       1
      longer  2
    """
    columns = [[row[i] for row in rows if i < len(row) - 1] for i in range(max(map(len, rows)))]
    widths = [max(map(len, column), default=0) for column in columns]
    return "\n".join(
        "".join(f"  {cell.ljust(width)}" for cell, width in zip(row[:-1], widths, strict=False))
        + f"  {row[-1]}"
        for row in rows
    )


if __name__ == "__main__":
    raise SystemExit(main())
