# SPDX-License-Identifier: Apache-2.0
"""Make a model bundle of a training run's averaged weights, also of one that is not finished.

``python -m brainseg_bids.programs.bundle --run OUT/derivatives/model-NAME/training``

For a run that stage ``train`` has not begun, say what it cannot know:
``--name mine --contrasts T1w --card FILE --out DIR``

``--level-volumes 16`` fits one offset a label on 16 synthetic pairs of the label maps that were
learned from, so that volumes are right on average; see
`brainseg_bids.training.volume_calibration`.

``--model head-1mm --monai FOLDER`` writes a model that is there as a MONAI bundle.
"""

from __future__ import annotations

import argparse
import glob
import json
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.console import one_line
from brainseg_bids.documents import InputError, parse_list, read_text
from brainseg_bids.exit_codes import UNUSABLE
from brainseg_bids.files import DAY_S
from brainseg_bids.nets.bundle import BundleError, ModelBundle, read_models, write_bundle
from brainseg_bids.training.deadline import planned_steps
from brainseg_bids.training.plan import TrainPlan

if TYPE_CHECKING:
    from brainseg_bids.nets.architectures import PackedNet
    from brainseg_bids.reports.card import CardFacts

SEEN = "seen.json"
CALIBRATION_SEED = 2_000_003
"""Added to a plan's seed for the pairs that volumes are calibrated on."""
LOSSES = {"chosen": "at chosen voxels", "dense": "at all voxels"}


def read_seen(run: Path) -> list[str] | None:
    """Hashes of what a run was trained on, as `brainseg_bids.programs.train` has left them."""
    path = run / SEEN
    return parse_list(read_text(path), str(path)) if path.is_file() else None


def read_plan(path: Path) -> TrainPlan:
    """``plan.json`` of a run.

    Raises
    ------
    InputError
        If it is not there, or is damaged.
    """
    try:
        return TrainPlan.from_json(read_text(path))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path}: this is not a TrainPlan in JSON ({one_line(error)})."
        ) from error


