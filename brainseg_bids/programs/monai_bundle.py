# SPDX-License-Identifier: Apache-2.0
"""A model as a MONAI bundle, which MONAI's own tools load and run without this package.

The network is TorchScript; what comes before and after it is MONAI's own transforms, chosen so
that they do what `brainseg_bids.inference.predict` does without flips: RAS, the network's voxel
size, the box of the head, intensities by quantiles, windows, and probabilities brought back.
"""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids import __version__
from brainseg_bids.anatomy.intensity import AIR_SHARE, HIGH, LOW
from brainseg_bids.bids.description import write_json
from brainseg_bids.files import write_text

if TYPE_CHECKING:
    from brainseg_bids.nets.bundle import ModelBundle

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
OVERLAP_FRAC = 0.25
POOLED_MM = 4
EXAMPLE_EDGE_VOX = 64
"""Of the volume that the network is traced with; it takes any other of whole blocks."""

HEAD = (
    "$lambda image: (lambda small: torch.nn.functional.interpolate("
    "(small > small.quantile(0.02) + {share} * (small.quantile(0.98) - small.quantile(0.02)))"
    ".float(), size=image.shape[1:]) > 0)(torch.nn.functional.avg_pool3d("
    "torch.as_tensor(image)[None], {cell}, ceil_mode=True))[0]"
)
"""What is brighter than air, in cells, as of `brainseg_bids.inference.views.head_box`."""


def export(bundle: ModelBundle, folder: Path) -> Path:
    """Write a model as a MONAI bundle.

    Parameters
    ----------
    bundle : ModelBundle
    folder : Path
        Made; what is in it is replaced.

    Returns
    -------
    Path
        The folder.
    """
    import torch

    from brainseg_bids.nets.sizes import patch_multiple

    net = bundle.load("cpu")
    multiple = patch_multiple(net.spec)
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    edge = -(-EXAMPLE_EDGE_VOX // multiple) * multiple
    with torch.inference_mode():
        traced = torch.jit.trace(net, torch.zeros(1, 1, edge, edge, edge), check_trace=False)
    traced.save(str(folder / "models" / "model.ts"))
    write_json(folder / "configs" / "metadata.json", _metadata(bundle, multiple))
    write_json(folder / "configs" / "inference.json", _inference(bundle))
    shutil.copy(bundle.path / "README.md", folder / "docs" / "README.md")
    licence = resources.files("brainseg_bids") / "data" / "models" / "LICENSE"
    text = licence.read_text(encoding="utf-8") if licence.is_file() else "Apache-2.0\n"
    write_text(folder / "LICENSE", text)
    return folder


def _metadata(bundle: ModelBundle, multiple: int) -> dict:
    import monai
    import numpy
    import torch

    labels = {str(rank): label.name for rank, label in enumerate(bundle.table)}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: f"model {bundle.name}, digest {bundle.digest}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": numpy.__version__,
        "required_packages_version": {"nibabel": "5.2"},
        "name": bundle.name,
        "task": "Whole-head segmentation of structural MR images",
        "description": f"{len(labels) - 1} structures of brain and head, by model {bundle.name}; "
        "see docs/README.md.",
        "authors": "brainseg-bids",
        "copyright": "Apache-2.0",
        "data_type": "nibabel",
        "intended_use": "Research; not for clinical use.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "MR",
                    "num_channels": 1,
                    "spatial_shape": [f"{multiple}*n"] * 3,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(labels),
                    "spatial_shape": [f"{multiple}*n"] * 3,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": labels,
                }
            },
        },
    }


def _inference(bundle: ModelBundle) -> dict:
    """The configuration that ``python -m monai.bundle run`` takes."""
    device = "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')"
    return {
        "imports": ["$import glob", "$import os", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "images": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))",
        "device": device,
        "network_def": {
            "_target_": "torch.jit.load",
            "f": "$@bundle_root + '/models/model.ts'",
            "map_location": "@device",
        },
        "network": "$@network_def.eval()",
        "preprocessing": {"_target_": "Compose", "transforms": _before(bundle)},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(bundle.patch_vox),
            "sw_batch_size": 1,
            "overlap": OVERLAP_FRAC,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": _after(bundle)},
        "grad": "$torch.set_grad_enabled(False)",
        "segment": "$lambda image: (lambda said: @postprocessing({**said, 'pred': "
        "@inferer(said['image'][None].to(@device), @network)[0].cpu()}))"
        "(@preprocessing({'image': image}))",
        "run": ["$@grad", "$list(map(@segment, @images)) and None"],
    }


def _before(bundle: ModelBundle) -> list[dict]:
    from brainseg_bids.inference.views import MARGIN_MM  # late: torch

    cell = max(1, round(POOLED_MM / bundle.voxel_size_mm))
    return [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {
            "_target_": "Spacingd",
            "keys": "image",
            "pixdim": [bundle.voxel_size_mm] * 3,
            "mode": "bilinear",
        },
        {
            "_target_": "CropForegroundd",
            "keys": "image",
            "source_key": "image",
            "select_fn": HEAD.format(share=AIR_SHARE, cell=cell),
            "margin": round(MARGIN_MM / bundle.voxel_size_mm),
            "allow_smaller": True,
        },
        {
            "_target_": "ScaleIntensityRangePercentilesd",
            "keys": "image",
            "lower": 100 * LOW,
            "upper": 100 * HIGH,
            "b_min": 0.0,
            "b_max": 1.0,
            "clip": True,
        },
    ]


def _after(bundle: ModelBundle) -> list[dict]:
    codes = [int(code) for code in bundle.table.codes]
    return [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "MapLabelValued",
            "keys": "pred",
            "orig_labels": list(range(len(codes))),
            "target_labels": codes,
        },
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "dseg",
            "output_dtype": "$__import__('numpy').int16",
            "resample": False,
            "separate_folder": False,
        },
    ]
