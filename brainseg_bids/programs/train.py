# SPDX-License-Identifier: Apache-2.0
"""Train a model in a process of its own.

``python -m brainseg_bids.programs.train --plan FILE --heads FILES --validation FILES --out DIR``

All of this can stand in a file: ``--job FILE`` (TOML, see `TrainingJob`). Run the same command
again to go on with an interrupted run. SIGTERM, SIGUSR1 or SIGINT end a run after the step in
work, with a checkpoint. Exit codes: 0 done; 75 stopped by a signal after saving; 2 bad input; 1
anything else. With BRAINSEG_REQUEUE=1 in the environment, SIGUSR1 has Slurm put the job back into
its queue (``sbatch --signal=USR1@120 --requeue``); SIGTERM has not, for that is how a job is
cancelled.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import InputError, parse_list, read_json, read_text
from brainseg_bids.exit_codes import DONE, FAILED, SAVED, UNUSABLE
from brainseg_bids.files import write_text
from brainseg_bids.images import (
    check_present,
    read_label_map,
    read_volume,
    voxel_hash,
)
from brainseg_bids.lifetime import for_children
from brainseg_bids.machine import allowed_cores
from brainseg_bids.nets.architectures import PackedNet
from brainseg_bids.nets.bundle import ModelBundle, find_bundle
from brainseg_bids.nets.transfer import transfer
from brainseg_bids.options import add_group, from_toml
from brainseg_bids.programs.bundle import SEEN, read_plan, read_seen
from brainseg_bids.programs.map_cache import READERS, CheckedMap, read_checked_map
from brainseg_bids.programs.training_job import NEEDED, TrainingFlags, TrainingJob
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.recipe import Recipe
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.training import fit as training
from brainseg_bids.training.callbacks import CannotSave, NotFinite, Stopped
from brainseg_bids.training.deadline import Deadline
from brainseg_bids.training.plan import TrainPlan
from brainseg_bids.training.processes import is_first_process
from brainseg_bids.training.validation import RealImage

log = logging.getLogger("brainseg")

REQUEUE = "BRAINSEG_REQUEUE"


def fitted_on(space) -> set[str]:
    """Hashes of the images that a recipe space was fitted on; none if on none."""
    prior = getattr(space, "prior", None)
    images = prior.images if prior is not None else ()
    return {said["voxels"] for said in images if said.get("voxels")}


def main(argv: list[str] | None = None) -> int:
    """Read label maps, train, leave the checkpoint in ``--out``."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    first = is_first_process()
    if not first:
        log.setLevel(logging.WARNING)
    try:
        return _replay(arguments.replay) if arguments.replay else _train(_job(arguments))
    except Stopped as stop:
        log.info(
            "stopped by %s after step %d, which is saved: run the same command again to go on",
            stop.signal_name,
            stop.step,
        )
        if first and stop.signal_name == "SIGUSR1":
            requeue(os.environ)
        # Whoever started this process would take another code of a helper for a failure.
        return SAVED if first or "LOCAL_RANK" not in os.environ else DONE
    except (CannotSave, NotFinite, MemoryError) as error:
        return _failed(error, FAILED)
    except (OSError, ValueError) as error:
        return _failed(error, UNUSABLE)


def _failed(error: Exception, code: int) -> int:
    print(f"train: ERROR: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brainseg_bids.programs.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_group(parser, TrainingFlags, TrainingJob)
    parser.add_argument("--job", type=Path, metavar="FILE", help="all of these in a file, TOML")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="make the pairs of a bad-step-N.json again"
    )
    return parser


def _job(arguments: argparse.Namespace) -> TrainingJob:
    """What file and flags say; flags win.

    Raises
    ------
    ValueError
        If the file cannot be used.
    SystemExit
        If something is missing.
    """
    values = vars(arguments).copy()
    del values["replay"]
    path = values.pop("job")
    said = from_toml(TrainingJob, read_text(path), what=str(path)) if path else {}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    job = TrainingJob(**said | values)
    for name in NEEDED:
        if not getattr(job, name):
            _parser().error(f"the following arguments are required: --{name}")
    return job


def requeue(environ: Mapping[str, str]) -> bool:
    """Have Slurm put this job back into its queue, if its batch script wishes so.

    Returns
    -------
    bool
        Whether Slurm has done it.
    """
    if environ.get(REQUEUE) != "1" or "SLURM_JOB_ID" not in environ:
        return False
    job = environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("job %s was not requeued: %s", job, " ".join(str(reason).split()))
        return False
    log.info("job %s is back in the queue", job)
    return True


# -- training -----------------------------------------------------------------------------


