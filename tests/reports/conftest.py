# SPDX-License-Identifier: Apache-2.0
"""What tests of pages and pictures share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.reports import canvas
from brainseg_bids.reports.canvas import Canvas


@pytest.fixture
def figure(tmp_path) -> Path:
    """A picture for a page."""
    path = tmp_path / "figure.png"
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(path)
    return path


@pytest.fixture
def full_disk(monkeypatch) -> None:
    """The disk is full when half of a picture is written."""

    def half(pixels, path, *others, **options):
        path.write_bytes(b"\x89PNG half")
        raise OSError("No space left on device")

    monkeypatch.setattr(canvas, "write_png", half)


@pytest.fixture
def words(monkeypatch) -> list[str]:
    """Fills with the words of every picture that is drawn."""
    written = []
    original = Canvas.text

    def text(self, x, y, words, **options):
        written.append(words)
        original(self, x, y, words, **options)

    monkeypatch.setattr(Canvas, "text", text)
    return written
