# SPDX-License-Identifier: Apache-2.0
"""CHARM of SimNIBS 4: the whole head by SAMSEG's method with an atlas of 55 tissues.

Only its first two steps are run; surfaces and mesh take the longest and are not needed. It
writes ``m2m_ID`` into the folder it runs in, refuses to go on where one is, and refuses images
whose two transforms disagree unless told which to take: it is told before, from the header.
"""

from __future__ import annotations

import gzip
import re
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, isdefined, traits

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_volume, write_label_map
from brainseg_bids.interfaces.tools._failures import ToolError, log_tail
from brainseg_bids.interfaces.tools.base import (
    Tool,
    ToolInputSpec,
    ToolInterface,
    installed_version,
)

ROUNDING = 0.01
"""Codes are stored as floats; further from a whole number than this they are no codes."""
SETTINGS_THREADS = 8
"""What SimNIBS' own settings file says."""


class _CharmInputSpec(ToolInputSpec):
    subject = traits.Str(mandatory=True, argstr="%s", position=0)
    image = File(exists=True, mandatory=True, argstr="%s", position=1)
    header = traits.Enum(
        "auto",
        "as it is",
        "qform",
        "sform",
        usedefault=True,
        argstr="%s",
        position=2,
        desc="which transform counts; auto: what the header calls for",
    )
    settings = File(
        exists=True,
        desc="settings file of SimNIBS; default: its own, with the number of threads changed",
    )
    threads = traits.Int(1, usedefault=True, nohash=True, argstr="%s", position=3)
    steps = traits.List(
        traits.Str(),
        ["--initatlas", "--segment"],
        usedefault=True,
        argstr="%s",
        position=4,
        desc="surfaces and mesh are left out",
    )


class Charm(ToolInterface):
    """Run ``charm ID T1 --initatlas --segment``."""

    input_spec = _CharmInputSpec
    name = "charm"
    labels_file = "m2m_{subject}/segmentation/labeling.nii.gz"

    @classmethod
    def version(cls, program: Sequence[str]) -> str:
        return next(
            (found for home in _homes(program) if (found := installed_version(home, "simnibs"))),
            "",
        )

    @property
    def forced(self) -> str:
        """Which transform charm is told to take, or nothing."""
        asked = self.inputs.header
        if asked == "auto":
            return transform_to_force(self.inputs.image)
        return asked if asked in ("qform", "sform") else ""

    def prepare(self, folder: Path) -> None:
        # A try that was killed has left it, and charm refuses to go on beside it.
        shutil.rmtree(folder / f"m2m_{self.inputs.subject}", ignore_errors=True)
        _ = self.forced  # an image without orientation is refused before anything is begun
        self._write_settings(folder)

    def _write_settings(self, folder: Path) -> None:
        """SimNIBS' settings with our number of threads; charm has no option for it."""
        ours = folder / "charm.ini"
        ours.unlink(missing_ok=True)
        if isdefined(self.inputs.settings):
            shutil.copyfile(self.inputs.settings, ours)
            return
        for home in _homes(self.program()):
            for path in home.glob("lib/python3*/site-packages/simnibs/charm.ini"):
                threads = min(self.inputs.threads, self.tool.max_threads)
                text = path.read_text(encoding="utf-8")
                text, n = re.subn(r"(?m)^(\s*threads\s*=\s*)\d+", rf"\g<1>{threads}", text)
                if n == 1:
                    ours.write_text(text, encoding="utf-8")
                return

    def _format_arg(self, name, spec, value):
        if name == "header":
            return f"--force{self.forced}" if self.forced else None
        if name == "threads":
            there = ((self._folder or Path.cwd()) / "charm.ini").is_file()
            return "--usesettings charm.ini" if there else None
        return super()._format_arg(name, spec, value)

    def finish(self, folder: Path) -> None:
        written, log = self._written(folder), folder / "charm.log"
        try:
            values, grid = read_volume(written)
            codes = np.rint(values)
            if np.abs(values - codes).max() > ROUNDING:
                raise InputError(
                    f"{written}: voxels are not whole numbers, so these are not labels."
                )
            table = self.tool.crosswalk().source_table()
            labels = LabelMap(codes.astype(np.int32), grid, table)
        except ValueError as error:  # unknown codes too
            raise ToolError(f"{self.inputs.image}: charm: {error} Its log: {log}") from error
        write_label_map(labels, self.labels_output(folder))

    def labels_output(self, folder: Path) -> Path:
        """CHARM's codes as whole numbers."""
        return folder / "labeling.nii.gz"

    def facts(self, folder: Path) -> dict:
        said = re.search(r"(?i)simnibs version:? (\S+)", "\n".join(log_tail(folder / "charm.log")))
        told = (folder / "charm.ini").is_file()
        return (
            {"Header": f"--force{self.forced}" if self.forced else "as it is"}
            | ({"ToolVersion": said[1]} if said else {})
            | ({} if told else {"Threads": SETTINGS_THREADS})
        )


