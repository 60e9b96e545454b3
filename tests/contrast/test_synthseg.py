# SPDX-License-Identifier: Apache-2.0
"""SynthSeg's priors, as its own code would make them."""

from __future__ import annotations

import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.synthseg import SYNTHSEG_CLASSES, synthseg_prior

CLASSES = {"white": ("Left-W", "Right-W"), "skin": ("Skin",)}


def test_means_and_population_deviations_over_images_are_those_computed_by_hand():
    prior = synthseg_prior(
        {
            "a": {"white": (150.0, 10.0), "skin": (100.0, 40.0)},
            "b": {"white": (170.0, 16.0), "skin": (110.0, 40.0)},
            "c": {"white": (160.0, 13.0), "skin": (120.0, 40.0)},
        },
        classes=CLASSES,
    )
    assert prior.classes == ("white", "skin")
    np.testing.assert_allclose(prior.means, [[160, 110], [np.sqrt(200 / 3)] * 2])
    np.testing.assert_allclose(prior.stds, [[13, 40], [np.sqrt(6), 0]])
    assert prior.images.tolist() == [3, 3]


def test_a_class_that_an_image_lacks_counts_as_zero_as_in_synthseg_or_not_at_all():
    found = {"a": {"white": (150.0, 10.0), "skin": (100.0, 40.0)}, "b": {"white": (150.0, 10.0)}}
    as_synthseg = synthseg_prior(found, classes=CLASSES)
    np.testing.assert_allclose(as_synthseg.means[:, 1], [50, 50])
    left_out = synthseg_prior(found, classes=CLASSES, absent_as_zero=False)
    np.testing.assert_allclose(left_out.means[:, 1], [100, 0])
    assert left_out.images.tolist() == [2, 1]


def test_labels_of_a_class_are_taken_together_by_their_voxels():
    found = {"a": {"Left-W": (150.0, 10.0), "Right-W": (170.0, 20.0), "Skin": (9.0, 1.0)}}
    assert synthseg_prior(found, classes=CLASSES).means[0, 0] == 160
    many = {"a": {"Left-W": 900, "Right-W": 100}}
    assert synthseg_prior(found, classes=CLASSES, voxels=many).means[0, 0] == 150


def test_a_name_of_no_class_and_no_images_are_refused():
    with pytest.raises(ValueError, match="Nose belongs to no class"):
        synthseg_prior({"a": {"Nose": (1.0, 1.0)}}, classes=CLASSES)
    with pytest.raises(ValueError, match="no images"):
        synthseg_prior({})


def test_the_25_classes_are_of_the_fullhead_table_and_do_not_overlap():
    table = LabelTable.packaged("fullhead")
    names = [name for labels in SYNTHSEG_CLASSES.values() for name in labels]
    assert len(SYNTHSEG_CLASSES) == 25
    assert len(names) == len(set(names)) == 54
    assert all(name in table for name in names)
