# SPDX-License-Identifier: Apache-2.0
"""``ContrastStatistics``: intensities of each label in one image, noise, field and resolution."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from brainseg_bids.documents import parse_json


@dataclass(frozen=True)
class Component:
    """One Gaussian of the mixture that describes the intensities of a label."""

    weight: float
    mean: float
    sd: float


@dataclass(frozen=True)
class LabelStatistics:
    """Intensities of one label in one image, in the units of the image.

    Parameters
    ----------
    voxels : int
        Number of voxels of the label.
    interior_voxels : int
        Number of voxels away from borders, which the estimates are based on.
    location, scale : float
        Robust mean and standard deviation after division by the bias field, whose mean logarithm
        in the head is 0. The scale includes the noise.
    median, mad : float
        Median of all voxels without any correction, and 1.4826 times their median absolute
        deviation.
    components : tuple of Component
        Gaussian mixture; one component if a mixture does not fit better.
    grain_mm : float or None
        Correlation length of the texture: the distance at which the autocorrelation has fallen to
        one half. None if it could not be measured.
    grain_frac : float
        Fraction of the variance that is correlated texture, which is coarser than the resolution
        of the image.
    fit : float
        Kolmogorov-Smirnov distance of data and components, between 0 and 1.
    source : str
        ``measured``, or ``imputed from NAME`` if there were too few voxels.
    histogram : tuple of int
        Number of interior voxels, without bias field, in each bin of the image's ``edges``.
    """

    voxels: int
    interior_voxels: int
    location: float
    scale: float
    median: float
    mad: float
    components: tuple[Component, ...] = ()
    grain_mm: float | None = None
    grain_frac: float = 0.0
    fit: float = 0.0
    source: str = "measured"
    histogram: tuple[int, ...] = ()


MASKED_SHARE = 0.5
"""Fraction of constant air above which an image counts as masked."""


@dataclass(frozen=True)
class NoiseLaw:
    """Noise distribution of an image.

    Parameters
    ----------
    kind : {"rician", "chi", "gaussian", "ratio", "none"}
        ``ratio``: MP2RAGE's UNI image. ``none``: neither background nor tissue has noise.
    sigma : float
        Standard deviation of the real and of the imaginary part of each channel, in units of the
        image. For ``ratio``, that of UNI (from -0.5 to 0.5) in tissue.
    channels : float
        Effective number of channels of a non-central chi distribution; 1 is Rician.
    voxels : int
        Number of background voxels that it was measured in; 0 if it was measured in tissue.
    fit : float
        Kolmogorov-Smirnov distance of data and distribution.
    masked_share : float
        Fraction of the air that is constant. For ``ratio``, the fraction without the noise that
        fills the range of unmasked UNI images.
    low, high : float
        For ``ratio``: values of the image that stand for UNI of -0.5 and +0.5; equal if unknown.
    """

    kind: str
    sigma: float
    channels: float = 1.0
    voxels: int = 0
    fit: float = 0.0
    masked_share: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def is_masked(self) -> bool:
        """Whether most of the air is constant.

        >>> NoiseLaw("gaussian", 3.0, masked_share=0.9).is_masked
        True
        """
        return self.masked_share > MASKED_SHARE


@dataclass(frozen=True)
class BiasField:
    """Bias field of an image.

    Parameters
    ----------
    log_sd : float
        Standard deviation of the log field within the head.
    smoothness_mm : float
        Node spacing of B-spline fields with the same smoothness, see `bias.smoothness_mm`.
    nodes : tuple (nested), (nx, ny, nz)
        Log field on a coarse grid over the image, in RAS+ axis order; its mean in the head is 0.
    node_spacing_mm : tuple of 3 float
        Distance between these nodes. The outermost nodes are on the outermost voxels of the image.
    """

    log_sd: float
    smoothness_mm: float
    nodes: tuple[Any, ...]
    node_spacing_mm: tuple[float, float, float]

    def array(self) -> np.ndarray:
        """Nodes as an array, (nx, ny, nz) float32."""
        return np.asarray(self.nodes, dtype=np.float32)


@dataclass(frozen=True)
class ContrastStatistics:
    """Statistics of one image: intensities of each label, noise, bias field, resolution.

    Parameters
    ----------
    table : str
        Name of the label table.
    labels : dict of str to LabelStatistics
        By name, without labels that are not in the label map.
    noise : NoiseLaw
    bias : BiasField
    fwhm_mm : tuple of 3 float
        Effective resolution along each RAS axis: full width at half maximum of the point spread.
    voxel_size_mm : tuple of 3 float
        Along each RAS axis.
    head_low, head_high : float
        0.5th and 99.5th percentile of the voxels of the head, in units of the image.
    edges : tuple of float
        Edges of the histograms, in units of the image.
    warnings : tuple of str
        Quality warnings, one sentence each.
    fwhm_method : str
        Basis of ``fwhm_mm``: ``edges``, ``edges and noise``, ``noise``, or ``voxel size`` if
        neither could be used.
    stripped : bool
        Whether the image is skull-stripped; then ``labels`` has labels of the brain only.
    """

    table: str
    labels: dict[str, LabelStatistics]
    noise: NoiseLaw
    bias: BiasField
    fwhm_mm: tuple[float, float, float]
    voxel_size_mm: tuple[float, float, float]
    head_low: float
    head_high: float
    edges: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    fwhm_method: str = "edges"
    stripped: bool = False

    def __getitem__(self, name: str) -> LabelStatistics:
        return self.labels[name]

    def to_json(self) -> str:
        """Statistics as JSON text; `from_json` returns an equal object."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ContrastStatistics:
        """Statistics from the JSON text of `to_json`.

        Raises
        ------
        ValueError
            If the text is not of this kind.
        """
        try:
            raw = {name: _tuples(value) for name, value in parse_json(text, "Statistics").items()}
            raw["labels"] = {name: _label(label) for name, label in raw["labels"].items()}
            raw["noise"] = NoiseLaw(**raw["noise"])
            raw["bias"] = BiasField(**_known(BiasField, raw["bias"]))
            return cls(**_known(cls, raw))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"these are not contrast statistics ({error})") from error

    @classmethod
    def read(cls, path: str | Path) -> ContrastStatistics:
        """Statistics from a file with the JSON text of `to_json`.

        Raises
        ------
        ValueError
            If the file is not of this kind; the message names the file.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}. Run --stages contrast again.") from error


def _known(kind: type[Any], raw: dict[str, Any]) -> dict[str, Any]:
    """Fields of a dataclass; files of other versions may have more."""
    return {item.name: _tuples(raw[item.name]) for item in fields(kind) if item.name in raw}


def _label(raw: dict[str, Any]) -> LabelStatistics:
    values = {name: _tuples(value) for name, value in raw.items()}
    values["components"] = tuple(Component(**part) for part in raw["components"])
    return LabelStatistics(**values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
