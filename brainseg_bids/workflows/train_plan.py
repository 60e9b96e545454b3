# SPDX-License-Identifier: Apache-2.0
"""What a model is trained on and how: label maps, who is held out, recipe. No torch here."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.inputs import label_fault
from brainseg_bids.bids.label_codes import find_label_table
from brainseg_bids.bids.names import STRUCTURAL, Scan
from brainseg_bids.documents import Items, Kind, Number, Text, check, parse_toml, read_text
from brainseg_bids.options import VOXEL_SIZE
from brainseg_bids.training.deadline import MOST_STEPS
from brainseg_bids.volumes import InputError, read_grid

log = logging.getLogger("brainseg")

SOURCE = "fullhead"
"""Table whose codes label maps have."""
EVERY = 8
"""Of so many participants, one is held out."""
NOT_FINER = 1.01
"""A map counts as no coarser than voxels that are wanted up to this factor."""
PRIOR = "prior"
"""What a training recipe calls the space of the chosen contrast prior."""


# -- label maps ---------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadMap:
    """A label map of a head, at one of the voxel sizes that there are.

    Parameters
    ----------
    path : Path
    subject : str
        Label without ``sub-``.
    voxel_size_mm : tuple of 3 float
    """

    path: Path
    subject: str
    voxel_size_mm: tuple[float, float, float]

    @property
    def head(self) -> str:
        """What the maps of one head at several voxel sizes have in common."""
        return re.sub(r"_res-[0-9A-Za-z+]+", "", self.path.name)

    @property
    def size_mm(self) -> float:
        """Edge of the cube with a voxel's volume."""
        return float(np.prod(self.voxel_size_mm) ** (1 / 3))


def find_head_maps(
    folder: Path, participants: Collection[str] = (), sessions: Collection[str] = ()
) -> list[HeadMap]:
    """Label maps of heads in a BIDS derivative, at every voxel size, by participant.

    Those that this app has merged (``seg-fullhead``) are taken; without any, plain ``dseg``
    files, whose ``dseg.tsv`` has to say that they have codes of ``fullhead``.

    Raises
    ------
    InputError
        If there are none, a header cannot be read, or a plain map has no or another table.
    """
    every = sorted(folder.glob("sub-*/**/sub-*_dseg.nii*"))
    every += sorted(folder.glob("sub-*_dseg.nii*"))
    every = _without_refused(every, folder)
    scans = [scan for path in every if "desc" not in (scan := Scan.from_path(path)).entities]
    maps = [scan for scan in scans if scan.entities.get("seg") == SOURCE]
    maps = maps or [scan for scan in scans if "seg" not in scan.entities]
    if not maps:
        raise InputError(f"{folder}: no label maps of heads are in it. {_advice(folder, scans)}")
    wanted = [
        scan
        for scan in maps
        if (not participants or scan.subject in participants)
        and (not sessions or scan.session is None or scan.session in sessions)
    ]
    missing = sorted(set(participants) - {scan.subject for scan in wanted})
    if missing or not wanted:
        there = ", ".join(sorted({scan.subject for scan in maps}))
        raise InputError(
            f"{folder}: no label map of participant {', '.join(missing) or 'and session'} that "
            f"was asked for. There are maps of: {there}."
        )
    for scan in wanted:
        _check_table(scan.path)
    return [
        HeadMap(scan.path, scan.subject, read_grid(scan.path).voxel_size_mm) for scan in wanted
    ]


