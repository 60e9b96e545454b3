# SPDX-License-Identifier: Apache-2.0
"""The model card: what a model is, what it was made of, how good it is, what it is not for.

Sections follow Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.plausibility import implausible_model
from brainseg_bids.reports.groups import GROUPS, group_of_mapping
from brainseg_bids.reports.tables import markdown_table
from brainseg_bids.units import duration

MOST_LISTED = 40
"""Label maps named one by one; of more, voxel sizes are counted and the manifest has digests."""

HOW_TO_USE = (
    "```\nbrainseg BIDS_DIR OUT_DIR participant --stages segment --model THIS_FOLDER\n```",
    "Look at the picture of each head in the report before using its numbers.",
)
WEAK_DICE = 0.5
"""Structures below are named among the limits."""


@dataclass(frozen=True)
class MapFacts:
    """A label map that a model saw.

    Parameters
    ----------
    name : str
        File name, no folders.
    voxel_size_mm : tuple of 3 float
    digest : str
        `brainseg_bids.images.voxel_hash`.
    held_out : bool
        For validation only.
    """

    name: str
    voxel_size_mm: tuple[float, float, float]
    digest: str
    held_out: bool = False


@dataclass(frozen=True)
class SpaceFacts:
    """A recipe space that pairs were drawn from.

    Parameters
    ----------
    name : str
        Packaged name, or the file's name.
    share : float
        Of the pairs, 0 to 1.
    contrast : str
        E.g. ``T1w``; empty for any contrast.
    kappa : float or None
        Prior weight: 0 any contrast, 1 as measured; None if the space has no prior.
    digest : str
        SHA-256 of the space's file or of the prior it rests on, hex; may be empty.
    """

    name: str
    share: float
    contrast: str = ""
    kappa: float | None = None
    digest: str = ""


@dataclass(frozen=True)
class DiceFacts:
    """Dice of a model, by structure.

    Parameters
    ----------
    what : str
        What was segmented, a line: ``4 synthetic pairs of 2 maps held out (space t1w)`` or
        ``sub-03 T1w, reference FreeSurfer aseg``.
    dice : mapping of str to float
        By label name; NaN where neither has the structure.
    brain : float or None
        Mean over brain structures as it was logged; None if it was not.
    """

    what: str
    dice: Mapping[str, float] = field(default_factory=dict)
    brain: float | None = None


@dataclass(frozen=True)
class CardFacts:
    """What `model_card` needs to know.

    Parameters
    ----------
    name : str
    version : str
        Of this software.
    contrasts : tuple of str
        BIDS suffixes that the model was made for.
    voxel_size_mm : float
        Of the grid that the network works on.
    table : LabelTable
        What the network says.
    architecture : str
        Key of `brainseg_bids.nets.architectures.ARCHITECTURES`.
    n_parameters : int
    maps : tuple of MapFacts
        Those learned from and those held out.
    spaces : tuple of SpaceFacts
    steps : int
        Done.
    planned_steps : int
        Of the plan; more than ``steps`` if training was stopped before its end.
    patch_vox : tuple of 3 int
    pairs_per_step : int
        The global batch: over all devices and accumulated parts.
    precision : str
        E.g. ``bf16-mixed``.
    learning_rate : float
    loss : str
        In words, e.g. ``cross-entropy at chosen voxels``.
    hardware : str
        E.g. ``2 x NVIDIA A100 (80 GiB)`` or ``2 CPU cores``.
    validation : DiceFacts or None
        Synthetic pairs of maps held out; None: not validated.
    real : tuple of DiceFacts
        Real images with labels, one each.
    size : str
        ``small``, ``medium``, ``large``, or empty for a network of the recipe's own.
    net : mapping
        `brainseg_bids.nets.architectures.NetSpec` as a dict.
    seed : int
    duration_s : float or None
        Of all stretches; None: not known.
    started_from : str
        Name of the model whose weights training began from; empty: from scratch.
    optimizer : str
        As the recipe has it.
    command : str
        That made the model.
    calibration_pairs : int
        Synthetic pairs that volumes were calibrated on; 0: they were not.
    licence : str
        Of the model, e.g. an SPDX identifier; empty: not stated.
    data_licence : str
        Of the label maps; empty: not stated.
    limits : tuple of str
        Further limits, a sentence each.
    """

    name: str
    version: str
    contrasts: tuple[str, ...]
    voxel_size_mm: float
    table: LabelTable
    architecture: str
    n_parameters: int
    maps: tuple[MapFacts, ...]
    spaces: tuple[SpaceFacts, ...]
    steps: int
    planned_steps: int
    patch_vox: tuple[int, int, int]
    pairs_per_step: int
    precision: str
    learning_rate: float
    loss: str
    hardware: str
    validation: DiceFacts | None = None
    real: tuple[DiceFacts, ...] = ()
    size: str = ""
    net: Mapping[str, object] = field(default_factory=dict)
    seed: int = 1
    duration_s: float | None = None
    started_from: str = ""
    optimizer: str = "adamw"
    command: str = ""
    calibration_pairs: int = 0
    licence: str = ""
    data_licence: str = ""
    limits: tuple[str, ...] = ()


def model_card(facts: CardFacts | Mapping[str, object]) -> str:
    """Text of a model card, Markdown.

    What is not known is said to be not known: a card has no empty place. It does not hold the
    digest of the bundle, which is made of the card's own digest among others.

    Parameters
    ----------
    facts : CardFacts or mapping
        A mapping has the fields of `CardFacts` as its keys.

    Raises
    ------
    ValueError
        If a measured structure is none of the label table.

    Examples
    --------
    >>> facts = CardFacts("mine", "0.1.0", ("T1w",), 1.0, LabelTable.packaged("tissue"), "dynunet",
    ...     3_200_000, (), (SpaceFacts("t1w", 1.0, "T1w"),), 100, 2000, (96, 96, 96), 1,
    ...     "32-true", 2e-3, "cross-entropy at chosen voxels", "2 CPU cores")
    >>> text = model_card(facts)
    >>> text.splitlines()[0], "100 of 2,000 planned steps" in text, "not validated" in text
    ('# mine', True, True)
    """
    if not isinstance(facts, CardFacts):
        facts = CardFacts(**facts)
    _check(facts)
    sections = {
        "What it is": _what(facts),
        "What it is for": _purpose(facts),
        "How to use it": HOW_TO_USE,
        "Labels": _labels(facts.table),
        "What it was trained on": _data(facts),
        "How it was trained": _training(facts),
        "What it was measured at": _metrics(facts),
        "What it must not be used for": _limits(facts),
        "Licence and version": _licence(facts),
    }
    parts = [f"# {facts.name}"]
    for title, paragraphs in sections.items():
        parts += [f"## {title}", *paragraphs]
    return "\n\n".join(parts) + "\n"


def _check(facts: CardFacts) -> None:
    for measured in (facts.validation, *facts.real):
        for name in measured.dice if measured is not None else ():
            if name not in facts.table:
                raise ValueError(
                    f"model card of {facts.name}: {name!r} was measured and is not a label of "
                    f"table {facts.table.name}. Give Dice by the names of that table."
                )


def _what(facts: CardFacts) -> list[str]:
    n = sum(1 for label in facts.table if label.index)
    brain = sum(label.is_brain for label in facts.table if label.index)
    size = f", size {facts.size}" if facts.size else ""
    kind = f"{facts.architecture}{size}, {_millions(facts.n_parameters)} weights (float16 on disk)"
    net = facts.net
    cells = ""
    if net:
        stem, features = net.get("stem", 1), net.get("features", "?")
        cells = f" Cells of {stem}x{stem}x{stem} voxels, {features} features each, a linear head."
        options = net.get("options") or {}
        if isinstance(options, Mapping) and options:
            cells += f" Options: {', '.join(f'{k} = {v}' for k, v in options.items())}."
    return [
        f"A network that labels structural MR images of the head: {n} labels, {brain} of them of "
        f"the brain. It works at {facts.voxel_size_mm:g} mm; results come back on the image's own "
        "grid. It was trained on synthetic images made of label maps; no real image was learned "
        "from, unless it gave the intensities of a recipe space.",
        f"{kind}.{cells}",
    ]


def _purpose(facts: CardFacts) -> list[str]:
    contrasts = ", ".join(facts.contrasts) or "none was named"
    return [
        f"Contrasts it was made for (BIDS suffixes): {contrasts}. For research: labels and "
        "volumes of many heads that somebody looks at, masks, starting labels to correct by hand."
    ]


def _labels(table: LabelTable) -> list[str]:
    """Names by group; codes and colours are in ``labels.tsv``."""
    groups: dict[str, list[str]] = {}
    for label in table:
        if label.index:
            groups.setdefault(group_of_mapping(label.mapping), []).append(label.name)
    lines = [f"- {group}: {', '.join(groups[group])}" for group in GROUPS if group in groups]
    return ["Codes, colours and sides are in `labels.tsv`.", "\n".join(lines)]


def _data(facts: CardFacts) -> list[str]:
    learned = [one for one in facts.maps if not one.held_out]
    held_out = [one for one in facts.maps if one.held_out]
    words = f"Label maps: {_counted(learned) or 'number not known'}"
    if held_out:
        words += f"; held out for validation: {_counted(held_out)}"
    spaces = [
        (
            space.name,
            f"{space.share:.2f}",
            space.contrast or "any",
            "-" if space.kappa is None else f"{space.kappa:g}",
            _short(space.digest),
        )
        for space in facts.spaces
    ]
    maps = [
        (
            one.name,
            " x ".join(f"{size:g}" for size in one.voxel_size_mm),
            "validation" if one.held_out else "training",
            _short(one.digest),
        )
        for one in facts.maps
    ]
    return [
        f"{words}. Licence of the maps: {facts.data_licence or 'not stated'}.",
        *_tables(("Recipe space", "Share", "Contrast", "Prior weight (kappa)", "SHA-256"), spaces),
        *_tables(
            ("Label map", "Voxels (mm)", "For", "SHA-256"),
            maps if len(maps) <= MOST_LISTED else [],
        ),
        "Digests of everything that was seen are in `bundle.json`, under `seen`.",
    ]


def _counted(maps: Sequence[MapFacts]) -> str:
    return f"{len(maps)} ({_voxel_sizes(maps)})" if maps else ""


def _short(digest: str) -> str:
    return f"`{digest[:12]}`" if digest else "-"


def _voxel_sizes(maps: Iterable[MapFacts]) -> str:
    """
    >>> _voxel_sizes([MapFacts("a", (1, 1, 1), ""), MapFacts("b", (0.8, 0.8, 1), "")])
    '1 of 0.8 x 0.8 x 1 mm, 1 of 1 mm'
    """
    counts = Counter(tuple(round(float(size), 3) for size in one.voxel_size_mm) for one in maps)
    return ", ".join(f"{n} of {_size(size)} mm" for size, n in sorted(counts.items()))


def _size(size: tuple[float, ...]) -> str:
    return f"{size[0]:g}" if len(set(size)) == 1 else " x ".join(f"{one:g}" for one in size)


def _training(facts: CardFacts) -> list[str]:
    steps = f"{facts.steps:,}"
    if facts.steps < facts.planned_steps:
        steps += f" of {facts.planned_steps:,} planned"
    pairs = f"{facts.pairs_per_step} pair{'s' * (facts.pairs_per_step != 1)}"
    took = duration(facts.duration_s) or "time not known"
    begun = f"from the weights of {facts.started_from}" if facts.started_from else "from scratch"
    patch = "x".join(map(str, facts.patch_vox))
    paragraphs = [
        f"{steps} steps of {pairs}, {begun}; patch {patch} voxels at {facts.voxel_size_mm:g} mm; "
        f"{facts.loss}; {facts.optimizer}, learning rate {facts.learning_rate:g}; precision "
        f"{facts.precision}; seed {facts.seed}. Hardware: {facts.hardware}; {took}."
    ]
    if facts.calibration_pairs:
        paragraphs.append(
            "Volumes were calibrated afterwards: one offset of the scores a label, fitted on "
            f"{facts.calibration_pairs} synthetic pairs of the label maps learned from. The Dice "
            "of the last validation are from before."
        )
    if facts.command:
        paragraphs.append(f"```\n{facts.command.strip()}\n```")
    return paragraphs


def _millions(n: int) -> str:
    """
    >>> _millions(3_210_000), _millions(5_500)
    ('3.2 million', '5,500')
    """
    return f"{n / 1e6:.1f} million" if n >= 100_000 else f"{n:,}"


def _metrics(facts: CardFacts) -> list[str]:
    measured = [one for one in (facts.validation, *facts.real) if one is not None]
    if not measured:
        return ["Nothing: it was not validated."]
    columns: list[DiceFacts] = []
    lines = []
    for one in measured:
        if one.dice:
            columns.append(one)
        mark = f"({len(columns)})" if one.dice else "-"
        lines.append((one.what, mark, _number(_brain(one, facts.table))))
    heads = [f"({number})" for number in range(1, len(columns) + 1)]
    names = [label.name for label in facts.table if any(label.name in c.dice for c in columns)]
    rows = [(name, *(_number(one.dice.get(name)) for one in columns)) for name in names]
    paragraphs = [
        *_tables(("Measured on", "Column", "Dice, mean of brain structures"), lines),
        *_tables(("Structure (Dice)", *heads), rows),
        "n/a: neither the reference nor the network has it. -: not measured.",
    ]
    if not facts.real:
        paragraphs.append(
            "Synthetic pairs come from the same recipes as the training pairs: they say that "
            "learning worked, not how good the model is on real images, which was not measured."
        )
    return paragraphs


def _brain(one: DiceFacts, table: LabelTable) -> float | None:
    """As logged, else the mean of what is known, else None."""
    if one.brain is not None:
        return one.brain
    known = [v for name, v in one.dice.items() if table[name].is_brain and not math.isnan(v)]
    return math.fsum(known) / len(known) if known else None


def _number(dice: float | None) -> str:
    if dice is None:
        return "-"
    return "n/a" if math.isnan(dice) else f"{dice:.3f}"


def _limits(facts: CardFacts) -> list[str]:
    lines = [
        "It must not be used for diagnosis, treatment or any decision about a person.",
        f"It must not be taken as a model for contrasts it was not made for: anything but "
        f"{', '.join(facts.contrasts) or 'those of its recipe spaces'}.",
        f"It must not be used for measures finer than its grid of {facts.voxel_size_mm:g} mm.",
    ]
    held_out = None if facts.validation is None else _brain(facts.validation, facts.table)
    learned = sum(not one.held_out for one in facts.maps)
    lines += [
        f"Look at it before it is used: {fault}."
        for fault in implausible_model(held_out, learned or None)
    ]
    if not facts.real:
        lines.append("Accuracy on real images was not measured.")
    if facts.validation is None:
        lines.append("It was not validated, not even on synthetic pairs.")
    if weak := _weak(facts):
        lines.append(
            f"It must not be relied on for labels whose Dice is below {WEAK_DICE:g}: {weak}."
        )
    if unjudged := _unjudged(facts):
        lines.append(f"Labels that were not judged: {unjudged}.")
    if facts.steps < facts.planned_steps:
        lines.append("Training was stopped before the end of its plan.")
    lines += [
        "Lesions, tumours, implants, infants and post-operative heads are only in it as far as "
        "its label maps have them.",
        "Sex, age and ancestry of the people behind the label maps were not looked at; no claim "
        "is made about groups.",
        *facts.limits,
    ]
    return ["\n".join(f"- {line}" for line in lines)]


def _weak(facts: CardFacts) -> str:
    """Labels below `WEAK_DICE` in any column, by their lowest value."""
    lowest: dict[str, float] = {}
    for one in filter(None, (facts.validation, *facts.real)):
        for name, value in one.dice.items():
            if not math.isnan(value) and value < WEAK_DICE:
                lowest[name] = min(value, lowest.get(name, value))
    ordered = sorted(lowest.items(), key=lambda item: item[1])
    return ", ".join(f"{name} ({value:.2f})" for name, value in ordered)


def _unjudged(facts: CardFacts) -> str:
    """Labels without a number in any column; nothing if nothing was measured at all."""
    columns = [one for one in (facts.validation, *facts.real) if one is not None and one.dice]
    if not columns:
        return ""
    judged = {n for one in columns for n, value in one.dice.items() if not math.isnan(value)}
    return ", ".join(
        label.name for label in facts.table if label.index and label.name not in judged
    )


def _licence(facts: CardFacts) -> list[str]:
    licence = facts.licence or "not stated; ask whoever made it"
    return [f"Licence of the model: {licence}. Made with brainseg-bids {facts.version}."]


def _tables(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, or none without rows."""
    return [markdown_table(heads, rows)] if rows else []
