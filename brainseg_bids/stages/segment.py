# SPDX-License-Identifier: Apache-2.0
"""Stage ``segment``: label images on their own grid."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_path, raw_uri
from brainseg_bids.bids.names import STRUCTURAL, OutputNames, Scan, sidecar
from brainseg_bids.documents import read_object
from brainseg_bids.options import OptionGroup, option
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
    is_current,
    outdated,
    present,
    why_run,
)
from brainseg_bids.stages.models import (
    SEGMENT_GIB,
    VIEWS,
    Model,
    images_of,
    largest_gib,
    model_for,
    predicted_gib,
    read_ensemble,
    views,
)
from brainseg_bids.stages.viewer import viewer_node, viewer_option
from brainseg_bids.stages.volumes import (
    HEAD_COLUMNS,
    NO_VOLUME,
    SEGMENTATION_COLUMNS,
    no_intracranial_volume,
)
from brainseg_bids.units import in_words

if TYPE_CHECKING:
    from nipype.pipeline.engine import Node
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.bids.inputs import Subject
    from brainseg_bids.options import Settings
    from brainseg_bids.reports.page import Section

log = logging.getLogger("brainseg")

SKULL_STRIPPED = "SkullStripped"
"""Key of an image's metadata; that of a result is there only if it is true of its image."""
CHANGES = {**VIEWS, SKULL_STRIPPED: "metadata say otherwise whether the skull was removed"}

Named = tuple[str, str]
"""Name and digest of a model."""


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(OptionGroup):
    """How images are segmented."""

    title: ClassVar[str] = "segmentation"

    model: str = option(
        "--model",
        default="",
        metavar="NAME|PATH",
        help="a packaged model or a model folder; default: of the packaged ones made for the "
        "image's contrast, the one nearest to its voxel size",
    )
    device: str = option(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="where the network runs; auto (default) takes an accelerator if there is one",
    )
    probseg: bool = option(
        "--probseg",
        default=False,
        help="also write the probability of each label, their entropy, and mask and tissues for "
        "sMRIPrep",
    )
    ensemble: tuple[str, ...] = option(
        "--ensemble",
        default=(),
        stages=("segment",),
        metavar="NAME|PATH",
        help="further models; the probabilities of all are averaged",
    )
    test_time_flips: bool = option(
        "--test-time-flips",
        default=True,
        stages=("segment", "headlabels"),
        help="also segment the mirrored image and average: the default, and more exact; without "
        "it half to two thirds of the time",
    )
    viewer: bool = viewer_option()


@dataclass(frozen=True)
class SegmentJob(Job):
    """One image to segment.

    ``outputs``: fields of `OutputNames`; ``probseg``, ``entropy``, ``viewer`` only if wanted.

    Parameters
    ----------
    model : Model or None
        None only of results that were found, not planned.
    ensemble : tuple of Model
        Further models whose probabilities are averaged with the first one's.
    flips : bool
        Whether the mirrored image is averaged with, too.
    mem_gib : float
        Predicted peak of the segmentation.
    images : str
        Which images got this model, of several; empty: all.
    outdated : tuple of Path
        Files of an earlier run that this one does not make, and that would belong to other labels.
    """

    model: Model | None = None
    ensemble: tuple[Model, ...] = ()
    flips: bool = False
    mem_gib: float = SEGMENT_GIB
    images: str = ""
    outdated: tuple[Path, ...] = ()

    stage: ClassVar[str] = "segment"
    verb: ClassVar[str] = "to be segmented"
    changes: ClassVar[Mapping[str, str]] = CHANGES

    @property
    def with_probseg(self) -> bool:
        """Whether probabilities are wanted."""
        return "probseg" in self.outputs


