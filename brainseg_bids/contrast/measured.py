# SPDX-License-Identifier: Apache-2.0
"""``ContrastStatistics``: what one image looks like, label by label."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from brainseg_bids.documents import parse_json


@dataclass(frozen=True)
class Component:
    """One of the Gaussians that make up a label's intensities."""

    weight: float
    mean: float
    sd: float


@dataclass(frozen=True)
class LabelStatistics:
    """Intensities of one label in one image, in the image's own units.

    Parameters
    ----------
    voxels : int
        Of the label.
    interior_voxels : int
        That the estimate rests on: away from borders.
    location, scale : float
        Robust mean and standard deviation at the middle of the head's field (bias removed); the
        scale holds the image's noise, too.
    median, mad : float
        Of all voxels as they are; ``mad`` is 1.4826 times the median absolute deviation.
    components : tuple of Component
        Mixture that fits better than one Gaussian; a single one where it does not.
    grain_mm : float or None
        Distance at which the autocorrelation within the label has fallen to one half; None where
        it could not be measured.
    grain_frac : float
        Share of the variance that neighbouring voxels have in common beyond the image's
        resolution.
    fit : float
        Largest distance between the cumulative histograms of data and components
        (Kolmogorov-Smirnov), 0..1.
    source : str
        ``measured``, or ``imputed from NAME`` where there were too few voxels.
    histogram : tuple of int
        Interior voxels, bias removed, between the image's ``edges``.
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
"""Of the air, constant: beyond it an image counts as masked."""


@dataclass(frozen=True)
class NoiseLaw:
    """Noise of an image, from its background.

    Parameters
    ----------
    kind : {"rician", "chi", "gaussian", "ratio", "none"}
        ``ratio``: MP2RAGE's UNI; ``none``: the background was set to a constant.
    sigma : float
        Standard deviation of each channel's real and imaginary part, in units of the image; for
        ``ratio`` that of UNI (-0.5..0.5) in white matter.
    channels : float
        Effective channels of non-central chi; 1: Rician.
    voxels : int
        Of background that it was measured in.
    fit : float
        As of `LabelStatistics`.
    masked_share : float
        Of the air, how much is constant; for ``ratio`` how much is not filled by noise, as in
        denoised images, too.
    low, high : float
        For ``ratio``: values of the image that stand for UNI of -0.5 and +0.5. Equal where
        not stated.
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
    """Smooth logarithmic field over the head.

    Parameters
    ----------
    log_sd : float
        Spread of its logarithm within the head.
    smoothness_mm : float
        Distance between nodes of a B-spline field of the same spatial spectrum.
    nodes : tuple (nested), (nx, ny, nz)
        Log field on a coarse grid over the image's box, RAS axes; its mean in the head is 0.
    node_spacing_mm : tuple of 3 float
        Distance between those nodes; the outermost lie on the box's outermost voxels.
    spectrum : tuple of (float, float)
        Wavelength in mm and share of the log field's power.
    """

    log_sd: float
    smoothness_mm: float
    nodes: tuple[Any, ...]
    node_spacing_mm: tuple[float, float, float]
    spectrum: tuple[tuple[float, float], ...] = ()

    def array(self) -> np.ndarray:
        """The nodes as (nx, ny, nz) float32."""
        return np.asarray(self.nodes, dtype=np.float32)


@dataclass(frozen=True)
class ContrastStatistics:
    """What one image looks like.

    Parameters
    ----------
    table : str
        Label table that the names belong to.
    labels : dict of str to LabelStatistics
        By name; labels that the map lacks are absent.
    noise : NoiseLaw
    bias : BiasField
    fwhm_mm : tuple of 3 float
        Effective resolution per RAS axis: full width at half maximum of the point spread.
    voxel_size_mm : tuple of 3 float
        RAS axes.
    head_low, head_high : float
        0.5th and 99.5th percentile of the head's voxels, in units of the image.
    edges : tuple of float
        Edges of the histograms' bins, in units of the image.
    warnings : tuple of str
        One sentence each, for people.
    fwhm_method : str
        What ``fwhm_mm`` was measured from: ``edges``, ``edges and noise``, ``noise``, or
        ``voxel size`` where neither served.
    stripped : bool
        Whether the image is skull-stripped; ``labels`` are then those of the brain alone.
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
        """Text that `from_json` turns into an equal object."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ContrastStatistics:
        """Read `to_json`'s text.

        Raises
        ------
        ValueError
            If it is something else.
        """
        try:
            raw = {name: _tuples(value) for name, value in parse_json(text, "Statistics").items()}
            raw["labels"] = {name: _label(label) for name, label in raw["labels"].items()}
            raw["noise"] = NoiseLaw(**raw["noise"])
            raw["bias"] = BiasField(**{k: _tuples(v) for k, v in raw["bias"].items()})
            known = {item.name for item in fields(cls)}
            return cls(**{name: value for name, value in raw.items() if name in known})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"these are no contrast statistics ({error})") from error

    @classmethod
    def read(cls, path: str | Path) -> ContrastStatistics:
        """Read a file of `to_json`'s text; ``ValueError`` names it if it is something else."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}. Run --stages contrast again.") from error


def _label(raw: dict[str, Any]) -> LabelStatistics:
    values = {name: _tuples(value) for name, value in raw.items()}
    values["components"] = tuple(Component(**part) for part in raw["components"])
    return LabelStatistics(**values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
