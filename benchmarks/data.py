# SPDX-License-Identifier: Apache-2.0
"""Where real heads and rivals' weights are; none of them is part of the repository."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def shared_data(given: str | Path | None = None) -> Path:
    """Folder of the real heads: given, or ``BRAINSEG_SHARED_DATA``, or beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(given or os.environ.get("BRAINSEG_SHARED_DATA") or beside)
    if not folder.is_dir():
        sys.exit(f"{folder}: there is no such folder. Set BRAINSEG_SHARED_DATA to the real heads.")
    return folder
