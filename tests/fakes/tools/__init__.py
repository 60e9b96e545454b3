# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for external tools: they write what the real ones write, from the phantom head.

They take the real ones' arguments, check what those check, and end as those end. Words that
begin with ``@`` before the arguments make them fail:

``@exit1`` ``@licence`` ``@memory`` ``@sigkill`` ``@hang`` ``@nothing`` ``@grid`` ``@code``
``@inexact`` ``@empty``, and ``@only=TEXT`` to fail only for images whose path holds TEXT.
``@one`` makes those of which there are two kinds be version 1.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = {"gouhfi": "run_gouhfi", "brainchop104": "brainchop"}
PROGRAMS = {
    "charm": ["charm"],
    "synthseg": ["mri_synthseg"],
    "samseg": ["run_samseg"],
    "fastsurfer": ["run_fastsurfer.sh"],
    "brainchop": ["brainchop"],
    "brainchop104": ["brainchop"],
    "siam": ["siam-pred"],
    "supersynth": ["mri_super_synth"],
    "gouhfi": ["run_gouhfi", "run_preprocessing"],
    "gouhfi1": ["run_gouhfi", "run_conforming", "run_brain_extraction"],
}


def fake_command(name: str, *switches: str) -> str:
    """What to give as ``--tool NAME=...``: ``fake_command("charm", "exit1", "only=sub-02")``.

    >>> shlex.split(fake_command("samseg", "nothing"))[1:] == [str(HERE / "samseg.py"), "@nothing"]
    True
    """
    script = HERE / f"{SCRIPTS.get(name, name)}.py"
    return shlex.join([sys.executable, str(script), *(f"@{switch}" for switch in switches)])


def install(folder: Path, name: str, *switches: str) -> Path:
    """Put a tool's programs into a folder, to be found on PATH. ``gouhfi1`` is version 1."""
    folder.mkdir(parents=True, exist_ok=True)
    switches = (*switches, "one") if name == "gouhfi1" else switches
    for program in PROGRAMS[name]:
        script = HERE / f"{program if name.startswith('gouhfi') else SCRIPTS.get(name, name)}.py"
        words = [sys.executable, str(script), *(f"@{switch}" for switch in switches)]
        path = folder / program
        path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP)
    return folder


def on_path(monkeypatch, folder: Path) -> None:
    """Let programs in a folder be found first."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
