# SPDX-License-Identifier: Apache-2.0
"""Find what a tool has written earlier, in its own layout or as a BIDS derivative."""

from __future__ import annotations

import glob
from pathlib import Path

from brainseg_bids.bids.names import Scan, folder, sidecar, stem
from brainseg_bids.documents import InputError, read_json
from brainseg_bids.images import check_present
from brainseg_bids.interfaces.tools import tool_names
from brainseg_bids.interfaces.tools.base import Tool

OWN_SPACE = frozenset({"T1w", "orig"})
"""Labels of ``space-`` that say the image's own space."""
OTHER_MAPS = frozenset({"tissue", "fullhead", "brainseg", "simnibs", *tool_names()})
"""Labels of ``seg-`` that say whose map it is."""

ADDED = frozenset({"seg", "desc", "space", "res", "label", "atlas"})
"""Entities that a derivative's name adds to its image's."""


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
        template's space or another resolution are not taken; nor is one result for several
        images of a subject's session.

    Raises
    ------
    InputError
        If there is no such folder, two files fit equally well, or one could be of several
        images; the message names them.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"-d {tool.name}={root}: there is no such folder.")
    others = siblings(scan)
    unclear = None
    for pattern in _by_preference(tool):
        for name in names_of(scan):
            found = _matches(root, pattern, scan, name, tool.name, others)
            if len(found) > 1:
                raise InputError(
                    f"{found[0]} and {found[1]}: both may be {tool.name}'s labels of "
                    f"{scan.path.name}. Leave one in {root}, or give a folder with one."
                )
            if found and _may_be_of_others(found[0], pattern, scan, name, tool.name, others):
                unclear = unclear or _of_several(tool, root, found[0], name, scan, others)
            elif found:
                return found[0]
    if unclear:
        raise unclear
    return None


def check_origin(found: Path, tool: Tool, scan: Scan, input_sha256: str) -> None:
    """Refuse a derivative whose sidecar says that it is of another image or another tool's.

    Parameters
    ----------
    found : Path
        From `find_existing`; what is no ``*_dseg.nii[.gz]`` has no sidecar.
    tool : Tool
    scan : Scan
    input_sha256 : str
        Of the scan's file, hex.

    Raises
    ------
    InputError
        If the sidecar cannot be read, or its ``Tool`` or ``InputSHA256`` is another.
    """
    path = sidecar(found)
    if not found.name.endswith(("_dseg.nii", "_dseg.nii.gz")) or not (
        path.exists() or path.is_symlink()
    ):
        return
    check_present(path)
    try:
        said = read_json(path)
    except InputError as error:
        raise InputError(
            f"{error} Or remove it if {found.name} is of {scan.path.name}."
        ) from error
    if said.get("Tool", tool.name) != tool.name:
        raise InputError(
            f"{found}: its sidecar says that {said['Tool']} made it, not {tool.name}. Give "
            f"another folder with -d {tool.name}=FOLDER, or leave -d {tool.name} out."
        )
    if said.get("InputSHA256", input_sha256) != input_sha256:
        raise InputError(
            f"{found}: its sidecar says that it was made from another image than {scan.path}, or "
            f"before that changed. Leave -d {tool.name} out, or give a folder without it."
        )


def siblings(scan: Scan) -> list[Scan]:
    """Other images with the scan's suffix in its folder."""
    images = [Scan.from_path(path) for path in sorted(scan.path.parent.glob("sub-*.nii*"))]
    return [
        image
        for image in images
        if image.suffix == scan.suffix
        and (image.subject, image.session) == (scan.subject, scan.session)
        and image.entities != scan.entities
    ]


def _may_be_of_others(
    found: Path, pattern: str, scan: Scan, name: str, tool: str, others: list[Scan]
) -> bool:
    """Whether a name says too little to tell the scan from another one."""
    if "{bids}" in pattern:
        candidate = Scan.from_path(found)
        exact = _of_image(candidate) == scan.entities.keys()
        return not exact and any(_fits(candidate, other, tool) for other in others)
    return any(name in names_of(other) for other in others)


def _of_image(candidate: Scan) -> set[str]:
    """Keys of a derivative's name that come from its image's name."""
    return candidate.entities.keys() - ADDED


def _of_several(
    tool: Tool, root: Path, found: Path, name: str, scan: Scan, others: list[Scan]
) -> InputError:
    images = sorted([scan, *others], key=lambda image: image.path.name)
    shown = found.relative_to(root).parts
    part = next((part for part in shown if name in part), "")
    if not part or found.name.endswith(("_dseg.nii", "_dseg.nii.gz")):
        better = [f"{stem(image, seg=tool.name)}_dseg.nii.gz" for image in images]
    else:
        better = [part.replace(name, _telling_name(image), 1) for image in images]
    return InputError(
        f"{found}: may be {tool.name}'s labels of any of "
        f"{', '.join(image.path.name for image in images)}. Name each result after its image: "
        f"{', '.join(better)}."
    )


def _telling_name(scan: Scan) -> str:
    """The entities if they say more than subject and session, else the suffix too."""
    full, entities, *_ = names_of(scan)
    return entities if scan.entities.keys() - {"sub", "ses"} else full


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


def _matches(
    root: Path, pattern: str, scan: Scan, name: str, tool: str, others: list[Scan]
) -> list[Path]:
    first = [f"sub-{scan.subject}"] + ([f"ses-{scan.session}"] if scan.session else [])
    bids = (folder(scan) / "_".join(first)).as_posix()
    filled = pattern.replace("{id}", glob.escape(name)).replace("{bids}", glob.escape(bids))
    # Not Path.glob, which leaves out links whose content was not fetched.
    found = [root / path for path in sorted(glob.glob(filled, root_dir=root))]
    if "{bids}" not in pattern:
        return [path for path in found if not path.is_dir()]
    fitting = [path for path in found if _fits(Scan.from_path(path), scan, tool)]
    fitting = [path for path in fitting if not _is_of(Scan.from_path(path), others, tool)]
    ranks = [_closeness(Scan.from_path(path), scan) for path in fitting]
    return [path for path, rank in zip(fitting, ranks, strict=True) if rank == max(ranks)]


def _is_of(candidate: Scan, others: list[Scan], tool: str) -> bool:
    """Whether a derivative repeats the whole name of another image."""
    return any(
        _of_image(candidate) == other.entities.keys() and _fits(candidate, other, tool)
        for other in others
    )


def _closeness(candidate: Scan, scan: Scan) -> tuple[int, int]:
    """How much of a scan's name a derivative's name repeats, then how little it adds."""
    shared = len(candidate.entities.keys() & scan.entities.keys())
    return shared, shared - len(candidate.entities)


def _fits(candidate: Scan, scan: Scan, tool: str) -> bool:
    """Whether a derivative's name may say that it is of the scan."""
    said = candidate.entities
    if any(scan.entities.get(key, label) != label for key, label in said.items()):
        return False
    if {"res", "label"} & said.keys() or any(
        k not in scan.entities for k in said if k not in ADDED
    ):
        return False
    own_space = OWN_SPACE | {scan.suffix}
    if scan.suffix != "T1w":  # without space- it lies on the T1w
        if said.get("space") != scan.suffix:
            return False
    elif "space" in said and said["space"] not in own_space:
        return False
    if said.get("desc", "").startswith(("top", "parcellation")):
        return False
    return said.get("seg") in (None, tool, *_also(tool)) or said["seg"] not in OTHER_MAPS


def _also(tool: str) -> tuple[str, ...]:
    """What else ``seg-`` may say of a tool's map."""
    return ("brainseg",) if tool == "model" else ()
