# SPDX-License-Identifier: Apache-2.0
"""Synthetic pairs from contrast priors: previews, comparison with real images, export."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainseg_bids import __version__
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_json
from brainseg_bids.bids.names import sidecar
from brainseg_bids.console import working
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.documents import InputError
from brainseg_bids.files import DAY_S, remove_unfinished, sha256, write_text
from brainseg_bids.images import write_label_map, write_volume
from brainseg_bids.resources import memory_gib
from brainseg_bids.stages.jobs import read_object
from brainseg_bids.stages.measured import warn_of_outdated
from brainseg_bids.stages.pair_sources import Source, find_sources
from brainseg_bids.stages.pooling import read_priors
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.prior_space import PriorSpace
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.synth.space import RecipeSpace
from brainseg_bids.training.data import PairStream

if TYPE_CHECKING:
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")

PREVIEWS = 4
BYTES_PER_VOXEL = 120
"""Memory of a pair that is being rendered, of those that are shown, and of a real head."""
LARGEST_VOX = 320
MARGIN_MM = 20.0
"""Room around the largest head, which the deformation may need."""


@dataclass(frozen=True)
class Pair:
    """A rendered pair and what made it."""

    index: int
    source: Source
    recipe: str
    image: np.ndarray
    labels: LabelMap


def synthesise(settings: Settings) -> None:
    """Preview, compare and, if wanted, export pairs of each contrast.

    Raises
    ------
    InputError
        If there are no priors or no label maps, a prior is of other labels, or a pair would not
        fit memory.
    """
    import torch

    from brainseg_bids.stages.pooling import write_synthetic  # late: matplotlib

    torch.set_num_threads(max(1, min(settings.omp_nthreads, settings.nprocs)))
    priors = read_priors(settings.output_dir, settings.prior)
    warn_of_outdated(
        (prior for _, prior in priors.values()),
        settings.output_dir,
        bids_dir=settings.bids_dir,
        ratings=settings.ratings,
    )
    sources = find_sources(settings)
    heads = [source.volume() for source in sources]
    drawn: dict = {}
    figures = settings.output_dir / "priors" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for name, (prior_path, prior) in priors.items():
        try:
            space = PriorSpace(whole_heads(), prior, settings.kappa)
            maker = PairMaker.of(prior, space, heads, sources, settings)
        except InputError:
            raise
        except ValueError as error:  # of other labels, as another version has made it
            raise InputError(f"{prior_path}: {error}") from error
        log.info(
            "contrast %s, kappa %g: pairs of %s voxels of %.3g mm from %d label map(s)",
            name,
            settings.kappa,
            " x ".join(map(str, maker.generator.shape)),
            maker.generator.voxel_size_mm,
            len(heads),
        )
        stem = f"contrast-{name}_kappa-{settings.kappa:g}"
        with working(f"contrast {name}: pairs to show"):
            pictures = [preview(maker, settings, figures / f"{stem}_pairs.png")]
        with working(f"contrast {name}: comparison with real images"):
            path = figures / f"{stem}_real.png"
            comparisons, sheet = compare(settings, prior, maker, path, drawn)
        write_synthetic(prior_path, pictures + sheet, comparisons)
        if settings.pairs:
            with working(f"contrast {name}: export"):
                export(settings, name, prior, maker)


def whole_heads() -> RecipeSpace:
    """Any contrast, and the crop about the middle of the head: a pair holds all of it."""
    return replace(read_space("agnostic"), name="agnostic", center_frac=(0.5, 0.5))


class PairMaker:
    """Pairs by their number; the same number gives the same pair, on any machine.

    Parameters
    ----------
    generator : Generator
    stream : PairStream
    sources : sequence of Source
        Of the stream's heads.
    """

    def __init__(
        self, generator: Generator, stream: PairStream, sources: Sequence[Source]
    ) -> None:
        self.generator, self.stream, self.sources = generator, stream, sources

    @classmethod
    def of(
        cls,
        prior: ContrastPrior,
        space,
        heads: Sequence[LabelVolume],
        sources: Sequence[Source],
        settings: Settings,
    ) -> PairMaker:
        """Pairs large enough for the largest head, with the contrast's voxels or the wanted."""
        wanted = settings.target_voxel_size_mm or prior.voxel_size_mm
        voxel_size_mm = round(float(np.prod(wanted) ** (1 / len(wanted))), 2)
        generator = Generator(
            Crosswalk.packaged("fullhead", "brainseg"),
            LabelTable.packaged("fullhead"),
            shape=pair_shape(heads, voxel_size_mm),
            voxel_size_mm=voxel_size_mm,
        )
        needed_gib = BYTES_PER_VOXEL * math.prod(generator.shape) / 2**30
        there_gib = settings.memory_gb or memory_gib()
        if needed_gib > there_gib:
            raise InputError(
                f"pairs of {generator.shape} voxels take {needed_gib:.1f} GB, and "
                f"{there_gib:.1f} GB are there (--mem). Choose larger voxels with "
                "--target-voxel-size."
            )
        stream = PairStream(heads, [(space, 1.0)], generator, seed=settings.seed)
        return cls(generator, stream, sources)

    def __call__(self, index: int) -> Pair:
        which, recipe = self.stream.draw(index)
        pair = self.generator.render(self.stream.heads[which], recipe)
        grid = centred_grid(self.generator.shape, self.generator.voxel_size_mm)
        codes = self.generator.target.codes[pair.labels.numpy()].astype(np.int16)
        labels = LabelMap(codes, grid, self.generator.target)
        return Pair(index, self.sources[which], recipe.to_json(), pair.image[0].numpy(), labels)


