# SPDX-License-Identifier: Apache-2.0
"""Stage ``upsample``: bring label maps of heads to finer voxels."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids import __version__
from brainseg_bids.bids.names import TOP, Scan, in_own_space, sidecar, upsampled_name
from brainseg_bids.documents import InputError, Items
from brainseg_bids.options import VOXEL_SIZE, OptionGroup, above_zero, option, voxel_size_mm
from brainseg_bids.stages.base import (
    ExecutionOptions,
    Folders,
    Message,
    ParticipantStage,
    Run,
    takes_gpu,
)
from brainseg_bids.stages.jobs import (
    REUSE,
    Job,
    PlanErrors,
    SubjectPlan,
    decided,
    fingerprint,
    is_unchanged,
    read_object,
    why_run,
)
from brainseg_bids.stages.volumes import HEAD_COLUMNS
from brainseg_bids.units import natural_order

if TYPE_CHECKING:
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.anatomy.grid import Grid
    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.options import Settings
    from brainseg_bids.reports.page import Section

DEFAULT_TARGET_MM = (0.5,)
CUDA_GIB = 2.0
"""Host memory set aside for PyTorch and CUDA's libraries where a GPU is used (not measured)."""
REPORT_BYTES = 12
"""Memory per finer voxel that components and volumes of all labels take."""
MAPS = "_seg-fullhead_dseg.nii.gz"
"""What the names of label maps of heads end in."""


@dataclass(frozen=True, kw_only=True)
class UpsampleOptions(OptionGroup):
    """Finer label maps."""

    title: ClassVar[str] = "upsampled label maps (--stages upsample)"
    belongs_to: ClassVar[tuple[str, ...]] = ("upsample",)

    target_voxel_size_mm: tuple[float, ...] = option(
        "--target-voxel-size",
        default=(),
        parse=voxel_size_mm,
        fits=Items(VOXEL_SIZE),
        stages=("upsample", "synth", "train"),
        metavar="MM",
        help="one number, or one per axis; default: 0.5, for synthetic pairs the contrast's own",
    )
    upsample_kernel: str = option(
        "--upsample-kernel",
        default="fitted",
        choices=("fitted", "linear", "lossless"),
        help="fitted (default): most faithful; lossless: taken back to its grid, the map is "
        "what it was. Where probabilities were kept, they are interpolated instead",
    )
    smoothing_mm: float = option(
        "--smoothing",
        default=0.0,
        parse=above_zero("millimetres", below=100),
        metavar="MM",
        help="also smooth borders by a Gaussian of this standard deviation",
    )
    keep_thin: bool = option(
        "--keep-thin", default=False, help="preserve thin structures, e.g. the optic nerve"
    )


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
class UpsampleJob(Job):
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

    stage: ClassVar[str] = "upsample"

    @property
    def title(self) -> str:
        """How messages call it."""
        return _title(self.scan, self.target)


def _title(scan: Scan, target: Target) -> str:
    """How messages call a finer map: by its image, whose suffix is left out if it is T1w.

    >>> target = Target((0.6,))
    >>> _title(Scan.from_path("sub-1_ses-A_seg-fullhead_dseg.nii.gz"), target)
    'sub-1 ses-A at 0.6 mm'
    >>> _title(Scan.from_path("sub-1_acq-x_space-UNIT1_seg-fullhead_dseg.nii.gz"), target)
    'sub-1 acq-x UNIT1 at 0.6 mm'
    """
    image = scan.path.name.removesuffix(MAPS).replace("_", " ").replace(" space-", " ")
    return f"{image} at {target.shown}"


def find_maps(
    output_dir: Path, participants: Iterable[str] = (), *, sessions: Iterable[str] = ()
) -> dict[str, tuple[Scan, ...]]:
    """Merged label maps of heads in the derivative, by participant; see `in_own_space`."""
    wanted, wanted_sessions = set(participants), set(sessions)
    found: dict[str, list[Scan]] = {}
    maps = sorted(output_dir.glob(f"sub-*/**/*{MAPS}"), key=natural_order)
    for path in in_own_space(maps):
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
    plans, errors = [], PlanErrors()
    for scan in maps:
        with errors.of(_title(scan, target), scan.path):
            plans.append(_plan_map(scan, output_dir, target, memory_gb))
    return SubjectPlan(label, tuple(plans), errors)


