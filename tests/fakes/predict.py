# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``brainseg_bids.programs.segment``: same arguments, a ball for a brain, no network.

The brain of a participant ``tiny`` is to be looked at. With ``--kill TEXT`` it dies as if the
out-of-memory killer had come, for images whose path holds that text.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_volume, write_label_map, write_volume
from brainseg_bids.nets.bundle import ModelBundle


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("image", "labels", "probseg", "entropy", "report"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--ensemble", nargs="+", default=[])
    parser.add_argument("--test-time-flips", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kill")
    parser.add_argument("--sleep-s", type=float, default=0.0)
    options = parser.parse_args()
    if options.kill and options.kill in str(options.image):
        options.labels.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            _, grid = read_volume(options.image)
    except InputError as error:
        print(f"brainseg: ERROR: {error}", file=sys.stderr)
        return 1
    print(f"brainseg: {options.image.name}: 60 %", file=sys.stderr, flush=True)
    time.sleep(options.sleep_s)
    bundle = ModelBundle.read(options.model)
    voxels = np.zeros(grid.shape, dtype=np.int16)
    steps = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in grid.shape], indexing="ij"))
    radius = np.sqrt((steps**2).sum(0))
    voxels[radius < 0.9] = 24
    voxels[radius < 0.8] = np.where(steps[0] < 0, 3, 42)[radius < 0.8]
    voxels[radius < 0.4] = np.where(steps[0] < 0, 2, 41)[radius < 0.4]
    write_label_map(LabelMap(voxels, grid, bundle.table), options.labels)
    if options.probseg:
        one_hot = np.stack([voxels == code for code in bundle.table.codes], axis=-1)
        write_volume(one_hot.astype(np.float32), grid, options.probseg)
    if options.entropy:
        write_volume(np.zeros(grid.shape, np.uint8), grid, options.entropy)
    options.report.write_text(
        json.dumps(
            {
                "image": str(options.image),
                "model": bundle.name,
                "model_digest": bundle.digest,
                "metadata": {
                    "SegmentationSeconds": 1.5,
                    "PeakMemoryGiB": 0.25,
                    "Device": "cpu",
                    "Threads": options.threads,
                    "InputVoxelSizeMm": list(grid.voxel_size_mm),
                    "ModelVoxelSizeMm": bundle.voxel_size_mm,
                    "Warnings": [str(note.message) for note in noted],
                    "ToLookAt": ["brain of 0.47 ml"] if "sub-tiny" in str(options.image) else [],
                    "ConfidenceCalibrated": True,
                },
                "confidence": [
                    {"index": 3, "confidence": 0.91, "threshold": 0.8},
                    {"index": 42, "confidence": 0.55, "threshold": 0.8},
                ],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
