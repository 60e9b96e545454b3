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
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_again
from brainseg_bids.interfaces.headlabels import read_labels
from brainseg_bids.reports.densities import IntensityComparison
from brainseg_bids.stages.jobs import is_unchanged, read_object
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.training.data import PairStream

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
    """Images behind a prior, one at a time; those that are gone or changed are passed over."""
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
        if said.get("sha256") and not is_unchanged(path, {"InputSHA256": said["sha256"]}):
            log.warning("%s: has changed since the prior was pooled; it is not compared", path)
            continue
        try:
            image, grid = read_again(path)
            placed = read_labels(grid, tool=tool, labels=str(labels))
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


@dataclass(frozen=True)
class Drawn:
    """Synthetic images: counts of each class (`histograms`), and the one with most of a head."""

    counts: dict[str, np.ndarray]
    largest: Shown


def draw(
    space, heads: Sequence[LabelVolume], generator: Generator, grid: Grid, before: dict
) -> Drawn:
    """Images of a recipe space; those that were drawn before from the same recipes are not again.

    Parameters
    ----------
    space : recipe space
    heads : sequence of LabelVolume
    generator : Generator
    grid : Grid
        Of the images.
    before : dict
        Gets what is drawn.
    """
    stream = PairStream(heads, [(space, 1.0)], generator, seed=SEED)
    recipes = [stream.draw(step) for step in range(PAIRS)]
    key = (
        generator.shape,
        generator.voxel_size_mm,
        tuple((which, recipe.to_json()) for which, recipe in recipes),
    )
    if key not in before:
        kept: list[tuple[int, Shown]] = []
        pairs = _rendered(stream, recipes, grid, kept)
        before[key] = Drawn(histograms(pairs), kept[0][1])
    return before[key]


def _rendered(
    stream: PairStream, recipes: Sequence[tuple], grid: Grid, kept: list[tuple[int, Shown]]
) -> Iterator[Shown]:
    """One pair at a time; the one with most of a head in it is kept."""
    generator = stream.generator
    codes = generator.target.codes.astype(np.int16)
    for which, recipe in recipes:
        pair = generator.render(stream.heads[which], recipe)
        labels = LabelMap(codes[pair.labels.numpy()], grid, generator.target)
        shown = Shown(pair.image[0].numpy(), labels)
        labelled = int(np.count_nonzero(labels.voxels))
        if not kept or labelled > kept[0][0]:
            kept[:] = [(labelled, shown)]
        yield shown


def histograms(shown: Iterable[Shown]) -> dict[str, np.ndarray]:
    """Counts between `EDGES` of each class, all images together, each with the same weight."""
    totals: dict[str, np.ndarray] = {}
    n_bins = len(EDGES) - 1
    for one in shown:
        table = one.labels.table
        # In the type that is counted, and in place: this is half of the time of a comparison.
        at = (table.positions().astype(np.intp) * n_bins)[one.labels.voxels]
        at += np.minimum((one.image * n_bins).astype(np.uint8), n_bins - 1)
        counts = np.bincount(at.ravel(), minlength=len(table) * n_bins).reshape(len(table), -1)
        for label, own in zip(table, counts, strict=True):
            if own.sum() >= FEWEST_VOXELS:
                totals[label.name] = totals.get(label.name, 0) + own / own.sum()
    return totals


def compare_intensities(
    real: Iterable[Shown], drawn: Mapping[str, Mapping[str, np.ndarray]]
) -> list[IntensityComparison]:
    """Energy distance of each class to the real one's, by method; no real image: none.

    ``drawn`` holds counts of `histograms`.
    """
    truth = histograms(real)
    rows = []
    for name, counts in truth.items():
        of_method = {method: found[name] for method, found in drawn.items() if name in found}
        target = Histogram(np.array(EDGES), counts)
        rows.append(
            IntensityComparison(
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