def finer_outputs(labels: Path, output_dir: Path) -> dict[str, Path]:
    """What belongs to a finer label map."""
    stem = labels.name.removesuffix("_dseg.nii.gz")
    subject = labels.name.split("_")[0]
    return {
        "labels": labels,
        "volumes": labels.with_name(f"{stem}_desc-volumes_morph.tsv"),
        "figure": output_dir / subject / "figures" / f"{stem}_dseg.png",
    }


def _plan_map(scan: Scan, output_dir: Path, target: Target, memory_gb: float) -> UpsampleJob:
    from brainseg_bids.images import read_grid  # late: nibabel

    labels = upsampled_name(scan.path, target.resolution)
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
    mem_gb = _needed_gib(grid, sizes)
    if reason and mem_gb > memory_gb:
        raise InputError(
            f"{scan.path}: at {target.shown} it has {finer.shape[0]}x{finer.shape[1]}x"
            f"{finer.shape[2]} voxels, which takes {mem_gb:.1f} GB, and {memory_gb:.1f} GB are "
            "there. Choose larger voxels with --target-voxel-size, or give the job more memory "
            "(--mem)."
        )
    return UpsampleJob(
        scan,
        *decided(reason),
        outputs,
        provenance,
        target,
        _kept_top(scan),
        mem_gb,
    )


def _needed_gib(grid: Grid, sizes_mm: tuple[float, ...]) -> float:
    """Memory of upsampling a label map on a grid to voxels of these sizes."""
    from brainseg_bids.anatomy.upsample import needed_gib  # late: numba

    finer = grid.with_voxel_size(sizes_mm[0] if len(sizes_mm) == 1 else sizes_mm)
    return needed_gib(finer, grid) + REPORT_BYTES * math.prod(finer.shape) / 2**30


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


def upsample_metadata(plan: UpsampleJob, *, output_dir: Path) -> dict[str, dict]:
    """JSON of each output, less what only the run can tell (the quality report)."""
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
            "Description": "Volume of each label, and of the inside of the skull.",
            "Resolution": plan.target.shown,
            "Sources": [own],
            "index": {"Description": "Code in seg-fullhead_dseg.tsv; n/a of Intracranial."},
            **HEAD_COLUMNS,
        },
    }
    return {name: said | plan.provenance for name, said in what.items()}


def methods_text(target: Target) -> str:
    """How maps were brought to finer voxels."""
    cleaned = "" if target.kernel == "lossless" else "Holes and islands that this had made were "
    cleaned += "removed by the rules of the merge.\n" if cleaned else ""
    return f"""\
Label maps were brought to voxels of {target.shown}: where a tool had given probabilities, these
were interpolated (cubic convolution) and each voxel got the most probable label; elsewhere each
voxel got the label with the largest weight under a separable kernel (*{target.kernel}*). The
maps' world extent was kept.
{cleaned}Each map has a quality report of what it is when taken back to its source's voxels.
"""


