# SPDX-License-Identifier: Apache-2.0
"""Resuming a training run: reading its checkpoint, and checks of changed settings."""

from __future__ import annotations

import functools
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from brainseg_bids.synth.generator import LabelVolume
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.training.plan import TrainPlan

LAST = "last.ckpt"
SETTINGS_KEY = "brainseg_settings"

MAY_CHANGE = (
    # How the same steps are computed.
    "batch",
    "accumulate",
    "devices",
    "nodes",
    "strategy",
    "precision",
    "checkpointing",
    "offload",
    "compile",
    "patch_vox",  # a smaller one when memory ran out
    # How long, and how often it is looked at.
    "total_steps",
    "decay_steps",
    "ema_decay",
    "validate_every",
    "validation_pairs",
)
"""Settings of a plan that may change when a run is resumed."""


class ChangedSettings(ValueError):
    """A run to be resumed was started with other settings; the message names them."""


def settings_of(
    plan: TrainPlan, train_heads: Sequence[LabelVolume], validation_heads: Sequence[LabelVolume]
) -> dict[str, Any]:
    """Settings that identify a run, as JSON types, for its checkpoint.

    Recipe spaces and label maps are identified by their content, so that files may be moved.
    """
    settings = json.loads(json.dumps(plan.to_dict()))
    settings["spaces"] = {
        read_space(name).digest: float(share) for name, share in plan.spaces.items()
    }
    settings["validation_space"] = read_space(plan.validation_space).digest
    settings["pairs_per_step"] = plan.pairs_per_step
    settings["label_maps"] = [_digest(head) for head in train_heads]
    settings["validation_maps"] = [_digest(head) for head in validation_heads]
    return settings


def _digest(head: LabelVolume) -> str:
    digest = hashlib.sha256(repr((tuple(head.indices.shape), head.voxel_size_mm)).encode())
    digest.update(head.indices.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def check_unchanged(checkpoint: Path, now: Mapping[str, Any]) -> list[str]:
    """Raise an error if settings have changed that must not change when a run is resumed.

    Parameters
    ----------
    checkpoint : Path
    now : mapping
        Result of `settings_of`.

    Returns
    -------
    list of str
        Permitted changes, as short texts.

    Raises
    ------
    ChangedSettings
        If other settings have changed; the message has their old and new values.
    ValueError
        If the checkpoint cannot be read.
    """
    before = read_checkpoint(checkpoint).get(SETTINGS_KEY)
    if before is None:
        return [f"{checkpoint} does not say by which settings it came: they were not compared"]
    before = {"optimizer": "adamw"} | json.loads(before)  # runs of before there was a choice
    names = [name for name in (*before, *now) if name in before and name in now]
    changed = [name for name in dict.fromkeys(names) if before[name] != now[name]]
    refused = [name for name in changed if name not in MAY_CHANGE]
    if refused:
        changes = "; ".join(_change(name, before[name], now[name]) for name in refused)
        raise ChangedSettings(
            f"{checkpoint}: this run was begun with other settings: {changes}. Go on with the old "
            "ones, or train under another name."
        )
    return [_change(name, before[name], now[name]) for name in changed]


def _change(name: str, before: object, now: object) -> str:
    """A change in a few words.

    >>> _change("learning_rate", 0.002, 0.001)
    'learning_rate was 0.002, is 0.001'
    >>> _change("label_maps", ["a", "b"], ["a", "c"])
    'label_maps: number 2 is another'
    >>> _change("net", {"stem": 1, "options": {"depth": 3}}, {"stem": 1, "options": {"depth": 4}})
    'net options depth was 3, is 4'
    """
    if name.endswith("_maps") and isinstance(before, Sequence) and isinstance(now, Sequence):
        if sorted(before) == sorted(now):
            return f"{name} are in another order"
        if len(before) != len(now):
            return f"{name} were {len(before)}, are {len(now)}"
        pairs = enumerate(zip(before, now, strict=True), start=1)
        others = [str(number) for number, (one, other) in pairs if one != other]
        return f"{name}: number {', '.join(others)} is another"
    if name.endswith(("spaces", "_space")):
        return f"{name}: what is in it is another"
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return "; ".join(_change(f"{name} {key}", before.get(key), now.get(key)) for key in keys)
    return f"{name} was {before}, is {now}"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint; its tensors are memory-mapped.

    Raises
    ------
    ValueError
        If the file is damaged, even by a single bit, or cannot be read.
    """
    try:
        stat = path.stat()
        _check_parts(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _ = content["global_step"], content["state_dict"]
        return content
    except OSError as error:  # the file itself may be whole
        raise ValueError(
            f"{path}: this checkpoint cannot be read ({error.strerror or error}). Check "
            "permissions and disk."
        ) from error
    except Exception as error:  # torch raises a dozen kinds
        raise ValueError(
            f"{path}: this checkpoint cannot be read ({type(error).__name__}). Move it away to "
            "start again."
        ) from error


@functools.lru_cache(maxsize=4)
def _check_parts(path: Path, *_: int) -> None:
    """Compare a checkpoint's parts with their checksums, which PyTorch itself does not.

    The further arguments are what tells one state of a file from another.
    """
    with zipfile.ZipFile(path) as parts:
        if damaged := parts.testzip():
            raise zipfile.BadZipFile(f"{damaged} is not what was written")


def steps_done(checkpoint: str | Path) -> int:
    """Number of completed steps of a checkpoint; 0 if there is none."""
    checkpoint = Path(checkpoint)
    return int(read_checkpoint(checkpoint)["global_step"]) if checkpoint.exists() else 0


def loops_at(loops: dict[str, Any], step: int, accumulate: int) -> dict[str, Any]:
    """State of Lightning's loops after ``step`` steps with ``accumulate`` batches each.

    Lightning counts batches. With recomputed counts, the batch size may differ from that before,
    and a run can be continued after its last step.
    """
    loops = json.loads(json.dumps(loops))
    fit = loops["fit_loop"]
    batches = step * accumulate
    progress = fit["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        progress[part] = dict.fromkeys(progress[part], batches)
    progress["is_last_batch"] = False
    optimiser = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    optimiser["step"] = {
        part: dict.fromkeys(optimiser["step"][part], step) for part in optimiser["step"]
    }
    for part in ("total", "current"):
        fit["epoch_progress"][part] |= {"processed": 0, "completed": 0}
    return loops
