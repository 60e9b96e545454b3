# SPDX-License-Identifier: Apache-2.0
"""What the page of a training run says: facts, words and rows, from what the job wrote down."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.reports.tables import faint, strong
from brainseg_bids.reports.training_figures import spark_points
from brainseg_bids.reports.training_log import BRAIN, Curve, Job, TrainingLog
from brainseg_bids.units import duration, natural_order

# -- what was trained ---------------------------------------------------------------------


def summary_facts(job: Job) -> dict[str, str]:
    """How far it is and how good: what stands at the top."""
    log, total = job.log, job.total_steps
    state = "finished" if job.finished else "not finished"
    dice = log[BRAIN].finite()
    facts = {
        "State": state if log.steps_done else "not begun",
        "Steps": f"{log.steps_done:,}" + (f" of {total:,}" if total else ""),
        "Dice, brain (synthetic pairs held out)": dice_text(dice.last) if len(dice) else "not yet",
    }
    real = [curve.finite() for curve in log.real().values()]
    real = [curve for curve in real if len(curve)]
    if real:
        mean = float(np.mean([curve.last for curve in real]))
        s = "s" * (len(real) != 1)
        facts[f"Dice, brain ({len(real)} real image{s})"] = dice_text(mean)
    facts["Pairs seen"] = f"{log.steps_done * job.pairs_per_step:,}"
    facts["Training runs"] = str(len(log.runs))
    facts["Model bundle"] = "written" if job.has_bundle else "not yet"
    return facts


def plan_words(job: Job) -> str:
    """The plan in a sentence or two; empty if there is no plan."""
    plan = job.plan
    if not plan:
        return ""
    net = plan.get("net") or {}
    spaces = plan.get("spaces") or {}
    n_heads, n_held_out = (len(job.job.get(name) or ()) for name in ("heads", "validation"))
    maps = f"{n_heads} label map{'s' * (n_heads != 1)}" if n_heads else "label maps"
    held_out = f"; {n_held_out} more {'is' if n_held_out == 1 else 'are'} held out"
    return (
        f"A network of type {net.get('architecture', 'unknown')} learns to tell "
        f"{net.get('n_labels', '?')} labels apart (background included) at "
        f"{_millimetres(plan) or '? mm'}, from synthetic image-label pairs alone. Pairs are "
        f"made of {maps} while it trains{held_out if n_held_out else ''}. Contrasts are drawn "
        f"from {_named_spaces(spaces)}."
    )


def _millimetres(plan: Mapping) -> str | None:
    size = _real(plan.get("voxel_size_mm"))
    return None if size is None else f"{size:g} mm"


def _named_spaces(spaces: object) -> str:
    if not isinstance(spaces, Mapping) or not spaces:
        return "recipe spaces that the plan does not name"
    total = sum(_real(share) or 0 for share in spaces.values()) or 1
    parts = [
        f"{Path(str(name)).stem} ({100 * (_real(share) or 0) / total:.0f}\u00a0%)"
        for name, share in spaces.items()
    ]
    return f"the recipe space{'s' * (len(parts) != 1)} {', '.join(parts)}"


def plan_facts(job: Job) -> dict[str, str]:
    """Network, data, learning rule and device, as far as plan and job say."""
    plan, net = job.plan, job.plan.get("net") or {}
    force = memory_in_force(job.memory)
    facts = {
        "Architecture": net.get("architecture"),
        "Options": ", ".join(f"{k} {_plain(v)}" for k, v in (net.get("options") or {}).items()),
        "Blocks": f"{net['stem']} voxel{'s' * (net['stem'] != 1)} per edge"
        if net.get("stem")
        else None,
        "Label tables": _join(" → ", plan.get("source_table"), plan.get("target_table")),
        "Voxel size": _millimetres(plan),
        "Patch": _shape(force.get("patch_vox") or plan.get("patch_vox")),
        "Pairs a step": _batch_words(plan) if plan else None,
        "Loss": _loss_words(plan),
        "Learning rate": _rate_words(plan, job.job),
        "Weight average": plan.get("ema_decay"),
        "Precision": force.get("precision") or plan.get("precision"),
        "Device": _device_words(job.memory),
        "Seed": plan.get("seed"),
        "Started": job.job.get("started"),
        "Time": duration(_real(job.job.get("seconds"))) or None,
        "Started from": job.job.get("started_from") or job.job.get("start_from"),
        "For contrasts": _plain_list(job.job.get("contrasts")),
        "Label maps of": job.job.get("source"),
        "Licence of the maps": job.job.get("data_licence"),
        "Validation": _validation_words(plan),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _batch_words(plan: Mapping) -> str:
    """
    >>> _batch_words({"batch": 2, "devices": 4})
    '8 (2 in a batch, 4 devices)'
    """
    batch, accumulate = (max(1, int(plan.get(k) or 1)) for k in ("batch", "accumulate"))
    devices = max(1, int(plan.get("devices") or 1)) * max(1, int(plan.get("nodes") or 1))
    parts = [f"{batch} in a batch"] if batch > 1 else []
    parts += [f"{accumulate} batches summed"] if accumulate > 1 else []
    parts += [f"{devices} devices"] if devices > 1 else []
    n = batch * accumulate * devices
    return f"{n} ({', '.join(parts)})" if parts else str(n)


def _loss_words(plan: Mapping) -> str | None:
    kind = plan.get("loss", "chosen" if plan else None)
    if kind == "chosen":
        words = (
            f"cross-entropy at chosen voxels ({plan.get('per_label', '?')} of each label, "
            f"{plan.get('anywhere', '?')} anywhere)"
        )
    elif kind == "dense":
        words = "cross-entropy at all voxels"
    else:
        return kind
    weight = _real(plan.get("dice_weight"))
    return f"{words}, soft Dice with weight {weight:g}" if weight else words


def _rate_words(plan: Mapping, job: Mapping) -> str | None:
    rate = _real(plan.get("learning_rate"))
    if rate is None:
        return None
    up, down = plan.get("warmup_steps"), plan.get("decay_steps")
    optimizer = plan.get("optimizer", "adamw")
    share = _real(job.get("decay_share"))
    decay = f"{share:.0%} of the time" if share else f"{down or 0}"
    return f"{rate:g} ({optimizer}), {up or 0} steps up, the last {decay} down"


def _validation_words(plan: Mapping) -> str | None:
    pairs, every = plan.get("validation_pairs"), plan.get("validate_every")
    if not pairs:
        return None
    return f"{pairs} pairs of {plan.get('validation_space', 'a space')}, every {every} steps"


def _device_words(memory: Mapping) -> str | None:
    device = memory.get("device") or {}
    if not isinstance(device, Mapping) or not device:
        return None
    total, shared = _real(device.get("total_gib")), device.get("shared")
    size = f" ({total:.1f} GiB{', shared with the processor' if shared else ''})" if total else ""
    return f"{device.get('name') or device.get('kind') or 'unknown'}{size}"


def space_rows(job: Job) -> list[dict[str, str]]:
    """Rows of recipe spaces; what ``job.json`` says of one stands beside its share."""
    shares = job.plan.get("spaces")
    described = job.job.get("spaces")
    described = described if isinstance(described, Mapping) else {}
    shares = shares if isinstance(shares, Mapping) else {}
    rows = []
    for name in dict.fromkeys([*shares, *described]):
        said, share = described.get(name), _real(shares.get(name))
        detail = said if isinstance(said, Mapping) else {}
        if share is None:
            share = _real(said) if not detail else _real(detail.get("share"))
        words = ", ".join(f"{k} {_plain(v)[:60]}" for k, v in detail.items() if k != "share")
        rows.append(
            {
                "Space": Path(str(name)).name,
                "Share": "n/a" if share is None else f"{share:g}",
                "What is known of it": words or "n/a",
            }
        )
    return rows


def map_names(job: Job) -> dict[str, list[tuple[str, str]]]:
    """File names of label maps, and their voxels' size if it is known."""
    maps = job.job.get("maps")
    sizes = {
        name: said.get("voxel_size_mm")
        for name, said in (maps.items() if isinstance(maps, Mapping) else ())
        if isinstance(said, Mapping)
    }
    found = {}
    for words, key in (("Learned from", "heads"), ("Held out", "validation")):
        names = [Path(str(path)).name for path in job.job.get(key) or ()]
        names.sort(key=natural_order)
        if names:
            found[words] = [(name, _size(sizes.get(name))) for name in names]
    return found


