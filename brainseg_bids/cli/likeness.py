# SPDX-License-Identifier: Apache-2.0
"""How like the real images are synthetic ones: the same classes, side by side."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.fill import without_fill
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.intensity import rescale
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.stripped import brain_alone
from brainseg_bids.bids.description import raw_path
from brainseg_bids.bids.names import sidecar
from brainseg_bids.contrast.compare import Histogram, energy_distance
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.interfaces.headlabels import read_source
from brainseg_bids.reports.densities import Likeness
from brainseg_bids.synth.generator import Generator, Head
from brainseg_bids.training.pairs import PairStream
from brainseg_bids.volumes import InputError, read_again
from brainseg_bids.workflows.plan import read_object

log = logging.getLogger("brainseg")

EDGES = tuple(np.linspace(0, 1, 65).tolist())
FEWEST_VOXELS = 200
"""Of a class; fewer do not make a histogram."""
MOST_HEADS = 6
"""Real heads that are read: more do not change the picture."""
PAIRS = 8
"""Of each method: each pair has class means of its own."""
SEED = 7


@dataclass(frozen=True)
class Shown:
    """An image as a network sees it, 0..1, and its labels in the network's codes."""

    image: np.ndarray
    labels: LabelMap


def read_real(
    prior: ContrastPrior, *, bids_dir: Path, output_dir: Path, derivatives: Mapping[str, Path]
) -> Iterator[Shown]:
    """Images behind a prior, one at a time; those that are not there any more are passed over."""
    to_network = Crosswalk.packaged("fullhead", "brainseg")
    for said in prior.images[:MOST_HEADS]:
        path = raw_path(str(said.get("image", "")), bids_dir)
        labels, tool = _labels(str(said.get("labels", "")), output_dir, derivatives)
        if path is None or not path.is_file() or labels is None:
            log.warning(
                "%s or its labels are not there; it is not compared. If labels were given with "
                "-d, give them again.",
                said.get("image"),
            )
            continue
        try:
            image, grid = read_again(path)
            placed = read_source(grid, tool=tool, labels=str(labels)).labels
            if said.get("stripped"):
                placed = brain_alone(placed)
        except (InputError, ValueError) as error:
            log.warning("%s: not compared (%s)", path, error)
            continue
        seen = rescale(np.ascontiguousarray(without_fill(image)[0]))
        yield Shown(seen, to_network.translate(placed))


def _labels(
    uri: str, output_dir: Path, derivatives: Mapping[str, Path]
) -> tuple[Path | None, str]:
    """File that an image was measured with, and whose codes it has."""
    name, _, inside = uri.removeprefix("bids:").partition(":")
    if name:
        root = derivatives.get(name)
        return (Path(root) / inside if root else None), name
    path = output_dir / inside
    ours = read_object(sidecar(path)).get("ModelName")
    return (path if path.is_file() else None), "model" if ours else "fullhead"


def render(space, heads: Sequence[Head], generator: Generator, grid: Grid) -> Iterator[Shown]:
    """Pairs of a recipe space, one at a time."""
    stream = PairStream(heads, [(space, 1.0)], generator, seed=SEED, stop_step=PAIRS)
    codes = generator.target.codes.astype(np.int16)
    for pair in stream:
        labels = LabelMap(codes[pair["labels"].numpy()], grid, generator.target)
        yield Shown(pair["image"][0, 0].numpy(), labels)


def histograms(shown: Iterable[Shown]) -> dict[str, np.ndarray]:
    """Counts between `EDGES` of each class, all images together, each with the same weight."""
    totals: dict[str, np.ndarray] = {}
    for one in shown:
        bins = np.minimum((one.image * (len(EDGES) - 1)).astype(np.int32), len(EDGES) - 2)
        table = one.labels.table
        ranks = table.positions()[one.labels.voxels]
        counts = np.bincount(
            (ranks.astype(np.int32) * (len(EDGES) - 1) + bins).ravel(),
            minlength=len(table) * (len(EDGES) - 1),
        ).reshape(len(table), -1)
        for label, own in zip(table, counts, strict=True):
            if own.sum() >= FEWEST_VOXELS:
                totals[label.name] = totals.get(label.name, 0) + own / own.sum()
    return totals


def likeness(real: Iterable[Shown], synthetic: Mapping[str, Iterable[Shown]]) -> list[Likeness]:
    """Energy distance of each class to the real one's, by method; no real image: none."""
    truth = histograms(real)
    drawn = {method: histograms(pairs) for method, pairs in synthetic.items()}
    rows = []
    for name, counts in truth.items():
        of_method = {method: found[name] for method, found in drawn.items() if name in found}
        target = Histogram(np.array(EDGES), counts)
        rows.append(
            Likeness(
                name,
                {
                    method: energy_distance(target, Histogram(np.array(EDGES), own))
                    for method, own in of_method.items()
                },
                EDGES,
                counts.tolist(),
                {method: own.tolist() for method, own in of_method.items()},
            )
        )
    return rows