def _homes(program: Sequence[str]) -> list[Path]:
    """Folders that may hold the Python environment of SimNIBS, from where its program lies."""
    homes = []
    for path in (Path(program[-1]), Path(program[-1]).resolve()):
        homes += [path.parent.parent, path.parent.parent / "simnibs_env"]
    return homes


@dataclass(frozen=True)
class Transforms:
    """The two ways in which a NIfTI-1 header says where voxels are.

    Parameters
    ----------
    qform, sform : (4, 4) float
        Voxel to world, mm.
    qform_code, sform_code : int
        0: not set.
    """

    qform: np.ndarray
    sform: np.ndarray
    qform_code: int
    sform_code: int


def read_transforms(path: str | Path) -> Transforms | None:
    """Transforms of a NIfTI-1 file; None for another format.

    The header as in the NIfTI-1 standard (nifti1.h): quaternion b, c, d and offset at byte
    256, the sform's three rows at byte 280, both codes at byte 252.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        header = file.read(348)
    order = next((o for o in "<>" if header[:4] == struct.pack(f"{o}i", 348)), None)
    if order is None or header[344:347] not in (b"n+1", b"ni1"):
        return None
    qform_code, sform_code = struct.unpack_from(f"{order}2h", header, 252)
    b, c, d, *offset = struct.unpack_from(f"{order}6f", header, 256)
    sign, *sizes = struct.unpack_from(f"{order}4f", header, 76)
    a = np.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    qform, sform = np.eye(4), np.eye(4)
    qform[:3, :3] = turn * np.array([sizes[0], sizes[1], sizes[2] * (-1 if sign < 0 else 1)])
    qform[:3, 3] = offset
    sform[:3] = np.reshape(struct.unpack_from(f"{order}12f", header, 280), (3, 4))
    return Transforms(qform, sform, qform_code, sform_code)


def transform_to_force(path: str | Path) -> str:
    """Which transform CHARM has to be told to take: ``"qform"``, ``"sform"``, or neither.

    It refuses a header whose qform is not set, or whose two differ. This package takes the
    sform where it is set, and so must CHARM, or its labels would lie elsewhere.

    Raises
    ------
    ToolError
        If neither is set: CHARM takes no such image.
    """
    said = read_transforms(path)
    if said is None:
        return ""
    if said.qform_code <= 0 and said.sform_code <= 0:
        raise ToolError(
            f"{path}: the header has no orientation (qform and sform are 0), and charm takes no "
            "such image. Convert it again from DICOM, or set the sform after a look at it."
        )
    if said.qform_code <= 0:
        return "sform"
    if np.allclose(said.qform, said.sform, rtol=1e-5, atol=1e-6):  # as CHARM compares them
        return ""
    return "sform" if said.sform_code > 0 else "qform"


TOOL = Tool(
    name="charm",
    program=("charm",),
    regions=frozenset({"head", "brain"}),
    same_grid=True,
    licence="GPL-3.0 (called as a program)",
    about="SimNIBS' *charm* [@puonti2020]",
    how_to_get="Install SimNIBS 4: https://simnibs.github.io/simnibs.",
    # SimNIBS asks for 8 GB; by its kinship with SAMSEG more below a millimetre. Not measured.
    mem_base_gb=6.5,
    mem_gb_per_mvox=0.2,
    max_threads=SETTINGS_THREADS,
    existing=(
        "m2m_{id}/segmentation/labeling.nii.gz",
        "{id}/m2m_{id}/segmentation/labeling.nii.gz",
        "{id}/segmentation/labeling.nii.gz",
    ),
    interface=Charm,
)