def _without_refused(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Maps of participants who have a BIDS label; of the others each is told once."""
    kept, told = [], set()
    for path in paths:
        first = path.relative_to(folder).parts[0]
        label = first.removeprefix("sub-") if path.parent != folder else _label_of(path)
        if not (fault := label_fault(folder, label)):
            kept.append(path)
        elif label not in told:
            log.warning("%s It is left out.", fault)
            told.add(label)
    return kept


def _label_of(path: Path) -> str:
    return Scan.from_path(path).entities.get("sub", "")


def _advice(folder: Path, scans: Sequence[Scan]) -> str:
    """What to do where there are no maps of heads."""
    if scans:
        return (
            "It has segmentations only; training takes merged head label maps: run the "
            "participant level with --stages headlabels first."
        )
    own = sorted(path.parent.parent for path in folder.glob("derivatives/*/sub-*/**/*_dseg.nii*"))
    if own:
        top = folder / Path(*own[0].relative_to(folder).parts[:2])
        return f"Did you mean {top}?"
    return "Run the participant level with --stages headlabels first and give its output here."


def _check_table(path: Path) -> None:
    """Raise `InputError` unless the map's ``dseg.tsv`` means by its codes what ``fullhead`` does.

    Codes that ``fullhead`` lacks are no fault as long as no voxel has them.
    """
    found = find_label_table(path)
    if found is None:
        raise InputError(
            f"{path}: no dseg.tsv beside it or above says what its codes mean. Put one there with "
            f"the columns index and name; names are those of table {SOURCE}."
        )
    try:
        table = LabelTable.read(found)
    except (OSError, ValueError) as error:
        raise InputError(f"{found}: cannot be used ({error}). Correct it.") from error
    known = LabelTable.packaged(SOURCE)
    for label in table:
        if label.index and label.index in known and known[label.index].name != label.name:
            raise InputError(
                f"{found}: code {label.index} is {label.name}, but {known[label.index].name} in "
                f"table {SOURCE}, whose codes training needs. Recode {path.name}, or run --stages "
                "headlabels on it."
            )


def usual_voxel_size_mm(maps: Iterable[HeadMap]) -> float:
    """Median over heads of the finest map's voxel size.

    >>> one, two = (HeadMap(Path(f"sub-1_res-{s}_dseg.nii"), "1", (s,) * 3) for s in (1, 2))
    >>> usual_voxel_size_mm([one, two])
    1.0
    """
    finest: dict[str, float] = {}
    for one in maps:
        finest[one.head] = min(one.size_mm, finest.get(one.head, np.inf))
    return round(float(np.median(list(finest.values()))), 2)


def choose_maps(maps: Iterable[HeadMap], voxel_size_mm: float) -> list[HeadMap]:
    """One map of each head: the coarsest that is no coarser than wanted, else the finest.

    Finer ones than are needed would only take memory.

    >>> maps = [HeadMap(Path(f"sub-1_res-{s}_dseg.nii"), "1", (s / 10,) * 3) for s in (5, 8, 12)]
    >>> [choose_maps(maps, wanted)[0].voxel_size_mm[0] for wanted in (1.0, 0.7, 0.4)]
    [0.8, 0.5, 0.5]
    """
    by_head: dict[str, list[HeadMap]] = {}
    for one in maps:
        by_head.setdefault(one.head, []).append(one)
    chosen = []
    for own in by_head.values():
        own = sorted(own, key=lambda one: one.size_mm)
        enough = [one for one in own if one.size_mm <= voxel_size_mm * NOT_FINER]
        chosen.append(enough[-1] if enough else own[0])
    return chosen


def hold_out(maps: Sequence[HeadMap], wanted: Collection[str] = ()) -> frozenset[str]:
    """Participants to validate on: the wanted, else every eighth, at least one.

    Raises
    ------
    InputError
        If there is one participant only, a wanted one is not there, or nobody would be left.

    Examples
    --------
    >>> maps = [HeadMap(Path(f"sub-{n:02}_dseg.nii"), f"{n:02}", (1, 1, 1)) for n in range(1, 18)]
    >>> sorted(hold_out(maps)), sorted(hold_out(maps[:3])), sorted(hold_out(maps, ["05"]))
    (['08', '16'], ['03'], ['05'])
    """
    there = sorted({one.subject for one in maps})
    if len(there) < 2:
        raise InputError(
            f"only sub-{there[0]} has label maps: nobody is left to validate on. Give label maps "
            "of at least two participants."
        )
    missing = sorted(set(wanted) - set(there))
    if missing:
        raise InputError(
            f"--validation-label {missing[0]}: there is no label map of this participant. There "
            f"are maps of: {', '.join(there)}."
        )
    held = frozenset(wanted or there[EVERY - 1 :: EVERY] or there[-1:])
    if len(held) == len(there):
        raise InputError(
            "--validation-label: all participants are held out, nobody is left to learn from. "
            "Name fewer."
        )
    return held


@dataclass(frozen=True)
class MapFacts:
    """What reading a label map has told.

    Parameters
    ----------
    digest : str
        `brainseg_bids.volumes.voxel_hash`.
    codes : frozenset of int
        Of ``fullhead``, those that voxels have.
    """

    digest: str
    codes: frozenset[int]


def find_target(name: str) -> LabelTable:
    """Table of the labels that a model is to learn.

    Raises
    ------
    InputError
        If there is no way from ``fullhead`` to it; the message lists the known ones.

    Examples
    --------
    >>> len(find_target("brainseg"))
    43
    """
    folder = resources.files("brainseg_bids") / "data" / "crosswalks"
    found = (re.fullmatch(rf"{SOURCE}_to_(.+)\.tsv", path.name) for path in folder.iterdir())
    known = sorted(match[1] for match in found if match)
    if name not in known:
        raise InputError(f"target_table = {name!r}: labels are {', '.join(known)}.")
    return LabelTable.packaged(name)


def absent_labels(facts: Iterable[MapFacts], target: LabelTable) -> tuple[str, ...]:
    """Labels that are to be learned but that no map has.

    >>> absent_labels([MapFacts("", frozenset({0, 2, 3, 4}))], LabelTable.packaged("brainseg"))[:2]
    ('Left-Inf-Lat-Vent', 'Left-Cerebellum-White-Matter')
    """
    crosswalk = Crosswalk.packaged(SOURCE, target.name)
    there = {crosswalk.pairs[code] for one in facts for code in one.codes}
    return tuple(label.name for label in target if label.index and label.index not in there)


# -- training recipe ----------------------------------------------------------------------

_STEPS = Number(1, 1e9, whole=True)
_COUNT = Number(1, 1e9, whole=True)

KEYS: dict[str, Kind] = {
    "target_table": Text(),
    "voxel_size_mm": VOXEL_SIZE,
    "largest_patch_mm": Items(Number(10, 500, "mm"), count=3),
    "net_size": Text(("small", "medium", "large")),
    "loss": Text(("chosen", "dense")),
    "per_label": _COUNT,
    "anywhere": _COUNT,
    "dice_weight": Number(0, 1000),
    "learning_rate": Number(0, 1, above=True),
    "warmup_steps": _STEPS,
    "total_steps": _STEPS,
    "decay_steps": _STEPS,
    "batch": Number(1, 256, whole=True),
    "ema_decay": Number(0, 1, above=True, below=True),
    "validate_every": _STEPS,
    "validation_pairs": Number(1, 10_000, whole=True),
    "validation_space": Text(),
    "agnostic": Text(),
    "center_frac": Items(Number(0, 1), count=2, rising=True),
    "contrasts": Items(Text()),
}
"""Keys of a training recipe, beside ``base`` and the table ``[spaces]``, and what they may be.
Patches hold a head at most; what still does not fit a memory is told when it is planned."""

ABOUT_SPACES = ("agnostic", "center_frac", "contrasts", "largest_patch_mm", "net_size")
"""Keys that are no fields of a `TrainPlan`: they decide some."""

BY_STEPS = ("total_steps", "decay_steps", "validate_every", "ema_decay")
"""Keys that `TrainRecipe.with_steps` changes even when a run has begun."""


@dataclass(frozen=True)
class TrainRecipe:
    """How to train: numbers, and the recipe spaces that pairs are drawn from.

    Parameters
    ----------
    base : str
        Packaged recipe that it differs from.
    values : dict
        By key of `KEYS`.
    spaces : dict of str to float
        Recipe space (packaged name, TOML file, or ``prior``) to share; empty: not said.
    said : frozenset of str
        Keys that the user's own file gives.
    """

    base: str
    values: dict
    spaces: dict[str, float]
    said: frozenset[str] = field(default=frozenset())

    @classmethod
    def packaged(cls, name: str) -> TrainRecipe:
        """Recipe that comes with the package: ``default`` or ``cpu``.

        >>> TrainRecipe.packaged("cpu").values["voxel_size_mm"]
        1.5
        """
        source = resources.files("brainseg_bids") / "data" / "training" / f"{name}.toml"
        if not source.is_file():
            raise InputError(f"no training recipe {name!r}; known: default, cpu.")
        values, spaces = _parse(source.read_text(encoding="utf-8"), f"{name}.toml")
        return cls(name, values, spaces)

    @classmethod
    def read(cls, path: Path, base: str) -> TrainRecipe:
        """A user's file over a packaged recipe: the one it names, else ``base``.

        Raises
        ------
        InputError
            Naming the file and the key that is not known or has the wrong kind of value.
        """
        values, spaces = _parse(read_text(path), str(path))
        try:
            under = cls.packaged(values.pop("base", base))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        spaces = {_absolute(name, path.parent): share for name, share in spaces.items()}
        for key in ("validation_space", "agnostic"):
            if key in values:
                values[key] = _absolute(values[key], path.parent)
        said = frozenset(values) | ({"spaces"} if spaces else set())
        return cls(under.base, under.values | values, spaces or under.spaces, said)

    def with_steps(self, steps: int) -> TrainRecipe:
        """Another number of steps; warming up and slowing down keep their share.

        What comes of it depends on this recipe alone, so start from the one that was asked for,
        not from one that was shortened already. Weights are averaged over a tenth of the steps at
        most: a longer average of a short run is mostly of what it began with.

        >>> recipe = TrainRecipe.packaged("cpu").with_steps(430)
        >>> recipe.values["total_steps"], recipe.values["decay_steps"] < 430
        (430, True)
        """
        share = steps / self.values["total_steps"]
        scaled = {
            key: max(1, round(self.values[key] * share)) for key in ("warmup_steps", "decay_steps")
        }
        scaled["validate_every"] = min(self.values["validate_every"], steps)
        scaled["ema_decay"] = min(self.values["ema_decay"], max(0.0, 1 - 10 / steps))
        kept = {key: value for key, value in scaled.items() if key not in self.said}
        return TrainRecipe(
            self.base,
            self.values | kept | {"total_steps": steps},
            self.spaces,
            self.said | {"total_steps"},
        )

    def by_time(self, *, at_most: int = 0) -> TrainRecipe:
        """For a run whose end is a time: the rate stays flat, for nobody knows its last step.

        Its own number of steps, which is meant for a run without, does not end it sooner; those
        that are named here do.

        >>> recipe = TrainRecipe.packaged("cpu")
        >>> [recipe.by_time(at_most=n).values["total_steps"] for n in (0, 9)]
        [1000000, 9]
        """
        by_time = {"total_steps": at_most or MOST_STEPS, "decay_steps": 1}
        return replace(self, values=self.values | by_time)


def _absolute(name: str, folder: Path) -> str:
    return str((folder / name).resolve()) if name.endswith(".toml") else name


def _parse(text: str, what: str) -> tuple[dict, dict[str, float]]:
    """Values and spaces of a recipe file; ``base`` is among the values if it is there."""
    raw = parse_toml(text, what)
    spaces = raw.pop("spaces", {})
    kinds = {"base": Text(), **KEYS}
    unknown = sorted(set(raw) - set(kinds))
    if unknown:
        raise InputError(
            f"{what}: unknown key {', '.join(unknown)}. Known: base, [spaces], "
            f"{', '.join(sorted(KEYS))}."
        )
    check(raw, kinds, what)
    share = Number(0, 1e6, above=True)
    if not isinstance(spaces, dict) or any(map(share.fault, spaces.values())):
        raise InputError(
            f"{what}: [spaces] gives each recipe space a share above 0, e.g. t1w = 1.0."
        )
    values = {key: _value(kinds[key], value) for key, value in raw.items()}
    return values, {name: float(share) for name, share in spaces.items()}


def _value(kind: Kind, value):
    """A value in the type that its kind has everywhere else.

    >>> _value(KEYS["learning_rate"], 1), _value(KEYS["center_frac"], [0, 1])
    (1.0, (0.0, 1.0))
    """
    if isinstance(kind, Items):
        return tuple(_value(kind.kind, one) for one in value)
    return float(value) if isinstance(kind, Number) and not kind.whole else value


# -- recipe spaces ------------------------------------------------------------------------

CONTRAST_OF = {"t1w": "T1w", "t2w": "T2w", "flair": "FLAIR", "mp2rage7t": "UNIT1"}
"""BIDS suffix that a packaged space imitates; ``agnostic`` ones imitate all."""


@dataclass(frozen=True)
class Spaces:
    """Recipe spaces of a training run.

    Parameters
    ----------
    shares : dict of str to float
        By packaged name, TOML file, or ``prior``.
    validation : str
        Space of validation pairs, likewise.
    contrasts : tuple of str
        BIDS suffixes that the model is for.
    prior : str
        Name of the contrast prior; empty if there is none.
    """

    shares: dict[str, float]
    validation: str
    contrasts: tuple[str, ...]
    prior: str = ""

    @cached_property
    def largest(self) -> str:
        """The space that is drawn from most."""
        return max(self.shares, key=self.shares.__getitem__)


def choose_spaces(
    recipe: TrainRecipe,
    *,
    priors: Mapping[str, str],
    wanted: str = "",
    kappa_said: bool = False,
) -> tuple[Spaces, str]:
    """Which recipe spaces to draw from, and why, a line.

    A prior that was asked for comes first, then the user's recipe, then the only prior there is,
    then the packaged recipe.

    Parameters
    ----------
    recipe : TrainRecipe
    priors : mapping of str to str
        Contrast priors at hand: name to BIDS suffix.
    wanted : str
        Name of the prior that the user asked for.
    kappa_said : bool
        Whether the contrast dial was turned, which only a prior makes sense of.

    Raises
    ------
    InputError
        If the wanted prior is not there, there are several and nothing chooses, or a recipe or a
        turned dial needs one and there is none.

    Examples
    --------
    >>> recipe = TrainRecipe("default", {}, {"t1w": 0.8, "flair": 0.2})
    >>> choose_spaces(recipe, priors={})[0].contrasts
    ('T1w', 'FLAIR')
    >>> choose_spaces(recipe, priors={"mine": "T2w"})[0].shares
    {'prior': 1.0}
    """
    own = recipe.spaces if "spaces" in recipe.said else {}
    known = ", ".join(sorted(priors))
    if wanted and wanted not in priors:
        advice = f"Known: {known}." if priors else "Run group --stages priors first."
        raise InputError(f"--prior {wanted}: there is none. {advice}")
    name = wanted
    if PRIOR in own or (priors and not own):
        if not name and len(priors) != 1:
            raise InputError(
                f"there are several contrast priors ({known}): choose one with --prior, or other "
                "recipe spaces with --recipe."
                if priors
                else "--recipe: [spaces] names prior, but there is none. Run group --stages "
                "priors first."
            )
        name = name or next(iter(priors))
    if kappa_said and not name:
        raise InputError(
            "--kappa: the contrast dial needs a contrast prior. Run group --stages priors first, "
            "or choose one with --prior."
        )
    if PRIOR in own:
        shares, why = own, f"recipe, with contrast prior {name}"
    elif name:
        chosen = "asked for" if wanted else "the only one there is"
        shares, why = {PRIOR: 1.0}, f"contrast prior {name} ({chosen})"
    else:
        shares = recipe.spaces
        why = "recipe" if own else f"packaged recipe {recipe.base}: there is no contrast prior"
    suffix = priors.get(name, "T1w")
    contrasts = recipe.values.get("contrasts") or _contrasts(shares, suffix)
    spaces = Spaces(shares, "", contrasts, name)
    said = recipe.values.get("validation_space", "")
    validation = said if "validation_space" in recipe.said else spaces.largest
    return Spaces(shares, validation, contrasts, name), why


def _contrasts(shares: Mapping[str, float], suffix: str) -> tuple[str, ...]:
    """BIDS suffixes of spaces; one that imitates any contrast stands for all.

    >>> _contrasts({"t1w": 1.0, "flair": 1.0}, "T2w"), _contrasts({"prior": 1.0}, "T2w")
    (('T1w', 'FLAIR'), ('T2w',))
    """
    known = CONTRAST_OF | {PRIOR: suffix}
    if any(name not in known for name in shares):
        return STRUCTURAL
    return tuple(dict.fromkeys(known[name] for name in shares))


def voxel_size_of(
    flag_mm: Sequence[float],
    recipe: TrainRecipe,
    prior_mm: Sequence[float] | None,
    maps: Iterable[HeadMap],
) -> tuple[float, str]:
    """Voxel size (mm) of the pairs, isotropic, and why.

    The command line comes first, then the user's recipe, then the packaged recipe for machines
    without an accelerator, then the prior, then the label maps.

    Examples
    --------
    >>> recipe = TrainRecipe("default", {}, {})
    >>> voxel_size_of((0.5, 0.5, 1.0), recipe, None, [])
    (0.63, '--target-voxel-size')
    >>> voxel_size_of((), recipe, (0.8, 0.8, 0.8), [])
    (0.8, 'that of the contrast')
    """

    def mean_mm(sizes: Sequence[float]) -> float:
        return round(float(np.prod(sizes) ** (1 / len(sizes))), 2)

    if flag_mm:
        return mean_mm(flag_mm), "--target-voxel-size"
    if "voxel_size_mm" in recipe.values:
        return recipe.values["voxel_size_mm"], f"recipe {recipe.base}"
    if prior_mm is not None:
        return mean_mm(prior_mm), "that of the contrast"
    return usual_voxel_size_mm(maps), "that of the label maps"


def model_name(spaces: Spaces, voxel_size_mm: float) -> str:
    """What a model is called if nobody says.

    >>> model_name(Spaces({"prior": 1.0}, "prior", ("T1w",), "T1w7T"), 0.8)
    'T1w7T-0.8mm'
    >>> model_name(Spaces({"/a/my own.toml": 1.0}, "", ("T1w",)), 1.0)
    'my-own-1mm'
    """
    base = spaces.prior or Path(spaces.largest).name.removesuffix(".toml")
    return re.sub(r"[^0-9A-Za-z_.-]+", "-", base).strip("-.") + f"-{voxel_size_mm:g}mm"


# -- going on -----------------------------------------------------------------------------

IDENTITY = ("table", "voxel_size_mm", "architecture", "seed", "start_from", "spaces", "maps")
"""What of ``job.json`` a run that goes on may not change."""

LEARNED_BY = (
    "loss",
    "per_label",
    "anywhere",
    "dice_weight",
    "learning_rate",
    "warmup_steps",
)
"""And of its recipe. How long it trains (`BY_STEPS`) may change."""


def differences(before: Mapping, now: Mapping) -> list[str]:
    """What of two descriptions of a job differs, a few words each; names of files stay short.

    Examples
    --------
    >>> differences({"seed": 1, "maps": {"a": {"digest": "1"}, "b": {"digest": "2"}}},
    ...     {"seed": 2, "maps": {"a": {"digest": "1"}, "c": {"digest": "3"}}})
    ['seed 1 (now 2)', 'label maps: 1 new (c), 1 gone (b)']
    """
    found = []
    for key in IDENTITY:
        one, other = before.get(key), now.get(key)
        if key == "maps":
            found += _changed_maps(one or {}, other or {})
        elif key == "spaces":
            found += _changed_spaces(one or {}, other or {})
        elif one != other:
            found.append(f"{key} {_shown(one)} (now {_shown(other)})")
    values = [said.get("recipe", {}).get("values", {}) for said in (before, now)]
    for key in LEARNED_BY:
        one, other = (own.get(key) for own in values)
        if one != other:
            found.append(f"{key} {_shown(one)} (now {_shown(other)})")
    return found


def _changed_maps(before: Mapping, now: Mapping) -> list[str]:
    kinds = {
        "new": sorted(set(now) - set(before)),
        "gone": sorted(set(before) - set(now)),
        "changed": sorted(
            name
            for name in set(before) & set(now)
            if before[name]["digest"] != now[name]["digest"]
        ),
        "held out or no longer": sorted(
            name
            for name in set(before) & set(now)
            if before[name].get("held_out") != now[name].get("held_out")
        ),
    }
    words = [
        f"{len(names)} {kind} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for kind, names in kinds.items()
        if names
    ]
    return [f"label maps: {', '.join(words)}"] if words else []


def _changed_spaces(before: Mapping, now: Mapping) -> list[str]:
    def shown(spaces: Mapping) -> str:
        return ", ".join(f"{name} {said['share']:g}" for name, said in spaces.items())

    if shown(before) != shown(now):
        return [f"recipe spaces {shown(before)} (now {shown(now)})"]
    changed = [name for name in before if before[name]["digest"] != now[name]["digest"]]
    return [f"content of recipe space {', '.join(changed)}"] if changed else []


def _shown(value: object) -> str:
    return "none" if value in (None, "") else str(value)
