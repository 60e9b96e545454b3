# SPDX-License-Identifier: Apache-2.0
"""Find what a tool has written earlier, in its own layout or as a BIDS derivative."""

from __future__ import annotations

import glob
from pathlib import Path

from brainseg_bids.bids.names import Scan, folder
from brainseg_bids.interfaces.tools import tool_names
from brainseg_bids.interfaces.tools.base import Tool
from brainseg_bids.volumes import InputError

OWN_SPACE = frozenset({"T1w", "orig"})
"""Labels of ``space-`` that say the image's own space."""
OTHER_MAPS = frozenset({"tissue", "fullhead", "brainseg", *tool_names()})
"""Labels of ``seg-`` that say whose map it is."""


def find_existing(tool: Tool, root: str | Path, scan: Scan) -> Path | None:
    """Label map of a scan that a tool has written earlier.

    Parameters
    ----------
    tool : Tool
    root : path
        Given by ``-d NAME=PATH``.
    scan : Scan

    Returns
    -------
    Path or None
        The best of the places in ``tool.existing``, then ``*_seg-NAME_dseg`` and other
        ``*_dseg`` of BIDS derivatives. Names that say another session, run or acquisition, a
        template's space or another resolution are not taken.

    Raises
    ------
    InputError
        If there is no such folder, or two files fit equally well; the message names both.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"-d {tool.name}={root}: there is no such folder.")
    for pattern in _by_preference(tool):
        for name in names_of(scan):
            found = _matches(root, pattern, scan, name, tool.name)
            if len(found) > 1:
                raise InputError(
                    f"{found[0]} and {found[1]}: both may be {tool.name}'s labels of "
                    f"{scan.path.name}. Leave one in {root}, or give a folder with one."
                )
            if found:
                return found[0]
    return None


def names_of(scan: Scan) -> list[str]:
    """What programs may have called a scan's subject, the most telling first.

    A name without the session is taken only if the subject has no other session.

    >>> names_of(Scan.from_path("/d/sub-01/anat/sub-01_run-2_T1w.nii.gz"))
    ['sub-01_run-2_T1w', 'sub-01_run-2', 'sub-01', '01']
    """
    entities = [f"{key}-{label}" for key, label in scan.entities.items()]
    subject, session = scan.subject, scan.session
    names = ["_".join([*entities, scan.suffix]), "_".join(entities)]
    if session:
        names += [f"sub-{subject}_ses-{session}", f"{subject}_{session}"]
    if not session or _sessions(scan) <= {session}:
        names += [f"sub-{subject}", subject]
    return list(dict.fromkeys(names))


def _sessions(scan: Scan) -> set[str]:
    """Sessions of the scan's subject that are on disk."""
    home = next((p for p in scan.path.parents if p.name == f"sub-{scan.subject}"), None)
    return {path.name.removeprefix("ses-") for path in home.glob("ses-*")} if home else set()


def _by_preference(tool: Tool) -> list[str]:
    return [
        *tool.existing,
        f"{{bids}}*_seg-{tool.name}_dseg.nii*",
        "{bids}*_dseg.nii*",
    ]


def _matches(root: Path, pattern: str, scan: Scan, name: str, tool: str) -> list[Path]:
    first = [f"sub-{scan.subject}"] + ([f"ses-{scan.session}"] if scan.session else [])
    bids = (folder(scan) / "_".join(first)).as_posix()
    filled = pattern.replace("{id}", glob.escape(name)).replace("{bids}", glob.escape(bids))
    # Not Path.glob, which leaves out links whose content was not fetched.
    found = [root / path for path in sorted(glob.glob(filled, root_dir=root))]
    if "{bids}" not in pattern:
        return [path for path in found if not path.is_dir()]
    exact = [path for path in found if _fits(Scan.from_path(path), scan, tool)]
    ranks = [_closeness(Scan.from_path(path), scan) for path in exact]
    return [path for path, rank in zip(exact, ranks, strict=True) if rank == max(ranks)]


def _closeness(candidate: Scan, scan: Scan) -> tuple[int, int]:
    """How much of a scan's name a derivative's name repeats, then how little it adds."""
    shared = len(candidate.entities.keys() & scan.entities.keys())
    return shared, shared - len(candidate.entities)


def _fits(candidate: Scan, scan: Scan, tool: str) -> bool:
    """Whether a derivative's name may say that it is of the scan."""
    said = candidate.entities
    ours = {"seg", "desc", "space", "res", "label", "atlas"}
    if any(scan.entities.get(key, label) != label for key, label in said.items()):
        return False
    if {"res", "label"} & said.keys() or any(
        k not in scan.entities for k in said if k not in ours
    ):
        return False
    own_space = OWN_SPACE | {scan.suffix}
    if scan.suffix != "T1w":  # without space- it lies on the T1w
        if said.get("space") != scan.suffix:
            return False
    elif "space" in said and said["space"] not in own_space:
        return False
    if "desc" in said and said["desc"].startswith("top"):
        return False
    return said.get("seg") in (None, tool, *_also(tool)) or said["seg"] not in OTHER_MAPS


def _also(tool: str) -> tuple[str, ...]:
    """What else ``seg-`` may say of a tool's map."""
    return ("brainseg",) if tool == "model" else ()
