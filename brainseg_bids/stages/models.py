# SPDX-License-Identifier: Apache-2.0
"""Which model an image gets, and what a segmentation by it takes. No Nipype here."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.bids.names import Scan
from brainseg_bids.documents import InputError

if TYPE_CHECKING:
    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.nets.bundle import ModelBundle
    from brainseg_bids.options import Settings
    from brainseg_bids.resources import Footprint

SEGMENT_GIB = 4.0
"""Memory set aside for a segmentation of which nothing is known."""

VIEWS = {
    "Ensemble": "another ensemble made it",
    "TestTimeFlips": "it was averaged with its mirror image, or is to be",
}
"""As `jobs.CHANGES`, for what only some results name."""


@dataclass(frozen=True)
class Model:
    """What a plan has to know of a bundle.

    Parameters
    ----------
    path : Path
        Bundle folder.
    name, digest : str
    contrasts : tuple of str
        Suffixes it was made for.
    label_names : tuple of str
        In the order of codes.
    voxel_size_mm : float
        Of the grid that it works on.
    footprint : Footprint or None
        What its memory depends on; None: not known.
    calibrated : bool
        Whether it says how far its probabilities are to be believed.
    """

    path: Path
    name: str
    digest: str
    contrasts: tuple[str, ...]
    label_names: tuple[str, ...]
    voxel_size_mm: float = 1.0
    footprint: Footprint | None = None
    calibrated: bool = False


def read_model(name: str) -> tuple[Model, LabelTable]:
    """What plans need of a model.

    Raises
    ------
    BundleError
        If there is none, it is damaged, or its labels are not those of this app.
    """
    from brainseg_bids.anatomy.crosswalk import Crosswalk  # late: numpy
    from brainseg_bids.nets.bundle import BundleError, ModelBundle, find_bundle

    bundle = ModelBundle.read(find_bundle(name))
    codes = {label.index for label in bundle.table}
    unknown = sorted(codes - set(Crosswalk.packaged("brainseg", "tissue").pairs))
    if unknown:
        raise BundleError(
            f"{bundle.path}: label codes {', '.join(map(str, unknown))} have no tissue in table "
            "brainseg. Use a model that was trained for it."
        )
    _check_network(bundle)
    return _model_of(bundle), bundle.table


def _check_network(bundle: ModelBundle) -> None:
    """Raise `BundleError` if a model of the user's cannot work, before any image is read."""
    from brainseg_bids.nets.bundle import BundleError, packaged_models  # late: numpy

    if bundle.path in packaged_models().values() or not bundle.net:
        return
    program = [sys.executable, "-m", "brainseg_bids.programs.check_model", str(bundle.path)]
    done = subprocess.run(program, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise BundleError((done.stderr.strip().splitlines() or ["the model cannot be read"])[-1])


def models_of(settings: Settings) -> tuple[tuple[Model, ...], LabelTable]:
    """The models that images are shared out among, and the labels of all of them.

    ``--model`` names the only one. So does an ensemble without it: its first member is the first
    of the packaged models, whatever an image's voxels.

    Raises
    ------
    BundleError
        As `read_model`.
    """
    from brainseg_bids.nets.bundle import DEFAULT_MODELS  # late: numpy

    names = (settings.model,) if settings.model else DEFAULT_MODELS
    if settings.ensemble:
        names = names[:1]
    (first, table), *others = map(read_model, names)
    return (first, *(model for model, _ in others)), table


def read_ensemble(settings: Settings, model: Model) -> tuple[Model, ...]:
    """Further models that are averaged with the first one.

    Raises
    ------
    BundleError
        If one cannot be read, is named twice, or has other labels.
    """
    if not settings.ensemble:
        return ()
    from brainseg_bids.nets.bundle import read_models  # late: numpy

    _, *others = read_models([model.path, *settings.ensemble])
    for bundle in others:
        _check_network(bundle)
    return tuple(map(_model_of, others))


def _model_of(bundle: ModelBundle) -> Model:
    from brainseg_bids.resources import Footprint  # late: psutil

    names = tuple(label.name for label in bundle.table)
    return Model(
        bundle.path,
        bundle.name,
        bundle.digest,
        bundle.contrasts,
        names,
        bundle.voxel_size_mm,
        Footprint.of(bundle),
        calibrated=bool(bundle.confidence),
    )


def model_for(scan: Scan, models: Sequence[Model]) -> Model:
    """Of the models made for the image's contrast, the one nearest to its longest voxel edge.

    The longest one: thick slices do not show what a fine model looks for. Sizes are compared as
    ratios; of models as near as each other, and for images that cannot be read, the first one.
    A contrast that no model was made for gets one of all.
    """
    peers = _peers(scan.suffix, models)
    if len(peers) == 1:
        return peers[0]
    try:
        from brainseg_bids.images import read_grid  # late: nibabel

        longest_mm = max(read_grid(scan.path).voxel_size_mm)
    except (InputError, ValueError):  # the segmentation itself says what is wrong with it
        return peers[0]
    return min(peers, key=lambda model: abs(math.log(longest_mm / model.voxel_size_mm)))


def images_of(model: Model, suffix: str, models: Sequence[Model]) -> str:
    """In words, which images get a model that an image of a suffix got; empty: all do.

    >>> fine = Model(Path(), "fine", "", ("T1w",), (), 0.8)
    >>> flair = Model(Path(), "flair", "", ("FLAIR", "T2w"), ())
    >>> images_of(fine, "T1w", [fine, flair]), images_of(fine, "T1w", [fine])
    ('T1w images', '')
    >>> images_of(fine, "T1w", [Model(Path(), "usual", "", ("T1w",), ()), fine, flair])
    'T1w images with voxels nearest to 0.8 mm'
    >>> images_of(flair, "T2w", [fine, flair])
    'FLAIR and T2w images'
    >>> images_of(fine, "PDw", [fine, flair])
    'Other structural images with voxels nearest to 0.8 mm'
    """
    if len(models) == 1:
        return ""
    peers = _peers(suffix, models)
    if suffix not in model.contrasts:
        kind = "Other structural"
    elif len(peers) == len(models):
        kind = "Structural"
    else:
        kind = " and ".join(model.contrasts)
    near = f" with voxels nearest to {model.voxel_size_mm:g} mm" if len(peers) > 1 else ""
    return f"{kind} images{near}"


def _peers(suffix: str, models: Sequence[Model]) -> Sequence[Model]:
    return [model for model in models if suffix in model.contrasts] or models


def views(ensemble: Sequence[Model], flips: bool) -> dict:
    """What the JSON says of further models and of flips: nothing where there are none."""
    facts = {}
    if ensemble:
        facts["Ensemble"] = [
            {"ModelName": model.name, "ModelDigest": model.digest} for model in ensemble
        ]
    if flips:
        facts["TestTimeFlips"] = True
    return facts


def predicted_gib(scan: Scan, models: Sequence[Model], flips: bool) -> float:
    """Predicted peak of a segmentation; `SEGMENT_GIB` where image or model does not tell."""
    from brainseg_bids.images import read_grid
    from brainseg_bids.resources import segmentation_gib  # late: psutil, nibabel

    nets = [model.footprint for model in models if model.footprint is not None]
    try:
        grid = read_grid(scan.path).to_ras()
    except (InputError, ValueError):  # the segmentation itself says what is wrong with it
        return SEGMENT_GIB
    if len(nets) < len(models):
        return SEGMENT_GIB
    return segmentation_gib(grid.shape, grid.voxel_size_mm, nets, flips=flips)


def largest_gib(settings: Settings, images: Sequence) -> float:
    """The most that a segmentation of one of some images takes, each by its model.

    Parameters
    ----------
    images : sequence of (Scan, Grid)

    Raises
    ------
    BundleError
        As `read_model`.
    """
    models, _ = models_of(settings)
    others = read_ensemble(settings, models[0])
    flips = settings.test_time_flips
    needs = (predicted_gib(scan, (model_for(scan, models), *others), flips) for scan, _ in images)
    return max(needs, default=SEGMENT_GIB)
