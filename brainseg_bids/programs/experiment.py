# SPDX-License-Identifier: Apache-2.0
"""Runs of the prior-weight experiment: trained, and measured on the same images."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

from brainseg_bids import __version__
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, count_codes
from brainseg_bids.documents import InputError
from brainseg_bids.files import sha256, write_text
from brainseg_bids.images import check_present, read_label_map, read_volume
from brainseg_bids.inference.predict import segment
from brainseg_bids.locks import Lock, lock_file
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.training.data import Space
from brainseg_bids.training.experiment import (
    OFF,
    ON,
    REAL,
    ExperimentPlan,
    Pinned,
    RealImage,
    Run,
    RunResult,
)
from brainseg_bids.training.fit import averaged_net, fit, make_generator
from brainseg_bids.training.overlap import Overlap, Score, score_pairs
from brainseg_bids.training.plan import TrainPlan
from brainseg_bids.training.resume import steps_done

log = logging.getLogger("brainseg")


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


def train_plan(plan: ExperimentPlan, folder: Path, one: Run) -> TrainPlan:
    """What one run trains by."""
    folder = folder.resolve()
    space = str(folder / one.name / "space.toml")
    return plan.train_plan(one, space, str(folder / "on-contrast.toml"))


def read_reference(path: Path, source: LabelTable, target: str) -> LabelMap:
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


def run_missing(
    folder: Path, only: Sequence[int] | None = None, *, threads: int | None = None
) -> list[Run]:
    """Train and measure the runs that have no result.

    Parameters
    ----------
    folder : Path
    only : sequence of int, optional
        Numbers of the runs; default: all.
    threads : int, optional
        Of a CPU; default: all.

    Returns
    -------
    list of Run
        Those that failed.

    Raises
    ------
    InputError
        If there is no such run, or something is no longer what was planned.
    """
    folder = folder.resolve()
    plan = read_plan(folder)
    chosen = _chosen(plan, only)
    if threads:
        torch.set_num_threads(threads)
    missing = [one for one in chosen if not read_result(plan, folder, one)]
    log.info("%d of %d runs are finished already", len(chosen) - len(missing), len(chosen))
    runner = ExperimentRunner(plan, folder)
    if missing:
        runner.check()
    failed = []
    for one in missing:
        with _locked(folder / one.name) as is_free:
            if not is_free:
                log.info("%s: in work elsewhere", one.name)
            elif not read_result(plan, folder, one) and not _run_one(runner, one):
                failed.append(one)
    return failed


def _chosen(plan: ExperimentPlan, only: Sequence[int] | None) -> list[Run]:
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
    """Whether the folder is this process's alone meanwhile; a killed process lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        found = lock_file(file)
        if found is Lock.UNKNOWN:
            log.warning("%s: cannot be locked; do not run it twice at a time", folder)
        yield found is not Lock.BUSY


def _run_one(runner: ExperimentRunner, one: Run) -> bool:
    """Train, measure, write ``result.json``; whether it went well."""
    own = runner.folder / one.name
    failure = own / "failure.txt"
    try:
        result = runner.work(one)
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


class ExperimentRunner:
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
    def generator(self) -> Generator:
        return make_generator(train_plan(self.plan, self.folder, self.plan.runs[0]))

    @cached_property
    def spaces(self) -> list[tuple[str, str, Space]]:
        """(where, name, space) of what accuracy is measured on."""
        named = [(ON, self.plan.contrast, str(self.folder / "on-contrast.toml"))]
        named += [(OFF, name, name) for name in self.plan.off_spaces]
        voxel_size_mm = self.generator.voxel_size_mm
        return [(where, name, read_space(path).at(voxel_size_mm)) for where, name, path in named]

    @cached_property
    def heads(self) -> list[LabelVolume]:
        return [self._head(file) for file in self.plan.maps]

    @cached_property
    def held_out(self) -> dict[str, LabelVolume]:
        return {file.path: self._head(file) for file in self.plan.validation}

    def _head(self, file: Pinned) -> LabelVolume:
        return LabelVolume.from_label_map(read_label_map(file.path, self.generator.source))

    def work(self, one: Run) -> RunResult:
        """Train to the end, going on where it was interrupted, and measure."""
        own = self.folder / one.name
        train = train_plan(self.plan, self.folder, one)
        space = read_space(str(own / "space.toml")).at(train.voxel_size_mm)
        if space.digest != self.plan.kappa_spaces[f"{one.kappa:g}"]:
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
        image, grid = read_volume(real.image.path)
        source, target = self.generator.source, self.generator.target
        truth = read_reference(Path(real.labels.path), source, target.name)
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
