# SPDX-License-Identifier: Apache-2.0
"""Segment one image in a process of its own.

``python -m brainseg_bids.programs.segment --image FILE --model NAME --labels FILE --report FILE``

A process of its own gives its memory back, and one that the system kills is a failed step
with a message instead of a workflow that waits for ever.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.plausibility import implausible
from brainseg_bids.documents import InputError
from brainseg_bids.evaluation.confidence import ConfidenceCalibration, ProbabilitySums
from brainseg_bids.exit_codes import DONE, FAILED
from brainseg_bids.files import whole_or_nothing
from brainseg_bids.headers import place
from brainseg_bids.images import noting, read_volume, write_label_map, write_volume
from brainseg_bids.machine import resident_gib
from brainseg_bids.nets.bundle import CONFIDENCE, BundleError, ModelBundle, read_models

if TYPE_CHECKING:
    from brainseg_bids.inference.views import Member
    from brainseg_bids.nets.architectures import PackedNet

WRITING_FRAC = 0.05
"""Of the time: label map and report, once the network has ended."""
PACKED_BYTES_PER_S = 1e8
"""Of probabilities, most of which are zero."""
LINE_EVERY_PERCENT = 5


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, required=True, help="image to segment")
    parser.add_argument("--model", required=True, help="packaged model's name or a model folder")
    parser.add_argument(
        "--ensemble", nargs="+", default=[], metavar="MODEL", help="further models to average with"
    )
    parser.add_argument(
        "--test-time-flips", action="store_true", help="also average with the mirrored image"
    )
    parser.add_argument("--labels", type=Path, required=True, help="label map to write")
    parser.add_argument("--probseg", type=Path, help="also write probabilities, 4D")
    parser.add_argument("--entropy", type=Path, help="also write their entropy, bits")
    parser.add_argument("--report", type=Path, required=True, help="facts to write, JSON")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 after one line on stderr that says what is wrong."""
    options = parse(argv)
    try:
        facts = predict(options)
    except (InputError, BundleError, OSError) as error:
        return _fail(str(error))
    except MemoryError:
        return _fail(
            f"{options.image}: not enough memory. Give the job more, or use --device cpu."
        )
    except RuntimeError as error:
        if "out of memory" not in str(error) and "alloc" not in str(error):
            raise
        return _fail(
            f"{options.image}: not enough memory on {options.device}: {str(error).splitlines()[0]}"
        )
    with whole_or_nothing(options.report) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
    return DONE


def _fail(message: str) -> int:
    print(f"brainseg: ERROR: {message}", file=sys.stderr)
    return FAILED


def predict(options: argparse.Namespace) -> dict:
    """Read, segment, write; returns the facts for the report."""
    began_s = time.monotonic()
    image, grid, notes = _read(options.image)
    bundle, *others = read_models([options.model, *options.ensemble])
    calibration = read_calibration(bundle)
    if others or not options.test_time_flips:
        calibration = None  # it holds for one model with flips alone, as it was fitted
    finest_mm = min(model.voxel_size_mm for model in (bundle, *others))
    notes += _notes_on_voxels(options.image, grid, finest_mm)

    import torch  # late: a wrong path shall be told at once

    from brainseg_bids.inference.confidence import Accumulator
    from brainseg_bids.inference.predict import segment

    device = choose_device(options.device)
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    first, *more = _members((bundle, *others), device)
    soft = _SoftFiles(options, grid, len(bundle.table))
    confidence = Accumulator(len(bundle.table))
    progress = _Progress(options.image.name, began_s, soft.packed_bytes / PACKED_BYTES_PER_S)
    try:
        labels = segment(
            image,
            grid,
            first.net,
            bundle.table,
            voxel_size_mm=first.voxel_size_mm,
            window_vox=first.window_vox,
            others=more,
            flips=options.test_time_flips,
            device=device,
            progress=progress,
            on_probabilities=soft.put if soft.files else None,
            confidence=confidence,
            note=lambda text: notes.append(f"{options.image}: {text}"),
        )
        to_review = implausible(labels, image)
        soft.save()
        write_label_map(labels, options.labels)
        progress.done()
    finally:
        soft.close()
    metadata = {
        **_resources(began_s, device),
        "InputVoxelSizeMm": [round(size, 4) for size in grid.voxel_size_mm],
        "ModelVoxelSizeMm": bundle.voxel_size_mm,
        "Warnings": notes,
        "ToLookAt": to_review,
        "ConfidenceCalibrated": calibration is not None,
    }
    return {
        "image": str(options.image),
        "test_time_flips": options.test_time_flips,
        **_names(bundle, *others),
        "metadata": metadata,
        **_sums_of(confidence.sums(), bundle.table, calibration),
    }


