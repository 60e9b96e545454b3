# SPDX-License-Identifier: Apache-2.0
"""Memory of a training run: its memory plans, and detection of out-of-memory errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from brainseg_bids.files import write_text
from brainseg_bids.nets.memory_plan import MemoryPlan


@dataclass(frozen=True)
class MemoryBook:
    """``memory.json``: all memory plans of a run, of which the last is used.

    Parameters
    ----------
    path : Path
    """

    path: Path

    def plan(self) -> MemoryPlan:
        """Current memory plan.

        Raises
        ------
        ValueError
            If the file has none.
        """
        try:
            return MemoryPlan.from_json(json.dumps(self._read()["plans"][-1]))
        except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.path}: holds no memory plan") from error

    def add(self, plan: MemoryPlan) -> None:
        """Append a memory plan, which becomes the current one."""
        book = self._read()
        book["plans"].append(json.loads(plan.to_json()))
        self._write(book)

    def note_used(self, used_gib: float) -> None:
        """Store the measured peak memory of the current plan."""
        book = self._read()
        before = book["plans"][-1].get("used_gib")
        if before is None or used_gib > 1.01 * before:
            book["plans"][-1]["used_gib"] = round(used_gib, 3)
            self._write(book)

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))

    def _write(self, book: dict[str, Any]) -> None:
        write_text(self.path, json.dumps(book, indent=1) + "\n")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error of any device or version of PyTorch."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
