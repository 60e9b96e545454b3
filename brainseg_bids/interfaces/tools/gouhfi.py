# SPDX-License-Identifier: Apache-2.0
"""GOUHFI: brain structures at ultra-high field, any contrast and resolution (Fortin et al. 2025).

Three programs (four in version 1) that work on folders of ``ID_0000.nii.gz``: conforming to LIA
at the smallest voxel edge, brain extraction, segmentation. Version 2 does the first two in
``run_preprocessing``; which version there is, is told by that program. The labels are counted
1 to 35 on the conformed grid. Version 2 writes a second map, of 62 parcels of the cortex, counted
from 1 again: a parcel is label 100 and more of the map that is handed on.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nipype.interfaces.base import traits

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.images import read_again, read_label_map, write_label_map, write_volume
from brainseg_bids.interfaces.tools._failures import MissingToolError, ToolError
from brainseg_bids.interfaces.tools.base import Tool, ToolInputSpec, ToolInterface, ending

log = logging.getLogger("brainseg")

MAIN, FIRST_OF_2 = "run_gouhfi", "run_preprocessing"
RAW, CONFORMED, MASKED, OUTPUT = "gouhfi_raw", "gouhfi_conformed", "gouhfi_masked", "gouhfi"
SEGMENTED, PARCELS = "outputs_seg_postpro", "outputs_parc_postpro"
WHOLE, FIRST_PARCEL = "gouhfi_whole.nii.gz", 100
RESULTS = (SEGMENTED, "outputs_postpro", ".")
"""Where the labels may lie below the output folder: version 2, late and early version 1."""
PROBE_S = 60.0
LARGEST_SHARE_OUTSIDE = 0.1
"""Of the voxels of parcels; more outside of the cortex of their side is said."""


class _GouhfiInputSpec(ToolInputSpec):
    folds = traits.Str("", usedefault=True, desc='e.g. "0": faster; default: its own five')


class Gouhfi(ToolInterface):
    """Run GOUHFI's programs one after another."""

    input_spec = _GouhfiInputSpec
    name = "gouhfi"
    _generation: int = 0
    _whole: Path | None = None

    def sibling(self, name: str) -> list[str]:
        """Command of another of its programs, which lies beside ``run_gouhfi``."""
        words = list(self.program())
        place = _place_of_main(words)
        beside = Path(words[place])
        words[place] = str(beside.with_name(name + beside.suffix))
        return words

    @property
    def generation(self) -> int:
        """1 or 2: whether there is a ``run_preprocessing``."""
        if not self._generation:
            command = self.sibling(FIRST_OF_2)
            place = _place_of_main(list(self.program()))
            program = command[place]
            if os.sep in program:
                there = os.path.exists(program)
            else:  # within a container
                there = _knows([*command[:place], "which", program])
            self._generation = 2 if there else 1
        return self._generation

    def prepare(self, folder: Path) -> None:
        for name in (RAW, CONFORMED, MASKED, OUTPUT):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / RAW).mkdir()
        raw = folder / RAW / f"{self.inputs.subject}_0000.nii.gz"
        if ending(self.image) == ".nii.gz":
            raw.symlink_to(os.path.abspath(folder / self.image))
            return
        write_volume(*read_again(self.inputs.image), raw)

    def commands(self) -> list[list[str]]:
        threads = str(min(self.inputs.threads, self.tool.max_threads))
        main = [*self.sibling(MAIN), "-i", MASKED, "-o", OUTPUT, "--np", threads]
        main += ["--folds", self.inputs.folds] if self.inputs.folds else []
        main += [] if self.inputs.use_gpu else ["--cpu"]
        if self.generation == 2:
            first = [[*self.sibling(FIRST_OF_2), "-i", RAW, "-o", MASKED]]
            return [*first, main]
        return [
            [*self.sibling("run_conforming"), "-i", RAW, "-o", CONFORMED],
            [*self.sibling("run_brain_extraction"), "-i", CONFORMED, "-o", MASKED],
            main,
        ]

    def _written(self, folder: Path) -> Path:
        # The only image there: versions differ in what they add to its name.
        for place in RESULTS:
            found = sorted((folder / OUTPUT / place).glob("*.nii.gz"))
            if len(found) == 1:
                return found[0]
        return folder / OUTPUT / RESULTS[0] / f"{self.inputs.subject}.nii.gz"

    def finish(self, folder: Path) -> None:
        self._whole = self.whole_map(self._written(folder), folder)

    def labels_output(self, folder: Path) -> Path:
        """Both maps in one, if there are two."""
        return self._whole or self._written(folder)

    @classmethod
    def second_map(cls, labels: Path) -> Path | None:
        """The map of parcels."""
        beside = labels.parent.parent / PARCELS / labels.name
        return beside if labels.parent.name == SEGMENTED and beside.is_file() else None

    @classmethod
    def whole_map(cls, labels: Path, folder: Path) -> Path:
        """Both maps in one; the first alone where there is no second one beside it."""
        beside = cls.second_map(labels)
        return _with_parcels(labels, beside, folder / WHOLE) if beside else labels

    def facts(self, folder: Path) -> dict:
        return {"Generation": self.generation, "Device": "cuda" if self.inputs.use_gpu else "cpu"}


