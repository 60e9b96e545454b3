# SPDX-License-Identifier: Apache-2.0
"""What is pooled of images, and what is said about them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brainseg_bids.stages.pooling import Measured, make_priors, stripped_images
from tests.contrast.made_up import TABLE, both_sides, image_of


def measured(*stripped: bool) -> list[Measured]:
    """Statistics of one image of each participant; stripped ones have the brain alone."""
    brain = {name: at for name, at in both_sides().items() if TABLE[name].is_brain}
    return [
        Measured(
            f"sub-{n}",
            str(n),
            replace(image_of(brain if bare else both_sides()), stripped=bare),
            {"Input": f"bids::sub-{n}.nii.gz", "Contrast": {"Suffix": "T1w"}},
        )
        for n, bare in enumerate(stripped)
    ]


@pytest.mark.parametrize(
    ("stripped", "words"),
    [
        ((False, False), ""),
        ((True, False, False), "1 of 3 images are skull-stripped"),
        ((True, True), "All images are skull-stripped"),
    ],
)
def test_stripped_images_are_named(stripped, words):
    notes = stripped_images(measured(*stripped))
    assert [words in note for note in notes] == [True] * bool(words)


@pytest.mark.input(
    "results",
    "priors of whole heads and stripped brains together",
    "stripped ones count for brain classes only; share and names in JSON, log and page",
    0,
)
def test_a_stripped_image_lends_nothing_to_bone_and_skin(tmp_path, monkeypatch):
    group = measured(True, False, False)
    monkeypatch.setattr("brainseg_bids.stages.pooling.find_measured", lambda *_, **__: group)
    (made,) = make_priors(tmp_path, bids_dir=tmp_path, keys=("Suffix",)).values()
    prior = made[0]
    assert prior.metadata["SkullStripped"] == pytest.approx(1 / 3)
    assert prior["Skin"].images == prior["Bone-Cortical"].images == 2
    assert prior["Left-Thalamus"].images == 3
    assert [image["stripped"] for image in prior.images] == [True, False, False]
    assert any("skull-stripped" in warning for warning in prior.warnings)
