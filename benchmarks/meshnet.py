# SPDX-License-Identifier: Apache-2.0
"""MeshNet models of brainchop (MIT, neuroneural/brainchop), run with PyTorch.

A model is a folder with a TensorFlow.js ``model.json``, its raw float32 weights and
``colormap.json`` (label names). What happens to an image is what brainchop does: conform to
256³ voxels of 1 mm in LIA order and 8 bits, scale, crop, network, largest component. Settings
of each model are those of ``brainchop-parameters.js``.

``python -m benchmarks.meshnet --image T1w.nii.gz --model model30chan18cls --labels OUT.nii.gz``
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from benchmarks.data import shared_data
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.images import read_volume, write_volume

SIZE = 256

ACTIVATIONS = {"elu": nn.functional.elu, "relu": nn.functional.relu}


@dataclass(frozen=True)
class Settings:
    """How brainchop prepares the image of a model."""

    quantiles: bool = False
    """Scale the 5th to 95th percentile to 0..1 instead of minimum to maximum."""

    crop_above: float = 0.0
    """The network sees the box of voxels above this scaled intensity."""

    crop_by: str | None = None
    """Model whose brain gives the box instead."""

    crop_padding: int = 0


SETTINGS = {
    "model5_gw_ae": Settings(crop_padding=18),
    "model18cls": Settings(crop_above=0.2),
    "model30chan18cls": Settings(crop_above=0.2),
    "model30chan50cls": Settings(quantiles=True),
    "model21_104class": Settings(crop_by="model5_gw_ae"),
}


class MeshNet(nn.Module):
    """Dilated 3x3x3 convolutions, each at full resolution; float32 logits of every class.

    Parameters
    ----------
    folder : Path
        With ``model.json``, weights and ``colormap.json``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        description = json.loads((folder / "model.json").read_text())
        weights = _read_weights(folder, description["weightsManifest"])
        self.convolutions = nn.ModuleList()
        self.activations = []
        for layer in description["modelTopology"]["model_config"]["config"]["layers"]:
            config = layer["config"]
            if layer["class_name"] == "Conv3D":
                self.convolutions.append(_convolution(config, weights))
                self.activations.append(None)
            elif layer["class_name"] == "Activation":
                self.activations[-1] = ACTIVATIONS[config["activation"]]
            elif layer["class_name"] != "InputLayer":
                raise ValueError(f"{folder}: layer {layer['class_name']} is not known here")
        self.names = label_names(folder)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 1, X, Y, Z) to (1, classes, X, Y, Z)."""
        for convolution, activation in zip(self.convolutions, self.activations, strict=True):
            image = convolution(image)
            if activation is not None:
                image = activation(image, inplace=True)
        return image


def label_names(folder: Path) -> list[str]:
    """Names of a model's classes, in order."""
    file = folder / "colormap.json"
    return json.loads(file.read_text())["labels"] if file.exists() else []


def _read_weights(folder: Path, manifest: list[dict]) -> dict[str, np.ndarray]:
    weights = {}
    for group in manifest:
        raw = b"".join((folder / name).read_bytes() for name in group["paths"])
        values, start = np.frombuffer(raw, dtype="<f4"), 0
        for entry in group["weights"]:
            stop = start + int(np.prod(entry["shape"]))
            weights[entry["name"]] = values[start:stop].reshape(entry["shape"])
            start = stop
        if start != len(values):
            raise ValueError(f"{folder}: {len(values) - start} weights are left over")
    return weights


