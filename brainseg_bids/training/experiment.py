# SPDX-License-Identifier: Apache-2.0
"""The prior-weight experiment: does training for one contrast beat training for any?

The same label maps, seeds and steps; only the prior weight ``kappa`` differs between
the runs of a seed.
Every run is then measured on the same images. What is compared, by which rule, is part of the
plan, which is written before anything is run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from brainseg_bids.documents import InputError, parse_json
from brainseg_bids.evaluation.bootstrap import Bootstrap, Draws, mean_interval
from brainseg_bids.evaluation.decision import FEWEST_SEEDS, RULE, Decision, decide, is_rule
from brainseg_bids.training.overlap import Score
from brainseg_bids.training.plan import TrainPlan

BASELINE = 0.0
"""The prior weight that stands for any contrast."""
ON, OFF, REAL = "on", "off", "real"
WHERE = {
    ON: "synthetic pairs of the contrast",
    OFF: "synthetic pairs of other contrasts",
    REAL: "real images",
}
"""What accuracy is measured on."""
EVALUATION_SEED = 1_618_033_988
"""Far from the seeds that people choose, so that no run was trained on these recipes."""
SCORE_FORMAT = 1


@dataclass(frozen=True)
class Pinned:
    """A file and the SHA-256 of what was in it when the experiment was planned."""

    path: str
    sha256: str


@dataclass(frozen=True)
class RealImage:
    """A real image with reference labels; ``seen`` if the prior was measured in it, too."""

    image: Pinned
    labels: Pinned
    seen: bool = False


@dataclass(frozen=True)
class Run:
    """One training run: its number, prior weight and seed."""

    index: int
    kappa: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder.

        >>> Run(0, 0.25, 3).name
        'kappa-0.25_seed-3'
        """
        return f"kappa-{self.kappa:g}_seed-{self.seed}"


@dataclass(frozen=True)
class ExperimentPlan:
    """Everything that decides what an experiment shows, and how it will be judged.

    Parameters
    ----------
    contrast : str
        Name of the prior.
    version, planned : str
        Of the program; date and time, ISO 8601.
    prior : Pinned
        JSON of the prior; the digest is the prior's own, which covers its table.
    agnostic : str
        Recipe space at ``kappa = 0``.
    training : dict
        A `TrainPlan`, but for seed and spaces, which each run has its own.
    kappas : tuple of float
        0 and at least one other.
    seeds : tuple of int
    maps, validation : tuple of Pinned
        Label maps to learn from, and held out.
    images : tuple of RealImage
    on_space : str
        Digest of the prior's space at ``kappa = 1``.
    off_spaces : dict of str to str
        Other recipe spaces to their digests.
    dials : dict of str to str
        Each ``kappa`` to the digest of its space.
    pairs_per_map : int
        Pairs of each held-out map and space that accuracy is measured on.
    margin : float
        Smallest difference of mean Dice that matters.
    bootstrap : Bootstrap
    evaluation_seed : int

    Raises
    ------
    ValueError
        If it could not be judged: no ``kappa`` of 0, something twice, no held-out map, a map
        both to learn from and held out.
    """

    contrast: str
    version: str
    planned: str
    prior: Pinned
    agnostic: str
    training: dict[str, Any]
    kappas: tuple[float, ...]
    seeds: tuple[int, ...]
    maps: tuple[Pinned, ...]
    validation: tuple[Pinned, ...]
    images: tuple[RealImage, ...]
    on_space: str
    off_spaces: dict[str, str]
    dials: dict[str, str]
    pairs_per_map: int = 8
    margin: float = 0.01
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    evaluation_seed: int = EVALUATION_SEED

    def __post_init__(self) -> None:
        check_settings(self.kappas, self.seeds, self.margin, self.pairs_per_map)
        if not self.maps or not self.validation:
            raise ValueError("label maps to learn from and label maps held out are both needed")
        learnt = {one.sha256 for one in self.maps}
        for one in self.validation:
            if one.sha256 in learnt:
                raise ValueError(
                    f"{one.path}: held out, but the same map is among those to learn from. "
                    "Leave it out of one of them."
                )

    @property
    def runs(self) -> tuple[Run, ...]:
        """Seed by seed, so that what is finished early can be compared."""
        each = [(kappa, seed) for seed in self.seeds for kappa in self.kappas]
        return tuple(Run(index, *one) for index, one in enumerate(each))

    @property
    def judged_kappa(self) -> float:
        """The prior weight that is judged against the baseline: the nearest to the contrast."""
        return max(self.kappas)

    @property
    def judged_where(self) -> str:
        """Real images if there are any; pairs are drawn from what the judged runs learned from."""
        return REAL if self.images else ON

    @property
    def steps(self) -> int:
        """Of each run."""
        return int(self.training["total_steps"])

    @property
    def thesis(self) -> str:
        """What is to be shown."""
        return f"Training for contrast {self.contrast} beats training for any contrast on it."

    @property
    def rule(self) -> str:
        """The decision rule, in words."""
        return (
            f"{self.thesis} Setting: kappa {self.judged_kappa:g}; baseline: kappa {BASELINE:g}. "
            "Accuracy: the mean Dice of the brain's structures that the reference has. On the "
            f"contrast: {WHERE[self.judged_where]}. Off it: {WHERE[OFF]} "
            f"({', '.join(self.off_spaces) or 'none'}), mean over these. Margin: {self.margin:g}. "
            f"{RULE} The thesis is judged by what the rule says about images of the contrast "
            "alone; the whole rule says whether it comes without loss elsewhere. Other settings "
            "are shown, not judged. Nothing is judged before every run is finished."
        )

    def has_rule(self, text: str) -> bool:
        """Whether a text is `rule`, with `RULE` in the present or in an earlier wording."""
        before, after = self.rule.split(RULE)
        middle = text.removeprefix(before).removesuffix(after)
        return text == before + middle + after and is_rule(middle)

    @property
    def digest(self) -> str:
        """SHA-256 of everything but date and version."""
        content = asdict(replace(self, version="", planned=""))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def train_plan(self, run: Run, space: str, validation_space: str) -> TrainPlan:
        """What one run trains by; ``space`` is its recipe file."""
        own = {
            "seed": run.seed,
            "spaces": {space: 1.0},
            "validation_space": validation_space,
        }
        return TrainPlan.from_dict(self.training | own)

    def to_json(self) -> str:
        """The plan with its rule in words and numbers, for files."""
        decision = {
            "thesis": self.thesis,
            "rule": self.rule,
            "setting": self.judged_kappa,
            "baseline": BASELINE,
            "judged_on": self.judged_where,
            "margin": self.margin,
            "fewest_seeds": FEWEST_SEEDS,
            "interval": self.bootstrap.description,
        }
        content = {"digest": self.digest, "decision": decision} | asdict(self)
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ExperimentPlan:
        """What `to_json` wrote.

        Raises
        ------
        ValueError
            If it is something else, or was changed since.
        """
        try:
            raw = parse_json(text, "plan")
            digest, decision = raw.pop("digest"), raw.pop("decision")
            raw["prior"] = Pinned(**raw["prior"])
            raw["bootstrap"] = Bootstrap(**raw["bootstrap"])
            for key in ("maps", "validation"):
                raw[key] = tuple(Pinned(**one) for one in raw[key])
            raw["images"] = tuple(
                RealImage(Pinned(**one["image"]), Pinned(**one["labels"]), one["seen"])
                for one in raw["images"]
            )
            for key in ("kappas", "seeds"):
                raw[key] = tuple(raw[key])
            plan = cls(**raw)
        except (AttributeError, InputError, KeyError, TypeError) as error:
            raise ValueError(f"this is no plan of an experiment ({error})") from error
        if plan.digest != digest or not plan.has_rule(decision["rule"]):
            raise ValueError("the plan was changed after it was made, or is of another version")
        return plan