def _size(voxel_size_mm: object) -> str:
    """
    >>> _size([0.8, 0.8, 1]), _size(None)
    ('0.8 × 0.8 × 1 mm', '')
    """
    if not isinstance(voxel_size_mm, list | tuple):
        return ""
    return " × ".join(f"{one:.4g}" for one in voxel_size_mm) + " mm"


def run_words(job: Job) -> list[str]:
    """One line for each training run, if there were several."""
    starts = [*job.log.runs, job.log.steps_done]
    if len(starts) < 3:
        return []
    return [f"steps {a:,} to {max(a, b):,}" for a, b in pairwise(starts)]


def bad_step_words(bad: Mapping) -> str:
    """Why training refused a step, and what its pairs were made of."""
    step = bad.get("step", "unknown")
    maps = [Path(str(p.get("head_file") or f"map {p.get('head')}")).name for p in _pairs(bad)]
    of = f" (pairs of {', '.join(maps)})" if maps else ""
    return (
        f"Training refused step {step}: {bad.get('what') or 'the loss was not finite'}{of}. "
        "Recipes are at the end of this page; python -m brainseg_bids.programs.train --replay "
        "with the step's file makes the pairs again."
    )


def bad_step_json(bad: Mapping) -> str:
    """Pairs of a refused step as JSON, files without their folders."""
    pairs = [
        dict(pair) | {"head_file": Path(str(pair["head_file"])).name}
        if pair.get("head_file")
        else dict(pair)
        for pair in _pairs(bad)
    ]
    return json.dumps({"step": bad.get("step"), "seed": bad.get("seed"), "pairs": pairs}, indent=1)


