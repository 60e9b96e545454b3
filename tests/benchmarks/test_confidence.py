# SPDX-License-Identifier: Apache-2.0
"""Results that the benchmark of confidence keeps belong to the image that they were made of."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks import confidence
from brainseg_bids.evaluation.calibration import BINS
from brainseg_bids.evaluation.confidence import ProbabilitySums


def test_other_pairs_are_segmented_and_the_same_ones_are_not_again(tmp_path, monkeypatch):
    (tmp_path / "bundle.json").write_text('{"sha256": {"weights.safetensors": "abc"}}')
    made, given = [], np.zeros((2, 2, 2), np.float32)

    def segmented(image, *_):
        made.append(image)
        sums = ProbabilitySums(np.zeros((2, BINS), np.int64), np.zeros(2), np.zeros(2))
        return SimpleNamespace(voxels=image), None, sums

    truth = SimpleNamespace(voxels=given, grid=None)
    monkeypatch.setattr(confidence, "segmented", segmented)
    monkeypatch.setattr(confidence, "pairs", lambda *_: [(given, truth)])
    cases = confidence.Cases(SimpleNamespace(path=tmp_path, load=lambda: "net"), tmp_path)
    for value, n_made in ((0, 1), (1, 2), (0, 2)):
        given[:] = value
        ((_, (labels, _)),) = cases.heldout([], [], 1)
        assert (labels == value).all()
        assert len(made) == n_made
