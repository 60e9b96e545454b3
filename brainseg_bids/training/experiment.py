# SPDX-License-Identifier: Apache-2.0
"""Prior-weight experiment: is training for one contrast better than training for any contrast?

Runs with the same seed differ in the prior weight ``kappa`` only. All runs are evaluated on the
same images. The comparison and the decision rule are part of the plan, which is written before
the first run.
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
"""Prior weight of the contrast-agnostic training."""
ON, OFF, REAL = "on", "off", "real"
WHERE = {
    ON: "synthetic pairs of the contrast",
    OFF: "synthetic pairs of other contrasts",
    REAL: "real images",
}
"""Images on which accuracy is measured."""
EVALUATION_SEED = 1_618_033_988
"""Unlike seeds that users choose, so that no run was trained on these recipes."""
SCORE_FORMAT = 1


@dataclass(frozen=True)
class Pinned:
    """A file, with the SHA-256 of its content at the time of planning."""

    path: str
    sha256: str


@dataclass(frozen=True)
class RealImage:
    """A real image with reference labels; ``seen``: it is one of the images of the prior."""

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
        """Name of its folder.

        >>> Run(0, 0.25, 3).name
        'kappa-0.25_seed-3'
        """
        return f"kappa-{self.kappa:g}_seed-{self.seed}"


@dataclass(frozen=True)
class ExperimentPlan:
    """Plan of an experiment: everything that determines its result, and the decision rule.

    Parameters
    ----------
    contrast : str
        Name of the prior.
    version, planned : str
        Version of the program; date and time (ISO 8601).
    prior : Pinned
        JSON file of the prior, with the digest of the prior, which includes its table.
    agnostic : str
        Recipe space at ``kappa = 0``.
    training : dict
        A `TrainPlan` without seed and recipe spaces, which differ between runs.
    kappas : tuple of float
        Prior weights: 0 and at least one other.
    seeds : tuple of int
    maps, validation : tuple of Pinned
        Label maps for training, and held-out label maps.
    images : tuple of RealImage
    on_space : str
        Digest of the recipe space of the prior at ``kappa = 1``.
    off_spaces : dict of str to str
        Digests of other recipe spaces, by name.
    kappa_spaces : dict of str to str
        Digest of the recipe space of each ``kappa``.
    pairs_per_map : int
        Number of evaluation pairs for each held-out map and recipe space.
    margin : float
        Smallest difference of mean Dice that matters.
    bootstrap : Bootstrap
    evaluation_seed : int

    Raises
    ------
    ValueError
        If the experiment could not be decided: no ``kappa`` of 0, a value given twice, no held-out
        map, or a map both for training and held out.
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
    kappa_spaces: dict[str, str]
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
        """All runs, ordered by seed, so that completed seeds can be compared early."""
        each = [(kappa, seed) for seed in self.seeds for kappa in self.kappas]
        return tuple(Run(index, *one) for index, one in enumerate(each))

    @property
    def judged_kappa(self) -> float:
        """Prior weight that is compared with the baseline by the rule: the largest."""
        return max(self.kappas)

    @property
    def judged_where(self) -> str:
        """Kind of images for the decision: real images if there are any, else synthetic pairs.

        Real images are preferred because synthetic pairs come from the distribution of the
        training.
        """
        return REAL if self.images else ON

    @property
    def steps(self) -> int:
        """Number of training steps of each run."""
        return int(self.training["total_steps"])

    @property
    def thesis(self) -> str:
        """Hypothesis of the experiment, as a sentence."""
        return f"Training for contrast {self.contrast} beats training for any contrast on it."

    @property
    def rule(self) -> str:
        """Decision rule as text, with the settings of this experiment."""
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
        """SHA-256 of the plan without date and version."""
        content = asdict(replace(self, version="", planned=""))
        # Under their former name, so that plans and results of earlier versions remain valid.
        content["dials"] = content.pop("kappa_spaces")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def train_plan(self, run: Run, space: str, validation_space: str) -> TrainPlan:
        """Training plan of one run; ``space`` and ``validation_space`` are recipe files."""
        own = {"seed": run.seed, "spaces": {space: 1.0}, "validation_space": validation_space}
        return TrainPlan.from_dict(self.training | own)

    def to_json(self) -> str:
        """Plan as JSON text, with the decision rule."""
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
        """Plan from the JSON text of `to_json`.

        Raises
        ------
        ValueError
            If the text is not a plan, was changed, or is of another version.
        """
        try:
            raw = parse_json(text, "plan")
            digest, decision = raw.pop("digest"), raw.pop("decision")
            if "dials" in raw:  # as earlier versions call them
                raw["kappa_spaces"] = raw.pop("dials")
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
            raise ValueError(f"this is not a plan of an experiment ({error})") from error
        if plan.digest != digest or not plan.has_rule(decision["rule"]):
            raise ValueError("the plan was changed after it was made, or is of another version")
        return plan


def check_settings(
    kappas: Sequence[float], seeds: Sequence[int], margin: float, pairs_per_map: int
) -> None:
    """Raise an error unless runs with these settings can be compared.

    Raises
    ------
    ValueError
        If a prior weight, seed, margin or number of pairs is invalid, weight 0 is missing, or a
        value is given twice.
    """
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
    """Training plan with another number of steps, and warm-up and decay in proportion.

    Raises
    ------
    ValueError
        If ``steps`` is below 1.
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
    """Scores of one completed run; ``experiment`` is the digest of its plan."""

    experiment: str
    run: Run
    steps: int
    scores: tuple[Score, ...]
    version: str = ""

    def accuracy(self, where: str, space: str | None = None) -> float | None:
        """Mean accuracy over the images of each space, then over spaces; None if not measured.

        Parameters
        ----------
        where : {"on", "off", "real"}
        space : str, optional
            Default: all spaces.
        """
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
        """Scores from the JSON text of `to_json`.

        Raises
        ------
        ValueError
            If the text is not of this kind.
        """
        try:
            raw = json.loads(text)
            if raw.pop("format") != SCORE_FORMAT:
                raise ValueError("this is a result of another version")
            scores = tuple(Score(**one) for one in raw.pop("scores"))
            return cls(**raw | {"run": Run(**raw["run"]), "scores": scores})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"this is not a result of a run ({error})") from error


# -- judging ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds of the accuracy, or of its difference from the baseline.

    Parameters
    ----------
    kappa : float
    where : {"on", "off", "real"}
    space : str
        "all" for the mean over the spaces of ``where``.
    values : dict of int to float
        Value by seed.
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
        """Row of a table: values by column."""
        shown = {key: value for key, value in vars(self).items() if key != "values"}
        return shown | {
            "n_seeds": len(self.values),
            "seeds": " ".join(map(str, self.values)),
            "values": " ".join(f"{value:.6f}" for value in self.values.values()),
        }


@dataclass(frozen=True)
class Findings:
    """Results of an experiment: accuracy by prior weight, differences, and decisions.

    Parameters
    ----------
    accuracy, differences : tuple of Estimate
        Accuracy, and its difference from the baseline.
    missing : tuple of Run
        Runs that are not completed; if there are any, there is no decision.
    thesis, without_loss : Decision or None
        Decision from images of the contrast only, and by the whole rule. The latter is also None
        if there are no other contrasts.
    """

    accuracy: tuple[Estimate, ...]
    differences: tuple[Estimate, ...]
    missing: tuple[Run, ...]
    thesis: Decision | None
    without_loss: Decision | None


def find(plan: ExperimentPlan, results: Sequence[RunResult]) -> Findings:
    """Results of an experiment from its completed runs, with decisions by the rule of the plan.

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
