# SPDX-License-Identifier: Apache-2.0
"""Label maps that synthetic pairs are made from: found, one chosen of each head."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.plausibility import implausible
from brainseg_bids.bids.head_maps import choose_maps
from brainseg_bids.bids.names import Scan, head_name, in_own_space, is_label, stem
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_grid
from brainseg_bids.interfaces.headlabels import read_labels
from brainseg_bids.interfaces.tools import find_tool, tool_names
from brainseg_bids.stages.rated import without_bad
from brainseg_bids.synth.generator import LabelVolume
from brainseg_bids.units import listed

if TYPE_CHECKING:
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")

FROM = (("fullhead", "fullhead"), ("brainseg", "model"))
"""Label maps that pairs are made from, best first, and whose codes they have."""
FINEST_MM = 0.0
"""No map has voxels as small as that: the finest is chosen."""
NAMED = 3
"""Heads that a line names at most."""


@dataclass(frozen=True)
class Source:
    """A label map that pairs are made from.

    Parameters
    ----------
    path : Path
    tool : str
        Whose codes it has.
    head : str
        What all label maps of its head are called, such as ``sub-01_space-T2w``.
    """

    path: Path
    tool: str
    head: str

    @property
    def size_mm(self) -> float:
        """Edge of the cube with a voxel's volume, to 0.001 mm."""
        return round(read_grid(self.path).voxel_volume_mm3 ** (1 / 3), 3)

    def read(self) -> LabelMap:
        """The map in codes of ``fullhead``, on its own grid.

        Raises
        ------
        InputError
            If it cannot be read or is none.
        """
        try:
            return read_labels(read_grid(self.path), tool=self.tool, labels=str(self.path))
        except ValueError as error:
            raise _bad_map(self.path, error) from error

    def volume(self) -> LabelVolume:
        """The map ready for the generator; raises as `read`, also if it is empty.

        What cannot be right about it is logged.
        """
        labels = self.read()
        if faults := implausible(labels):
            log.warning("%s: look at it: %s", self.path, "; ".join(faults))
        try:
            return LabelVolume.from_label_map(labels)
        except ValueError as error:
            raise _bad_map(self.path, error) from error


def _bad_map(path: Path, error: ValueError) -> InputError:
    if isinstance(error, InputError):
        return error
    return InputError(f"{path}: pairs cannot be made from it ({error}). Give label maps only.")


def find_sources(settings: Settings) -> list[Source]:
    """Label maps to make pairs from: the user's, else head label maps, else segmentations.

    Each head counts once, with its finest map; of equally fine ones with that of the first folder.
    Maps of participants and sessions that were not asked for are not taken, nor are those that
    are rated as bad.

    Raises
    ------
    InputError
        If there are none, or a folder has no tool's name.
    """
    strange = sorted(set(settings.derivatives) - set(tool_names()))
    if strange:
        raise InputError(
            f"-d {strange[0]}=...: no tool is called {strange[0]!r}, so its codes are not known. "
            "Give label maps in codes of this app as -d fullhead=FOLDER."
        )
    found = [
        source
        for name, folder in settings.derivatives.items()
        for source in _maps_in(Path(folder), name)
    ]
    if settings.derivatives and not found:
        folders = ", ".join(map(str, settings.derivatives.values()))
        raise InputError(f"-d {folders}: no label maps are in it, by the names that they have.")
    for seg, tool in FROM:
        if not found:
            maps = settings.output_dir.glob(f"sub-*/**/*_seg-{seg}*_dseg.nii.gz")
            found = _of_derivative(maps, tool)
    found = [source for source in found if _is_wanted(source.head, settings)]
    if not found:
        raise InputError(
            f"{settings.output_dir}: no label maps are in it. Run the participant level with "
            "--stages segment or headlabels first, or give maps with -d fullhead=FOLDER."
        )
    found = without_bad(found, settings.ratings)
    chosen = choose_maps(found, FINEST_MM)
    _warn_of_several(found, chosen)
    return chosen


def _warn_of_several(found: Iterable[Source], chosen: Sequence[Source]) -> None:
    """Name heads that have label maps in several folders, and the maps that are taken."""
    folders: dict[str, set[Path]] = {}
    for source in found:
        folders.setdefault(source.head, set()).add(source.path.parent)
    several = [source for source in chosen if len(folders[source.head]) > 1]
    if several:
        log.warning(
            "%s: has label maps in several folders, and counts once, with the finest, or of "
            "equally fine ones that of the first folder: %s. To take others, give their folder "
            "alone",
            listed([source.head for source in several], NAMED),
            listed([str(source.path) for source in several], NAMED),
        )


def _maps_in(folder: Path, name: str) -> list[Source]:
    """A tool's label maps in a folder: of a BIDS derivative, else in the tool's own layout."""
    tool = find_tool(name)
    seg = dict(map(reversed, FROM)).get(name, name)
    if derived := _of_derivative(folder.glob(f"**/*_seg-{seg}*_dseg.nii*"), name):
        return derived
    found: dict[Path, Source] = {}
    for pattern in tool.existing:
        in_name = re.compile(_expression(pattern))
        for path in sorted(folder.glob(pattern.replace("{id}", "*"))):
            if match := in_name.fullmatch(path.relative_to(folder).as_posix()):
                found.setdefault(path, Source(path, name, _head_of(match["id"])))
    return list(found.values())


def _expression(pattern: str) -> str:
    """Regular expression of a pattern of `Tool.existing`; what the last ``{id}`` is, it tells.

    >>> re.fullmatch(_expression("{id}/m2m_{id}/labels.nii.gz"), "a/m2m_01/labels.nii.gz")["id"]
    '01'
    """
    *before, after = (re.escape(part) for part in pattern.split("{id}"))
    return "[^/]+".join(before) + "(?P<id>[^/]+)" + after


def _head_of(name: str) -> str:
    """What label maps of a head are called that a tool calls by a name.

    >>> [_head_of(name) for name in ("01", "sub-01", "sub-01_run-2_T1w", "sub-01_T2w", "a_b")]
    ['sub-01', 'sub-01', 'sub-01_run-2', 'sub-01_space-T2w', 'a_b']
    """
    if is_label(name):
        return f"sub-{name}"
    has_suffix = name.startswith("sub-") and "-" not in name.rpartition("_")[2]
    return stem(Scan.from_path(name)) if has_suffix else name


def _of_derivative(paths: Iterable[Path], tool: str) -> list[Source]:
    """Label maps of a BIDS derivative in their own space.

    The most probable labels by rank (``desc-``) are none.
    """
    maps = sorted(path for path in paths if "_desc-" not in path.name)
    return [
        Source(path, tool, head_name(path).partition("_seg-")[0]) for path in in_own_space(maps)
    ]


def _is_wanted(head: str, settings: Settings) -> bool:
    """Whether a head is of a participant and session that were asked for; some say neither."""
    entities = dict(part.split("-", 1) for part in head.split("_") if "-" in part)
    asked = (("sub", settings.participant_label), ("ses", settings.session_label))
    return all(
        key not in entities or not labels or entities[key] in labels for key, labels in asked
    )
