# SPDX-License-Identifier: Apache-2.0
"""The prior-weight experiment: what is planned and checked, and its report."""

from __future__ import annotations

import argparse
import datetime
import logging
from collections.abc import Sequence
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_json
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.documents import InputError
from brainseg_bids.evaluation.decision import FEWEST_SEEDS
from brainseg_bids.files import sha256, write_text
from brainseg_bids.images import check_present, read_grid
from brainseg_bids.nets.architectures import ARCHITECTURES
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.programs.experiment import (
    read_plan,
    read_reference,
    read_result,
    train_plan,
)
from brainseg_bids.reports.experiment import draw_experiment, experiment_page, verdict
from brainseg_bids.reports.tables import write_tsv
from brainseg_bids.synth.prior_space import PriorSpace
from brainseg_bids.synth.recipe_files import read_space, write_prior_space
from brainseg_bids.synth.space import RecipeSpace
from brainseg_bids.training.experiment import (
    EVALUATION_SEED,
    ExperimentPlan,
    Findings,
    Pinned,
    RealImage,
    RunResult,
    check_settings,
    find,
    with_steps,
)
from brainseg_bids.training.plan import TrainPlan

log = logging.getLogger("brainseg")

OTHERS = ("agnostic", "t1w", "t2w", "flair")
"""Packaged spaces that accuracy off the contrast is measured on, but for the contrast's own."""
WIDTHS = (24, 48, 96, 192)
OF_A_RUN = ("seed", "spaces", "validation_space")
"""Fields of a `TrainPlan` that each run has its own of."""


def make_plan(options: argparse.Namespace) -> None:
    """Check everything, then write ``experiment.json`` and a folder per run.

    Raises
    ------
    ValueError
        If runs of these settings could not be compared, or the folder has another experiment.
    """
    plan = _planned(options)
    folder = options.folder
    path = folder / "experiment.json"
    if path.exists():
        there = read_plan(folder)
        if there.digest != plan.digest:
            raise InputError(
                f"{path}: another experiment is planned here ({there.planned}). A plan is not "
                "changed afterwards: choose another folder."
            )
        plan = there
    else:
        if any(folder.glob("kappa-*/last.ckpt")) or any(folder.glob("kappa-*/result.json")):
            raise InputError(f"{folder}: has runs of another experiment. Choose another folder.")
        _write_runs(plan, folder)
        write_text(path, plan.to_json())
    log.info("%d runs planned: %s", len(plan.runs), path)
    log.info("decision rule: %s", plan.rule)
    if len(plan.seeds) < FEWEST_SEEDS:
        log.warning(
            "seeds: %d; by the rule fewer than %d show nothing", len(plan.seeds), FEWEST_SEEDS
        )


def _planned(options: argparse.Namespace) -> ExperimentPlan:
    kappas = tuple(sorted(options.kappa))
    check_settings(kappas, options.seeds, options.margin, options.pairs)
    if not options.validation:
        raise InputError("--validation: no label maps are held out. Give one or more.")
    train = with_steps(_read_train_plan(options.plan), options.steps)
    source = LabelTable.packaged(train.source_table)
    prior = ContrastPrior.read(options.prior)
    prior.check_table(source)
    agnostic = options.agnostic
    if agnostic.endswith(".toml"):
        agnostic = str(Path(agnostic).absolute())

    def digest(space) -> str:
        space.covers(source)
        return space.at(train.voxel_size_mm).digest

    def space_digest(kappa: float) -> str:
        return digest(PriorSpace(RecipeSpace.named(agnostic), prior, kappa))

    own = {prior.name.lower(), str((prior.metadata or {}).get("Suffix", "")).lower()}
    names = [name for name in OTHERS if name not in own] if options.off is None else options.off
    names = [str(Path(name).absolute()) if name.endswith(".toml") else name for name in names]
    return ExperimentPlan(
        contrast=prior.name,
        version=__version__,
        planned=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        prior=Pinned(str(options.prior.absolute()), prior.digest),
        agnostic=agnostic,
        training={k: v for k, v in train.to_dict().items() if k not in OF_A_RUN},
        kappas=kappas,
        seeds=tuple(options.seeds),
        maps=_pinned_maps(options.maps, source, train.target_table),
        validation=_pinned_maps(options.validation, source, train.target_table),
        images=_pinned_images(options, prior, source, train.target_table),
        on_space=space_digest(1.0),
        off_spaces={name: digest(read_space(name)) for name in names},
        kappa_spaces={f"{kappa:g}": space_digest(kappa) for kappa in kappas},
        pairs_per_map=options.pairs,
        margin=options.margin,
        evaluation_seed=EVALUATION_SEED,
    )


