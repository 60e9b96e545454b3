# SPDX-License-Identifier: Apache-2.0
"""Draw the figures of ``docs/explanation/synthesis.md``: each effect on a phantom of ellipsoids.

``python -m docs.figures.effects`` from the root of the repository; needs matplotlib.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from scipy import stats

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.gibbs import truncate
from brainseg_bids.synth.noise import magnitude
from brainseg_bids.synth.recipe import (
    Atrophy,
    Bias,
    Deformation,
    Gibbs,
    Motion,
    Noise,
    Ratio,
    Recipe,
    Resolution,
    Susceptibility,
    Texture,
    Tissue,
    Transmit,
    View,
)
from brainseg_bids.synth.relaxation import relaxation
from brainseg_bids.synth.transmit import mprage_signal, uni_of_t1
from tests.phantom.head import phantom_head

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the choice of a backend

FOLDER = Path(__file__).parents[1] / "explanation" / "figures"
TABLE = LabelTable.packaged("fullhead")
SHAPE = (160, 200, 184)
WARP = Deformation((3.0, 0.0, 0.0), velocity_sd_mm=3.5, node_spacing_mm=22.0, seed=11)
SPREAD = 6.0
"""Of every tissue's noise where nothing else is said; white matter is near 200."""


def phantom() -> LabelVolume:
    """Ellipsoids of 1 mm with a nasal cavity and a sinus of air."""
    labels = phantom_head((164, 204, 188), 1.0)
    voxels = labels.voxels.copy()
    world = np.indices(voxels.shape).reshape(3, -1).T @ labels.grid.affine[:3, :3].T
    world = (world + labels.grid.affine[:3, 3]).T.reshape(3, *voxels.shape)
    for center, half in (((0, 78, -38), (18, 9, 12)), ((0, 52, -58), (17, 26, 9))):
        inside = sum(((w - c) / h) ** 2 for w, c, h in zip(world, center, half, strict=True))
        voxels[inside <= 1] = TABLE["Air-Internal"].index
    return LabelVolume.from_label_map(LabelMap(voxels, labels.grid, TABLE))


def contrast(kind: str, spread: float = SPREAD) -> dict[str, Tissue]:
    """Intensities that the signal equations give at 7 T."""
    tissue = relaxation(TABLE, 7.0)
    if kind == "uni":
        values = 255 * (uni_of_t1(tissue.t1_s) + 0.5)
    else:
        values = mprage_signal(tissue.t1_s) * tissue.proton_density
        values = values * np.exp(-2.5 / tissue.t2star_ms)
        values = 200 * values / values[list(TABLE.codes).index(2)]
    values = np.where(tissue.proton_density > 0, values, 0.0)
    return {
        label.name: Tissue((float(v),), (spread if v > 0 else 0.0,))
        for label, v in zip(TABLE, values, strict=True)
    }


class Scene:
    """The phantom, ready to be rendered with one effect after the other."""

    def __init__(self) -> None:
        self.head = phantom()
        crosswalk = Crosswalk.packaged("fullhead", "brainseg")
        self.generator = Generator(crosswalk, TABLE, shape=SHAPE)
        self.recipe = Recipe(contrast("mprage"), deformation=WARP)
        self.uni = replace(self.recipe, tissues=contrast("uni"))

    def show(self, recipe: Recipe) -> np.ndarray:
        return self.generator.render(self.head, recipe).image[0].numpy()


def axial(image: np.ndarray, k: int = 104) -> np.ndarray:
    return image[:, :, k].T[::-1, ::-1]


def coronal(image: np.ndarray, j: int = 92) -> np.ndarray:
    return image[:, j].T[::-1, ::-1]


def sagittal(image: np.ndarray, i: int = 90) -> np.ndarray:
    return image[i].T[::-1]


