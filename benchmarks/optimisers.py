# SPDX-License-Identifier: Apache-2.0
"""Held-out Dice that optimisers, learning rates and schedules reach in short training runs.

``python -m benchmarks.optimisers --maps DERIVATIVE --runs adamw:2e-3 muon:2e-3 --steps 150``

All runs of a seed learn from the same pairs in one order and are judged on the same pairs of the
maps held out. Every run keeps its rate flat; with ``--decay SHARE`` the last share of its steps
is taken once more with the rate falling to zero. A run ``adamw:2e-3:coarse4`` takes pairs of 4 mm
for the first half of its CPU time. Judged are the last weights and their moving average. CPU time
is that of making pairs and of steps. Rows go to ``--tsv`` as they come; runs that are there
already are not repeated.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.bundle import ModelBundle, find_bundle
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.nets.transfer import transfer
from brainseg_bids.programs.map_cache import FOLDER, read_checked_map
from brainseg_bids.synth.generator import LabelVolume
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.training.callbacks import LARGEST_NORM
from brainseg_bids.training.data import PairStream
from brainseg_bids.training.fit import make_generator, make_task
from brainseg_bids.training.overlap import Overlap
from brainseg_bids.training.plan import TrainPlan
from brainseg_bids.training.recipe import TrainRecipe
from brainseg_bids.training.task import SegmentationTask

RECIPE = Path(__file__).parent / "released" / "t1w_long.toml"
HELD_OUT = ("sub-15", "sub-16")
EVALUATION_SEED = 77
COLUMNS = ("seed", "run", "steps", "schedule", "weights", "dice_brain", "dice_all", "cpu_s")
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Pairs:
    """Pairs of one stream, each made once; CPU-seconds that making each took."""

    stream: PairStream

    def __post_init__(self) -> None:
        self.made: dict[int, tuple[Batch, float]] = {}

    def __getitem__(self, step: int) -> tuple[Batch, float]:
        if step not in self.made:
            began_s = time.process_time()
            which, recipe = self.stream.draw(step)
            pair = self.stream.generator.render(self.stream.heads[which], recipe)
            took_s = time.process_time() - began_s
            self.made[step] = (pair.image[None], pair.labels[None]), took_s
        return self.made[step]


class Run:
    """A network in training: weights, optimiser, average, CPU-seconds so far."""

    def __init__(self, task: SegmentationTask) -> None:
        self.task = task
        configured = task.configure_optimizers()
        self.optimizer = configured["optimizer"]
        self.schedule = configured["lr_scheduler"]["scheduler"]
        self.update = get_ema_multi_avg_fn(task.plan.ema_decay)
        self.average = [one.detach().clone() for one in task.net.parameters()]
        self.steps, self.cpu_s = 0, 0.0

    def step(self, batch: Batch, pair_s: float, *, share: float = 1.0) -> None:
        """Learn from a pair; ``share`` of the learning rate."""
        began_s = time.process_time()
        image, labels = batch
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = self.task.net.features(image)
        self.optimizer.zero_grad()
        self.task.loss(self.task.net, features, labels, [self.steps]).backward()
        torch.nn.utils.clip_grad_norm_(self.task.net.parameters(), LARGEST_NORM)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] *= share
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.schedule.step()
        now = [one.detach() for one in self.task.net.parameters()]
        with torch.no_grad():
            if self.steps:
                self.update(self.average, now, self.steps)
            else:
                for mean, one in zip(self.average, now, strict=True):
                    mean.copy_(one)
        self.steps += 1
        self.cpu_s += time.process_time() - began_s + pair_s

    def snapshot(self) -> Run:
        """A copy that can be gone on with."""
        other = Run(make_task(self.task.plan))
        other.task.load_state_dict(self.task.state_dict())
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        other.schedule.load_state_dict(self.schedule.state_dict())
        other.average = [one.clone() for one in self.average]
        other.steps, other.cpu_s = self.steps, self.cpu_s
        return other

    @torch.no_grad()
    def scores(self, held_out: Pairs, count: int) -> Iterator[tuple[str, float, float]]:
        """Mean Dice of brain structures and of all labels, by the last weights and the average."""
        own = [one.clone() for one in self.task.net.parameters()]
        for name, weights in (("last", own), ("average", self.average)):
            for one, value in zip(self.task.net.parameters(), weights, strict=True):
                one.copy_(value)
            overlap = Overlap(self.task.table)
            for number in range(count):
                (image, labels), _ = held_out[number]
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    features = self.task.net.features(image)
                found = self.task._class_indices(features)
                overlap.add(found.numpy(), labels[0].numpy())
            every = overlap.dice()
            brain = overlap.score("on", "all", "all").accuracy
            yield name, brain, statistics.fmean(every.values())
        for one, value in zip(self.task.net.parameters(), own, strict=True):
            one.copy_(value)


def read_heads(maps: Path) -> dict[str, LabelVolume]:
    """Label maps of a derivative, by participant, from its cache."""
    files = sorted(maps.glob("sub-*/anat/*_dseg.nii.gz"))
    cache = maps / FOLDER
    return {
        file.name.split("_")[0]: read_checked_map(file, cache if cache.is_dir() else None).head
        for file in files
    }


def make_plan(options: argparse.Namespace) -> TrainPlan:
    """Plan of the released recipe at the voxel size and patch of the experiment."""
    recipe = TrainRecipe.read(RECIPE, "cpu")
    bundle = ModelBundle.read(find_bundle("head-1mm"))
    return TrainPlan(
        net=NetSpec.from_dict(bundle.net),
        spaces=recipe.spaces,
        patch_vox=tuple(options.patch),
        voxel_size_mm=options.voxel_size,
        loss="dense",
        dice_weight=recipe.values["dice_weight"],
        warmup_steps=options.warmup,
        total_steps=10**6,
        decay_steps=1,
        ema_decay=max(0.0, 1 - 10 / options.steps),
    )


def coarser(plan: TrainPlan, voxel_size_mm: float) -> TrainPlan:
    """The same field of view in larger voxels, in edges that the network takes."""
    scale = plan.voxel_size_mm / voxel_size_mm
    edges = tuple(max(48, 16 * round(edge * scale / 16)) for edge in plan.patch_vox)
    return replace(plan, voxel_size_mm=voxel_size_mm, patch_vox=edges)


def streams(plan: TrainPlan, heads: dict[str, LabelVolume], seed: int) -> tuple[Pairs, Pairs]:
    """Pairs to learn from, and those held out."""
    generator = make_generator(plan)
    spaces = [(read_space(name), share) for name, share in plan.spaces.items()]
    learn = [head for name, head in heads.items() if name not in HELD_OUT]
    judge = [heads[name] for name in HELD_OUT]
    return (
        Pairs(PairStream(learn, spaces, generator, seed=seed)),
        Pairs(PairStream(judge, spaces, generator, seed=EVALUATION_SEED)),
    )


def begin(plan: TrainPlan, start_from: str) -> Run:
    """A run before its first step."""
    torch.manual_seed(plan.seed)
    task = make_task(plan)
    if start_from:
        bundle = ModelBundle.read(find_bundle(start_from))
        transfer(task.net, LabelTable.packaged(plan.target_table), bundle.load(), bundle.table)
    return Run(task)


def train(
    name: str, plan: TrainPlan, pairs: Pairs, coarse: dict[float, Pairs], options
) -> Iterator[tuple[str, Run]]:
    """The stages of a run that are judged, by schedule."""
    optimizer, rate, *extra = name.split(":")
    plan = replace(plan, optimizer=optimizer, learning_rate=float(rate))
    run = begin(plan, options.start_from)
    steps, first = options.steps, 0
    if extra:
        small = coarse[float(extra[0].removeprefix("coarse"))]
        probe = begin(plan, options.start_from)
        for step in range(2):  # what a step of either kind takes
            probe.cpu_s = 0.0
            probe.step(*pairs[step])
            fine_s, probe.cpu_s = probe.cpu_s, 0.0
            probe.step(*small[step])
        first = round(steps / 2 * fine_s / probe.cpu_s)
        for step in range(first):
            run.step(*small[step])
        steps -= steps // 2
    for step in range(steps):
        if step == steps - round(options.decay * steps):
            yield from _decayed(run.snapshot(), pairs, step, steps)
        if step in options.judge_at:
            yield "flat", run
        run.step(*pairs[step])
    yield "flat", run


def _decayed(run: Run, pairs: Pairs, begin: int, steps: int) -> Iterator[tuple[str, Run]]:
    for step in range(begin, steps):
        run.step(*pairs[step], share=(steps - step) / (steps - begin))
    yield "decay", run


def table(rows: list[dict[str, str]]) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    found: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        found[row["run"], row["steps"], row["schedule"], row["weights"]].append(row)
    lines = [
        "| run | steps | schedule | weights | seeds | Dice, brain | all labels | CPU-s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, group in found.items():
        cells = [str(len(group))]
        for column in ("dice_brain", "dice_all"):
            values = [float(row[column]) for row in group]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.fmean(values):.4f} ± {spread:.4f}")
        cells.append(f"{statistics.fmean(float(row['cpu_s']) for row in group):.0f}")
        lines.append("| " + " | ".join((*key, *cells)) + " |")
    return "\n".join(lines)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of an earlier call."""
    if not path.exists():
        return []
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=Path, required=True, help="derivative of label maps")
    parser.add_argument("--runs", nargs="+", required=True, metavar="OPTIMISER:RATE[:coarseMM]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--warmup", type=int, default=15)
    parser.add_argument("--decay", type=float, default=0.0, metavar="SHARE", help="default: none")
    parser.add_argument("--judge-at", type=int, nargs="*", default=(), metavar="STEP")
    parser.add_argument("--voxel-size", type=float, default=2.0, metavar="MM")
    parser.add_argument("--patch", type=int, nargs=3, default=(80, 96, 80), metavar="VOXELS")
    parser.add_argument("--start-from", default="", metavar="MODEL")
    parser.add_argument("--pairs", type=int, default=8, help="that are judged")
    parser.add_argument("--tsv", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(options.tsv)
    done = {(row["seed"], row["run"]) for row in rows}
    base, heads = make_plan(options), read_heads(options.maps)
    for seed in options.seeds:
        plan = replace(base, seed=seed)
        pairs, held_out = streams(plan, heads, seed)
        sizes = {float(n.split("coarse")[1]) for n in options.runs if "coarse" in n}
        coarse = {size: streams(coarser(plan, size), heads, seed)[0] for size in sizes}
        for name in options.runs:
            if (str(seed), name) in done:
                continue
            new = []
            for schedule, run in train(name, plan, pairs, coarse, options):
                for weights, brain, every in run.scores(held_out, options.pairs):
                    values = (seed, name, run.steps, schedule, weights)
                    numbers = (f"{brain:.4f}", f"{every:.4f}", f"{run.cpu_s:.1f}")
                    new.append(dict(zip(COLUMNS, map(str, values + numbers), strict=True)))
                    print(*new[-1].values(), sep="\t", flush=True)
            rows += new
            lines = ["\t".join(COLUMNS), *("\t".join(row.values()) for row in rows)]
            options.tsv.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
