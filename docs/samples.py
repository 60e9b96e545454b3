# SPDX-License-Identifier: Apache-2.0
"""Run the tutorials' commands and collect what they leave: pages and pictures for the documentation.

``python docs/samples.py [FOLDER]``. Sphinx does it when the pages are built (``_ext/sample_pages.py``); runs
that are in FOLDER already are taken as they are. No real head is in it but the average that nilearn ships.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent
TUTORIALS = {"demo": "tutorials/first-run.md", "tour": "tutorials/specialised-model.md"}
"""Runs, and the pages whose commands they are."""
SAMPLES = {
    "demo/demo/out/sub-MNI152.html": "segmentation",
    "tour/maps/sub-01.html": "label-map",
    "tour/out/sub-71.html": "contrast",
    "tour/out/group_priors.html": "priors",
    "tour/out/train_ellipsoids.html": "training",
    "tour/out/group_evaluation.html": "evaluation",
}
"""Pages that the runs leave, and what they are called in the documentation."""

_BLOCK = re.compile(
    r"<!-- run(?P<options>[^>]*?) -->\n```[^\n]*\n(?P<body>.*?)\n```", flags=re.DOTALL
)
_PICTURE = re.compile(r'(?:src|href)="data:image/png;base64,([^"]+)"')


@dataclass(frozen=True)
class Step:
    """A command that a page shows, and what it shows of its output.

    Parameters
    ----------
    command : str
    shown : tuple of str
        Lines; ``…`` stands for anything, a line of it alone for any lines.
    exit_code : int
    slow : bool
    """

    command: str
    shown: tuple[str, ...]
    exit_code: int
    slow: bool


def steps_of(text: str) -> list[Step]:
    """Commands of all blocks below ``<!-- run -->``; options are ``slow`` and ``exit N``."""
    steps = []
    for block in _BLOCK.finditer(text):
        options = block["options"]
        code = re.search(r"exit (\d+)", options)
        body = re.sub(r"\\\n\s*>?\s*", "", block["body"])
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, *shown = part.rstrip().split("\n")
            lines = tuple(line for line in shown if line.strip())
            steps.append(Step(command, lines, int(code[1]) if code else 0, "slow" in options))
    return steps


def run(step: Step, folder: Path) -> str:
    """Run a command as the page's reader would.

    Returns
    -------
    str
        What it printed.

    Raises
    ------
    RuntimeError
        If it ends with another exit code than the page says.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", step.command],
        cwd=folder,
        env=os.environ | {"PATH": path, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=7200,
    )
    if done.returncode != step.exit_code:
        raise RuntimeError(f"{step.command}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def run_tutorials(folder: Path) -> None:
    """Run the tutorials below a folder; those that are there are not run again."""
    for name, page in TUTORIALS.items():
        target = folder / name
        if target.is_dir():
            continue
        part = folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / "brainseg-bids").symlink_to(DOCS.parent)
        for step in steps_of((DOCS / page).read_text(encoding="utf-8")):
            run(step, part)
        part.rename(target)


def collect(folder: Path, target: Path) -> None:
    """Copy the pages of runs, what they link to, and the first picture of each.

    Raises
    ------
    FileNotFoundError
        If a run did not leave one of `SAMPLES`.
    """
    target.mkdir(parents=True, exist_ok=True)
    for source, name in SAMPLES.items():
        page = folder / source
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r'href="([\w./-]+\.html)"', text):
            if (page.parent / link).is_file():
                (target / link).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(page.parent / link, target / link)
        shutil.copyfile(page, target / f"{name}.html")
        shutil.copyfile(page, target / page.name)  # viewers link to their page by its own name
        picture = _PICTURE.search(text)
        if picture:
            (target / f"{name}.png").write_bytes(base64.b64decode(picture[1]))


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "_runs"
    run_tutorials(where)
    collect(where, DOCS / "_samples" / "samples")