def draw(name: str, panels: list[tuple[str, np.ndarray]]) -> None:
    """One row of slices, all in the same grey scale."""
    size = (2.5 * len(panels), 3.2)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained")
    for axis, (title, picture) in zip(axes, panels, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    save(figure, name)


def save(figure, name: str) -> None:
    whole = io.BytesIO()
    figure.savefig(whole, dpi=90, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)
    # Few shades keep a figure of noise below 150 kB.
    few = Image.open(whole).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    few.save(FOLDER / f"effect-{name}.png", optimize=True)


def draw_texture(scene: Scene) -> None:
    plain = contrast("mprage", 0.0)
    two = {
        n: Tissue((0.85 * t.mean[0], 1.15 * t.mean[0]), (0.0, 0.0), (0.7, 0.3))
        for n, t in plain.items()
    }
    noisy = contrast("mprage", 20.0)
    panels = [("one component, no spread", plain, Texture())]
    panels += [
        (f"two components (70, 30 %), {mm:g} mm", two, Texture(mm, 3)) for mm in (12.0, 24.0)
    ]
    draw(
        "patches",
        [
            (t, axial(scene.show(replace(scene.recipe, tissues=k, texture=x))))
            for t, k, x in panels
        ],
    )
    panels = [
        (f"{100 * frac:.0f} % of the variance is grain", Texture(grain_mm=mm, grain_frac=frac))
        for mm, frac in ((3.0, 0.0), (3.0, 0.5), (3.0, 1.0))
    ]
    draw(
        "grain",
        [
            (t, axial(scene.show(replace(scene.recipe, tissues=noisy, texture=x))))
            for t, x in panels
        ],
    )


def draw_fields(scene: Scene) -> None:
    field = Transmit("mprage", center=1.2, edge=0.5)
    draw(
        "transmit",
        [
            ("MPRAGE, B1+ = 1", coronal(scene.show(scene.recipe))),
            ("MPRAGE, 1.2 to 0.5", coronal(scene.show(replace(scene.recipe, transmit=field)))),
            ("UNI, B1+ = 1", coronal(scene.show(scene.uni))),
            (
                "UNI, 1.2 to 0.5",
                coronal(
                    scene.show(replace(scene.uni, transmit=replace(field, sequence="mp2rage")))
                ),
            ),
        ],
    )
    draw(
        "receive",
        [
            (f"spread of the log {sd:g}", axial(scene.show(replace(scene.recipe, bias=bias))))
            for sd in (0.0, 0.3, 0.7)
            for bias in (Bias(sd, 60.0, 4),)
        ],
    )
    draw(
        "susceptibility",
        [
            (
                f"echo time {ms:g} ms, 7 T" if ms else "no loss",
                sagittal(
                    scene.show(replace(scene.recipe, susceptibility=Susceptibility(ms, 7.0)))
                ),
            )
            for ms in (0.0, 3.0, 10.0)
        ],
    )


def draw_acquisition(scene: Scene) -> None:
    still = (0.0, 0.0, 0.0)
    moves = [
        ("still", Motion()),
        ("shift of 3 mm, late", Motion((0.75,), ((0.0, 3.0, 0.0),), (still,))),
        ("turn of 3 degrees, early", Motion((0.4,), (still,), ((0.0, 0.0, 3.0),))),
        (
            "two moves near the centre",
            Motion((0.45, 0.55), ((1.0, 2.0, 0), (0, -1.5, 1.0)), ((0, 0, 2.0), (1.0, 0, -2.0))),
        ),
    ]
    draw(
        "motion",
        [(t, axial(scene.show(replace(scene.recipe, motion=m)))) for t, m in moves],
    )
    sizes = [
        ("1 mm", (1, 1, 1), (1, 1, 1)),
        ("2.5 mm", (2.5,) * 3, (2.5,) * 3),
        ("slices of 5 mm, gaps 1 mm", (1, 1, 6), (1, 1, 5)),
    ]
    draw(
        "resolution",
        [
            (t, coronal(scene.show(replace(scene.recipe, resolution=Resolution(s, thick)))))
            for t, s, thick in sizes
        ],
    )
    draw(
        "ratio",
        [
            (
                "UNI, no noise"
                if frac == 0
                else f"noise {100 * frac:g} % of grey matter's signal",
                axial(scene.show(replace(scene.uni, ratio=Ratio(frac, seed=5)))),
            )
            for frac in (0.0, 0.03, 0.15)
        ],
    )
    views = [
        ("brain and its CSF", View("brain+csf")),
        ("cut plane", View(cut_normal=(0.0, 0.8, -0.6), cut_mm=55.0)),
        ("field of view", View(low_mm=(-200.0, -80.0, -50.0), high_mm=(200.0, 60.0, 70.0))),
    ]
    noisy = replace(scene.recipe, noise=Noise(0.02, 6))
    draw(
        "view",
        [(t, sagittal(scene.show(replace(noisy, view=v)))) for t, v in views],
    )


def draw_gibbs(scene: Scene) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.9), layout="constrained")
    for axis, kept in zip(axes, (1.0, 0.5), strict=False):
        picture = sagittal(scene.show(replace(scene.recipe, gibbs=Gibbs((1.0, kept, kept)))))
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"{100 * kept:.0f} % of k-space", fontsize=8)
        axis.axis("off")
    edge = torch.zeros(128, 1, 1)
    edge[64:] = 1
    for kept in (0.5, 0.25):
        axes[2].plot(truncate(edge, Gibbs((kept, 1, 1))).flatten(), label=f"{100 * kept:.0f} %")
    axes[2].axhline(1.0895, color="grey", lw=0.7, ls=":")
    axes[2].set_xlim(40, 96)
    axes[2].set_title("an edge; dotted: 9 % above", fontsize=8)
    axes[2].set_xlabel("voxel", fontsize=8)
    axes[2].tick_params(labelsize=7)
    axes[2].legend(fontsize=7)
    save(figure, "gibbs")


