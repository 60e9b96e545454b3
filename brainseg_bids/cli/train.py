# SPDX-License-Identifier: Apache-2.0
"""Train a model in a process of its own.

``python -m brainseg_bids.cli.train --plan FILE --heads FILES --validation FILES --out DIR``

Run the same command again to go on with an interrupted run. SIGTERM, SIGUSR1 or SIGINT end a run
after the step in work, with a checkpoint. Exit codes: 0 done; 75 stopped by a signal after saving;
2 bad input; 1 anything else. With BRAINSEG_REQUEUE=1 in the environment, SIGUSR1 has Slurm put
the job back into its queue (``sbatch --signal=USR1@120 --requeue``); SIGTERM has not, for that is
how a job is cancelled.
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
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.exit_codes import DONE, FAILED, SAVED, UNUSABLE

if TYPE_CHECKING:  # late: torch and lightning take seconds
    from brainseg_bids.anatomy.labelmap import LabelMap
    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.nets.architectures import PackedNet
    from brainseg_bids.synth.generator import Generator, LabelVolume
    from brainseg_bids.training.plan import TrainPlan
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
    options = _options(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    from brainseg_bids.training.callbacks import CannotSave, NotFinite, Stopped
    from brainseg_bids.training.processes import is_first_process

    first = is_first_process()
    if not first:
        log.setLevel(logging.WARNING)
    try:
        return _replay(options.replay) if options.replay else _train(options)
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


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="brainseg_bids.cli.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--plan", type=Path, help="TrainPlan as JSON")
    add("--heads", type=Path, nargs="+", help="label maps to learn from")
    add("--validation", type=Path, nargs="+", help="label maps held out")
    add("--cache", type=Path, help="folder in which label maps are kept as they were read")
    add("--out", type=Path, help="folder for checkpoint and log")
    add("--threads", type=int, help="CPU threads of each process; default: all")
    add(
        "--start-from",
        metavar="MODEL|CHECKPOINT",
        help="model folder, packaged model, or checkpoint of another run to begin from; its "
        "labels may be others",
    )
    add("--memory", type=Path, help="memory.json: its last plan is in force")
    add(
        "--real",
        type=Path,
        help="JSON list of {name, image, labels, table or crosswalk}: real images to look at",
    )
    add("--minutes", type=float, help="end so long after --began, bundle and page included")
    add("--began", type=float, metavar="SECONDS", help="of the epoch; default: now")
    add("--checkpoint-every", type=float, default=600.0, metavar="SECONDS", help="at least")
    add("--replay", type=Path, metavar="FILE", help="make the pairs of a bad-step-N.json again")
    options = parser.parse_args(argv)
    if not options.replay:
        for name in ("plan", "heads", "validation", "out"):
            if not getattr(options, name):
                parser.error(f"the following arguments are required: --{name}")
    return options


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
        said = getattr(error, "stderr", None) or error
        log.warning("job %s was not requeued: %s", job, " ".join(str(said).split()))
        return False
    log.info("job %s is back in the queue", job)
    return True


# -- training -----------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    """Read, check, train."""
    import numpy as np
    import torch

    from brainseg_bids.cli.bundle import SEEN, read_seen
    from brainseg_bids.cli.train_cache import read_checked_map
    from brainseg_bids.files import write_text
    from brainseg_bids.lifetime import for_children
    from brainseg_bids.synth.recipe_files import read_space
    from brainseg_bids.training.callbacks import CannotSave
    from brainseg_bids.training.deadline import Deadline
    from brainseg_bids.training.fit import check_run, fit, make_generator
    from brainseg_bids.training.processes import is_first_process
    from brainseg_bids.volumes import voxel_hash

    os.environ.update(for_children({}))  # processes that Lightning starts
    if options.threads:
        torch.set_num_threads(options.threads)
    deadline = None
    if options.minutes is not None:
        deadline = Deadline(options.minutes, options.began or time.time())
    plan = _read_plan(options.plan)
    generator = make_generator(plan)
    seen: set[str] = set()

    def read(paths: list[Path]) -> list[LabelVolume]:
        heads = []
        for path in paths:
            one = read_checked_map(path, options.cache, source=plan.source_table)
            generator.check_codes(np.array(sorted(one.facts.codes)), what=str(path))
            seen.add(one.facts.digest)
            heads.append(one.head)
        return heads

    heads, held_out = read(options.heads), read(options.validation)
    real = read_real(options.real, generator) if options.real else []
    seen |= {voxel_hash(one.image, one.grid) for one in real}
    spaces = (*plan.spaces, plan.validation_space)
    seen |= {h for name in spaces for h in fitted_on(read_space(name))}
    start, lent_by = _read_start(options.start_from, plan)
    # What went before this run, or lent its weights, was seen, too.
    seen |= lent_by | set(read_seen(options.out) or ())
    check_run(plan, heads, held_out, options.out, memory=options.memory)
    if is_first_process():
        write_text(options.out / SEEN, json.dumps(sorted(seen), indent=1) + "\n")
    try:
        fit(
            plan,
            heads,
            held_out,
            options.out,
            start_from=start,
            real=real,
            memory=options.memory,
            head_names=[str(path) for path in options.heads],
            checkpoint_every_s=options.checkpoint_every,
            deadline=deadline,
        )
    except CannotSave:
        raise
    except OSError as error:  # what was to be read is read by now
        raise CannotSave(
            f"{error.filename or options.out}: could not be written ({error.strerror or error}). "
            "The last checkpoint is as it was: make room, then run the same command again."
        ) from error
    return 0


def _read_plan(path: Path) -> TrainPlan:
    from brainseg_bids.training.plan import TrainPlan
    from brainseg_bids.volumes import InputError, check_present

    check_present(path)
    try:
        return TrainPlan.from_json(path.read_text(encoding="utf-8"))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: this is no TrainPlan in JSON ({error})") from error


def _read_start(name: str | None, plan: TrainPlan) -> tuple[PackedNet | None, set[str]]:
    """Network of the plan with another one's weights as far as they fit, and what that has seen.

    Raises
    ------
    ValueError
        If there is no such model, or nothing of it fits.
    """
    if name is None:
        return None, set()
    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.nets.transfer import transfer
    from brainseg_bids.training.fit import fresh_net

    source, source_table, seen = _read_model(name, plan)
    if seen is None:
        log.warning("%s does not say what it was trained on", name)
    net = fresh_net(plan)
    taken = transfer(net, LabelTable.packaged(plan.target_table), source, source_table)
    log.info("start from %s: %s", name, taken.describe())
    return net, set(seen or ())


def _read_model(
    name: str, plan: TrainPlan
) -> tuple[PackedNet, LabelTable, Sequence[str] | frozenset[str] | None]:
    """Network, table, and hashes of what it was trained on, of a bundle or a checkpoint."""
    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.cli.bundle import read_seen
    from brainseg_bids.nets.bundle import ModelBundle, find_bundle
    from brainseg_bids.training.fit import averaged_net

    path = Path(name)
    if not path.is_file():
        bundle = ModelBundle.read(find_bundle(name))
        return bundle.load(), bundle.table, bundle.seen
    own = path.parent / "plan.json"
    its_plan = _read_plan(own) if own.is_file() else plan
    table = LabelTable.packaged(its_plan.target_table)
    return averaged_net(its_plan, path), table, read_seen(path.parent)


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
    from brainseg_bids.documents import parse_list, read_text
    from brainseg_bids.training.validation import RealImage
    from brainseg_bids.volumes import InputError, check_present, read_volume

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
    from brainseg_bids.anatomy.crosswalk import Crosswalk
    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.volumes import read_label_map

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
    import numpy as np
    import torch

    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.documents import read_json
    from brainseg_bids.synth.generator import LabelVolume
    from brainseg_bids.synth.recipe import Recipe
    from brainseg_bids.training.fit import make_generator
    from brainseg_bids.training.plan import TrainPlan
    from brainseg_bids.volumes import InputError, check_present, read_label_map

    check_present(path)
    try:
        told = read_json(path)
        plan = TrainPlan.from_json(json.dumps(told["plan"]))
        jobs = [
            (one["place"], one["head_file"], Recipe.from_json(json.dumps(one["recipe"])))
            for one in told["pairs"]
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no report of a bad step ({error})") from error
    generator = make_generator(plan)
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
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
