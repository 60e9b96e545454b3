# SPDX-License-Identifier: Apache-2.0
"""Plan, run and report the contrast-dial experiment.

``python -m brainseg_bids.cli.experiment plan|run|report|slurm FOLDER ...``
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, count_codes
from brainseg_bids.bids.description import write_json, write_text
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.evaluation.decision import FEWEST_SEEDS
from brainseg_bids.exit_codes import FAILED, UNUSABLE
from brainseg_bids.locks import Lock, lock_file
from brainseg_bids.training.experiment import (
    EVALUATION_SEED,
    OFF,
    ON,
    REAL,
    ExperimentPlan,
    Findings,
    Pinned,
    RealImage,
    Run,
    RunResult,
    check_settings,
    find,
    with_steps,
)
from brainseg_bids.training.overlap import Overlap, Score, score_pairs
from brainseg_bids.volumes import (
    InputError,
    check_present,
    read_grid,
    read_label_map,
    read_volume,
    sha256,
)

log = logging.getLogger("brainseg")

OTHERS = ("agnostic", "t1w", "t2w", "flair")
"""Packaged spaces that accuracy off the contrast is measured on, but for the contrast's own."""
WIDTHS = (24, 48, 96, 192)


def main(argv: list[str] | None = None) -> int:
    """Do one of the verbs.

    Returns
    -------
    int
        0; 1 if a run failed or nothing is finished; 2 if the input is at fault, said in a line.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    verbs = {"plan": make_plan, "run": run, "report": report, "slurm": slurm}
    try:
        return verbs[options.verb](options)
    except (ValueError, OSError) as error:
        words = " ".join(str(error).split())
        print(f"brainseg experiment: ERROR: {words}", file=sys.stderr)
        return UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brainseg_bids.cli.experiment", description=__doc__.splitlines()[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    plan = verbs.add_parser("plan", help="write down settings and decision rule; nothing is run")
    plan.add_argument("folder", type=Path, help="where the experiment lives")
    plan.add_argument("--prior", type=Path, required=True, help="contrast-NAME_prior.json")
    plan.add_argument("--maps", type=Path, nargs="+", required=True, help="maps to learn from")
    plan.add_argument("--validation", type=Path, nargs="*", default=[], help="maps held out")
    plan.add_argument("--steps", type=int, required=True, help="of each run")
    plan.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    plan.add_argument("--kappa", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    plan.add_argument("--plan", type=Path, help="TrainPlan as JSON; default: a small net")
    plan.add_argument(
        "--margin", type=float, default=0.01, help="smallest difference of Dice that matters"
    )
    plan.add_argument("--agnostic", default="agnostic", help="recipe space at kappa 0")
    plan.add_argument("--off", nargs="*", help="recipe spaces of other contrasts")
    plan.add_argument("--pairs", type=int, default=8, help="per held-out map and space")
    plan.add_argument(
        "--image", type=Path, action="append", default=[], help="real image of the contrast"
    )
    plan.add_argument(
        "--labels", type=Path, action="append", default=[], help="its labels, one per --image"
    )
    plan.add_argument(
        "--allow-seen",
        action="store_true",
        help="take images that the prior was measured in; the report says so",
    )
    runs = verbs.add_parser("run", help="train and measure what is missing")
    runs.add_argument("folder", type=Path)
    runs.add_argument(
        "--only",
        type=int,
        nargs="+",
        metavar="INDEX",
        help="these runs; default: $SLURM_ARRAY_TASK_ID, else all",
    )
    runs.add_argument("--threads", type=int, help="CPU threads; default: all")
    verbs.add_parser("report", help="tables, figure, decision").add_argument("folder", type=Path)
    batch = verbs.add_parser("slurm", help="print a script that submits all; nothing is submitted")
    batch.add_argument("folder", type=Path)
    batch.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="for each run, such as --sbatch=--gres=gpu:1 (may be repeated)",
    )
    return parser


# -- plan ---------------------------------------------------------------------------------


def make_plan(options: argparse.Namespace) -> int:
    """Check everything, then write ``experiment.json`` and a folder per run."""
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
    return 0


def _planned(options: argparse.Namespace) -> ExperimentPlan:
    from brainseg_bids.synth.dial import DialledSpace
    from brainseg_bids.synth.recipe_files import read_space
    from brainseg_bids.synth.space import RecipeSpace

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

    def dial(kappa: float) -> str:
        return digest(DialledSpace(RecipeSpace.named(agnostic), prior, kappa))

    own = {prior.name.lower(), str((prior.metadata or {}).get("Suffix", "")).lower()}
    names = [name for name in OTHERS if name not in own] if options.off is None else options.off
    names = [str(Path(name).absolute()) if name.endswith(".toml") else name for name in names]
    return ExperimentPlan(
        contrast=prior.name,
        version=__version__,
        planned=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        prior=Pinned(str(options.prior.absolute()), prior.digest),
        agnostic=agnostic,
        training={k: v for k, v in train.to_dict().items() if k not in _OF_A_RUN},
        kappas=kappas,
        seeds=tuple(options.seeds),
        maps=_pinned_maps(options.maps, source, train.target_table),
        validation=_pinned_maps(options.validation, source, train.target_table),
        images=_pinned_images(options, prior, source, train.target_table),
        on_space=dial(1.0),
        off_spaces={name: digest(read_space(name)) for name in names},
        dials={f"{kappa:g}": dial(kappa) for kappa in kappas},
        pairs_per_map=options.pairs,
        margin=options.margin,
        evaluation_seed=EVALUATION_SEED,
    )


_OF_A_RUN = ("seed", "spaces", "validation_space")


def _read_train_plan(path: Path | None):
    from brainseg_bids.nets.architectures import ARCHITECTURES
    from brainseg_bids.nets.spec import NetSpec
    from brainseg_bids.training.plan import TrainPlan

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
        raise InputError(f"{path}: this is no TrainPlan in JSON ({error}).") from error
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
        _read_map(path, source, target)
        pinned.append(Pinned(str(path.absolute()), sha256(path)))
    return tuple(pinned)


def _read_map(path: Path, source: LabelTable, target: str) -> LabelMap:
    """A label map in codes of the target.

    Raises
    ------
    ValueError
        If it has codes that cannot be translated, or no structure of the brain.
    """
    labels = read_label_map(path, source)
    crosswalk = Crosswalk.packaged(source.name, target)
    codes = crosswalk.codes(labels.voxels, what=str(path))
    if not any(crosswalk.target[code].is_brain for code in count_codes(codes)):
        raise InputError(f"{path}: the label map has no structure of the brain. Leave it out.")
    return LabelMap(codes, labels.grid, crosswalk.target)


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
        if not read_grid(image).is_close(_read_map(labels, source, target).grid):
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
    from brainseg_bids.synth.recipe_files import write_dial

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prior = ContrastPrior.read(plan.prior.path).write(folder, brainseg_version=__version__)
    write_dial(folder / "on-contrast.toml", prior, 1.0, plan.agnostic)
    for one in plan.runs:
        own = folder / one.name
        own.mkdir(exist_ok=True)
        write_dial(own / "space.toml", prior, one.kappa, plan.agnostic)
        write_text(own / "plan.json", _train_plan(plan, folder, one).to_json())


def _train_plan(plan: ExperimentPlan, folder: Path, one: Run):
    folder = folder.resolve()
    space = str(folder / one.name / "space.toml")
    return plan.train_plan(one, space, str(folder / "on-contrast.toml"))


def read_plan(folder: Path) -> ExperimentPlan:
    """The plan of an experiment.

    Raises
    ------
    InputError
        If there is none, or it cannot be used.
    """
    path = folder / "experiment.json"
    if not path.is_file():
        raise InputError(f"{path}: no experiment is planned here. Begin with: plan {folder} ...")
    try:
        return ExperimentPlan.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: {error}. Plan it again in another folder.") from error


# -- run ----------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """Train and measure the runs that have no result; those that fail are named at the end."""
    import torch

    folder = options.folder.resolve()
    plan = read_plan(folder)
    chosen = _chosen(plan, options.only)
    if options.threads:
        torch.set_num_threads(options.threads)
    missing = [one for one in chosen if not read_result(plan, folder, one)]
    log.info("%d of %d runs are finished already", len(chosen) - len(missing), len(chosen))
    bench = Bench(plan, folder)
    if missing:
        bench.check()
    failed = []
    for one in missing:
        with _locked(folder / one.name) as is_ours:
            if not is_ours:
                log.info("%s: in work elsewhere", one.name)
            elif not read_result(plan, folder, one) and not _run_one(bench, one):
                failed.append(one)
    for one in failed:
        print(f"brainseg experiment: ERROR: run {one.index} ({one.name}) failed", file=sys.stderr)
    return 1 if failed else 0


def _chosen(plan: ExperimentPlan, only: Sequence[int] | None) -> list[Run]:
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if only is None and task:
        only = [int(task)]
    if only is None:
        return list(plan.runs)
    last = len(plan.runs) - 1
    for index in only:
        if not 0 <= index <= last:
            raise InputError(f"there is no run {index}: they are 0 to {last}.")
    return [plan.runs[index] for index in only]


def read_result(plan: ExperimentPlan, folder: Path, one: Run) -> RunResult | None:
    """Result of a run; None if it is not finished.

    Raises
    ------
    InputError
        If it is of another plan, or damaged.
    """
    path = folder / one.name / "result.json"
    if not path.is_file():
        return None
    try:
        result = RunResult.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: {error}. Remove it and run again.") from error
    if result.experiment != plan.digest or result.run != one:
        raise InputError(f"{path}: is of another experiment. Remove it and run again.")
    return result


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the folder is ours alone while the block lasts; a killed process lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        found = lock_file(file)
        if found is Lock.UNKNOWN:
            log.warning("%s: cannot be locked; do not run it twice at a time", folder)
        yield found is not Lock.BUSY


def _run_one(bench: Bench, one: Run) -> bool:
    """Train, measure, write ``result.json``; whether it went well."""
    own = bench.folder / one.name
    failure = own / "failure.txt"
    try:
        result = bench.work(one)
    except Exception as error:  # whatever it is, the other runs go on
        write_text(failure, traceback.format_exc())
        first = " ".join(str(error).split())[:300]
        log.error("%s failed: %s: %s (%s)", one.name, type(error).__name__, first, failure)
        return False
    write_text(own / "result.json", result.to_json())
    failure.unlink(missing_ok=True)
    accuracy = {where: result.accuracy(where) for where in (ON, OFF, REAL)}
    shown = [f"{where} {value:.4f}" for where, value in accuracy.items() if value is not None]
    log.info("%s: %s", one.name, ", ".join(shown))
    return True


class Bench:
    """What all runs of an experiment share: label maps, spaces and images, read once.

    Parameters
    ----------
    plan : ExperimentPlan
    folder : Path
    """

    def __init__(self, plan: ExperimentPlan, folder: Path) -> None:
        self.plan, self.folder = plan, folder

    def check(self) -> None:
        """Raise `InputError` if something is no longer what was planned."""
        plan = self.plan
        images = [file for one in plan.images for file in (one.image, one.labels)]
        for file in (*plan.maps, *plan.validation, *images):
            check_present(file.path)
            if sha256(file.path) != file.sha256:
                raise InputError(f"{file.path}: was changed since the experiment was planned.")
        digests = [space.digest for _, _, space in self.spaces]
        if digests != [plan.on_space, *plan.off_spaces.values()]:
            raise InputError(
                f"{self.folder}: the prior or a recipe space was changed since the experiment was "
                "planned, or the program was. Plan it again in another folder."
            )
        if plan.version != __version__:
            log.warning("planned with brainseg-bids %s, run with %s", plan.version, __version__)

    @cached_property
    def generator(self):
        from brainseg_bids.training.fit import make_generator

        return make_generator(_train_plan(self.plan, self.folder, self.plan.runs[0]))

    @cached_property
    def spaces(self) -> list[tuple[str, str, object]]:
        """(where, name, space) of what accuracy is measured on."""
        from brainseg_bids.synth.recipe_files import read_space

        named = [(ON, self.plan.contrast, str(self.folder / "on-contrast.toml"))]
        named += [(OFF, name, name) for name in self.plan.off_spaces]
        voxel_size_mm = self.generator.voxel_size_mm
        return [(where, name, read_space(path).at(voxel_size_mm)) for where, name, path in named]

    @cached_property
    def heads(self) -> list:
        return [self._head(file) for file in self.plan.maps]

    @cached_property
    def held_out(self) -> dict:
        return {file.path: self._head(file) for file in self.plan.validation}

    def _head(self, file: Pinned):
        from brainseg_bids.synth.generator import LabelVolume

        return LabelVolume.from_label_map(read_label_map(file.path, self.generator.source))

    def work(self, one: Run) -> RunResult:
        """Train to the end, going on where it was interrupted, and measure."""
        import torch

        from brainseg_bids.synth.recipe_files import read_space
        from brainseg_bids.training.fit import averaged_net, fit
        from brainseg_bids.training.resume import steps_done

        own = self.folder / one.name
        train = _train_plan(self.plan, self.folder, one)
        space = read_space(str(own / "space.toml")).at(train.voxel_size_mm)
        if space.digest != self.plan.dials[f"{one.kappa:g}"]:
            raise InputError(f"{own / 'space.toml'}: is not the planned space.")
        last = own / "last.ckpt"
        done = steps_done(last)
        if done < train.total_steps:
            log.info("%s: training from step %d to %d", one.name, done, train.total_steps)
            fit(train, self.heads, list(self.held_out.values()), own)
        done = steps_done(last)
        if done < train.total_steps:
            raise RuntimeError(
                f"stopped at step {done} of {train.total_steps}; run again to go on"
            )
        net = averaged_net(train, last)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        scores = score_pairs(
            net,
            self.generator,
            self.held_out,
            self.spaces,
            pairs=self.plan.pairs_per_map,
            seed=self.plan.evaluation_seed,
            device=device,
        )
        scores += [self._score_image(net, image, device) for image in self.plan.images]
        return RunResult(self.plan.digest, one, done, tuple(scores), __version__)

    def _score_image(self, net, real: RealImage, device: str) -> Score:
        from brainseg_bids.inference.predict import segment

        image, grid = read_volume(real.image.path)
        source, target = self.generator.source, self.generator.target
        truth = _read_map(Path(real.labels.path), source, target.name)
        found = segment(
            image,
            grid,
            net,
            target,
            voxel_size_mm=self.generator.voxel_size_mm,
            window_vox=self.generator.shape,
            device=device,
        )
        overlap, ranks = Overlap(target), target.positions()
        overlap.add(ranks[found.voxels], ranks[truth.voxels])
        return overlap.score(REAL, "real", real.image.path)


# -- report -------------------------------------------------------------------------------


def report(options: argparse.Namespace) -> int:
    """Write ``report.md``, its figure, and every number as TSV and JSON."""
    folder = options.folder
    plan = read_plan(folder)
    results = [found for one in plan.runs if (found := read_result(plan, folder, one))]
    findings = find(plan, results)
    if not results:
        print(f"brainseg experiment: ERROR: {folder}: no run is finished yet.", file=sys.stderr)
        return FAILED
    from brainseg_bids.reports.experiment import draw_experiment, experiment_page, verdict

    draw_experiment(folder / "report.png", plan, findings)
    page = write_text(folder / "report.md", experiment_page(plan, findings, figure="report.png"))
    _write_tables(folder, plan, findings, results)
    print("\n\n".join(verdict(plan, findings)))
    print(f"\n{page}")
    return 0


def _write_tables(
    folder: Path, plan: ExperimentPlan, findings: Findings, results: Sequence[RunResult]
) -> None:
    from brainseg_bids.reports.tables import write_tsv  # late: pandas

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


# -- slurm --------------------------------------------------------------------------------


def slurm(options: argparse.Namespace) -> int:
    """Print a script that submits a job for each run, and the report after them."""
    from brainseg_bids.hpc.slurm import make_job, submit_script

    folder = options.folder.resolve()
    plan = read_plan(folder)
    program = f"{shlex.quote(sys.executable)} -m brainseg_bids.cli.experiment"
    array = f"--array=0-{len(plan.runs) - 1}"
    runs = make_job(
        "job.sh",
        "dial",
        folder / "slurm-%A_%a.log",
        options=(array, "--requeue", "--open-mode=append", *options.sbatch),
        command=[
            f"{program} run {shlex.quote(str(folder))}",
            '--only "$SLURM_ARRAY_TASK_ID" --threads "${SLURM_CPUS_PER_TASK:-1}"',
        ],
    )
    # Also after failed runs: the report names what is missing.
    last = make_job(
        "job.sh",
        "dial-report",
        folder / "slurm-report-%j.log",
        options=(),
        command=[f"{program} report {shlex.quote(str(folder))}"],
    )
    title = f"Submits the experiment's {len(plan.runs)} runs, and the report after them"
    print(submit_script(title, [runs], last), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