def _sums_of(
    sums: ProbabilitySums, table: LabelTable, calibration: ConfidenceCalibration | None
) -> dict:
    """What the report says of summed probabilities."""
    return {
        "confidence": confidence_of(sums, table, calibration),
        "soft_voxels": soft_voxels_of(sums, table),
    }


def _members(bundles: Sequence[ModelBundle], device: str) -> list[Member]:
    """Networks on a device, in an order of their own: sums of probabilities are rounded."""
    from brainseg_bids.inference.views import Member  # late: torch

    return [
        Member(_load(model, device), model.voxel_size_mm, model.patch_vox)
        for model in sorted(bundles, key=lambda model: model.digest)
    ]


def _resources(began_s: float, device: str) -> dict:
    """What a segmentation took, for its JSON."""
    import torch

    return {
        "SegmentationSeconds": round(time.monotonic() - began_s, 2),
        "PeakMemoryGiB": round(peak_gib(device), 3),
        "Device": device,
        "Threads": torch.get_num_threads(),
    }


_kept: dict[str, PackedNet] = {}
"""Networks by their bundles' digests, in a process that has more than one image to segment."""


def cache_network(bundle: ModelBundle) -> None:
    """Have a bundle's network at hand for `predict`."""
    _kept[bundle.digest] = bundle.load("cpu")


def import_all() -> None:
    """Import what `predict` needs and imports late."""
    import scipy.ndimage  # noqa: F401
    import tqdm  # noqa: F401

    import brainseg_bids.inference.confidence
    import brainseg_bids.inference.predict  # noqa: F401


def _load(bundle: ModelBundle, device: str) -> PackedNet:
    if bundle.digest in _kept:
        return _kept[bundle.digest].to(device)
    return bundle.load(device)


def _read(path: Path) -> tuple[np.ndarray, Grid, list[str]]:
    """An image, its grid, and what is odd about it."""
    with noting() as notes:
        image, grid = read_volume(path)
    return image, grid, notes


def _names(bundle: ModelBundle, *others: ModelBundle) -> dict:
    """What the report calls the models."""
    first, *rest = (
        {"model": model.name, "model_digest": model.digest} for model in (bundle, *others)
    )
    return first | {"ensemble": rest}


def read_calibration(bundle: ModelBundle) -> ConfidenceCalibration | None:
    """What a bundle says of its probabilities, if it does.

    Raises
    ------
    BundleError
        If it cannot be read.
    """
    if not bundle.confidence:
        return None
    what = f"{bundle.path}: this bundle is damaged: {CONFIDENCE}"
    try:
        return ConfidenceCalibration.from_json(bundle.confidence, bundle.table, what=what)
    except InputError as error:
        raise BundleError(f"{str(error).rstrip('.')}. Fetch the model again.") from error


def confidence_of(
    sums: ProbabilitySums, table: LabelTable, calibration: ConfidenceCalibration | None
) -> list[dict]:
    """What the report says of the confidence of each structure that was found."""
    expected = calibration.expected_dice(sums) if calibration else sums.expected_dice()
    return [
        {
            "index": label.index,
            "confidence": round(float(expected[index]), 4),
            "threshold": round(float(calibration.threshold[index]), 4) if calibration else None,
        }
        for index, label in enumerate(table)
        if label.index and sums.n_voxels[index]
    ]


def soft_voxels_of(sums: ProbabilitySums, table: LabelTable) -> dict[str, float]:
    """What the report says of the sum of each structure's probabilities, by its code."""
    return {
        str(label.index): round(float(sums.total[index]), 3)
        for index, label in enumerate(table)
        if label.index
    }


def choose_device(wanted: str) -> str:
    """Device by name; ``auto`` takes an accelerator if there is one.

    Raises
    ------
    InputError
        If the wanted one is not there.
    """
    import torch

    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        raise InputError(
            f"--device {wanted}: PyTorch sees no such device here. Use --device cpu; in a "
            "container an accelerator needs --nv (NVIDIA) or --rocm (AMD)."
        )
    return wanted