def bundle_run(
    run: Path,
    *,
    out: Path | None = None,
    name: str = "",
    contrasts: Sequence[str] = (),
    card: str = "",
    calibration_pairs: int = 0,
    heads: Sequence[Path] = (),
) -> ModelBundle:
    """Bundle the averaged weights of a run's last checkpoint, whole or not at all.

    Parameters
    ----------
    run : Path
        Folder that training left, with ``plan.json`` and ``last.ckpt``.
    out : Path, optional
        Default: ``bundle`` beside ``run``.
    name, contrasts, card
        Default: what ``job.json`` of stage ``train`` says; the card is made from it.
    calibration_pairs : int
        Pairs that volumes are calibrated on; 0: they are left as they are.
    heads : sequence of Path
        Label maps to make these of; default: those that were learned from.

    Raises
    ------
    BundleError
        If there is no checkpoint, or no ``job.json`` for what is not said, or the disk is full.
    ValueError
        If plan or checkpoint are damaged.
    """
    from brainseg_bids.training.fit import averaged_net
    from brainseg_bids.training.resume import steps_done

    job = _job_of(run, {"--name": name, "--contrasts": contrasts, "--card": card})
    checkpoint = run / "last.ckpt"
    plan, steps = read_plan(run / "plan.json"), steps_done(checkpoint)
    net = averaged_net(plan, checkpoint)
    made_from = {"plan": plan.to_dict(), "steps": steps}
    made_from |= {key: job[key] for key in ("spaces", "maps", "command") if key in job}
    if calibration_pairs:
        maps = heads or _learned_from(run)
        made_from |= _calibrate(net, plan, maps, calibration_pairs, job.get("map_cache"))
    card = card or _card(card_facts(run, job, plan, net, steps, pairs=calibration_pairs))
    out = out or run.parent / "bundle"
    with _replacing(out) as fresh:
        write_bundle(
            fresh,
            name=name or job["name"],
            net=net,
            table=LabelTable.packaged(plan.target_table),
            voxel_size_mm=plan.voxel_size_mm,
            patch_vox=plan.patch_vox,
            contrasts=tuple(contrasts) or tuple(job["contrasts"]),
            card=card,
            training=names_only(json.loads(json.dumps(made_from))),
            seen=read_seen(run),
        )
    return ModelBundle.read(out)


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder that takes the place of ``out`` when the block is done.

    Raises
    ------
    BundleError
        If the disk is full; ``out`` is as it was.
    """
    fresh = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    try:
        yield fresh
        _swap(fresh, out)
    except OSError as error:
        before = "the one before it is as it was" if out.exists() else "there is none yet"
        raise BundleError(
            f"{out}: the bundle could not be written ({error.strerror or error}); {before}, and "
            "so is the checkpoint. Make room, then run the same command again."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _job_of(run: Path, given: Mapping[str, object]) -> dict:
    """Content of a run's ``job.json``.

    Parameters
    ----------
    given : mapping
        What stands in for it, by flag.

    Raises
    ------
    BundleError
        If something is missing.
    """
    for path in (run / "last.ckpt", run / "plan.json"):
        if not path.is_file():
            raise BundleError(
                f"{path}: there is no such file. Train first; nothing to bundle yet."
            )
    job = _read(run / "job.json")
    if "command" in job:
        job["command"] = _command_without_folders(job["command"])
    missing = [flag for flag, value in given.items() if not value and not job]
    if missing:
        raise BundleError(f"{run}: has no job.json. Say {', '.join(missing)}.")
    return job


def names_only(value):
    """The same with file names where absolute paths stood: a model is given to others.

    >>> names_only({"/home/me/mine.toml": 0.8, "spaces": ["t1w"]})
    {'mine.toml': 0.8, 'spaces': ['t1w']}
    """
    if isinstance(value, Mapping):
        return {names_only(key): names_only(one) for key, one in value.items()}
    if isinstance(value, list):
        return [names_only(one) for one in value]
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value


def _command_without_folders(command: str) -> str:
    """
    >>> _command_without_folders("brainseg '/data/my maps' out group -d fs=/data/fs --name a")
    "brainseg 'my maps' out group -d fs=fs --name a"
    """
    words = []
    for word in shlex.split(command):
        what, _, path = word.rpartition("=")
        words.append(f"{what}={names_only(path)}" if what else names_only(path))
    return shlex.join(words)


def _calibrate(
    net: PackedNet, plan: TrainPlan, heads: Sequence[Path], pairs: int, cache: str | None
) -> dict:
    """Calibrate a network's volumes; what the manifest says of it."""
    from brainseg_bids.programs.map_cache import read_checked_map
    from brainseg_bids.synth.recipe_files import read_space
    from brainseg_bids.training.data import PairStream
    from brainseg_bids.training.fit import make_generator
    from brainseg_bids.training.volume_calibration import add_offsets, calibrate_volumes

    target, kept = LabelTable.packaged(plan.target_table), cache and Path(cache)
    stream = PairStream(
        [read_checked_map(path, kept, source=plan.source_table).head for path in heads],
        [(read_space(name), share) for name, share in plan.spaces.items()],
        make_generator(plan),
        seed=plan.seed + CALIBRATION_SEED,
    )
    is_half = plan.precision.startswith("bf16")
    offsets = calibrate_volumes(net.eval(), stream, target, pairs=pairs, autocast=is_half)
    add_offsets(net, offsets)
    names = {label.name: round(float(o), 4) for label, o in zip(target, offsets, strict=True)}
    return {"leveled": {"pairs": pairs, "offsets": names}}


def _learned_from(run: Path) -> list[Path]:
    """Label maps of a run, as its ``job.json`` names them."""
    found = _read(run / "job.json").get("heads", [])
    paths = [Path(path) for path in found]
    if not paths or not all(path.is_file() for path in paths):
        raise BundleError(
            f"{run}: does not say which label maps it learned from, or they are gone. Name them "
            "with --heads."
        )
    return paths


