# SPDX-License-Identifier: Apache-2.0
"""Stage ``headlabels``: label whole heads with external tools and merge what they give."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from brainseg_bids.documents import Number
from brainseg_bids.interfaces.tools import tool_names
from brainseg_bids.options import OptionGroup, above_zero, folder_by_name, option


def named_command(text: str) -> tuple[str, list[str]]:
    """Name and command of a tool.

    >>> named_command("samseg=apptainer exec 'my image.sif' run_samseg")
    ('samseg', ['apptainer', 'exec', 'my image.sif', 'run_samseg'])
    """
    name, _, command = text.partition("=")
    known = (*tool_names(), "ants")  # ants: what registers images to --output-spaces
    if name not in known:
        known = ", ".join(known)
        raise argparse.ArgumentTypeError(f"{text!r}: no tool is called {name!r}; known: {known}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not words:
        raise argparse.ArgumentTypeError(
            f'{text!r}: give a command, e.g. {name}="/opt/{name}/bin/run"'
        )
    return name, words


def _as_named_commands(tools: dict[str, list[str]]) -> list[str]:
    return [f"{name}={shlex.join(command)}" for name, command in tools.items()]


@dataclass(frozen=True, kw_only=True)
class HeadlabelsOptions(OptionGroup):
    """Head label maps."""

    title: ClassVar[str] = "head label maps (--stages headlabels)"
    belongs_to: ClassVar[tuple[str, ...]] = ("headlabels",)

    head_tool: str = option(
        "--head-tool",
        default="model",
        choices=tool_names(),
        metavar="NAME",
        help=f"what labels the whole head: {', '.join(tool_names())}; default: model, which needs "
        "no other program",
    )
    brain_tool: str = option(
        "--brain-tool",
        default="model",
        choices=tool_names(),
        metavar="NAME",
        help="what labels the brain in it; default: the head tool alone",
    )
    tools: dict = option(
        "--tool",
        default={},
        action="append",
        parse=named_command,
        arguments=_as_named_commands,
        stages=("headlabels", "segment"),  # ants, for --output-spaces
        metavar="NAME=COMMAND",
        help='where a tool lives, e.g. samseg="apptainer exec samseg.sif run_samseg"; default: '
        "PATH, or what make tools-NAME has built",
    )
    derivatives: dict = option(
        "-d",
        "--derivatives",
        default={},
        many=True,
        action="extend",
        parse=folder_by_name,
        stages=("headlabels", "contrast", "synth", "evaluate"),
        metavar="NAME=PATH",
        help="take a tool's results from there instead of running it, e.g. freesurfer=/data/fs; "
        "stage contrast: measure with these labels; synth: make pairs from these; evaluate: judge "
        "these, too",
    )
    fs_license_file: Path | None = option(
        "--fs-license-file",
        stages=(),
        metavar="FILE",
        help="FreeSurfer's licence key; default: FS_LICENSE, then $FREESURFER_HOME/license.txt",
    )
    tool_timeout_h: float = option(
        "--tool-timeout",
        default=24.0,
        parse=above_zero("a number of hours", below=10_000),
        fits=Number(0, 1e6, "h", above=True),
        metavar="HOURS",
        help="end an external tool that takes longer; default: 24",
    )
