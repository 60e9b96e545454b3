# SPDX-License-Identifier: Apache-2.0
"""What pages say of results, from the files beside them."""

from __future__ import annotations

import json

import pytest

from brainseg_bids.reports.image_section import no_asymmetry


@pytest.mark.input(
    "results",
    "segmented with --no-test-time-flips",
    "volumes as usual; the page says why left and right are not compared",
    0,
)
@pytest.mark.parametrize(
    ("said", "compared"),
    [
        ({"ModelDigest": "a", "TestTimeFlips": True}, True),
        ({"ModelDigest": "a"}, False),
        ({"ModelDigest": "a", "Ensemble": [{"ModelDigest": "b"}]}, False),
        ({"Tool": "samseg"}, True),
        (None, True),
    ],
)
def test_sides_are_compared_if_the_network_saw_the_mirrored_image_too(said, compared, tmp_path):
    labels = tmp_path / "sub-01_seg-brainseg_dseg.nii.gz"
    if said is not None:
        (tmp_path / "sub-01_seg-brainseg_dseg.json").write_text(json.dumps(said))
    assert (no_asymmetry(labels) == "") is compared
