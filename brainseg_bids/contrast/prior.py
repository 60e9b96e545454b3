# SPDX-License-Identifier: Apache-2.0
"""``ContrastPrior``: statistics of images of one contrast, pooled over subjects."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.measured import Component
from brainseg_bids.documents import parse_list, read_json
from brainseg_bids.files import whole_or_nothing
from brainseg_bids.units import listed

VERSION = 1
"""Version of the files; other versions are not read."""
UNITS = (
    "magnitude images: 0 is the image's zero, 255 the 99.5th percentile of a head's voxels in a "
    "usual image; ratio images (MP2RAGE UNI): 0 is -0.5, 255 is +0.5"
)
COLUMNS = (
    *("index", "name", "mean", "mean_sd", "sd_median", "sd_log_sd", "tissue_sd_median"),
    *("tissue_sd_log_sd", "components", "grain_mm", "grain_frac", "images", "source"),
)
AGAIN = "Pool the contrast again (--stages priors)."


@dataclass(frozen=True)
class Spread:
    """Lognormal distribution of a positive quantity over images.

    Parameters
    ----------
    median : float
    log_sd : float
        Standard deviation of the natural logarithm.
    """

    median: float
    log_sd: float


@dataclass(frozen=True)
class LabelPrior:
    """Intensities of one label over images, in the units of the prior.

    Parameters
    ----------
    mean, mean_sd : float
        Mean and standard deviation of the location over images. ``ContrastPrior.correlation`` has
        the correlations between labels.
    sd : Spread
        Scale within one image, including noise.
    components : tuple of Component
        Typical Gaussian mixture. Means are offsets from ``mean``; means and standard deviations
        are in units of the label's scale. A single Gaussian has weight 1, mean 0 and sd 1.
    grain_mm, grain_frac : float
        Correlated texture, as in `LabelStatistics`.
    images : int
        Number of images in which the label was measured.
    source : str
        ``measured``, ``imputed from NAME``, or ``noise law`` for air if no map labels it.
    index : int
        Code in the label table.
    tissue_sd : Spread or None
        Scale within one image without noise; None: same as ``sd``.
    """

    mean: float
    mean_sd: float
    sd: Spread
    components: tuple[Component, ...]
    grain_mm: float = 3.0
    grain_frac: float = 0.0
    images: int = 0
    source: str = "measured"
    index: int = -1
    tissue_sd: Spread | None = None


@dataclass(frozen=True)
class NoisePrior:
    """Noise over images.

    Parameters
    ----------
    kinds : dict of str to float
        Fraction of images with each kind of `NoiseLaw`.
    sigma : Spread
        Standard deviation in the units of the prior; for ``ratio``, that of UNI (-0.5 to 0.5).
    channels : float
        Effective number of channels of a non-central chi distribution.
    masked : float
        Fraction of images with constant air.
    masked_level : float
        This constant in the units of the prior; 0 for magnitude images.
    """

    kinds: dict[str, float]
    sigma: Spread
    channels: float = 1.0
    masked: float = 0.0
    masked_level: float = 0.0


@dataclass(frozen=True, eq=False)
class ContrastPrior:
    """Statistics of images of one contrast, pooled over subjects.

    Intensities are in units in which 0 is zero intensity, and 255 is the median over images of the
    99.5th percentile of the head. For ``ratio`` images these are UNI of -0.5 and of +0.5.

    Parameters
    ----------
    name : str
        Name of the contrast, such as ``T1w``.
    table : str
        Name of the label table.
    labels : dict of str to LabelPrior
        Every label of the table; imputed if no image has it.
    correlation : (n, n) float
        Correlation of the locations of labels over images, in the order of ``labels``.
    noise : NoisePrior
    bias_log_sd, bias_smoothness_mm : Spread
    fwhm_mm : tuple of 3 Spread
    voxel_size_mm : tuple of 3 float
        Median over images, along each RAS axis.
    head_low : float
        Median over images of the 0.5th percentile of the head.
    n_images, n_subjects : int
    images : tuple of dict
        Provenance: ``image`` (BIDS URI), ``sha256`` and ``subject`` of each image.
    metadata : dict
        BIDS metadata that define the contrast, such as suffix, field strength and sequence.
    warnings : tuple of str
        Quality warnings, one sentence each, for instance about images that are outliers.
    """

    name: str
    table: str
    labels: dict[str, LabelPrior]
    correlation: np.ndarray
    noise: NoisePrior
    bias_log_sd: Spread
    bias_smoothness_mm: Spread
    fwhm_mm: tuple[Spread, Spread, Spread]
    voxel_size_mm: tuple[float, float, float]
    head_low: float
    n_images: int
    n_subjects: int
    images: tuple[dict[str, Any], ...] = ()
    metadata: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> LabelPrior:
        return self.labels[name]

    @property
    def is_ratio(self) -> bool:
        """Whether the images are ratios of two inversions, as MP2RAGE's UNI."""
        return "ratio" in self.noise.kinds

    @property
    def digest(self) -> str:
        """SHA-256 of everything that synthetic images depend on, as 64 hexadecimal digits.

        Numbers are rounded to nine digits, so that the digest does not depend on the formatting
        of the file or on rounding errors of the platform. Provenance and warnings are not
        included.
        """
        content = {"labels": [_line(name, label) for name, label in self.labels.items()]}
        content |= {key: value for key, value in _rest(self).items() if key not in _PROVENANCE}
        text = json.dumps(_rounded(content), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def check_table(self, table: LabelTable) -> None:
        """Raise an error unless the prior has exactly the labels of ``table``.

        Raises
        ------
        ValueError
            If labels or codes differ; the message lists them.
        """
        mine = {name: label.index for name, label in self.labels.items()}
        theirs = {label.name: label.index for label in table}
        odd = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
        if odd:
            raise ValueError(
                f"contrast {self.name}: prior for another label table ({self.table}, not "
                f"{table.name}; they differ in {listed(odd, 3)}). "
                f"Pool statistics of maps with labels of {table.name} (--stages contrast priors)."
            )

    def write(self, folder: str | Path, *, brainseg_version: str = "n/a") -> Path:
        """Write ``contrast-NAME_prior.tsv``, with one row per label, and ``.json``, with the rest.

        Both files are written atomically.

        Returns
        -------
        Path
            Path of the JSON file, for `read`.

        Raises
        ------
        ValueError
            If the name has characters other than letters, digits and plus, since BIDS allows no
            others.
        """
        if not re.fullmatch("[0-9A-Za-z+]+", self.name):
            raise ValueError(
                f"contrast {self.name!r}: a contrast is called by letters, digits and plus only, "
                "for it becomes part of file names. Give it another name."
            )
        path = Path(folder) / f"contrast-{self.name}_prior.json"
        table = io.StringIO()
        rows = csv.DictWriter(table, COLUMNS, delimiter="\t", lineterminator="\n")
        rows.writeheader()
        rows.writerows(_cells(_line(*item)) for item in self.labels.items())
        head = {"PriorVersion": VERSION, "BrainsegVersion": brainseg_version, "Units": UNITS}
        content = head | {"Digest": self.digest} | _rest(self)
        with ExitStack() as both:  # the one without the other would be no prior
            for file, text in {
                path: _json(content) + "\n",
                path.with_suffix(".tsv"): table.getvalue(),
            }.items():
                temporary = both.enter_context(whole_or_nothing(file))
                temporary.write_text(text, encoding="utf-8", newline="\n")
        return path

    @classmethod
    def read(cls, path: str | Path) -> ContrastPrior:
        """Contrast prior from its JSON file and the TSV file beside it; see `write`.

        Raises
        ------
        ValueError
            If a file is missing, damaged, of another version, or was changed after it was
            written. The message is one line.
        """
        path = Path(path)
        try:
            raw = read_json(path)
            version = raw["PriorVersion"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: this is not a contrast prior ({_one(error)}). {AGAIN}"
            ) from error
        if version != VERSION:
            raise ValueError(
                f"{path}: contrast prior of version {version}, not {VERSION} that this program "
                f"reads. {AGAIN}"
            )
        table = path.with_suffix(".tsv")
        try:
            with table.open(newline="", encoding="utf-8") as file:
                labels = dict(map(_label, csv.DictReader(file, delimiter="\t")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{table}: damaged or missing ({_one(error)}). {AGAIN}") from error
        try:
            prior = _prior(cls, raw, labels)
            _check(prior)
        except (AttributeError, ValueError, KeyError, TypeError, LookupError) as error:
            raise ValueError(f"{path}: damaged ({_one(error)}). {AGAIN}") from error
        if prior.digest != raw.get("Digest"):
            raise ValueError(f"{path}: it or its TSV was changed after it was written. {AGAIN}")
        return prior


_PROVENANCE = ("Images", "Metadata", "Warnings")


def _one(error: Exception) -> str:
    """What went wrong in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _json(content: dict[str, Any]) -> str:
    """JSON with a line a key, so that a matrix takes a line."""
    lines = [f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _rounded(value: Any) -> Any:
    """Numbers as text of nine digits, however deep."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return f"{float(value) + 0.0:.9g}"


def _line(name: str, label: LabelPrior) -> dict[str, Any]:
    """One label as a row of the table."""
    own = label.tissue_sd
    return {
        "index": label.index,
        "name": name,
        "mean": float(label.mean),
        "mean_sd": float(label.mean_sd),
        "sd_median": float(label.sd.median),
        "sd_log_sd": float(label.sd.log_sd),
        "tissue_sd_median": None if own is None else float(own.median),
        "tissue_sd_log_sd": None if own is None else float(own.log_sd),
        "components": [[float(p.weight), float(p.mean), float(p.sd)] for p in label.components],
        "grain_mm": float(label.grain_mm),
        "grain_frac": float(label.grain_frac),
        "images": label.images,
        "source": label.source,
    }


def _cells(line: dict[str, Any]) -> dict[str, Any]:
    return {
        key: "n/a" if value is None else json.dumps(value) if isinstance(value, list) else value
        for key, value in line.items()
    }


def _label(row: dict[str, str]) -> tuple[str, LabelPrior]:
    """Name and prior of a row of the table."""
    own = None
    if row["tissue_sd_median"] != "n/a":
        own = Spread(float(row["tissue_sd_median"]), float(row["tissue_sd_log_sd"]))
    return row["name"], LabelPrior(
        mean=float(row["mean"]),
        mean_sd=float(row["mean_sd"]),
        sd=Spread(float(row["sd_median"]), float(row["sd_log_sd"])),
        components=tuple(Component(*part) for part in parse_list(row["components"], "components")),
        grain_mm=float(row["grain_mm"]),
        grain_frac=float(row["grain_frac"]),
        images=int(row["images"]),
        source=row["source"],
        index=int(row["index"]),
        tissue_sd=own,
    )


def _rest(prior: ContrastPrior) -> dict[str, Any]:
    """All but the labels, as JSON has it."""
    return {
        "Name": prior.name,
        "LabelTable": prior.table,
        "Noise": _noise(prior.noise),
        "BiasLogSd": asdict(prior.bias_log_sd),
        "BiasSmoothness_mm": asdict(prior.bias_smoothness_mm),
        "Fwhm_mm": [asdict(axis) for axis in prior.fwhm_mm],
        "VoxelSize_mm": list(prior.voxel_size_mm),
        "HeadLow": prior.head_low,
        "NumberOfImages": prior.n_images,
        "NumberOfSubjects": prior.n_subjects,
        "Labels": list(prior.labels),
        "Correlation": np.asarray(prior.correlation, dtype=float).tolist(),
        "Metadata": prior.metadata,
        "Images": list(prior.images),
        "Warnings": list(prior.warnings),
    }


def _noise(noise: NoisePrior) -> dict[str, Any]:
    """As JSON has it; without a mask as in files that do not know of it, so digests stay."""
    masked = noise.masked > 0
    known = asdict(noise)
    return {k: v for k, v in known.items() if masked or k not in ("masked", "masked_level")}


def _prior(
    cls: type[ContrastPrior], raw: dict[str, Any], labels: dict[str, LabelPrior]
) -> ContrastPrior:
    if list(labels) != raw["Labels"]:
        raise ValueError("the labels of the JSON file are not those of the TSV file")
    noise = raw["Noise"]
    return cls(
        name=raw["Name"],
        table=raw["LabelTable"],
        labels=labels,
        correlation=np.array(raw["Correlation"], dtype=float),
        noise=NoisePrior(**noise | {"sigma": Spread(**noise["sigma"])}),
        bias_log_sd=Spread(**raw["BiasLogSd"]),
        bias_smoothness_mm=Spread(**raw["BiasSmoothness_mm"]),
        fwhm_mm=triple(Spread(**axis) for axis in raw["Fwhm_mm"]),
        voxel_size_mm=triple(raw["VoxelSize_mm"]),
        head_low=raw["HeadLow"],
        n_images=raw["NumberOfImages"],
        n_subjects=raw["NumberOfSubjects"],
        images=tuple(raw["Images"]),
        metadata=raw["Metadata"],
        warnings=tuple(raw["Warnings"]),
    )


def _check(prior: ContrastPrior) -> None:
    """Raise ``ValueError`` unless it can be drawn from."""
    count = len(prior.labels)
    matrix = prior.correlation
    if matrix.shape != (count, count) or not np.array_equal(matrix, matrix.T):
        raise ValueError(f"the correlation is not a symmetric matrix of {count} labels")
    if not np.all(np.diag(matrix) == 1) or np.linalg.eigvalsh(matrix)[0] <= 0:
        raise ValueError("the correlation is not positive definite")
    if not 0 <= prior.noise.masked <= 1 or not math.isfinite(prior.noise.masked_level):
        raise ValueError(f"the share of masked images is {prior.noise.masked}, not from 0 to 1")
    for name, label in prior.labels.items():
        numbers = (label.mean, label.mean_sd, label.sd.median, label.sd.log_sd)
        if not np.isfinite(numbers).all() or min(numbers[1:]) < 0 or not label.components:
            raise ValueError(f"{name}: numbers are missing, negative or infinite")
