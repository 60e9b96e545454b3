# SPDX-License-Identifier: Apache-2.0
"""Small BIDS datasets and bundles for tests; nothing of theirs is anatomical."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import save_file

from brainseg_bids.anatomy.labels import LabelTable

PREDICT = (sys.executable, str(Path(__file__).parent / "predict.py"))


def write_bundle(path: Path, *, table: LabelTable | None = None, name: str = "fake") -> Path:
    """A bundle folder that reads and checks like a real one; its weights are no weights."""
    path.mkdir(parents=True)
    table = table or LabelTable.packaged("brainseg")
    save_file({"weight": np.zeros(1, np.float16)}, path / "weights.safetensors")
    table.write(path / "labels.tsv")
    (path / "README.md").write_text("# A stand-in\n")
    files = ("weights.safetensors", "labels.tsv", "README.md")
    manifest = {
        "format": 1,
        "name": name,
        "label_table": "brainseg",
        "voxel_size_mm": 1.0,
        "patch_vox": [32, 32, 32],
        "contrasts": ["T1w"],
        "net": {},
        "sha256": {f: hashlib.sha256((path / f).read_bytes()).hexdigest() for f in files},
    }
    (path / "bundle.json").write_text(json.dumps(manifest))
    return path


def write_untrained_bundle(path: Path, *, voxel_size_mm: float) -> Path:
    """A real bundle of a small network that was never trained; its labels mean nothing."""
    import torch

    from brainseg_bids.nets import bundle
    from brainseg_bids.nets.architectures import build
    from brainseg_bids.nets.spec import NetSpec

    torch.manual_seed(0)
    bundle.write_bundle(
        path, name="raw", net=build(NetSpec("dynunet", 43, 2, 8, {"widths": [8, 8, 8]})),
        table=LabelTable.packaged("brainseg"), voxel_size_mm=voxel_size_mm,
        patch_vox=(48, 48, 48), contrasts=("T1w",), card="# raw\n", training={},
    )  # fmt: skip
    return path


def write_image(
    path: Path, *, shape: tuple[int, ...] = (24, 26, 22), voxel_size_mm: float = 4.0, seed: int = 0
) -> Path:
    """A head-sized box with a bright middle; few grey values, so that pictures are small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros(shape, dtype=np.float32)
    image[: shape[0] // 2] = 20 + seed
    image[tuple(slice(n // 4, -n // 4) for n in shape[:3])] += 400
    affine = np.diag([voxel_size_mm] * 3 + [1.0])
    affine[:3, 3] = [-voxel_size_mm * n / 2 for n in shape[:3]]
    file = nib.Nifti1Image(image, affine)
    file.set_qform(affine, code=1)
    file.set_sform(affine, code=1)
    file.header.set_xyzt_units("mm", "sec")
    nib.save(file, path)
    return path


def write_dataset(root: Path, *names: str) -> Path:
    """A BIDS dataset with images of the given names, e.g. ``sub-01_ses-A_T1w``."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "Phantoms", "BIDSVersion": "1.10.0", "DatasetType": "raw"})
    )
    for seed, name in enumerate(names):
        entities = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
        session = [f"ses-{entities['ses']}"] if "ses" in entities else []
        folder = root.joinpath(f"sub-{entities['sub']}", *session, "anat")
        write_image(folder / f"{name}.nii.gz", seed=seed)
    return root


def assert_valid_bids(root: Path) -> None:
    """Fail with the validator's words if a dataset has errors; warnings are allowed."""
    beside_python = str(Path(sys.executable).parent)
    path = os.pathsep.join([beside_python, os.environ.get("PATH", "")])
    validator = shutil.which("bids-validator-deno", path=path)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run([validator, str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