class Upsample(ParticipantStage):
    """Label maps of heads at finer voxels, with a report of what that changed."""

    name = "upsample"
    options = UpsampleOptions
    after = ("headlabels",)
    results = "*_seg-fullhead_*res-*_dseg.json"
    result_files: ClassVar[Mapping[str, str]] = {"upsample": "facts.json"}

    def plan(self, run: Run) -> list[SubjectPlan]:
        settings = run.settings
        maps = find_maps(
            settings.output_dir, settings.participant_label, sessions=settings.session_label
        )
        if not maps and not settings.boilerplate_only:
            raise InputError(
                f"{settings.output_dir}: no label maps of heads are in it. Run --stages "
                "headlabels first, or together with upsample."
            )
        target = Target(
            voxel_size_mm=settings.target_voxel_size_mm or DEFAULT_TARGET_MM,
            kernel=settings.upsample_kernel,
            smoothing_mm=settings.smoothing_mm,
            keep_thin=settings.keep_thin,
        )
        where = {"output_dir": settings.output_dir, "memory_gb": run.memory_gib}
        return [plan_upsample(label, maps[label], target=target, **where) for label in maps]

    def workflow(self, job: UpsampleJob, execution: ExecutionOptions) -> Workflow:
        from nipype import IdentityInterface
        from nipype.pipeline import engine as pe
        from niworkflows.engine.workflows import LiterateWorkflow as Workflow

        from brainseg_bids.interfaces.labels import Volumes
        from brainseg_bids.interfaces.reportlets import DrawUpsampled
        from brainseg_bids.interfaces.upsample import Upsample
        from brainseg_bids.stages.saving import init_ds_scan_wf

        workflow = Workflow(name=job.name)
        target, table = job.target, str(execution.tables["fullhead"])
        workflow.__desc__ = methods_text(target)
        on_gpu = takes_gpu(execution.device)
        inputnode = pe.Node(IdentityInterface(fields=["labels"]), name="inputnode")
        inputnode.inputs.labels = str(job.scan.path)
        upsample = pe.Node(
            Upsample(
                table=table,
                voxel_size_mm=list(target.voxel_size_mm),
                kernel=target.kernel,
                smoothing_mm=target.smoothing_mm,
                keep_thin=target.keep_thin,
                threads=execution.threads,
                device=execution.device,
                use_gpu=on_gpu,
                **dict(zip(("top_codes", "top_weights"), map(str, job.top), strict=False)),
            ),
            name="upsample",
            n_procs=execution.threads,
            mem_gb=job.mem_gb + on_gpu * CUDA_GIB,
        )
        volumes = pe.Node(Volumes(table=table), name="volumes", mem_gb=job.mem_gb)
        figure = pe.Node(DrawUpsampled(table=table), name="figure", mem_gb=job.mem_gb)
        ds_finer_wf = init_ds_scan_wf(
            {output: str(path) for output, path in job.outputs.items()},
            upsample_metadata(job, output_dir=execution.output_dir),
            with_result=("labels",),
            own_result=("volumes",),
            name="ds_finer_wf",
        )
        workflow.connect([
            (inputnode, upsample, [("labels", "labels")]),
            (inputnode, figure, [("labels", "source")]),
            (upsample, volumes, [("labels", "labels")]),
            (upsample, figure, [("labels", "labels")]),
            (upsample, ds_finer_wf, [
                ("labels", "inputnode.labels"), ("facts", "inputnode.result"),
            ]),
            (volumes, ds_finer_wf, [
                ("out_file", "inputnode.volumes"), ("facts", "inputnode.volumes_result"),
            ]),
            (figure, ds_finer_wf, [("out_file", "inputnode.figure")]),
        ])  # fmt: skip
        return workflow

    def tables(self, run: Run) -> dict[str, LabelTable]:
        from brainseg_bids.anatomy.labels import LabelTable

        return {"fullhead": LabelTable.packaged("fullhead")}

    def messages(self, title: str, result: Mapping) -> list[Message]:
        text = f"{title}: made in {result['Seconds']:.0f} s from {result['Method']}"
        return [Message(logging.INFO, text)]

    def memory_gib(self, settings: Settings, images: Sequence, at_once: int) -> list[float]:
        sizes = settings.target_voxel_size_mm or DEFAULT_TARGET_MM
        return [_needed_gib(grid, sizes) for _, grid in images]

    def read(self, path: Path, metadata: Mapping, folders: Folders) -> UpsampleJob | None:
        outputs = finer_outputs(
            path.with_name(path.name.replace(".json", ".nii.gz")), folders.output_dir
        )
        source = folders.output_dir / str(metadata.get("Input", "")).removeprefix("bids::")
        if not source.is_file() or not all(path.is_file() for path in outputs.values()):
            return None
        if not is_unchanged(source, metadata):
            return None
        target = Target(
            tuple(metadata["TargetVoxelSizeMm"]),
            metadata["Kernel"],
            metadata["SmoothingMm"],
            metadata["KeepThin"],
        )
        known = {"Input": metadata["Input"]}
        scan = Scan.from_path(source)
        return UpsampleJob(scan, REUSE, "found", outputs, known, target, (), 0.0)

    def section(self, job: UpsampleJob, folders: Folders) -> Section:
        from brainseg_bids.stages.upsample_section import section

        return section(job, output_dir=folders.output_dir)

    def methods(self, jobs: Iterable[UpsampleJob]) -> list[str]:
        return [methods_text(job.target) for job in jobs]