def _train(job: TrainingJob) -> int:
    """Read, check, train."""
    os.environ.update(for_children({}))  # processes that Lightning starts
    if job.threads:
        torch.set_num_threads(job.threads)
    deadline = None
    if job.minutes is not None:
        deadline = Deadline(job.minutes, job.began or time.time(), job.decay_share)
    plan = read_plan(job.plan)
    generator = training.make_generator(plan)
    seen: set[str] = set()
    heads, held_out = (
        _read_maps(paths, job.cache, generator, seen) for paths in (job.heads, job.validation)
    )
    real = read_real(job.real, generator) if job.real else []
    seen |= {voxel_hash(one.image, one.grid) for one in real}
    spaces = (*plan.spaces, plan.validation_space)
    seen |= {h for name in spaces for h in fitted_on(read_space(name))}
    start, lent_by = _read_start(job.start_from, plan)
    # What went before this run, or lent its weights, was seen, too.
    seen |= lent_by | set(read_seen(job.out) or ())
    training.check_run(plan, heads, held_out, job.out, memory=job.memory)
    try:
        if is_first_process():
            write_text(job.out / SEEN, json.dumps(sorted(seen), indent=1) + "\n")
        training.fit(
            plan,
            heads,
            held_out,
            job.out,
            start_from=start,
            real=real,
            memory=job.memory,
            head_names=list(job.heads),
            checkpoint_every_s=job.checkpoint_every,
            deadline=deadline,
        )
    except CannotSave:
        raise
    except OSError as error:  # what was to be read is read by now
        raise CannotSave(
            f"{error.filename or job.out}: could not be written ({error.strerror or error}). "
            "The last checkpoint is as it was: make room, then run the same command again."
        ) from error
    return DONE


def _read_maps(
    paths: Sequence[str], cache: Path | None, generator: Generator, seen: set[str]
) -> list[LabelVolume]:
    """Label maps, checked; their digests go into ``seen``."""

    def read(path: Path) -> CheckedMap:
        one = read_checked_map(path, cache, source=generator.source.name)
        generator.check_codes(np.array(sorted(one.facts.codes)), what=str(path))
        return one

    with ThreadPoolExecutor(min(READERS, allowed_cores())) as pool:
        found = list(pool.map(read, map(Path, paths)))
    seen |= {one.facts.digest for one in found}
    return [one.head for one in found]


def _read_start(name: str, plan: TrainPlan) -> tuple[PackedNet | None, set[str]]:
    """Network of the plan with another one's weights as far as they fit, and what that has seen.

    Raises
    ------
    ValueError
        If there is no such model, or nothing of it fits.
    """
    if not name:
        return None, set()
    source, source_table, seen = _read_model(name, plan)
    if seen is None:
        log.warning("%s does not say what it was trained on", name)
    net = training.fresh_net(plan)
    taken = transfer(net, LabelTable.packaged(plan.target_table), source, source_table)
    log.info("start from %s: %s", name, taken.describe())
    return net, set(seen or ())


def _read_model(
    name: str, plan: TrainPlan
) -> tuple[PackedNet, LabelTable, Sequence[str] | frozenset[str] | None]:
    """Network, table, and hashes of what it was trained on, of a bundle or a checkpoint."""
    path = Path(name)
    if not path.is_file():
        bundle = ModelBundle.read(find_bundle(name))
        return bundle.load(), bundle.table, bundle.seen
    own = path.parent / "plan.json"
    its_plan = read_plan(own) if own.is_file() else plan
    table = LabelTable.packaged(its_plan.target_table)
    return training.averaged_net(its_plan, path), table, read_seen(path.parent)


def read_real(path: Path, generator: Generator) -> list[RealImage]:
    """Real images with reference labels, listed in a JSON file.

    Each has ``name``, ``image``, ``labels`` and either ``table`` (packaged label table that its
    codes are of; default: that of the label maps) or ``crosswalk`` (TSV from its codes to the
    network's table).

    Raises
    ------
    InputError
        If the list or a file in it cannot be used.
    """
    check_present(path)
    try:
        entries = parse_list(read_text(path), str(path))
        named = [(one["name"], one["image"], one["labels"], one) for one in entries]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no list of real images ({error})") from error
    found = []
    for name, image_path, labels_path, entry in named:
        image, grid = read_volume(image_path)
        labels = _reference(Path(labels_path), entry, generator)
        if not grid.is_close(labels.grid):
            raise InputError(f"{labels_path}: lies on another grid than {image_path}.")
        found.append(RealImage(name, image, grid, labels))
    return found


def _reference(path: Path, entry: Mapping[str, str], generator: Generator) -> LabelMap:
    """A reference in the network's table."""
    target = generator.target
    if entry.get("crosswalk"):
        crosswalk = Crosswalk.read(entry["crosswalk"], target)
        return crosswalk.translate(read_label_map(path, crosswalk.source_table()), what=str(path))
    table = entry.get("table") or generator.source.name
    labels = read_label_map(path, LabelTable.packaged(table))
    if table == target.name:
        return labels
    return Crosswalk.packaged(table, target.name).translate(labels, what=str(path))


# -- replay -------------------------------------------------------------------------------


def _replay(path: Path) -> int:
    """Make the pairs of a step that was no number again, and say what is in them."""
    check_present(path)
    try:
        report = read_json(path)
        plan = TrainPlan.from_dict(report["plan"])
        jobs = [
            (one["place"], one["head_file"], Recipe.from_json(json.dumps(one["recipe"])))
            for one in report["pairs"]
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: this is not a report of a bad step ({error})") from error
    generator = training.make_generator(plan)
    table = LabelTable.packaged(plan.source_table)
    for index, head_file, recipe in jobs:
        if head_file is None:
            raise InputError(f"{path}: does not say which label map index {index} was made of")
        head = LabelVolume.from_label_map(read_label_map(head_file, table))
        pair = generator.render(head, recipe)
        out = path.with_name(f"{path.stem}_place-{index}.npz")
        np.savez_compressed(out, image=pair.image[0].numpy(), labels=pair.labels.numpy())
        finite = "finite" if torch.isfinite(pair.image).all() else "NOT finite"
        low, high = float(pair.image.min()), float(pair.image.max())
        print(f"{out}: of {head_file}; image {finite}, {low:g} to {high:g}")
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