def _pairs(bad: Mapping) -> list[Mapping]:
    pairs = bad.get("pairs")
    return [p for p in pairs if isinstance(p, Mapping)] if isinstance(pairs, list) else []


# -- classes ------------------------------------------------------------------------------


def class_rows(log: TrainingLog, table: LabelTable | None) -> list[dict]:
    """Rows of the table of labels: worst at the last validation first, unjudged ones last."""
    classes, last, real = log.classes(), log.last_dice(), log.real_dice()
    rows = []
    for name in _judged_names(log, table):
        curve = classes.get(name, Curve.empty()).finite()
        value = last.get(name, math.nan)
        best = int(np.argmax(curve.values)) if len(curve) else None
        known = table is not None and name in table
        own = [dice[name] for dice in real.values() if math.isfinite(dice.get(name, math.nan))]
        rows.append(
            {
                "name": name,
                "index": str(table[name].index) if known else "n/a",
                "color": table[name].color if known else "#808080",
                "value": None if math.isnan(value) else value,
                "dice": dice_text(value),
                "best": "n/a" if best is None else dice_text(float(curve.values[best])),
                "best_step": "" if best is None else f"{int(curve.steps[best]):,}",
                "spark": spark_points(curve, log.steps_done),
                "real": dice_text(float(np.mean(own))) if own else "n/a",
            }
        )
    return sorted(rows, key=lambda row: (row["value"] is None, row["value"] or 0.0, row["name"]))


def _judged_names(log: TrainingLog, table: LabelTable | None) -> list[str]:
    """Labels that were judged in pairs or real images; with any, all of the table, too."""
    names = dict.fromkeys(log.classes())
    names |= dict.fromkeys(name for dice in log.real_dice().values() for name in dice)
    if names and table is not None:
        names |= dict.fromkeys(label.name for label in table if label.index)
    return list(names)


# -- speed and memory ---------------------------------------------------------------------


