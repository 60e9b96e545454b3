# SPDX-License-Identifier: Apache-2.0
"""What a training job wrote down, read back: curves over all its runs, plan, memory, samples.

Whatever is missing, cut off or damaged is left out and said; a job that was killed has a log too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.training.deadline import planned_steps

DICE, BRAIN, REAL = "dice/", "dice_brain", "real/"
TRAINING, BUNDLE = "training", "bundle"

_RUN = re.compile(r"log-from-(\d+)")
_SAMPLE = re.compile(r"step-(\d+)\.npz")


@dataclass(frozen=True)
class Curve:
    """A logged quantity over steps.

    Parameters
    ----------
    steps : (n,) int
        Steps done when it was logged; rising.
    values : (n,) float
        NaN where the log says so.
    """

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    @classmethod
    def empty(cls) -> Curve:
        """Nothing was logged."""
        return cls(np.zeros(0, dtype=int), np.zeros(0))

    @property
    def last(self) -> float:
        """Newest value, NaN if there is none.

        >>> Curve(np.array([1, 2]), np.array([0.5, 0.25])).last
        0.25
        """
        return float(self.values[-1]) if len(self) else math.nan

    def finite(self) -> Curve:
        """Without what is not a number."""
        kept = np.isfinite(self.values)
        return Curve(self.steps[kept], self.values[kept])

    def smoothed(self) -> Curve:
        """Running mean over 5 % of the points about each, at least three; as long as before.

        >>> Curve(np.arange(4), np.array([4.0, 0, 2, 6])).smoothed().values.round(2).tolist()
        [2.0, 2.0, 2.67, 4.0]
        """
        curve = self.finite()
        width = 1 + 2 * max(1, round(0.05 * len(curve) / 2))
        means = pd.Series(curve.values).rolling(width, center=True, min_periods=1).mean()
        return Curve(curve.steps, means.to_numpy())


@dataclass(frozen=True)
class TrainingLog:
    """The log of a job, over all its training runs.

    Parameters
    ----------
    curves : mapping of str to Curve
        By column of the log.
    runs : tuple of int
        Steps done when each training run began; the first is usually 0.
    errors : tuple of str
        What could not be read.
    """

    curves: Mapping[str, Curve] = field(default_factory=dict)
    runs: tuple[int, ...] = ()
    errors: tuple[str, ...] = ()

    def __getitem__(self, column: str) -> Curve:
        """Curve of a column, empty if it was never logged."""
        return self.curves.get(column, Curve.empty())

    @property
    def resumes(self) -> tuple[int, ...]:
        """Steps at which training went on after a stop."""
        return tuple(step for step in self.runs if step > 0)

    @property
    def steps_done(self) -> int:
        """Steps behind the last line of the log."""
        return max(
            (int(curve.steps[-1]) for curve in self.curves.values() if len(curve)), default=0
        )

    def classes(self) -> dict[str, Curve]:
        """Validation Dice by label name."""
        return {
            name.removeprefix(DICE): curve
            for name, curve in self.curves.items()
            if name.startswith(DICE)
        }

    @property
    def last_validation(self) -> int:
        """Steps done at the last validation of pairs, 0 if there was none."""
        curves = [self[BRAIN], *self.classes().values()]
        return max((int(curve.steps[-1]) for curve in curves if len(curve)), default=0)

    def real(self) -> dict[str, Curve]:
        """Mean Dice of brain structures by the name of a real image."""
        end = f"/{BRAIN}"
        return {
            name.removeprefix(REAL).removesuffix(end): curve
            for name, curve in self.curves.items()
            if name.startswith(REAL) and name.endswith(end)
        }

    def last_dice(self) -> dict[str, float]:
        """Dice of each label at the last validation; NaN if it was not judged then."""
        at = self.last_validation
        return {
            name: curve.last if len(curve) and curve.steps[-1] == at else math.nan
            for name, curve in self.classes().items()
        }

    def real_dice(self) -> dict[str, dict[str, float]]:
        """Dice of each label of each real image, when it was last judged."""
        found: dict[str, dict[str, float]] = {name: {} for name in self.real()}
        for column, curve in self.curves.items():
            image, between, label = column.removeprefix(REAL).rpartition(f"/{DICE}")
            if between and column.startswith(REAL):
                found.setdefault(image, {})[label] = curve.last
        return found


def read_log(training: Path) -> TrainingLog:
    """Read every ``log-from-N/metrics.csv`` of a folder as one.

    A run that began at step N takes back what earlier ones logged beyond: those steps were lost
    and done again.

    Parameters
    ----------
    training : Path
        Folder ``training`` of a job.
    """
    folders = sorted(
        (int(found[1]), path)
        for path in training.glob("log-from-*")
        if (found := _RUN.fullmatch(path.name)) and (path / "metrics.csv").is_file()
    )
    parts: list[pd.DataFrame] = []
    errors: list[str] = []
    for start, folder in folders:
        parts = [part[part["step"] <= start] for part in parts]
        try:
            parts.append(_numbers(folder / "metrics.csv"))
        except (OSError, pd.errors.ParserError) as error:
            errors.append(f"{folder.name}/metrics.csv cannot be read: {error}")
    curves = {}
    if parts:
        logged = pd.concat(parts).drop_duplicates(["name", "step"], keep="last")
        for name, own in logged.sort_values("step", kind="stable").groupby("name", sort=False):
            curves[name] = Curve(own["step"].to_numpy(int), own["value"].to_numpy(float))
        curves = {name: curves[name] for name in logged["name"].unique()}
    return TrainingLog(curves, tuple(start for start, _ in folders), tuple(errors))


def _numbers(path: Path) -> pd.DataFrame:
    """A log's numbers, one a row: step, name, value. What is empty, or a word, is none.

    A line that was cut off gives what it has.
    """
    try:
        cells = pd.read_csv(
            path, dtype=str, keep_default_na=False, on_bad_lines="skip", encoding_errors="replace"
        )
    except pd.errors.EmptyDataError:
        cells = pd.DataFrame(columns=["step"])
    cells["step"] = pd.to_numeric(cells.get("step"), errors="coerce")
    cells = cells[np.isfinite(cells["step"].astype(float))]
    rows = cells.drop(columns="epoch", errors="ignore").melt("step", var_name="name")
    value = pd.to_numeric(rows["value"], errors="coerce")
    is_number = value.notna() | (rows["value"].astype(str).str.strip().str.lower() == "nan")
    return rows.assign(value=value, step=rows["step"].astype(int))[is_number]


# -- what was planned ---------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A training job as it lies in its folder.

    Parameters
    ----------
    job, plan, memory : mapping
        ``job.json``, ``plan.json`` and ``memory.json``; empty if they are not there.
    log : TrainingLog
    table : LabelTable or None
        What the network says; None if no table was found.
    samples : tuple of Path
        ``samples/step-*.npz``, in the order of steps.
    bad_steps : tuple of mapping
        ``bad-step-*.json``: steps whose loss was not finite.
    has_bundle : bool
    errors : tuple of str
        What could not be read.
    """

    job: Mapping
    plan: Mapping
    memory: Mapping
    log: TrainingLog
    table: LabelTable | None
    samples: tuple[Path, ...]
    bad_steps: tuple[Mapping, ...]
    has_bundle: bool
    errors: tuple[str, ...] = ()

    @property
    def total_steps(self) -> int | None:
        """Steps of the plan, None if it does not say or ends by time."""
        total = self.plan.get("total_steps")
        is_number = isinstance(total, int | float) and total > 0
        return planned_steps(int(total)) if is_number else None

    @property
    def finished(self) -> bool:
        """Whether the log reaches the plan's end, but for the steps between two of its lines."""
        if self.total_steps is None:
            return self.has_bundle
        steps = self.log["loss"].steps
        between = int(np.median(np.diff(steps))) if len(steps) > 1 else 1
        return self.log.steps_done + between > self.total_steps

    @property
    def pairs_per_step(self) -> int:
        """Of all devices and accumulated parts."""
        parts = ("batch", "accumulate", "devices", "nodes")
        return math.prod(max(1, int(self.plan.get(part) or 1)) for part in parts)