def _convolution(config: dict, weights: dict[str, np.ndarray]) -> nn.Conv3d:
    kernel = weights[f"{config['name']}/kernel"].transpose(4, 3, 0, 1, 2)
    size, dilation = kernel.shape[2], config["dilation_rate"][0]
    layer = nn.Conv3d(
        kernel.shape[1], kernel.shape[0], size, padding=dilation * (size // 2), dilation=dilation
    )
    layer.weight.data = torch.from_numpy(kernel.copy())
    layer.bias.data = torch.from_numpy(weights[f"{config['name']}/bias"].copy())
    return layer


def conform(image: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """As FreeSurfer's ``mri_convert --conform``: 256³, 1 mm, LIA, 8 bits, same centre.

    Intensities go from the minimum to the value that 0.1 % of the nonzero voxels exceed.
    Images that are conformed already are given back.
    """
    affine = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    middle = np.array(grid.shape) / 2
    center = grid.affine[:3, :3] @ middle + grid.affine[:3, 3]
    affine[:3, 3] = center - affine[:3, :3] @ np.full(3, SIZE / 2)
    target = Grid((SIZE,) * 3, affine)
    if target.is_close(grid, tolerance_mm=0.01) and image.min() >= 0 and image.max() <= 255:
        return np.rint(image).astype(np.uint8), grid
    image = np.nan_to_num(np.asarray(image, dtype=np.float32))
    low = float(image.min())
    nonzero = np.abs(image) > 1e-15
    high = float(np.quantile(image, 1 - 0.001 * nonzero.mean()))
    moved = resample(image, grid, target, order=1)
    scaled = (moved - low) * (255 / max(high - low, 1e-9))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8), target


def resample(image: np.ndarray, grid: Grid, target: Grid, *, order: int) -> np.ndarray:
    """Values on another grid by their place in the world; 0 outside."""
    move = np.linalg.inv(grid.affine) @ target.affine
    return ndimage.affine_transform(
        image, move[:3, :3], move[:3, 3], output_shape=target.shape, order=order
    )


def resample_labels(ranks: np.ndarray, grid: Grid, target: Grid) -> np.ndarray:
    """Label with the largest linearly interpolated share at each voxel of ``target``."""
    if grid.is_close(target):
        return ranks
    best = np.zeros(target.shape, dtype=np.float32)
    out = np.zeros(target.shape, dtype=ranks.dtype)
    # Background, which is rank 0, wins where no label has any share: its box is everything.
    for rank, box in enumerate(ndimage.find_objects(ranks + 1)):
        if box is None:
            continue
        inside = _box_on(target, grid, box)
        there = target.crop(
            [part.start for part in inside], [part.stop - part.start for part in inside]
        )
        share = resample((ranks == rank).astype(np.float32), grid, there, order=1)
        wins = share > best[inside]
        best[inside][wins], out[inside][wins] = share[wins], rank
    return out


def _box_on(target: Grid, grid: Grid, box: tuple[slice, ...]) -> tuple[slice, ...]:
    """Voxels of ``target`` that a box of ``grid`` reaches, one voxel around it included."""
    ends = [(part.start - 1, part.stop) for part in box]
    corners = np.array(np.meshgrid(*ends)).reshape(3, -1)
    move = np.linalg.inv(target.affine) @ grid.affine
    where = move[:3, :3] @ corners + move[:3, 3:]
    first = np.floor(where.min(1)).astype(int).clip(0, np.array(target.shape) - 1)
    last = np.ceil(where.max(1)).astype(int).clip(0, np.array(target.shape) - 1)
    return tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))


def scale(image: np.ndarray, *, quantiles: bool) -> np.ndarray:
    """Intensities as the network wants them, about 0..1; nothing is cut off."""
    image = image.astype(np.float32)
    low, high = np.quantile(image, (0.05, 0.95)) if quantiles else (image.min(), image.max())
    return (image - np.float32(low)) / np.float32(high - low)


@torch.inference_mode()
def segment(
    image: np.ndarray, folder: Path, *, precision: torch.dtype = torch.float32
) -> np.ndarray:
    """Class of each voxel of a conformed image, (256, 256, 256) uint8."""
    settings = SETTINGS[folder.name]
    scaled = scale(image, quantiles=settings.quantiles)
    if settings.crop_by:
        wanted = segment(image, folder.parent / settings.crop_by) > 0
    else:
        wanted = scaled > settings.crop_above
    box = tuple(
        slice(int(n.min()), int(n.max()) + 1) for n in (axis for axis in np.nonzero(wanted))
    )
    pad = settings.crop_padding
    seen = torch.from_numpy(np.pad(scaled[box], pad))[None, None]
    net = MeshNet(folder).eval()
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        logits = net(seen)
    found = logits[0].max(0).indices.to(torch.uint8).numpy()
    out = np.zeros(image.shape, dtype=np.uint8)
    inside = tuple(slice(pad, n - pad) for n in found.shape)
    out[box] = found[inside]
    return largest_component(out)


def largest_component(ranks: np.ndarray) -> np.ndarray:
    """Without foreground that does not touch the largest piece of it (26 neighbours)."""
    pieces, count = ndimage.label(ranks > 0, structure=np.ones((3, 3, 3)))
    if count < 2:
        return ranks
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.where(pieces == sizes.argmax(), ranks, 0).astype(ranks.dtype)


def model_folder(name: str, data: Path) -> Path:
    """Folder of one of brainchop's models among the shared data."""
    return data / "brainchop_meshnet" / "public" / "models" / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--model", default="model30chan18cls", choices=sorted(SETTINGS))
    parser.add_argument("--labels", type=Path, required=True, help="classes on the image's grid")
    parser.add_argument("--report", type=Path, help="facts to write, JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="multiply in bfloat16")
    parser.add_argument("--data", help="folder of the shared data")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    image, grid = read_volume(options.image)
    conformed, target = conform(image, grid)
    ranks = segment(
        conformed,
        model_folder(options.model, shared_data(options.data)),
        precision=torch.bfloat16 if options.bf16 else torch.float32,
    )
    write_volume(resample_labels(ranks, target, grid), grid, options.labels)
    facts = {
        "took_s": time.monotonic() - start,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(json.dumps(facts))
    if options.report:
        options.report.write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