def _swap(fresh: Path, out: Path) -> None:
    """Put a folder in another's place; the other goes only when the new one is there."""
    old = out.with_name(f"{fresh.name}-old")
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    # What a process that was killed has left; one that writes there now is younger.
    for folder in out.parent.glob(f".{glob.escape(out.name)}-*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > DAY_S:
                shutil.rmtree(folder)


def _card(facts: CardFacts) -> str:
    from brainseg_bids.reports.card import model_card

    return model_card(facts)


def card_facts(
    run: Path,
    job: Mapping,
    plan: TrainPlan,
    net: PackedNet,
    steps: int,
    *,
    pairs: int = 0,
) -> CardFacts:
    """What the model card says, from the files of a job."""
    from brainseg_bids.reports.card import CardFacts, MapFacts, SpaceFacts

    total = sum(plan.spaces.values())
    spaces = {
        name: SpaceFacts(
            Path(name).name,
            share / total,
            contrast=said.get("contrast", ""),
            kappa=said.get("kappa"),
            digest=said.get("digest", ""),
        )
        for name, share in plan.spaces.items()
        if (said := job.get("spaces", {}).get(name, {})) is not None
    }
    validation, real = _validated(run, job, plan)
    return CardFacts(
        name=job["name"],
        version=__version__,
        contrasts=tuple(job["contrasts"]),
        voxel_size_mm=plan.voxel_size_mm,
        table=LabelTable.packaged(plan.target_table),
        architecture=plan.net.architecture,
        n_parameters=sum(weight.numel() for weight in net.parameters()),
        maps=tuple(
            MapFacts(name, tuple(said["voxel_size_mm"]), said["digest"], said["held_out"])
            for name, said in job["maps"].items()
        ),
        spaces=tuple(spaces.values()),
        steps=steps,
        planned_steps=planned_steps(plan.total_steps) or steps,
        calibration_pairs=pairs,
        patch_vox=plan.patch_vox,
        pairs_per_step=plan.pairs_per_step,
        precision=plan.precision,
        learning_rate=plan.learning_rate,
        optimizer=plan.optimizer,
        loss=_loss_words(plan),
        hardware=_hardware(run, plan),
        validation=validation,
        real=real,
        net=json.loads(plan.net.to_json()),
        seed=plan.seed,
        duration_s=job.get("seconds") or None,
        started_from=job.get("started_from", ""),
        command=job.get("command", ""),
        data_licence=job.get("data_licence", ""),
        limits=_limits(job),
    )


def _limits(job: Mapping) -> tuple[str, ...]:
    absent = job.get("absent", ())
    words = f"Labels that no label map had, so that it never finds them: {', '.join(absent)}."
    return (words,) if absent else ()


def _validated(run: Path, job: Mapping, plan: TrainPlan):
    """Dice at the last validation: of synthetic pairs (None if there was none), of real images."""
    from brainseg_bids.reports.card import DiceFacts
    from brainseg_bids.reports.training_log import BRAIN, read_log

    log = read_log(run)
    validation = None
    if dice := log.last_dice():
        what = (
            f"{plan.validation_pairs} synthetic pairs of {len(job['validation'])} label map(s) "
            f"held out (space {Path(plan.validation_space).name})"
        )
        validation = DiceFacts(what, dice, log[BRAIN].last if len(log[BRAIN]) else None)
    real = tuple(DiceFacts(name, {}, curve.last) for name, curve in log.real().items())
    return validation, real


def _loss_words(plan: TrainPlan) -> str:
    words = f"cross-entropy {LOSSES[plan.loss]}"
    return f"{words} and soft Dice (weight {plan.dice_weight:g})" if plan.dice_weight else words


def _hardware(run: Path, plan: TrainPlan) -> str:
    """What it was trained on, as the memory plan has found it."""
    device = _read(run / "memory.json").get("device", {})
    if not device:
        return "not recorded"
    return f"{plan.devices * plan.nodes} x {device['name']} ({device['total_gib']:.0f} GiB)"


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def main(argv: list[str] | None = None) -> int:
    """Read ``plan.json`` and ``last.ckpt`` of a run, write the bundle, print its digest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder that training left")
    source.add_argument("--model", help="with --monai: packaged model's name or a model folder")
    parser.add_argument("--name", default="", help="name of the model")
    parser.add_argument("--contrasts", nargs="+", default=(), help="BIDS suffixes it is made for")
    parser.add_argument("--card", type=Path, help="model card, Markdown")
    parser.add_argument("--out", type=Path, help="folder of the bundle; default: beside --run")
    parser.add_argument(
        "--level-volumes",
        type=int,
        default=0,
        metavar="PAIRS",
        help="fit offsets on so many synthetic pairs, so that volumes are right on average",
    )
    parser.add_argument(
        "--heads", type=Path, nargs="+", default=(), help="label maps for that; default: the run's"
    )
    parser.add_argument(
        "--monai", type=Path, metavar="FOLDER", help="also write the model there as a MONAI bundle"
    )
    options = parser.parse_args(argv)
    if options.model and not options.monai:
        parser.error("--model needs --monai FOLDER: it is a bundle already.")
    try:
        bundle = read_models([options.model])[0] if options.model else _bundle(options)
        if options.monai:
            from brainseg_bids.programs.monai_bundle import export  # late: torch

            print(f"{export(bundle, options.monai)}: MONAI bundle of {bundle.name}")
    except (OSError, ValueError) as error:
        print(f"bundle: ERROR: {error}", file=sys.stderr)
        return UNUSABLE
    if options.run:
        steps = json.loads((bundle.path / "bundle.json").read_text())["training"]["steps"]
        print(f"{bundle.path}: {bundle.name}, {steps} steps, digest {bundle.digest[:12]}")
    return 0


def _bundle(options: argparse.Namespace) -> ModelBundle:
    return bundle_run(
        options.run.absolute(),
        out=options.out,
        name=options.name,
        contrasts=options.contrasts,
        card=options.card.read_text(encoding="utf-8") if options.card else "",
        calibration_pairs=options.level_volumes,
        heads=options.heads,
    )


if __name__ == "__main__":
    raise SystemExit(main())