def preview(maker: PairMaker, settings: Settings, path: Path) -> Path:
    """Draw the first pairs; the recipe of each goes beside the picture."""
    from brainseg_bids.reports.synth_figures import draw_pairs  # late: matplotlib

    pairs = [maker(index) for index in range(PREVIEWS)]
    for pair in pairs:
        recipe = path.with_name(f"{path.stem}-{pair.index}_recipe.json")
        write_text(recipe, pair.recipe + "\n")
    return draw_pairs(
        path,
        [
            (
                pair.image,
                pair.labels.voxels,
                f"pair {pair.index}, seed {settings.seed}, from {pair.source.path.name}",
            )
            for pair in pairs
        ],
        maker.generator.target,
        voxel_size_mm=maker.generator.voxel_size_mm,
    )


def compare(
    settings: Settings, prior: ContrastPrior, maker: PairMaker, path: Path, drawn: dict
) -> tuple[list, list[Path]]:
    """Real images beside synthetic ones: per class, and a sheet; neither without real ones.

    ``drawn`` holds `Drawn` by what they are made of, of earlier contrasts: the images of any
    contrast are often the same.
    """
    from brainseg_bids.reports.synth_figures import draw_real_and_synthetic
    from brainseg_bids.stages.intensities import compare_intensities, draw, read_real

    derivatives = {name: Path(folder) for name, folder in settings.derivatives.items()}
    real = read_real(
        prior,
        bids_dir=settings.bids_dir,
        output_dir=settings.output_dir,
        derivatives=derivatives,
    )
    first = next(real, None)
    if first is None:
        return [], []
    grid = centred_grid(maker.generator.shape, maker.generator.voxel_size_mm)
    kappas = {"agnostic": 0.0, "fitted": 1.0}
    if settings.kappa not in kappas.values():
        kappas[f"kappa {settings.kappa:g}"] = settings.kappa
    made = {
        method: draw(
            PriorSpace(whole_heads(), prior, kappa, method),
            maker.stream.heads, maker.generator, grid, drawn,
        )
        for method, kappa in kappas.items()
    }  # fmt: skip
    rows = compare_intensities(
        chain([first], real), {name: one.counts for name, one in made.items()}
    )
    for method in kappas:
        distances = [row.distances[method] for row in rows if method in row.distances]
        if distances:
            log.info(
                "contrast %s: energy distance of %s images to the real ones, mean of %d classes: "
                "%.4f",
                prior.name,
                method,
                len(distances),
                float(np.mean(distances)),
            )
    sheet = draw_real_and_synthetic(
        path,
        (first.image, first.labels),
        [(method, one.largest.image, one.largest.labels) for method, one in made.items()],
        title=f"Contrast {prior.name}: real and synthetic",
    )
    return rows, [sheet]


def pair_shape(heads: Sequence[LabelVolume], voxel_size_mm: float) -> tuple[int, int, int]:
    """Voxels that hold the largest head with some room, in eights."""
    extents = [(head.box_vox[1] - head.box_vox[0] + 1) * head.voxel_size_mm for head in heads]
    wanted = np.ceil((np.max(extents, axis=0) + MARGIN_MM) / voxel_size_mm / 8) * 8
    if wanted.max() > LARGEST_VOX:
        log.warning(
            "pairs have at most %d voxels along an axis, %.0f mm, which does not hold the whole "
            "head. Voxels of %.2g mm would do.",
            LARGEST_VOX,
            LARGEST_VOX * voxel_size_mm,
            voxel_size_mm * wanted.max() / LARGEST_VOX,
        )
    return tuple(int(n) for n in np.minimum(wanted, LARGEST_VOX))


