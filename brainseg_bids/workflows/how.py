# SPDX-License-Identifier: Apache-2.0
"""``HowToRun``: what is the same for every image of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brainseg_bids.interfaces.register import REGISTER
from brainseg_bids.interfaces.segment import PREDICT


@dataclass(frozen=True)
class HowToRun:
    """What is the same for every image.

    Parameters
    ----------
    tables : dict of str to Path
        Label tables in the derivative's root, by the label of ``seg-``.
    output_dir : Path
    device : str
    threads : int
        Of one segmentation or external tool.
    tool_timeout_s : float
        After which an external tool is ended.
    program : sequence of str
        What segments; tests put a stand-in here.
    register : sequence of str
        What registers images to templates; ANTs may live in an environment of its own.
    """

    tables: dict[str, Path]
    output_dir: Path
    device: str = "auto"
    threads: int = 1
    tool_timeout_s: float = 86400.0
    program: tuple[str, ...] = PREDICT
    register: tuple[str, ...] = REGISTER
