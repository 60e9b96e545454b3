# SPDX-License-Identifier: Apache-2.0
"""Stage ``train``: train a network on synthetic pairs.

What is decided and checked stands in `train_job`, label maps in `train_maps`, how it is trained in
`train_plan`, the process in `train_process`, the whole run in `train_run`.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids.documents import Number
from brainseg_bids.options import OptionGroup, in_gib, label, memory_gb, option, positive
from brainseg_bids.stages.base import GroupResult, GroupStage
from brainseg_bids.training.deadline import MOST_MINUTES, MOST_STEPS, check_minutes

if TYPE_CHECKING:
    from brainseg_bids.options import Settings


def _model_name(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_.-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a name has letters, digits, dots, - and _ only, e.g. mp2rage-0.7mm"
        )
    return text


def _steps(text: str) -> int:
    if (steps := positive(text)) >= MOST_STEPS:
        raise argparse.ArgumentTypeError(f"{text!r}: give less than {MOST_STEPS}")
    return steps


def _minutes(text: str) -> float:
    try:
        return check_minutes(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give a number above 0, at most {MOST_MINUTES}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OptionGroup):
    """Training."""

    title: ClassVar[str] = "training (group: --stages train)"
    belongs_to: ClassVar[tuple[str, ...]] = ("train",)

    architecture: str = option(
        "--architecture",
        default="dynunet",
        metavar="NAME",
        help="dynunet (default), segresnet, unet, resenc_unet, mednext, swin_unetr, meshnet",
    )
    net_size: str = option(
        "--net-size",
        default="",
        choices=("small", "medium", "large"),
        help="default: the largest that fits the memory",
    )
    recipe: Path | None = option(
        "--recipe",
        metavar="FILE",
        help="training recipe, TOML: what differs from the packaged one",
    )
    model_name: str = option("--name", default="", parse=_model_name, help="name of the model")
    steps: int = option(
        "--steps",
        default=0,
        parse=_steps,
        fits=Number(0, MOST_STEPS - 1, whole=True),
        metavar="N",
        help="training steps; default: the recipe's",
    )
    minutes: float = option(
        "--minutes",
        default=0.0,
        parse=_minutes,
        metavar="N",
        help="end N minutes after the command began, the learning rate decayed as in the recipe, "
        "model bundled, page written; the same command continues for N more",
    )
    start_from: str = option(
        "--start-from",
        default="",
        metavar="NAME|PATH",
        help="begin from the weights of this model, whatever its labels",
    )
    validation_label: tuple[str, ...] = option(
        "--validation-label",
        default=(),
        parse=label("sub-"),
        metavar="LABEL",
        help="participants whose label maps are held out; default: every eighth, at least one",
    )
    validate_on: Path | None = option(
        "--validate-on",
        metavar="BIDS_DIR",
        help="also validate on the real images there, whose labels --reference gives",
    )
    memory_budget_gb: float | None = option(
        "--memory-budget",
        parse=memory_gb,
        arguments=in_gib,
        fits=Number(0, 1e6, "GiB", above=True),
        metavar="SIZE",
        help="memory of the device to use, with unit T, G, M or K; default: what is free",
    )
    precision: str = option(
        "--precision",
        default="",
        choices=("bf16", "fp32"),
        help="default: the faster one on the device",
    )
    devices: int = option(
        "--devices",
        default=0,
        parse=positive,
        metavar="N",
        help="accelerators per node (on CPU: processes); default: all there are (on CPU: 1)",
    )
    nodes: int = option(
        "--nodes",
        default=1,
        parse=positive,
        fits=Number(1, 1e6, whole=True),
        metavar="N",
        help="nodes of a batch job; default: 1",
    )
    plan_only: bool = option(
        "--plan-only", default=False, help="print and store the plan, and stop"
    )


class Train(GroupStage):
    """From label maps of heads to a model bundle."""

    name = "train"
    after = ("priors", "synth")
    options = TrainOptions

    def run(self, settings: Settings, run_dir: Path, began_s: float) -> GroupResult:
        """See `GroupStage.run`; ``exit_code`` is 75 if it was stopped and can go on."""
        from brainseg_bids.bids.description import write_description
        from brainseg_bids.stages import train_run

        if settings.reports_only:
            code = train_run.write_pages(settings)
        else:
            write_description(settings.bids_dir, settings.output_dir)
            code = train_run.train(settings, began_s=began_s)
        if code or settings.plan_only:
            return GroupResult(exit_code=code)
        return GroupResult(tuple(train_run.models_to_review(settings.output_dir, began_s)))
