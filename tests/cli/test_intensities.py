# SPDX-License-Identifier: Apache-2.0
"""Real and synthetic images side by side, each drawn once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import raw_uri
from brainseg_bids.files import sha256
from brainseg_bids.images import write_label_map, write_volume
from brainseg_bids.stages import intensities
from brainseg_bids.stages.intensities import EDGES, draw, read_real
from tests.fakes import dataset
from tests.phantom.head import phantom_head, phantom_image

TABLE = LabelTable.packaged("brainseg")
SHAPE = (8, 9, 10)


@pytest.fixture
def generator(monkeypatch):
    """Draws noise with two classes, and counts how often."""
    monkeypatch.setattr(intensities, "FEWEST_VOXELS", 1)
    monkeypatch.setattr(intensities, "PairStream", Stream)
    made = SimpleNamespace(target=TABLE, shape=SHAPE, voxel_size_mm=1.0, rendered=0)

    def render(head, recipe):
        made.rendered += 1
        noise = torch.Generator().manual_seed(recipe.seed)
        labels = torch.zeros(SHAPE, dtype=torch.uint8)
        labels[: recipe.seed + 1] = 1
        return SimpleNamespace(image=torch.rand(1, *SHAPE, generator=noise), labels=labels)

    made.render = render
    return made


class Stream:
    """Recipes that depend on nothing but the space's first seed."""

    def __init__(self, heads, spaces, generator, *, seed):
        self.heads, self.generator = heads, generator
        ((self.first, _),) = spaces

    def draw(self, step):
        number = self.first + step % 3
        return 0, SimpleNamespace(seed=number, to_json=lambda: f'{{"seed": {number}}}')


def test_images_of_the_same_recipes_are_drawn_once(generator):
    grid, before = Grid(SHAPE, np.eye(4)), {}
    first = draw(0, [None], generator, grid, before)
    assert generator.rendered == intensities.PAIRS
    assert draw(0, [None], generator, grid, before) is first
    assert generator.rendered == intensities.PAIRS
    assert draw(1, [None], generator, grid, before) is not first
    assert generator.rendered == 2 * intensities.PAIRS
    assert (first.largest.labels.voxels != 0).sum() == 3 * 9 * 10


def test_counts_are_shares_of_each_class_in_each_bin(generator):
    drawn = draw(0, [None], generator, Grid(SHAPE, np.eye(4)), {})
    assert len(drawn.counts) == 2
    for counts in drawn.counts.values():
        assert len(counts) == len(EDGES) - 1
        assert counts.sum() == pytest.approx(intensities.PAIRS)
    image = drawn.largest.image
    own = image[drawn.largest.labels.voxels == 0]
    wanted, _ = np.histogram(own, EDGES)
    # Of one pair alone the shares are those of a plain histogram.
    alone = intensities.histograms([drawn.largest])
    name = next(label.name for label in TABLE if label.index == 0)
    assert alone[name] == pytest.approx(wanted / wanted.sum())


@pytest.mark.input(
    "results",
    "synth: a real image that has changed since the prior was pooled",
    "not compared with synthetic ones; a warning names it",
    0,
)
def test_an_image_that_has_changed_is_not_compared(tmp_path, caplog):
    head = phantom_head((24, 28, 26), 8.0)
    labels = tmp_path / "out" / "sub-1" / "anat" / "sub-1_seg-fullhead_dseg.nii.gz"
    path = dataset.write_dataset(tmp_path / "data", "sub-1_T1w") / "sub-1/anat/sub-1_T1w.nii.gz"
    labels.parent.mkdir(parents=True)
    write_label_map(head, labels)
    write_volume(phantom_image(head, np.random.default_rng(0)), head.grid, path)

    def found(digest: str) -> int:
        said = {
            "image": raw_uri(path, tmp_path / "data"),
            "labels": f"bids::{labels.relative_to(tmp_path / 'out').as_posix()}",
            "sha256": digest,
        }
        where = {"bids_dir": tmp_path / "data", "output_dir": tmp_path / "out"}
        return len(list(read_real(SimpleNamespace(images=(said,)), **where, derivatives={})))

    assert found(sha256(path)) == 1
    assert found("0" * 64) == 0
    assert f"{path}: has changed" in caplog.text