def read_job(job_dir: Path) -> Job:
    """Read a job's folder.

    Raises
    ------
    ValueError
        If there is no folder ``training`` in it.
    """
    training = job_dir / TRAINING
    if not training.is_dir():
        raise ValueError(
            f"{job_dir}: no folder {TRAINING!r} of a training job is in it. Give the folder "
            "model-NAME that stage train made."
        )
    errors: list[str] = []
    job, plan, memory = (
        _json(training / f"{name}.json", errors) for name in ("job", "plan", "memory")
    )
    log = read_log(training)
    samples = sorted(
        (int(found[1]), path)
        for path in training.glob("samples/step-*.npz")
        if (found := _SAMPLE.fullmatch(path.name))
    )
    return Job(
        job=job,
        plan=plan,
        memory=memory,
        log=log,
        table=_table(job_dir, job, plan, errors),
        samples=tuple(path for _, path in samples),
        bad_steps=tuple(_json(p, errors) for p in sorted(training.glob("bad-step-*.json"))),
        has_bundle=(job_dir / BUNDLE / "bundle.json").is_file(),
        errors=(*errors, *log.errors),
    )


def _json(path: Path, errors: list[str]) -> dict:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        errors.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(found, dict):
        errors.append(f"{path.name} holds no names and values")
        return {}
    return found