def check_settings(
    kappas: Sequence[float], seeds: Sequence[int], margin: float, pairs_per_map: int
) -> None:
    """Raise ``ValueError`` unless runs of these settings can be compared."""
    for kappa in kappas:
        if not 0 <= kappa <= 1:
            raise ValueError(
                f"kappa is {kappa:g}: choose numbers from 0 (any contrast) to 1 (measured)"
            )
    if BASELINE not in kappas or len(kappas) < 2:
        raise ValueError("kappa 0 is what others are compared with: give it and another one")
    names = [f"{kappa:g}" for kappa in kappas]
    if len(set(names)) < len(kappas) or len(set(seeds)) < len(seeds):
        raise ValueError("each kappa and each seed is given once")
    if not seeds or min(seeds) < 0:
        raise ValueError("seeds are whole numbers from 0, at least one")
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin is the smallest difference that matters, got {margin:g}")
    if pairs_per_map < 1:
        raise ValueError(f"accuracy takes at least one pair of each held-out map: {pairs_per_map}")


def with_steps(plan: TrainPlan, steps: int) -> TrainPlan:
    """The same plan with other steps: warming up and slowing down take the same share of them.

    Raises
    ------
    ValueError
        If there are no steps.
    """
    if steps < 1:
        raise ValueError(f"a run takes at least one step, got {steps}")
    share = steps / plan.total_steps
    return replace(
        plan,
        total_steps=steps,
        warmup_steps=max(1, round(plan.warmup_steps * share)),
        decay_steps=max(1, round(plan.decay_steps * share)),
        validate_every=min(plan.validate_every, steps),
    )


# -- measuring ----------------------------------------------------------------------------


@dataclass(frozen=True)
class RunResult:
    """What one finished run showed; ``experiment`` is the digest of its plan."""

    experiment: str
    run: Run
    steps: int
    scores: tuple[Score, ...]
    version: str = ""

    def accuracy(self, where: str, space: str | None = None) -> float | None:
        """Mean over the heads of each space, then over spaces; None if not measured."""
        by_space: dict[str, list[float]] = {}
        for score in self.scores:
            if score.where == where and space in (None, score.space):
                by_space.setdefault(score.space, []).append(score.accuracy)
        if not by_space:
            return None
        return float(np.mean([np.mean(values) for values in by_space.values()]))

    def to_json(self) -> str:
        """Scores of a run as JSON."""
        return json.dumps({"format": SCORE_FORMAT} | asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunResult:
        """What `to_json` wrote.

        Raises
        ------
        ValueError
            If it is something else.
        """
        try:
            raw = json.loads(text)
            if raw.pop("format") != SCORE_FORMAT:
                raise ValueError("this is a result of another version")
            scores = tuple(Score(**one) for one in raw.pop("scores"))
            return cls(**raw | {"run": Run(**raw["run"]), "scores": scores})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"this is no result of a run ({error})") from error