def plan_segment(
    subject: Subject,
    *,
    bids_dir: Path,
    output_dir: Path,
    models: Sequence[Model],
    probseg: bool = False,
    ensemble: Sequence[Model] = (),
    flips: bool = False,
    viewer: bool = True,
) -> SubjectPlan:
    """Decide for each image by which model, and whether its results are there already.

    Results are reused if every output and its JSON are there, and each JSON names the same
    input (by size and SHA-256), model digests, flips and version of this package, and whether
    the input's metadata say that it is skull-stripped.
    """
    from brainseg_bids.bids.sidecars import read_metadata

    plans, errors = [], PlanErrors(subject.errors)
    for scan in subject.scans:
        names = OutputNames.of(scan)
        fields = ["labels", "tissue", "mask", "volumes", "figure"]
        fields += ["viewer"] * viewer + ["probseg", "entropy"] * probseg
        outputs = {name: output_dir / getattr(names, name) for name in fields}
        model = model_for(scan, models)
        with errors.of(scan.title, scan.path):
            provenance = {
                "ModelName": model.name,
                "ModelDigest": model.digest,
                **views(ensemble, flips),
                "BrainsegVersion": __version__,
                "Input": raw_uri(scan.path, bids_dir),
                **fingerprint(scan.path, known=read_object(sidecar(outputs["labels"]))),
            }
            if read_metadata(scan.path, bids_dir).values.get(SKULL_STRIPPED):
                provenance[SKULL_STRIPPED] = True
            reason = why_run(outputs, provenance, CHANGES)
            mem_gib = predicted_gib(scan, (model, *ensemble), flips) if reason else SEGMENT_GIB
            plans.append(
                SegmentJob(
                    scan,
                    *decided(reason),
                    outputs,
                    provenance,
                    model,
                    tuple(ensemble),
                    flips,
                    mem_gib,
                    images=images_of(model, scan.suffix, models),
                    outdated=outdated(present(names, output_dir), outputs, provenance, CHANGES),
                )
            )
    return SubjectPlan(subject.label, tuple(plans), errors)


def metadata(plan: SegmentJob, *, output_dir: Path) -> dict[str, dict]:
    """JSON of each output, less what only the run can tell (time, memory, warnings)."""
    model, raw = plan.model, plan.provenance["Input"]
    own = f"bids::{plan.outputs['labels'].relative_to(output_dir).as_posix()}"
    where = {"SpatialReference": raw}
    made_for = f"Made for {', '.join(model.contrasts)}. " if model.contrasts else ""
    by = _by_whom(plan)
    what = {
        "labels": {
            "Description": f"Head and brain labels by {by}. {made_for}"
            "Codes are explained in seg-brainseg_dseg.tsv.",
            "Manual": False,
            "Sources": [raw],
            **where,
        },
        "tissue": {
            "Description": "Labels merged to BIDS' standard tissues.",
            "Manual": False,
            "Sources": [own],
            **where,
        },
        "mask": {
            "Description": "Brain with its ventricles, without the fluid around.",
            "Type": "Brain",
            "Sources": [own],
            **where,
        },
        "probseg": {
            "Description": f"Probability of each label by {by}; the last axis is in "
            "the order of LabelMap.",
            "LabelMap": list(model.label_names),
            "Sources": [raw],
            **where,
        },
        "entropy": {
            "Description": f"Entropy of the label probabilities of each voxel by {by}: 0 where "
            "one label is certain.",
            "Units": "bit",
            "Sources": [raw],
            **where,
        },
        "volumes": {
            "Description": "Volume of each label, and of the inside of the skull.",
            "Sources": [own],
            "index": {"Description": "Code in seg-brainseg_dseg.tsv; n/a of Intracranial."},
            **HEAD_COLUMNS,
            **SEGMENTATION_COLUMNS,
        },
    }
    return {name: what[name] | plan.provenance for name in plan.outputs if name in what}


def _by_whom(plan: SegmentJob) -> str:
    names = ", ".join([plan.model.name, *(other.name for other in plan.ensemble)])
    models = f"the mean of models {names}" if plan.ensemble else f"model {names}"
    return models + (", averaged with the mirrored image" if plan.flips else "")


def methods_text(images: str, model: Named, *, ensemble: Sequence[Named] = (), flips: bool) -> str:
    """How images were segmented.

    Parameters
    ----------
    images : str
        Which of them got the model; empty: all.
    model : (str, str)
    ensemble : sequence of (str, str)
        Further models whose probabilities were averaged with the first one's.
    flips : bool
        Whether the mirrored image was averaged with, too.

    Examples
    --------
    >>> methods_text("FLAIR images", ("mine", "0123456789abcdef"), flips=False)[:40]
    'FLAIR images were segmented on their own'
    """
    which = (
        f"{images} were segmented on their own grids"
        if images
        else "Each structural image was segmented on its own grid"
    )
    named = " and ".join(f"*{name}* (`{digest[:12]}`)" for name, digest in ensemble)
    averaged = f"Its probabilities were averaged with those of {named}. " if named else ""
    if flips:
        averaged += "Probabilities of the image and of its mirror image, sides swapped back, were "
        averaged += "averaged. "
    return f"""\
{which} with the convolutional network
*{model[0]}* (model digest `{model[1][:12]}`), which labels brain, fluid, bone and soft
tissues of the head. The network was trained on images synthesised from label maps
[@billot2023]. It worked window by window, and its probabilities, not its labels,
were interpolated to the voxels of the image.
{averaged}Tissue classes, the brain mask and the volumes were
derived from these labels.
"""