def draw_noise_law(scene: Scene) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.9), layout="constrained")
    for axis, (channels, sd) in zip(axes, ((1, 0.08), (16, 0.03)), strict=False):
        picture = axial(scene.show(replace(scene.recipe, noise=Noise(sd, 7, channels))))
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"{channels} channel{'s' * (channels > 1)}, {100 * sd:g} %", fontsize=8)
        axis.axis("off")
    at = np.linspace(0.01, 12, 300)
    for channels in (1, 4, 16):
        for signal, style in ((0.0, "-"), (5.0, "--")):
            image = torch.full((40, 40, 40), signal)
            drawn = magnitude(image, Noise(1.0, 8, channels), scale=1.0).flatten().numpy()
            color = f"C{(1, 4, 16).index(channels)}"
            axes[2].hist(drawn, 80, range=(0, 12), density=True, color=color, alpha=0.25)
            law = stats.ncx2(2 * channels, signal**2) if signal else stats.chi2(2 * channels)
            label = f"{channels}" if signal == 0 else None
            axes[2].plot(at, 2 * at * law.pdf(at**2), style, color=color, lw=1, label=label)
    axes[2].set_title("drawn and law; signal 0 and (dashed) 5 sd", fontsize=8)
    axes[2].set_xlabel("magnitude / sd", fontsize=8)
    axes[2].tick_params(labelsize=7)
    axes[2].legend(fontsize=7, title="channels", title_fontsize=7)
    save(figure, "noise")


def draw_anatomy(scene: Scene) -> None:
    brains = {
        "as it is": Atrophy(),
        "walls 4 mm outwards": Atrophy(ventricles_mm=4.0),
        "walls 3 mm inwards": Atrophy(ventricles_mm=-3.0),
        "half of the cortex thinner": Atrophy(thinning_frac=0.5, seed=3),
        "2 % lesions": Atrophy(lesion_frac=0.02, seed=3),
    }
    recipe = replace(scene.recipe, deformation=Deformation())
    panels = [(name, axial(scene.show(replace(recipe, ageing=a)))) for name, a in brains.items()]
    draw("ageing", panels)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    scene = Scene()
    chapters = (
        draw_anatomy,
        draw_texture,
        draw_fields,
        draw_acquisition,
        draw_gibbs,
        draw_noise_law,
    )
    for chapter in chapters:
        chapter(scene)


if __name__ == "__main__":
    main()
