# SPDX-License-Identifier: Apache-2.0
"""Synthetic pairs from contrast priors: previews, comparison with real images, export."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brainseg_bids import __version__
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_json, write_text
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.interfaces.headlabels import read_source
from brainseg_bids.settings import Settings
from brainseg_bids.synth.dial import DialledSpace
from brainseg_bids.synth.generator import Generator, Head
from brainseg_bids.synth.space import RecipeSpace, read_space
from brainseg_bids.training.pairs import PairStream
from brainseg_bids.volumes import InputError, read_grid, write_label_map, write_volume
from brainseg_bids.workflows.priors import read_priors

log = logging.getLogger("brainseg")

PREVIEWS = 4
BYTES_PER_VOXEL = 60
"""Memory of one pair that is being rendered."""
LARGEST_VOX = 320
MARGIN_MM = 20.0
"""Room around the largest head, which the deformation may need."""
FROM = (("fullhead", "fullhead"), ("brainseg", "model"))
"""Label maps that pairs are made from, best first, and whose codes they have."""


@dataclass(frozen=True)
class Source:
    """A label map that pairs are made from: the file, and whose codes it has."""

    path: Path
    tool: str

    def read(self) -> LabelMap:
        """The map in codes of ``fullhead``, on its own grid."""
        return read_source(read_grid(self.path), tool=self.tool, labels=str(self.path)).labels


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
        If there are no priors or no label maps, or a pair would not fit memory.
    """
    from brainseg_bids.workflows.priors import write_page  # late: matplotlib

    priors = read_priors(settings.output_dir, settings.prior)
    sources = find_sources(settings)
    heads = [Head.from_label_map(source.read()) for source in sources]
    previews, comparisons = {}, {}
    figures = settings.output_dir / "priors" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for name, (_, prior) in priors.items():
        space = DialledSpace(whole_heads(), prior, settings.kappa)
        maker = PairMaker.of(prior, space, heads, sources, settings)
        log.info(
            "contrast %s, kappa %g: pairs of %s voxels of %.3g mm from %d label map(s)",
            name,
            settings.kappa,
            " x ".join(map(str, maker.generator.shape)),
            maker.generator.voxel_size_mm,
            len(heads),
        )
        stem = f"contrast-{name}_kappa-{settings.kappa:g}"
        previews[name] = [preview(maker, settings, figures / f"{stem}_pairs.png")]
        comparisons[name], sheet = compare(settings, prior, maker, figures / f"{stem}_real.png")
        previews[name] += sheet
        if settings.pairs:
            export(settings, name, prior, maker)
    page = write_page(
        settings.output_dir,
        settings.bids_dir.name,
        previews=previews,
        comparisons=comparisons,
    )
    log.info("report: %s", page)


def whole_heads() -> RecipeSpace:
    """Any contrast, and the crop about the middle of the head: a pair holds all of it."""
    return replace(read_space("agnostic"), name="agnostic", center_frac=(0.5, 0.5))


def find_sources(settings: Settings) -> list[Source]:
    """Label maps to make pairs from: the user's, else head label maps, else segmentations.

    Of the maps of one head the finest is taken.
    """
    found: list[Source] = []
    for name, folder in settings.derivatives.items():
        paths = sorted(p for p in Path(folder).rglob("*.nii*") if "probseg" not in p.name)
        paths += sorted(Path(folder).rglob("*.mgz"))
        found += [Source(path, name) for path in paths]
    if settings.derivatives and not found:
        folders = ", ".join(map(str, settings.derivatives.values()))
        raise InputError(f"-d {folders}: no label maps (.nii, .nii.gz, .mgz) are in it.")
    for seg, tool in FROM:
        if found:
            break
        for path in sorted(settings.output_dir.glob(f"sub-*/**/*_seg-{seg}_dseg.nii.gz")):
            stem = path.name.removesuffix("_dseg.nii.gz")
            finer = sorted(path.parent.glob(f"{stem}_res-*_dseg.nii.gz"), key=_voxel_mm3)
            found.append(Source(finer[0] if finer else path, tool))
    if not found:
        raise InputError(
            f"{settings.output_dir}: no label maps are in it. Run the participant level with "
            "--stages segment or headlabels first, or give maps with -d fullhead=FOLDER."
        )
    return found


