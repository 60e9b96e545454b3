# SPDX-License-Identifier: Apache-2.0
"""Which label maps of heads to bring to finer voxels, and what is said about the results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg_bids import __version__
from brainseg_bids.anatomy.upsample import needed_gib
from brainseg_bids.bids.names import TOP, Scan, finer_name, sidecar
from brainseg_bids.volumes import InputError, read_grid
from brainseg_bids.workflows.plan import (
    REUSE,
    RUN,
    ScanPlan,
    SubjectPlan,
    fingerprint,
    read_object,
    unreadable,
    why_run,
)
from brainseg_bids.workflows.segment_plan import VOLUMES_COLUMNS

DEFAULT_TARGET_MM = (0.5,)
CERTIFICATE_BYTES = 12
"""Memory per finer voxel that components and volumes of all labels take."""
MAPS = "_seg-fullhead_dseg.nii.gz"
"""What the names of label maps of heads end in."""


@dataclass(frozen=True)
class Target:
    """What label maps are to become.

    Parameters
    ----------
    voxel_size_mm : tuple of float
        One number, or one per voxel axis.
    kernel : {"fitted", "linear", "lossless"}
    smoothing_mm : float
    keep_thin : bool
    """

    voxel_size_mm: tuple[float, ...]
    kernel: str = "fitted"
    smoothing_mm: float = 0.0
    keep_thin: bool = False

    @property
    def resolution(self) -> str:
        """Label of ``res-``, which may not hold a dot.

        >>> Target((0.5,)).resolution, Target((0.7, 0.7, 1.4)).resolution
        ('0p5mm', '0p7x0p7x1p4mm')
        """
        sizes = dict.fromkeys(self.voxel_size_mm) if len(set(self.voxel_size_mm)) == 1 else None
        return (
            "x".join(f"{size:g}" for size in sizes or self.voxel_size_mm).replace(".", "p") + "mm"
        )

    @property
    def shown(self) -> str:
        """For people.

        >>> Target((0.7, 0.7, 1.4)).shown
        '0.7 x 0.7 x 1.4 mm'
        """
        return self.resolution[:-2].replace("p", ".").replace("x", " x ") + " mm"

    def facts(self) -> dict:
        """What decides the result, as the JSON of a result says it."""
        return {
            "TargetVoxelSizeMm": list(self.voxel_size_mm),
            "Kernel": self.kernel,
            "SmoothingMm": self.smoothing_mm,
            "KeepThin": self.keep_thin,
        }


@dataclass(frozen=True)
class UpsamplePlan(ScanPlan):
    """One label map to bring to finer voxels.

    Parameters
    ----------
    target : Target
    top : tuple of Path
        Codes and weights of the most probable labels, if they were kept.
    mem_gb : float
    """

    target: Target
    top: tuple[Path, ...]
    mem_gb: float

    stage = "upsample"

    @property
    def title(self) -> str:
        """How messages call it."""
        return _title(self.scan, self.target)


def _title(scan: Scan, target: Target) -> str:
    image = scan.path.name.removesuffix(MAPS).replace("_", " ")
    return f"{image} at {target.shown}"


def find_maps(
    output_dir: Path, participants: Iterable[str] = (), *, sessions: Iterable[str] = ()
) -> dict[str, tuple[Scan, ...]]:
    """Merged label maps of heads in the derivative, by participant."""
    wanted, wanted_sessions = set(participants), set(sessions)
    found: dict[str, list[Scan]] = {}
    for path in sorted(output_dir.glob(f"sub-*/**/*{MAPS}")):
        scan = Scan.from_path(path)
        if wanted and scan.subject not in wanted:
            continue
        if wanted_sessions and scan.session not in wanted_sessions:
            continue
        found.setdefault(scan.subject, []).append(scan)
    return {label: tuple(scans) for label, scans in found.items()}


def plan_upsample(
    label: str, maps: Iterable[Scan], *, output_dir: Path, target: Target, memory_gb: float
) -> SubjectPlan:
    """Decide for each map whether its finer version is there already."""
    plans, faults = [], {}
    for scan in maps:
        try:
            plans.append(_plan_map(scan, output_dir, target, memory_gb))
        except InputError as error:
            faults[_title(scan, target)] = str(error)
        except OSError as error:
            faults[_title(scan, target)] = unreadable(scan.path, error)
    return SubjectPlan(label, tuple(plans), faults)


def finer_outputs(labels: Path, output_dir: Path) -> dict[str, Path]:
    """What belongs to a finer label map."""
    stem = labels.name.removesuffix("_dseg.nii.gz")
    subject = labels.name.split("_")[0]
    return {
        "labels": labels,
        "volumes": labels.with_name(f"{stem}_desc-volumes_morph.tsv"),
        "figure": output_dir / subject / "figures" / f"{stem}_dseg.png",
    }


def finer_plan(beside: Path, said: dict, output_dir: Path) -> UpsamplePlan | None:
    """Plan of a finer map that is there already, from the JSON beside it; None if it is stale."""
    labels = beside.with_name(beside.name.replace(".json", ".nii.gz"))
    outputs = finer_outputs(labels, output_dir)
    source = output_dir / str(said.get("Input", "")).removeprefix("bids::")
    if not source.is_file() or not all(path.is_file() for path in outputs.values()):
        return None
    if fingerprint(source, known=said)["InputSHA256"] != said.get("InputSHA256"):
        return None
    target = Target(
        tuple(said["TargetVoxelSizeMm"]), said["Kernel"], said["SmoothingMm"], said["KeepThin"]
    )
    return UpsamplePlan(
        Scan.from_path(source), REUSE, "found", outputs, {"Input": said["Input"]}, target, (), 0.0
    )


def _plan_map(scan: Scan, output_dir: Path, target: Target, memory_gb: float) -> UpsamplePlan:
    labels = finer_name(scan.path, target.resolution)
    outputs = finer_outputs(labels, output_dir)
    provenance = {
        "BrainsegVersion": __version__,
        "Input": f"bids::{scan.path.relative_to(output_dir).as_posix()}",
        **fingerprint(scan.path, known=read_object(sidecar(labels))),
        **target.facts(),
    }
    reason = why_run(outputs, provenance)
    grid = read_grid(scan.path)
    sizes = target.voxel_size_mm
    finer = grid.with_voxel_size(sizes[0] if len(sizes) == 1 else sizes)
    if finer.voxel_volume_mm3 > grid.voxel_volume_mm3 * 1.001:
        shown = " x ".join(f"{size:.3g}" for size in grid.voxel_size_mm)
        raise InputError(
            f"{scan.path}: its voxels are {shown} mm, and {target.shown} is coarser. Choose "
            "smaller voxels with --target-voxel-size."
        )
    mem_gb = (
        needed_gib(finer, grid) + CERTIFICATE_BYTES * np.prod(finer.shape, dtype=float) / 2**30
    )
    if reason and mem_gb > memory_gb:
        raise InputError(
            f"{scan.path}: at {target.shown} it has {finer.shape[0]}x{finer.shape[1]}x"
            f"{finer.shape[2]} voxels, which takes {mem_gb:.1f} GB, and {memory_gb:.1f} GB are "
            "there. Choose larger voxels with --target-voxel-size, or give the job more memory "
            "(--mem)."
        )
    return UpsamplePlan(
        scan,
        RUN if reason else REUSE,
        reason or "results are there already",
        outputs,
        provenance,
        target,
        _kept_top(scan),
        mem_gb,
    )


def _kept_top(scan: Scan) -> tuple[Path, ...]:
    """Codes and weights of the most probable labels, if they belong to this very map."""
    stem = scan.path.name.removesuffix("_dseg.nii.gz")
    top = tuple(
        scan.path.with_name(f"{stem}_desc-{TOP}_{what}.nii.gz") for what in ("dseg", "probseg")
    )
    said = [read_object(sidecar(path)) for path in (scan.path, *top)]
    keys = ("HeadTool", "BrainTool", "HeadSHA256", "BrainSHA256", "InputSHA256")
    belongs = all(one.get(key) == said[0].get(key) for one in said for key in keys)
    return top if belongs and all(path.is_file() for path in top) else ()


def upsample_metadata(plan: UpsamplePlan, *, output_dir: Path) -> dict[str, dict]:
    """JSON of each output, less what only the run can tell (the certificate)."""
    source = plan.provenance["Input"]
    own = f"bids::{plan.outputs['labels'].relative_to(output_dir).as_posix()}"
    raw = read_object(sidecar(plan.scan.path)).get("SpatialReference")
    what = {
        "labels": {
            "Description": "Labels of the whole head at finer voxels. Codes are explained in "
            "seg-fullhead_dseg.tsv. Under Certificate: what is left of each label when the map "
            "is taken back to its source's grid, and what changed.",
            "Manual": False,
            "Resolution": f"Voxels of {plan.target.shown}, over the same box as the source.",
            "Sources": [source],
            "SpatialReference": raw or source,
        },
        "volumes": {
            "Description": "Volume of each label: voxels times the volume of a voxel.",
            "Resolution": plan.target.shown,
            "Sources": [own],
            "index": {"Description": "Code in seg-fullhead_dseg.tsv."},
            **VOLUMES_COLUMNS,
        },
    }
    return {name: said | plan.provenance for name, said in what.items()}
