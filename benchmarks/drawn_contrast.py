# SPDX-License-Identifier: Apache-2.0
"""Which contrast recipe spaces draw, beside a contrast prior that was measured in real heads.

``python -m benchmarks.drawn_contrast --spaces t1w FILE.toml --prior contrast-T1w_prior.json``

For each structure the mean intensity, relative to cerebral white matter: of the prior, and of some
draws of each recipe space (mean, 5th and 95th percentile), after gamma. Of structures with two
sides the left one. Bias, partial volume and noise are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.synth.recipe import Recipe
from brainseg_bids.synth.recipe_files import read_space

WHITE_MATTER = "Left-Cerebral-White-Matter"
STRUCTURES = (
    "Left-Cerebral-Cortex",
    "Left-Caudate",
    "Left-Accumbens-area",
    "Left-Amygdala",
    "Left-Hippocampus",
    "Left-Putamen",
    "Left-Pallidum",
    "Left-Thalamus",
    "Left-VentralDC",
    "Left-Cerebellum-White-Matter",
    "Left-Cerebellum-Cortex",
    "Brain-Stem",
    "Left-Lateral-Ventricle",
)


def relative_mean(recipe: Recipe, name: str) -> float:
    """Mean of a structure over that of white matter, after gamma."""
    mean, white = (
        np.average(tissue.mean, weights=tissue.weight or None)
        for tissue in (recipe.tissues[name], recipe.tissues[WHITE_MATTER])
    )
    return float((max(mean, 0.0) / max(white, 1.0)) ** recipe.gamma)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spaces", nargs="+", required=True, help="packaged names or TOML files")
    parser.add_argument("--prior", type=Path, help="contrast prior, JSON")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--voxel-size", type=float, default=1.0, help="of the pairs, in mm")
    options = parser.parse_args()
    columns: dict[str, list[str]] = {}
    if options.prior:
        prior = ContrastPrior.read(options.prior)
        columns[options.prior.stem] = [
            f"{prior[name].mean / prior[WHITE_MATTER].mean:.2f}" for name in STRUCTURES
        ]
    for name in options.spaces:
        space = read_space(name).at(options.voxel_size)
        rng = np.random.default_rng(0)
        recipes = [space.draw(rng) for _ in range(options.draws)]
        columns[Path(name).stem] = [
            _cell([relative_mean(recipe, structure) for recipe in recipes])
            for structure in STRUCTURES
        ]
    print("| structure | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for structure, *cells in zip(STRUCTURES, *columns.values(), strict=True):
        print(f"| {structure.removeprefix('Left-')} | " + " | ".join(cells) + " |")


def _cell(values: list[float]) -> str:
    low, high = np.percentile(values, (5, 95))
    return f"{np.mean(values):.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