def _table(job_dir: Path, job: Mapping, plan: Mapping, errors: list[str]) -> LabelTable | None:
    """Of the bundle if there is one, else the table that job or plan name."""
    bundled = job_dir / BUNDLE / "labels.tsv"
    for named in (bundled, job.get("table"), plan.get("target_table")):
        if not isinstance(named, str | Path) or (named == bundled and not bundled.is_file()):
            continue
        try:
            if Path(named).suffix == ".tsv":
                return LabelTable.read(named)
            return LabelTable.packaged(named)
        except (OSError, ValueError) as error:
            errors.append(f"label table {Path(named).name}: {error}")
    return None


# -- samples ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Middle planes of the first validation pair, and what was found in it.

    Parameters
    ----------
    steps : int
        Done when it was made.
    image : (P, H, W) float
        As one sees them: up is superior or anterior, left is the person's left, or posterior.
    truth, found : (P, H, W) int
        Ranks in the label table.
    """

    steps: int
    image: np.ndarray
    truth: np.ndarray
    found: np.ndarray


def read_samples(paths: Sequence[Path], *, most: int = 6) -> tuple[list[Sample], int]:
    """Samples of one pair over time, and how many others were left out.

    Early steps, at which much changes, stand closer; first and last are always there. Files that
    are damaged or that show another pair than the last are passed over.

    Returns
    -------
    samples : list of Sample
        In the order of steps, at most ``most``.
    left_out : int
        Files that are damaged or of another pair, of those looked at.
    """
    paths = list(paths)
    if len(paths) > most:
        at = np.unique(np.rint(np.linspace(0, 1, most) ** 1.6 * (len(paths) - 1)).astype(int))
        paths = [paths[k] for k in at]
    read = [_sample(path) for path in paths]
    found = [one for one in read if one is not None]
    same = [one for one in found if np.array_equal(one.truth, found[-1].truth)]
    return same, len(paths) - len(same)


def _sample(path: Path) -> Sample | None:
    name = _SAMPLE.fullmatch(path.name)
    try:
        with np.load(path, allow_pickle=False) as stored:
            image, truth, found = (stored[part] for part in ("image", "truth", "found"))
    except Exception:  # numpy and zipfile raise what they like on a file that was cut off
        return None
    if name is None or image.ndim != 3 or not image.shape == truth.shape == found.shape:
        return None
    return Sample(
        int(name[1]),
        _upright(image.astype(np.float32)),
        _upright(truth.astype(int)),
        _upright(found.astype(int)),
    )


def _upright(planes: np.ndarray) -> np.ndarray:
    """Stored are two axes of RAS+ each, in their order: to the right, then up."""
    return np.flip(planes.swapaxes(1, 2), axis=1)
