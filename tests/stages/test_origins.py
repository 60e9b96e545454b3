# SPDX-License-Identifier: Apache-2.0
"""Results that are put side by side: made alike, and of images as they are now."""

import json
import os

import pytest

from brainseg_bids.bids.names import sidecar
from brainseg_bids.stages.jobs import fingerprint
from brainseg_bids.stages.origins import doubts
from tests.fakes.dataset import write_dataset, write_image

NAMES = ("sub-01_T1w", "sub-02_T1w")


@pytest.fixture
def derivative(tmp_path):
    """Results of two images, made alike; a function that changes what the second's JSON says."""
    data = write_dataset(tmp_path / "data", *NAMES)
    results = {}
    for image in sorted(data.rglob("*_T1w.nii.gz")):
        results[image.name[:6]] = path = tmp_path / f"{image.name[:6]}_dseg.nii.gz"
        usual = {"BrainsegVersion": "1", "ModelName": "fine", "ModelDigest": "ab"}
        uri = f"bids:raw:{image.relative_to(data).as_posix()}"
        facts = {**usual, "TestTimeFlips": True, "Input": uri, **fingerprint(image, known={})}
        sidecar(path).write_text(json.dumps(facts))

    def change(**said):
        path = sidecar(results["sub-02"])
        facts = json.loads(path.read_text()) | said
        path.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))

    return data, results, change


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ()),
        (  # chosen by the image's voxels
            {"ModelName": "coarse", "ModelDigest": "cd"},
            ("T1w", "coarse (sub-02) and fine (sub-01)", "--model"),
        ),
        ({"ModelDigest": "cd"}, ("model fine ab (sub-01) and cd (sub-02)",)),
        ({"BrainsegVersion": "2"}, ("version 1 (sub-01) and 2 (sub-02)",)),
        ({"TestTimeFlips": None}, ("flips yes (sub-01) and no (sub-02)",)),
        (
            {"Ensemble": [{"ModelName": "coarse", "ModelDigest": "cd"}], "HeadTool": "charm"},
            ("number of models 1 (sub-01) and 2 (sub-02)", "charm (sub-02)"),
        ),
    ],
)
def test_results_that_were_not_made_alike_are_named(derivative, said, expected):
    data, results, change = derivative
    change(**said)
    found = doubts(results, data)
    assert len(found) == bool(expected)
    assert all(words in found[0] for words in expected)
    assert all("again for all" in one or "--model" in one for one in found)


def test_another_contrast_may_have_another_model(derivative):
    _, results, change = derivative
    change(ModelName="coarse", ModelDigest="cd", Input="bids:raw:sub-02/anat/sub-02_FLAIR.nii.gz")
    assert doubts(results) == []


def test_images_that_changed_or_went_since_are_named(derivative):
    data, results, _ = derivative
    image = data / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    os.utime(image, (0, 0))
    assert doubts(results, data) == []  # the same content
    write_image(image, seed=9)
    (changed,) = doubts(results, data)
    assert "image of sub-02 has changed" in changed
    image.unlink()
    (gone,) = doubts(results, data)
    assert "image of sub-02. Remove" in gone
    assert doubts(results) == []
    image.symlink_to("../../.git/annex/objects/aa/MD5E-s1--x.nii.gz")  # content is elsewhere
    assert doubts(results, data) == []