def _network(facts: dict) -> tuple[Named, tuple[Named, ...], bool]:
    """Model, ensemble and flips of a segmentation, from the JSON beside it."""
    first, *others = (
        (str(one.get("ModelName", "")), str(one.get("ModelDigest", "")))
        for one in (facts, *(facts.get("Ensemble") or ()))
    )
    return first, tuple(others), bool(facts.get("TestTimeFlips"))


def _init_network_node(job: SegmentJob, execution: ExecutionOptions) -> Node:
    """The step that segments: the network, in a process of its own."""
    from nipype.pipeline import engine as pe

    from brainseg_bids.interfaces.segment import PREDICT, Segment

    network = Segment(
        program=execution.program or PREDICT,
        model=str(job.model.path),
        model_digest=job.model.digest,
        device=execution.device,
        threads=execution.threads,
        use_gpu=takes_gpu(execution.device),
    )
    if job.ensemble:
        network.inputs.ensemble = [str(other.path) for other in job.ensemble]
        network.inputs.ensemble_digests = [other.digest for other in job.ensemble]
    if job.flips:
        network.inputs.test_time_flips = True
    if job.with_probseg:
        network.inputs.trait_set(probseg="probseg.nii.gz", entropy="entropy.nii.gz")
    return pe.Node(network, name="segment", n_procs=execution.threads, mem_gb=job.mem_gib)