def peak_gib(device: str) -> float:
    """Most memory this process has held: GPU memory on CUDA, else resident memory."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resident_gib()


def _notes_on_voxels(path: Path, grid: Grid, model_mm: float) -> list[str]:
    sizes = grid.voxel_size_mm
    shown = " x ".join(f"{size:.2g}" for size in sizes)
    notes = []
    if max(sizes) > 1.3 * model_mm:
        notes.append(
            f"{path}: voxels of {shown} mm are coarser than the model's {model_mm:g} mm; thin "
            "structures such as cortex are not to be trusted."
        )
    if min(grid.extent_mm) < 100:
        notes.append(
            f"{path}: the image is only {min(grid.extent_mm):.0f} mm wide along one axis; "
            "the head is cut."
        )
    return notes


class _Progress:
    """Per cent of the time that is over: a bar on a terminal, lines in a log file.

    Parameters
    ----------
    name : str
        Of the image.
    began_s : float
        Of `time.monotonic`, when this image was begun.
    after_s : float
        What is likely to be done after the network has ended, such as compressing probabilities.
    """

    def __init__(self, name: str, began_s: float, after_s: float = 0.0) -> None:
        self.name, self.began_s, self.after_s = name, began_s, after_s
        self.bar, self.percent = None, 0

    def __call__(self, left_s: float) -> None:
        spent_s = time.monotonic() - self.began_s
        left_s += self.after_s + WRITING_FRAC * (spent_s + left_s)
        percent = min(99, int(100 * spent_s / max(1e-6, spent_s + left_s)))
        if percent <= self.percent:  # what is left was thought less before
            return
        self._tell(percent)

    def _tell(self, percent: int) -> None:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = self.bar or tqdm(total=100, desc=self.name, unit="%")
            self.bar.update(percent - self.percent)
            self.percent = percent
        elif percent >= self.percent + LINE_EVERY_PERCENT:
            self.percent = percent
            print(f"brainseg: {self.name}: {percent} %", file=sys.stderr, flush=True)

    def done(self) -> None:
        """All is written."""
        if self.bar:
            self.bar.update(100 - self.percent)
            self.bar.close()


class _SoftFiles:
    """Probabilities and their entropy, those of them that are wanted."""

    def __init__(self, options: argparse.Namespace, grid: Grid, n_labels: int) -> None:
        self.files: list[_ProbabilityFile | _EntropyFile] = []
        self.packed_bytes = 0
        if options.probseg:
            self.files.append(_ProbabilityFile(options.probseg, grid, n_labels))
            self.packed_bytes = n_labels * math.prod(grid.shape)
        if options.entropy:
            self.files.append(_EntropyFile(options.entropy, grid, n_labels))

    def put(self, plane: int, rows: slice, columns: slice, probabilities) -> None:
        for file in self.files:
            file.put(plane, rows, columns, probabilities)

    def save(self) -> None:
        for file in self.files:
            file.save()

    def close(self) -> None:
        for file in self.files:
            file.close()


class _EntropyFile:
    """Entropy in bits: bytes, 255 = all labels alike."""

    def __init__(self, path: Path, grid: Grid, n_labels: int) -> None:
        self.path, self.grid = path, grid
        self.step = math.log2(n_labels) / 255
        self.turned = np.zeros(grid.to_ras().shape, np.uint8)

    def put(self, plane: int, rows: slice, columns: slice, probabilities) -> None:
        from brainseg_bids.inference.confidence import entropy_bits

        values = (entropy_bits(probabilities) / self.step).round().clamp(0, 255)
        self.turned[plane, rows, columns] = values.byte().cpu().numpy()

    def save(self) -> None:
        write_volume(self.grid.array_from_ras(self.turned), self.grid, self.path, slope=self.step)

    def close(self) -> None:
        """Nothing lies elsewhere."""


class _ProbabilityFile:
    """4D probabilities that never lie in memory as a whole: bytes, 255 = 1, in a scratch file."""

    def __init__(self, path: Path, grid: Grid, n_labels: int) -> None:
        self.path, self.grid = path, grid
        self.scratch = tempfile.NamedTemporaryFile(  # noqa: SIM115 - lives until close()
            dir=path.parent, prefix=".probseg", suffix=".raw"
        )
        shape = (n_labels, *grid.shape[::-1])
        # A full disk is told now; found out while writing to a sparse map it would be a SIGBUS.
        os.posix_fallocate(self.scratch.fileno(), 0, math.prod(shape))
        self.data = np.memmap(self.scratch.name, dtype=np.uint8, mode="r+", shape=shape)
        self.data[0] = 255
        self.turned = grid.array_to_ras(self.data.T)  # (X, Y, Z, label) on RAS axes

    def put(self, plane: int, rows: slice, columns: slice, probabilities) -> None:
        values = (probabilities * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        self.turned[plane, rows, columns] = values

    def save(self) -> None:
        header = nib.Nifti1Header()
        header.set_data_shape((*self.grid.shape, len(self.data)))
        header.set_data_dtype(np.uint8)
        place(header, self.grid)
        header["scl_slope"], header["scl_inter"] = 1 / 255, 0
        header["vox_offset"], header["magic"] = 352, b"n+1"
        # Not compressed, a program that takes one label after another can map it into memory.
        packed = self.path.suffix == ".gz"
        with (
            whole_or_nothing(self.path) as temporary,
            gzip.open(temporary, "wb", compresslevel=1)
            if packed
            else temporary.open("wb") as file,
        ):
            file.write(header.binaryblock + b"\0\0\0\0")
            for volume in self.data:
                file.write(volume.tobytes())

    def close(self) -> None:
        self.turned = None
        self.data = None
        self.scratch.close()


if __name__ == "__main__":
    raise SystemExit(main())