def speed_facts(job: Job) -> dict[str, str]:
    """Medians over the log."""
    log, facts = job.log, {}
    for name, words, scale, unit in (
        ("pairs_per_s", "Pairs", 1.0, "a second"),
        ("voxels_per_s", "Voxels", 1e-6, "million a second"),
    ):
        curve = log[name].finite()
        if len(curve):
            facts[words] = f"{scale * float(np.median(curve.values)):.3g} {unit}"
    pairs = log["pairs_per_s"].finite()
    if len(pairs) and float(np.median(pairs.values)) > 0:
        step_s = job.pairs_per_step / float(np.median(pairs.values))
        facts["A step"] = f"{step_s:.3g} s"
    share = waiting_share(log)
    if share is not None:
        facts["Lost waiting for data"] = f"{100 * share:.1f} % of the time"
    return facts


def waiting_share(log: TrainingLog) -> float | None:
    """Mean share of a step's time that was lost waiting for data; None if it was not logged."""
    lost = log["waiting_frac"].finite()
    return float(lost.values.mean()) if len(lost) else None


def predicted_and_used(job: Job) -> tuple[float | None, float | None]:
    """GiB of the memory plan in force; what was logged stands in for a peak it does not have."""
    plan = memory_in_force(job.memory)
    used = _real(plan.get("used_gib"))
    logged = job.log["memory_gib"].finite()
    if used is None and len(logged):
        used = float(logged.values.max())
    return _real(plan.get("predicted_gib")), used


def memory_in_force(memory: Mapping) -> Mapping:
    """The memory plan that was used last; empty if none is known."""
    plans = _memory_plans(memory)
    return plans[-1] if plans else {}


def _memory_plans(memory: Mapping) -> list[Mapping]:
    plans = memory.get("plans")
    return [p for p in plans if isinstance(p, Mapping)] if isinstance(plans, list) else []


def memory_facts(job: Job) -> dict[str, str]:
    """GiB of the memory plan in force."""
    plan = memory_in_force(job.memory)
    predicted, used = predicted_and_used(job)
    facts = {
        "Predicted": predicted,
        "Probed": _real(plan.get("probed_gib")),
        "Used": used,
        "Budget": _real(plan.get("budget_gib")),
    }
    shown = {name: _gib(value) + " GiB" for name, value in facts.items() if value is not None}
    if predicted is not None and used:
        shown["Predicted against used"] = f"{100 * (predicted / used - 1):+.0f} %".replace(
            "-", "−"
        )
    return shown


def memory_rows(memory: Mapping) -> list[dict[str, str]]:
    """Every memory plan that was tried, in order; the last is in force."""
    plans = _memory_plans(memory)
    return [
        {
            "": strong("in force") if number == len(plans) - 1 else faint("given up"),
            "Patch": _shape(plan.get("patch_vox")) or "n/a",
            "Batch × sums": _join(" × ", plan.get("batch"), plan.get("accumulate")) or "n/a",
            "Precision": str(plan.get("precision") or "n/a"),
            "To save memory": _join(
                ", ",
                *(name for name in ("checkpointing", "offload", "compile") if plan.get(name)),
            )
            or "none",
            "Predicted (GiB)": _gib(_real(plan.get("predicted_gib"))),
            "Probed (GiB)": _gib(_real(plan.get("probed_gib"))),
            "Used (GiB)": _gib(_real(plan.get("used_gib"))),
            "Why": str(plan.get("reason") or ""),
        }
        for number, plan in enumerate(plans)
    ]


# -- words --------------------------------------------------------------------------------


def _real(value: object) -> float | None:
    """A finite number, or None.

    >>> _real(2), _real("2"), _real(float("nan")), _real(True)
    (2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _gib(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def dice_text(value: float) -> str:
    """
    >>> dice_text(0.5), dice_text(math.nan)
    ('0.500', 'n/a')
    """
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _join(between: str, *parts: object) -> str:
    """
    >>> _join(" → ", "fullhead", None, "brainseg")
    'fullhead → brainseg'
    """
    return between.join(str(part) for part in parts if part not in (None, ""))


def _shape(patch: object) -> str | None:
    """
    >>> _shape([96, 96, 128])
    '96 × 96 × 128 voxels'
    """
    if not isinstance(patch, list | tuple) or not patch:
        return None
    return " × ".join(str(n) for n in patch) + " voxels"


def _plain_list(values: object) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else ""


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(_plain, value))
    return str(value)
