# SPDX-License-Identifier: Apache-2.0
"""Register one image to a template in a process of its own, with ANTs (antspyx).

``python -m brainseg_bids.programs.register --help`` lists its arguments.

A registration takes gigabytes, which go with the process, and ITK reads its number of threads when
it is loaded: so nothing but this process imports antspyx. It may have an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.documents import InputError
from brainseg_bids.files import whole_or_nothing
from brainseg_bids.images import read_again
from brainseg_bids.machine import resident_gib

KINDS = (
    "antsRegistrationSyNQuick[s]",
    "antsRegistrationSyNQuickRepro[s]",
    "antsRegistrationSyN[s]",
)
"""What ANTs calls them. The first is the default."""
LPS = np.diag([-1.0, -1.0, 1.0])
"""ITK's world axes in terms of RAS."""
CLOSING_MM = 5.0
"""Masks of images leave out the fluid in sulci, masks of templates hold it: what is narrower than
twice this is taken in."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--fixed", type=Path, required=True, help="template")
    add("--fixed-mask", type=Path, help="its brain")
    add("--moving", type=Path, required=True, help="image")
    add("--moving-mask", type=Path, help="its brain")
    add("--kind", choices=KINDS, default=KINDS[0])
    add("--forward", type=Path, required=True, help="transform image to template to write, .h5")
    add("--backward", type=Path, required=True, help="the other way round")
    add("--report", type=Path, required=True, help="facts to write, JSON")
    add("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 after one line on stderr, or 127 if antspyx is missing."""
    options = parse(argv)
    # ITK reads it when it is loaded.
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(max(1, options.threads))
    try:
        import ants
    except ImportError:
        return _fail("antspyx is missing: pip install antspyx", 127)
    try:
        facts = register(options, ants)
    except (InputError, OSError) as error:
        return _fail(str(error))
    except RuntimeError as error:
        return _fail(f"{options.moving}: the registration failed ({str(error).splitlines()[0]}).")
    with whole_or_nothing(options.report) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


def _fail(message: str, code: int = 1) -> int:
    print(f"brainseg: ERROR: {message}", file=sys.stderr)
    return code


def register(options: argparse.Namespace, ants) -> dict:
    """Register and write transforms; returns the facts for the report."""
    began_s = time.monotonic()
    # Points that are drawn by lot are drawn alike; its own switch for this allows one thread.
    ants.config._random_seed = 1
    brains = bool(options.fixed_mask and options.moving_mask)
    fixed = _read(options.fixed, options.fixed_mask if brains else None, ants)
    moving = _read(
        options.moving, options.moving_mask if brains else None, ants, closing_mm=CLOSING_MM
    )
    with tempfile.TemporaryDirectory(dir=options.report.parent, prefix=".register") as folder:
        made = ants.registration(
            fixed=fixed,
            moving=moving,
            type_of_transform=options.kind,
            outprefix=f"{folder}/",
            write_composite_transform=True,
        )
        os.replace(made["fwdtransforms"], options.forward)
        os.replace(made["invtransforms"], options.backward)
    return {
        "Registration": options.kind,
        "DrivenBy": "brains" if brains else "whole images",
        "ANTsVersion": ants.__version__,
        "Threads": options.threads,
        "Seconds": round(time.monotonic() - began_s, 2),
        "PeakMemoryGiB": round(resident_gib(), 3),
    }


def closed(mask: np.ndarray, voxel_size_mm: tuple[float, ...], reach_mm: float) -> np.ndarray:
    """Mask with its clefts filled: grown by ``reach_mm`` and shrunk again, (X, Y, Z) bool.

    >>> slit = np.ones((5, 7, 7), bool); slit[:, :4, 3] = False
    >>> bool(closed(slit, (1.0, 1.0, 1.0), 2.0).all())
    True
    """
    if not reach_mm or mask.all():
        return mask
    grown = ndimage.distance_transform_edt(~mask, sampling=voxel_size_mm) <= reach_mm
    if grown.all():
        return grown
    return mask | (ndimage.distance_transform_edt(grown, sampling=voxel_size_mm) > reach_mm)


def _read(path: Path, mask: Path | None, ants, *, closing_mm: float = 0.0):
    """An image for ANTs, outside the mask 0."""
    image, grid = read_again(path)
    if mask is not None:
        inside, its_grid = read_again(mask)
        if not its_grid.is_close(grid, tolerance_mm=0.1):
            raise InputError(f"{mask}: lies on another grid than {path}. Fetch both again.")
        image = np.where(closed(inside > 0, grid.voxel_size_mm, closing_mm), image, 0)
    return as_ants(image, grid, ants)


def as_ants(array: np.ndarray, grid: Grid, ants):
    """Array on a grid as ANTs has it: world axes L, P, S."""
    linear = LPS @ grid.affine[:3, :3]
    spacing = np.linalg.norm(linear, axis=0)
    return ants.from_numpy(
        np.asarray(array, np.float32),
        origin=tuple(map(float, LPS @ grid.affine[:3, 3])),
        spacing=tuple(map(float, spacing)),
        direction=linear / spacing,
    )


if __name__ == "__main__":
    raise SystemExit(main())
