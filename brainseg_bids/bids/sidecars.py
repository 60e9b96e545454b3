# SPDX-License-Identifier: Apache-2.0
"""Metadata of images: the JSON files that apply to one, each value of the kind BIDS says.

Values are checked here, once: whoever uses one gets a number that is finite, positive and in
BIDS' unit, or none at all and a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from brainseg_bids.bids.names import Scan
from brainseg_bids.documents import Flag, InputError, Items, Number, Text, read_text, sift_json
from brainseg_bids.pointers import why_unfetched

SECONDS = {"unit": "s", "above": True}

KINDS = {
    "MagneticFieldStrength": Number(0.001, 25, "T"),
    "EchoTime": Items(Number(0, 1, **SECONDS), or_one=True),
    "EchoTime1": Number(0, 1, **SECONDS),
    "EchoTime2": Number(0, 1, **SECONDS),
    "RepetitionTime": Number(0, 100, **SECONDS),
    "RepetitionTimeExcitation": Number(0, 100, **SECONDS),
    "RepetitionTimePreparation": Items(Number(0, 100, **SECONDS), or_one=True),
    "InversionTime": Items(Number(0, 20, **SECONDS), or_one=True),
    "DwellTime": Number(0, 1, **SECONDS),
    "FlipAngle": Items(Number(0, 360, "degrees", above=True), or_one=True),
    "SliceThickness": Number(0, 100, "mm", above=True),
    "SpacingBetweenSlices": Number(0, 100, "mm", above=True),
    "PixelBandwidth": Number(0, 1e6, "Hz", above=True),
    "ImagingFrequency": Number(0, 1100, "MHz", above=True),
    "PartialFourier": Number(0, 1, above=True),
    "ParallelReductionFactorInPlane": Number(0, 64, above=True),
    "SkullStripped": Flag(),
    "PulseSequenceType": Text(),
    "ScanningSequence": Items(Text(), or_one=True),
    "SequenceVariant": Items(Text(), or_one=True),
    "SequenceName": Text(),
    "MRAcquisitionType": Text(),
    "Manufacturer": Text(),
    "ManufacturersModelName": Text(),
    "ReceiveCoilName": Text(),
    "ReceiveCoilActiveElements": Text(),
    "ProtocolName": Text(),
    "SeriesDescription": Text(),
}
"""What a value has to be. Bounds are wide; what lies outside is in another unit or no measurement
(3000 for 3 T, 2.98 ms for 0.00298 s). Keys that are not here may hold anything."""


@dataclass(frozen=True)
class Metadata:
    """What the JSON files that apply to an image say.

    Parameters
    ----------
    values : dict
        By BIDS' key; a key of `KINDS` has a value of its kind.
    warnings : tuple of str
        What could not be read or used, a line each, with file and key.
    unusable : frozenset of str
        Keys with a value that cannot be used.
    """

    values: dict = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    unusable: frozenset[str] = frozenset()


def read_metadata(path: Path, bids_dir: Path) -> Metadata:
    """Metadata of an image; of several JSON files the nearer to it wins (BIDS' inheritance).

    A file or a value that cannot be used is a warning. Of a key whose nearest value cannot be
    used nothing is known: it was given because what holds for other images does not hold here.

    Parameters
    ----------
    path : Path
        Of the image, below ``bids_dir``.
    bids_dir : Path
        Root of the dataset, the first folder that is looked in.
    """
    own = Scan.from_path(path)
    inside = path.parent.relative_to(bids_dir).parts
    values: dict = {}
    warnings: list[str] = []
    unusable: frozenset[str] = frozenset()
    for depth in range(len(inside) + 1):
        folder = bids_dir.joinpath(*inside[:depth])
        fitting = []
        for candidate in folder.glob(f"*{own.suffix}.json"):
            scan = Scan.from_path(candidate.with_suffix(""))
            if scan.suffix == own.suffix and scan.entities.items() <= own.entities.items():
                fitting.append((len(scan.entities), candidate))
        for _, candidate in sorted(fitting):
            one = read_sidecar(candidate)
            values |= one.values
            unusable = (unusable | one.unusable) - one.values.keys()
            warnings += one.warnings
    values = {key: value for key, value in values.items() if key not in unusable}
    return Metadata(values, tuple(warnings), unusable)


def read_sidecar(path: Path) -> Metadata:
    """What one JSON file says."""
    try:
        if unfetched := why_unfetched(path):
            raise InputError(unfetched)
        values, errors = sift_json(read_text(path), str(path))
    except (InputError, OSError) as error:
        return Metadata({}, (f"{error} Its metadata are not known.",))
    for key, kind in KINDS.items():
        if key in values and (why := kind.error_of(values[key])):
            errors[key] = f"{path}: {key} {why}; it is ignored."
            del values[key]
    return Metadata(values, tuple(errors.values()), frozenset(errors))
