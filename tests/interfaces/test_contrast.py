# SPDX-License-Identifier: Apache-2.0
"""What is measured in an image and drawn of it is the same image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from brainseg_bids.images import write_label_map, write_volume
from brainseg_bids.interfaces.contrast import DrawContrast, MeasureContrast
from brainseg_bids.reports import contrast_figures
from tests.made_nifti import contradict
from tests.phantom.head import phantom_head, phantom_image


@pytest.fixture
def padded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = phantom_head()
    image = phantom_image(head, np.random.default_rng(0))
    image[:3] = -32768
    write_volume(image, head.grid, tmp_path / "image.nii.gz")
    write_label_map(head, tmp_path / "labels.nii.gz")
    return {
        "image": str(tmp_path / "image.nii.gz"),
        "labels": str(tmp_path / "labels.nii.gz"),
        "tool": "fullhead",
    }


def test_a_fill_value_is_neither_measured_nor_drawn(padded, monkeypatch):
    drawn = []

    def draw(path, image, labels, found):
        drawn.append(image)
        path.write_bytes(b"a picture")
        return path

    monkeypatch.setattr(contrast_figures, "draw_contrast", draw)
    doubts = [contradict(Path(padded[name])) for name in ("image", "labels")]
    facts = MeasureContrast(**padded).run().outputs.facts
    assert json.loads(Path(facts).read_text())["Warnings"][:2] == doubts
    DrawContrast(**padded, facts=facts).run()
    assert drawn[0].min() >= 0