class Segment(ParticipantStage):
    """Labels of each image on its own grid, and what is derived from them."""

    name = "segment"
    options = SegmentOptions
    results = "*_seg-brainseg_dseg.json"
    result_files: ClassVar[Mapping[str, str]] = {
        "volumes": "facts.json",
        "segment": "report.json",
    }

    def check(self, run: Run) -> None:
        run.models  # noqa: B018 - read once; raises

    def plan(self, run: Run) -> list[SubjectPlan]:
        settings = run.settings
        ensemble = read_ensemble(settings, run.models[0])
        plans = [
            plan_segment(
                subject,
                bids_dir=settings.bids_dir,
                output_dir=settings.output_dir,
                models=run.models,
                probseg=settings.probseg,
                ensemble=ensemble,
                flips=settings.test_time_flips,
                viewer=settings.viewer,
            )
            for subject in run.subjects(STRUCTURAL)
        ]
        for job in (job for plan in plans for job in plan.to_run):
            soft = in_words([path.name for path in job.outdated if path.suffix == ".gz"])
            if soft:
                text = "%s: %s will be removed, for new labels; --probseg makes new ones of them"
                log.warning(text, job.title, soft)
            model = job.model
            if model.contrasts and job.scan.suffix not in model.contrasts:
                log.warning(
                    "%s: model %s was made for %s; look at the result with care",
                    job.title,
                    model.name,
                    ", ".join(model.contrasts),
                )
        _say_uncalibrated(plans, alone=settings.test_time_flips and not ensemble)
        return plans

    def workflow(self, job: SegmentJob, execution: ExecutionOptions) -> Workflow:
        """Label the image; derive tissues, brain mask and volumes; draw a picture; save all."""
        from nipype import IdentityInterface
        from nipype.pipeline import engine as pe
        from niworkflows.engine.workflows import LiterateWorkflow as Workflow

        from brainseg_bids.interfaces.labels import BrainMask, Tissue, Volumes
        from brainseg_bids.interfaces.reportlets import DrawLabels
        from brainseg_bids.stages.saving import init_ds_scan_wf

        workflow, table = Workflow(name=job.name), str(execution.tables["brainseg"])
        workflow.__desc__ = methods_text(
            job.images,
            (job.model.name, job.model.digest),
            ensemble=[(other.name, other.digest) for other in job.ensemble],
            flips=job.flips,
        )
        inputnode = pe.Node(IdentityInterface(fields=["image"]), name="inputnode")
        inputnode.inputs.image = str(job.scan.path)
        segment = _init_network_node(job, execution)
        tissue = pe.Node(Tissue(table=table), name="tissue", mem_gb=0.5)
        mask = pe.Node(BrainMask(table=table), name="mask", mem_gb=0.5)
        volumes = pe.Node(
            Volumes(table=table, stripped=SKULL_STRIPPED in job.provenance),
            name="volumes",
            mem_gb=1.0,
        )
        drawn = [pe.Node(DrawLabels(table=table), name="figure", mem_gb=1.0)]
        if "viewer" in job.outputs:
            drawn.append(viewer_node(job, table, execution.output_dir))
        ds_scan_wf = init_ds_scan_wf(
            {output: str(path) for output, path in job.outputs.items()},
            metadata(job, output_dir=execution.output_dir),
            own_result=("volumes",),
            outdated=[str(path) for path in job.outdated],
        )
        direct = ["labels", *(["probseg", "entropy"] * job.with_probseg)]
        workflow.connect([
            (inputnode, segment, [("image", "image")]),
            *((inputnode, step, [("image", "image")]) for step in (volumes, *drawn)),
            (segment, volumes, [("report", "report")]),
            (volumes, ds_scan_wf, [("facts", "inputnode.volumes_result")]),
            (segment, ds_scan_wf, [("report", "inputnode.result")]),
            (segment, ds_scan_wf, [(name, f"inputnode.{name}") for name in direct]),
        ])  # fmt: skip
        for derive in (tissue, mask, volumes, *drawn):
            workflow.connect([
                (segment, derive, [("labels", "labels")]),
                (derive, ds_scan_wf, [("out_file", f"inputnode.{derive.name}")]),
            ])  # fmt: skip
        return workflow

    def tables(self, run: Run) -> dict[str, LabelTable]:
        from brainseg_bids.anatomy.labels import LabelTable

        return {"brainseg": run.model_table, "tissue": LabelTable.packaged("tissue")}

    def messages(self, title: str, result: Mapping) -> list[Message]:
        if NO_VOLUME in result:
            return no_intracranial_volume(title, result)
        took_s, peak_gib = result["SegmentationSeconds"], result["PeakMemoryGiB"]
        text = f"{title}: segmented in {took_s:.0f} s, peak {peak_gib:.1f} GiB"
        return [Message(logging.INFO, text)]

    def memory_gib(self, settings: Settings, images: Sequence, at_once: int) -> list[float]:
        return [at_once * largest_gib(settings, images)]

    def read(self, path: Path, metadata: Mapping, folders: Folders) -> SegmentJob | None:
        image = raw_path(metadata.get("Input", ""), folders.bids_dir)
        if image is None or "Registration" in metadata:
            return None
        scan = Scan.from_path(image)
        outputs = present(OutputNames.of(scan), folders.output_dir)
        if not is_current(image, metadata, outputs) or "figure" not in outputs:
            return None
        known = {key: metadata[key] for key in ("Input", *CHANGES) if key in metadata}
        return SegmentJob(scan, REUSE, "found", outputs, known)

    def section(self, job: SegmentJob, folders: Folders) -> Section:
        from brainseg_bids.stages.segment_section import section

        return section(job, bids_dir=folders.bids_dir, output_dir=folders.output_dir)

    def methods(self, jobs: Iterable[SegmentJob]) -> list[str]:
        suffixes: dict[tuple, list[str]] = {}
        for job in jobs:
            metadata = read_object(sidecar(job.main))
            suffixes.setdefault(_network(metadata), []).append(job.scan.suffix)
        return [
            methods_text(f"{in_words(found)} images", model, ensemble=ensemble, flips=flips)
            for (model, ensemble, flips), found in suffixes.items()
        ]


def _say_uncalibrated(plans: Sequence[SubjectPlan], *, alone: bool) -> None:
    """Say once of each model that its confidence is not calibrated, and so flags nothing."""
    for model in {job.model.digest: job.model for plan in plans for job in plan.to_run}.values():
        if not (alone and model.calibrated):
            why = "without flips or in an ensemble" if model.calibrated else "of this model"
            log.info(
                "model %s: the confidence of structures %s is not calibrated; none is flagged",
                model.name,
                why,
            )