def _read_train_plan(path: Path | None) -> TrainPlan:
    if path is None:
        n_labels = len(LabelTable.packaged("brainseg"))
        net = NetSpec("dynunet", n_labels, 2, 24, {"widths": list(WIDTHS)})
        return TrainPlan(
            net, {}, patch_vox=(96, 128, 112), voxel_size_mm=1.5, learning_rate=3e-3,
            per_label=400, anywhere=12_000, dice_weight=1.0, ema_decay=0.995,
        )  # fmt: skip
    check_present(path)
    try:
        plan = TrainPlan.from_json(path.read_text(encoding="utf-8"))
        known = len(LabelTable.packaged(plan.target_table))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: this is not a TrainPlan in JSON ({error}).") from error
    if plan.net.architecture not in ARCHITECTURES or plan.net.n_labels != known:
        raise InputError(
            f"{path}: the net is {plan.net.architecture} with {plan.net.n_labels} labels. Give "
            f"one of {', '.join(sorted(ARCHITECTURES))} with the {known} of {plan.target_table}."
        )
    return plan


def _pinned_maps(paths: Sequence[Path], source: LabelTable, target: str) -> tuple[Pinned, ...]:
    """Read each map once, so that what is wrong with it is said before anything is run."""
    pinned = []
    for path in paths:
        read_reference(path, source, target)
        pinned.append(Pinned(str(path.absolute()), sha256(path)))
    return tuple(pinned)


def _pinned_images(
    options: argparse.Namespace, prior: ContrastPrior, source: LabelTable, target: str
) -> tuple[RealImage, ...]:
    if len(options.image) != len(options.labels):
        raise InputError(
            f"{len(options.image)} --image and {len(options.labels)} --labels: give one --labels "
            "for each --image, in the same order."
        )
    measured = {one.get("sha256") for one in prior.images}
    found = []
    for image, labels in zip(options.image, options.labels, strict=True):
        check_present(image)
        if not read_grid(image).is_close(read_reference(labels, source, target).grid):
            raise InputError(f"{labels}: lies on another grid than {image}. Resample it first.")
        digest = sha256(image)
        seen = digest in measured
        if seen and not options.allow_seen:
            raise InputError(
                f"{image}: the prior was measured in this image, which favours it. Pool the prior "
                "without it, or give --allow-seen and have the report say so."
            )
        found.append(
            RealImage(
                Pinned(str(image.absolute()), digest),
                Pinned(str(labels.absolute()), sha256(labels)),
                seen,
            )
        )
    return tuple(found)


def _write_runs(plan: ExperimentPlan, folder: Path) -> None:
    """A copy of the prior, which may be pooled again elsewhere, and a folder per run."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prior = ContrastPrior.read(plan.prior.path).write(folder, brainseg_version=__version__)
    write_prior_space(folder / "on-contrast.toml", prior, 1.0, plan.agnostic)
    for one in plan.runs:
        own = folder / one.name
        own.mkdir(exist_ok=True)
        write_prior_space(own / "space.toml", prior, one.kappa, plan.agnostic)
        write_text(own / "plan.json", train_plan(plan, folder, one).to_json())


def write_report(folder: Path) -> str:
    """Write ``report.md``, its figure, and every number as TSV and JSON; the verdict in words.

    Raises
    ------
    LookupError
        If no run is finished yet.
    """
    plan = read_plan(folder)
    results = [found for one in plan.runs if (found := read_result(plan, folder, one))]
    findings = find(plan, results)
    if not results:
        raise LookupError(f"{folder}: no run is finished yet.")
    draw_experiment(folder / "report.png", plan, findings)
    page = write_text(folder / "report.md", experiment_page(plan, findings, figure="report.png"))
    _write_tables(folder, plan, findings, results)
    return "\n\n".join([*verdict(plan, findings), str(page)])


def _write_tables(
    folder: Path, plan: ExperimentPlan, findings: Findings, results: Sequence[RunResult]
) -> None:
    write_tsv(folder / "report.tsv", [one.row() for one in findings.accuracy])
    write_tsv(folder / "report_differences.tsv", [one.row() for one in findings.differences])
    scores = [
        {"kappa": result.run.kappa, "seed": result.run.seed}
        | {"where": score.where, "space": score.space, "case": score.case}
        | {"structure": name, "dice": value}
        for result in results
        for score in result.scores
        for name, value in score.dice.items()
    ]
    write_tsv(folder / "report_structures.tsv", scores)
    decisions = {"thesis": findings.thesis, "without_loss": findings.without_loss}
    write_json(
        folder / "report.json",
        {
            "experiment": plan.digest,
            "rule": plan.rule,
            "missing": [one.name for one in findings.missing],
        }
        | {name: one.row() for name, one in decisions.items() if one},
    )
