# SPDX-License-Identifier: Apache-2.0
"""``TrainingJob``: everything that the training process is given, each parameter written once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from brainseg_bids.documents import Number
from brainseg_bids.options import OptionGroup, option

NEEDED = ("plan", "heads", "validation", "out")


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(OptionGroup):
    """Flags of the process."""

    title: ClassVar[str] = "training"

    plan: Path | None = option("--plan", help="TrainPlan as JSON")
    heads: tuple[str, ...] = option("--heads", default=(), help="label maps to learn from")
    validation: tuple[str, ...] = option("--validation", default=(), help="label maps held out")
    cache: Path | None = option(
        "--cache", help="folder in which label maps are kept as they were read"
    )
    out: Path | None = option("--out", help="folder for checkpoint and log")
    threads: int = option(
        "--threads", default=0, parse=int, help="CPU threads of each process; default: all"
    )
    start_from: str = option(
        "--start-from",
        default="",
        metavar="MODEL|CHECKPOINT",
        help="model folder, packaged model, or checkpoint of another run to begin from; its "
        "labels may be others",
    )
    memory: Path | None = option("--memory", help="memory.json: its last plan is in force")
    real: Path | None = option(
        "--real",
        help="JSON list of {name, image, labels, table or crosswalk}: real images to look at",
    )
    minutes: float | None = option(
        "--minutes", parse=float, help="end so long after --began, bundle and page included"
    )
    began: float = option(
        "--began",
        default=0.0,
        parse=float,
        fits=Number(0, 1e12),
        metavar="SECONDS",
        help="of the epoch; default: now",
    )
    decay_share: float = option(
        "--decay-share",
        default=0.0,
        parse=float,
        fits=Number(0, 1),
        metavar="SHARE",
        help="last part of --minutes, 0 to 1, in which the learning rate decays to zero",
    )
    checkpoint_every: float = option(
        "--checkpoint-every", default=600.0, parse=float, metavar="SECONDS", help="at least"
    )


@dataclass(frozen=True, kw_only=True)
class TrainingJob(TrainingFlags):
    """What the process is given: fields are flags, and keys of the file of ``--job``."""