# -- judging ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Parameters
    ----------
    kappa : float
    where : {"on", "off", "real"}
    space : str
        "all" for the mean over the spaces of ``where``.
    values : dict of int to float
        By seed: accuracy, or its difference to the baseline.
    mean : float
    low, high : float or None
        Interval over seeds; None with a reason in ``note``.
    note : str
    """

    kappa: float
    where: str
    space: str
    values: dict[int, float]
    mean: float
    low: float | None
    high: float | None
    note: str = ""

    def row(self) -> dict[str, str | float | int | None]:
        """A line of a table."""
        shown = {key: value for key, value in vars(self).items() if key != "values"}
        return shown | {
            "n_seeds": len(self.values),
            "seeds": " ".join(map(str, self.values)),
            "values": " ".join(f"{value:.6f}" for value in self.values.values()),
        }


@dataclass(frozen=True)
class Findings:
    """Accuracy by prior weight, differences to the baseline, and what the rule says.

    Parameters
    ----------
    accuracy, differences : tuple of Estimate
    missing : tuple of Run
        Not finished; then nothing is judged.
    thesis, without_loss : Decision or None
        On images of the contrast alone; and the whole rule. None before all is finished; the
        second also if there are no other contrasts.
    """

    accuracy: tuple[Estimate, ...]
    differences: tuple[Estimate, ...]
    missing: tuple[Run, ...]
    thesis: Decision | None
    without_loss: Decision | None


def find(plan: ExperimentPlan, results: Sequence[RunResult]) -> Findings:
    """Put finished runs together and judge by the plan's rule.

    Raises
    ------
    ValueError
        If a result is of another plan.
    """
    for result in results:
        if result.experiment != plan.digest or result.run not in plan.runs:
            raise ValueError(f"{result.run.name}: this result is of another plan")
    done = {result.run: result for result in results}
    measured = list(
        dict.fromkeys((score.where, score.space) for r in results for score in r.scores)
    )
    columns = []
    for where in WHERE:
        spaces = [space for kind, space in measured if kind == where]
        columns += [(where, space) for space in (["all"] if len(spaces) > 1 else []) + spaces]
    draws = Draws(plan.bootstrap)
    accuracy, differences = [], []
    for where, space in columns:
        values = _by_kappa(done, where, None if space == "all" else space)
        for kappa in (kappa for kappa in plan.kappas if kappa in values):
            own, base = values[kappa], values.get(BASELINE, {})
            accuracy.append(_estimate(kappa, where, space, own, draws))
            paired = {seed: own[seed] - base[seed] for seed in own if seed in base}
            if kappa != BASELINE and paired:
                differences.append(_estimate(kappa, where, space, paired, draws))
    missing = tuple(run for run in plan.runs if run not in done)
    thesis, without_loss = (None, None) if missing else _judge(plan, done)
    return Findings(tuple(accuracy), tuple(differences), missing, thesis, without_loss)


def _by_kappa(
    done: Mapping[Run, RunResult], where: str, space: str | None
) -> dict[float, dict[int, float]]:
    found: dict[float, dict[int, float]] = {}
    for run, result in done.items():
        value = result.accuracy(where, space)
        if value is not None:
            found.setdefault(run.kappa, {})[run.seed] = value
    return found


def _estimate(
    kappa: float, where: str, space: str, values: dict[int, float], draws: Draws
) -> Estimate:
    values = dict(sorted(values.items()))
    numbers, n = np.array(list(values.values())), len(values)
    ends = mean_interval(numbers, list(values), draws)
    if n < 2:
        note = "1 seed: no interval"
    elif n < FEWEST_SEEDS:
        note = f"{n} seeds: the interval is likely too narrow"
    else:
        note = ""
    return Estimate(kappa, where, space, values, float(numbers.mean()), ends.low, ends.high, note)


def _judge(
    plan: ExperimentPlan, done: Mapping[Run, RunResult]
) -> tuple[Decision, Decision | None]:
    def differences(where: str) -> list[float] | None:
        values = _by_kappa(done, where, None)
        if not values:
            return None
        own, base = values[plan.judged_kappa], values[BASELINE]
        return [own[seed] - base[seed] for seed in plan.seeds]

    on, off = differences(plan.judged_where), differences(OFF)
    if on is None:
        raise ValueError(f"no run was judged on {plan.judged_where}")

    def decided(others: list[float] | None) -> Decision:
        return decide(on, others, margin=plan.margin, bootstrap=plan.bootstrap)

    return decided(None), None if off is None else decided(off)