def centred_grid(shape: tuple[int, int, int], voxel_size_mm: float) -> Grid:
    """RAS grid with the world's origin in its middle."""
    affine = np.diag([voxel_size_mm] * 3 + [1.0])
    affine[:3, 3] = -voxel_size_mm * (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def export(settings: Settings, name: str, prior: ContrastPrior, maker: PairMaker) -> Path:
    """Write pairs as a BIDS derivative dataset of their own; pairs that are there stay.

    Raises
    ------
    InputError
        If the folder holds pairs of another origin.
    """
    suffix = (prior.metadata or {}).get("Suffix", "T1w")
    root = settings.output_dir / "synth" / f"contrast-{name}_kappa-{settings.kappa:g}"
    origin = {
        "BrainsegVersion": __version__,
        "SpaceDigest": maker.stream.spaces[0][0].digest,
        "Seed": settings.seed,
        "LabelMapsSHA256": [sha256(source.path) for source in maker.sources],
        "Shape": list(maker.generator.shape),
        "VoxelSizeMm": maker.generator.voxel_size_mm,
    }
    marker = root / "origin.json"
    if marker.is_file() and read_object(marker) != origin:
        raise InputError(
            f"{root}: holds pairs of another seed, voxel size, prior or version, or of other "
            "label maps. Remove it, or choose another output_dir."
        )
    remove_unfinished(root.rglob(".*"), older_than_s=DAY_S)
    _write_root(root, name, settings, maker.generator.target)
    write_text(root / ".bidsignore", marker.name + "\n")
    write_json(marker, origin)
    for index in range(settings.pairs):
        _export_pair(root, index, suffix, origin, maker)
    log.info("%d pairs: %s", settings.pairs, root)
    return root


def _export_pair(root: Path, index: int, suffix: str, origin: dict, maker: PairMaker) -> None:
    """Write one pair, unless all of it is there."""
    subject = f"sub-{index:05d}"
    anat = root / subject / "anat"
    image = anat / f"{subject}_{suffix}.nii.gz"
    labels = anat / f"{subject}_seg-brainseg_dseg.nii.gz"
    if all(path.is_file() for path in (image, sidecar(image), labels, sidecar(labels))):
        return
    anat.mkdir(parents=True, exist_ok=True)
    pair = maker(index)
    recipe = json.loads(pair.recipe)
    made_of = {key: origin[key] for key in ("SpaceDigest", "Seed")} | {"Index": index}
    write_volume(pair.image.astype(np.float32), pair.labels.grid, image)
    write_label_map(pair.labels, labels)
    uri = f"bids::{image.relative_to(root).as_posix()}"
    write_json(
        sidecar(labels),
        {
            "Description": "Labels of the synthetic image; codes are explained in "
            "seg-brainseg_dseg.tsv.",
            "Manual": False,
            "SpatialReference": uri,
            "Sources": [uri],
        }
        | made_of,
    )
    write_json(
        sidecar(image),
        {
            "Description": "Synthetic image, intensities 0 to 1.",
            "SkullStripped": recipe["view"]["kept"] != "head",
        }
        | made_of
        | {"LabelMap": pair.source.path.name, "Recipe": recipe},
    )
    log.info("pair %d written", index)


def _write_root(root: Path, name: str, settings: Settings, table: LabelTable) -> None:
    root.mkdir(parents=True, exist_ok=True)
    write_json(
        root / "dataset_description.json",
        {
            "Name": f"Synthetic images of contrast {name}",
            "BIDSVersion": "1.10.1",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "brainseg-bids", "Version": __version__}],
            "SourceDatasets": [{"URL": settings.bids_dir.resolve().as_uri()}],
        },
    )
    write_text(
        root / "README.md",
        f"# Synthetic images of contrast {name}\n\nDrawn by brainseg-bids {__version__} from "
        f"label maps, with prior weight {settings.kappa:g}. The JSON beside each image holds "
        "its recipe: the same recipe and label map give the same pair.\n",
    )
    table.write(root / "seg-brainseg_dseg.tsv")