def _with_parcels(labels: Path, parcels: Path, path: Path) -> Path:
    """Write the first map with the parcels of the second in the cortex of their own side."""
    crosswalk = TOOL.crosswalk()
    own = read_label_map(labels, crosswalk.source_table())
    table = LabelTable(
        [Label(0, "Unknown")]
        + [Label(c - FIRST_PARCEL, n) for c, n in crosswalk.names.items() if c > FIRST_PARCEL],
        name="gouhfi's parcels",
    )
    others = read_label_map(parcels, table)
    if not others.grid.is_close(own.grid, tolerance_mm=0.01):
        raise ToolError(f"{parcels}: its grid is not that of {labels}. Run GOUHFI again.")
    codes = np.where(others.voxels > 0, others.voxels + FIRST_PARCEL, 0).astype(np.int16)
    fits = (codes > 0) & (crosswalk.codes(codes) == crosswalk.codes(own.voxels))
    outside = 1 - np.count_nonzero(fits) / max(1, np.count_nonzero(codes))
    if codes.any() and outside > LARGEST_SHARE_OUTSIDE:
        log.warning(
            "%s: %.0f %% of its parcels are not in the cortex of their side in %s and are left "
            "out. Run GOUHFI again if the two are not of one run.", parcels, 100 * outside, labels,
        )  # fmt: skip
    voxels = np.where(fits, codes, own.voxels)
    return write_label_map(LabelMap(voxels, own.grid, own.table), path)


def _place_of_main(words: Sequence[str]) -> int:
    """Which word of a command is ``run_gouhfi``; its siblings' names go there.

    >>> _place_of_main(["apptainer", "exec", "g.sif", "run_gouhfi"])
    3
    """
    for place, word in enumerate(words):
        if Path(word).stem == MAIN:
            return place
    raise MissingToolError(
        f'--tool gouhfi: the command must name {MAIN}, e.g. "apptainer exec gouhfi.sif {MAIN}": '
        "its other programs are found beside it."
    )


def _knows(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


TOOL = Tool(
    name="gouhfi",
    program=(MAIN,),
    regions=frozenset({"brain"}),
    licence="Apache-2.0",
    about="*GOUHFI* [@fortin2025]",
    how_to_get="Install GOUHFI (https://github.com/mafortin/GOUHFI), or use its container.",
    # 63 probabilities of 4 bytes a voxel. Not measured.
    mem_base_gb=8.0,
    mem_gb_per_mvox=0.35,
    max_threads=8,
    gpu=True,
    existing=(
        "outputs_seg_postpro/{id}.nii.gz",
        "{id}/outputs_seg_postpro/{id}.nii.gz",
        "outputs_postpro/{id}.nii.gz",
        "{id}.nii.gz",
    ),
    interface=Gouhfi,
)