def _voxel_mm3(path: Path) -> float:
    return read_grid(path).voxel_volume_mm3


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
        heads: Sequence[Head],
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
        if settings.memory_gb and needed_gib > settings.memory_gb:
            raise InputError(
                f"a pair of {generator.shape} voxels takes {needed_gib:.1f} GB, and "
                f"{settings.memory_gb:.1f} GB are allowed (--mem). Choose larger voxels with "
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
    settings: Settings, prior: ContrastPrior, maker: PairMaker, path: Path
) -> tuple[list, list[Path]]:
    """Real images beside synthetic ones: per class, and a sheet; neither without real ones."""
    from brainseg_bids.cli.likeness import likeness, read_real, render
    from brainseg_bids.reports.synth_figures import draw_real_and_synthetic

    derivatives = {name: Path(folder) for name, folder in settings.derivatives.items()}
    real = read_real(
        prior,
        bids_dir=settings.bids_dir,
        output_dir=settings.output_dir,
        derivatives=derivatives,
    )
    if not real:
        return [], []
    grid = centred_grid(maker.generator.shape, maker.generator.voxel_size_mm)
    agnostic = whole_heads()
    kappas = {"agnostic": 0.0, "fitted": 1.0}
    if settings.kappa not in kappas.values():
        kappas[f"kappa {settings.kappa:g}"] = settings.kappa
    synthetic = {
        method: render(
            DialledSpace(agnostic, prior, kappa), maker.stream.heads, maker.generator, grid
        )
        for method, kappa in kappas.items()
    }
    rows = likeness(real, synthetic)
    for method in kappas:
        distances = [row.distances[method] for row in rows if method in row.distances]
        log.info(
            "contrast %s: energy distance of %s images to the real ones, mean of %d classes: %.4f",
            prior.name,
            method,
            len(distances),
            float(np.mean(distances)),
        )
    sheet = draw_real_and_synthetic(
        path,
        (real[0].image, real[0].labels),
        [(method, pairs[0].image, pairs[0].labels) for method, pairs in synthetic.items()],
        title=f"Contrast {prior.name}: real and synthetic",
    )
    return rows, [sheet]


def pair_shape(heads: Sequence[Head], voxel_size_mm: float) -> tuple[int, int, int]:
    """Voxels that hold the largest head with some room, in eights."""
    extents = [(head.box_vox[1] - head.box_vox[0] + 1) * head.voxel_size_mm for head in heads]
    wanted = np.ceil((np.max(extents, axis=0) + MARGIN_MM) / voxel_size_mm / 8) * 8
    return tuple(int(n) for n in np.minimum(wanted, LARGEST_VOX))


def centred_grid(shape: tuple[int, int, int], voxel_size_mm: float) -> Grid:
    """RAS grid with the world's origin in its middle."""
    affine = np.diag([voxel_size_mm] * 3 + [1.0])
    affine[:3, 3] = -voxel_size_mm * (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def export(settings: Settings, name: str, prior: ContrastPrior, maker: PairMaker) -> Path:
    """Write pairs as a BIDS derivative dataset of their own; pairs that are there stay."""
    suffix = (prior.metadata or {}).get("Suffix", "T1w")
    root = settings.output_dir / "synth" / f"contrast-{name}_kappa-{settings.kappa:g}"
    space = maker.stream.spaces[0][0]
    _write_root(root, name, settings, maker.generator.target)
    for index in range(settings.pairs):
        anat = root / f"sub-{index:05d}" / "anat"
        stem = anat / f"sub-{index:05d}"
        labels = stem.with_name(f"{stem.name}_seg-brainseg_dseg.nii.gz")
        made_of = {"SpaceDigest": space.digest, "Seed": settings.seed, "Index": index}
        if _made_of(labels) == made_of:
            continue
        anat.mkdir(parents=True, exist_ok=True)
        pair = maker(index)
        write_volume(
            pair.image.astype(np.float32),
            pair.labels.grid,
            stem.with_name(f"{stem.name}_{suffix}.nii.gz"),
        )
        write_json(
            stem.with_name(f"{stem.name}_{suffix}.json"),
            {"Description": "Synthetic image, intensities 0 to 1.", "SkullStripped": False}
            | made_of
            | {"LabelMap": pair.source.path.name, "Recipe": json.loads(pair.recipe)},
        )
        write_label_map(pair.labels, labels)
        write_json(
            labels.with_name(labels.name.replace(".nii.gz", ".json")),
            {
                "Description": "Labels of the synthetic image; codes are explained in "
                "seg-brainseg_dseg.tsv.",
                "Manual": False,
                "SpatialReference": f"bids::sub-{index:05d}/anat/{stem.name}_{suffix}.nii.gz",
                "Sources": [f"bids::sub-{index:05d}/anat/{stem.name}_{suffix}.nii.gz"],
            }
            | made_of,
        )
        log.info("pair %d of %d written", index + 1, settings.pairs)
    log.info("%d pairs: %s", settings.pairs, root)
    return root


def _made_of(labels: Path) -> dict:
    """What a pair on disk was made of; empty if it is not there."""
    path = labels.with_name(labels.name.replace(".nii.gz", ".json"))
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    there = labels.is_file()
    return {key: said.get(key) for key in ("SpaceDigest", "Seed", "Index")} if there else {}


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
        f"label maps, with contrast dial {settings.kappa:g}. The JSON beside each image holds "
        "its recipe: the same recipe and label map give the same pair.\n",
    )
    table.write(root / "seg-brainseg_dseg.tsv")
