# SPDX-License-Identifier: Apache-2.0
"""``ModelBundle``: weights with all that is needed to use them honestly.

A bundle is a folder: ``weights.safetensors``, ``labels.tsv``, ``README.md`` (the model card)
and ``bundle.json``, which holds the SHA-256 of the other three. The SHA-256 of
``bundle.json`` is therefore the digest of the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.anatomy.labels import LabelTable

if TYPE_CHECKING:
    from torch import Tensor

    from brainseg_bids.nets.architectures import PackedNet

DEFAULT_MODELS = ("head-1mm", "head-0.8mm", "head-flair")
"""Packaged models; which of them an image gets: `workflows.segment_plan.model_for`."""
DEFAULT_MODEL = DEFAULT_MODELS[0]
"""For whatever has one model only, as ensembles."""
FORMAT = 1
WEIGHTS, LABELS, CARD, MANIFEST = "weights.safetensors", "labels.tsv", "README.md", "bundle.json"


class BundleError(ValueError):
    """A model bundle that cannot be used; the message says why and what to do."""


_KEYS = ("name", "label_table", "voxel_size_mm", "patch_vox", "contrasts", "net", "sha256")


def packaged_models() -> dict[str, Path]:
    """Models that come with the package, by name."""
    folder = Path(str(resources.files("brainseg_bids"))) / "data" / "models"
    if not folder.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))}


def find_bundle(name_or_path: str | Path) -> Path:
    """Folder of a bundle, from a packaged model's name or from a path.

    Raises
    ------
    BundleError
        If there is neither.
    """
    # A packaged name comes first: a folder that happens to have it is given as ./NAME.
    packaged = packaged_models()
    if str(name_or_path) in packaged:
        return packaged[str(name_or_path)]
    path = Path(name_or_path)
    if (path / MANIFEST).is_file():
        return path.resolve()
    known = ", ".join(packaged) or "none"
    raise BundleError(
        f"{name_or_path}: no model of that name and no folder with a {MANIFEST}. "
        f"Give a model folder, or one of the packaged models: {known}."
    )


@dataclass(frozen=True)
class ModelBundle:
    """A model as it lies on disk.

    Parameters
    ----------
    path : Path
    name : str
    digest : str
        SHA-256 of ``bundle.json``, hex.
    table : LabelTable
        What the network says; channel order is the order of codes.
    voxel_size_mm : float
        Of the grid that the network works on.
    patch_vox : tuple of 3 int
        Window it was trained with.
    contrasts : tuple of str
        BIDS suffixes that it was made for.
    net : dict
        `brainseg_bids.nets.architectures.NetSpec` as a dict.
    card : str
        Text of the model card.
    seen : frozenset of str or None
        `volumes.voxel_hash` of every image and label map that it was trained or fitted on; None:
        it does not say.
    """

    path: Path
    name: str
    digest: str
    table: LabelTable
    voxel_size_mm: float
    patch_vox: tuple[int, int, int]
    contrasts: tuple[str, ...]
    net: dict
    card: str
    seen: frozenset[str] | None = None

    @classmethod
    def read(cls, path: str | Path) -> ModelBundle:
        """Read and check a bundle; weights stay on disk until `load`.

        Raises
        ------
        BundleError
            If files are missing, of a newer format, or not those the manifest was made for.
        """
        path = Path(path)
        try:
            text = (path / MANIFEST).read_text(encoding="utf-8")
            manifest = json.loads(text)
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{path}: {MANIFEST} cannot be read ({error}). Fetch the model again."
            ) from error
        if not isinstance(manifest, dict):
            raise BundleError(f"{path}: {MANIFEST} is no bundle's. Fetch the model again.")
        if manifest.get("format") != FORMAT:
            raise BundleError(
                f"{path}: bundle format {manifest.get('format')} is not {FORMAT}, the one that "
                "this version reads. Install the version of brainseg-bids that made it."
            )
        missing = {*_KEYS} - set(manifest) or {WEIGHTS, LABELS, CARD} - set(manifest["sha256"])
        if missing:
            raise BundleError(
                f"{path}: {MANIFEST} says nothing of {min(missing)}. Fetch the model again."
            )
        for name, expected in manifest["sha256"].items():
            file = path / name
            if not file.is_file():
                raise BundleError(f"{path}: {name} is missing. Fetch the model again.")
            if _sha256(file.read_bytes()) != expected:
                raise BundleError(
                    f"{path}: {name} is not the file that this bundle was made with (its SHA-256 "
                    "differs). Fetch the model again."
                )
        return cls(
            path=path,
            name=manifest["name"],
            digest=_sha256(text.encode()),
            table=LabelTable.read(path / LABELS, name=manifest["label_table"]),
            voxel_size_mm=manifest["voxel_size_mm"],
            patch_vox=tuple(manifest["patch_vox"]),
            contrasts=tuple(manifest["contrasts"]),
            net=manifest["net"],
            card=(path / CARD).read_text(encoding="utf-8"),
            seen=frozenset(manifest["seen"]) if "seen" in manifest else None,
        )

    def load(self, device: str = "cpu") -> PackedNet:
        """Network with its weights, in evaluation mode, float32."""
        from safetensors.torch import load_file

        from brainseg_bids.nets.architectures import NetSpec, build

        net = build(NetSpec(**self.net))
        state = load_file(self.path / WEIGHTS, device="cpu")
        try:
            net.load_weights(state)
        except ValueError as error:
            raise BundleError(f"{self.path}: {error}. Fetch the model again.") from error
        return net.eval().to(device)


def write_bundle(
    path: str | Path,
    *,
    name: str,
    net: PackedNet,
    table: LabelTable,
    voxel_size_mm: float,
    patch_vox: tuple[int, int, int],
    contrasts: tuple[str, ...],
    card: str,
    training: dict,
    seen: Collection[str] | None = None,
) -> ModelBundle:
    """Write a bundle; weights are stored as float16.

    Parameters
    ----------
    seen : collection of str
        As of `ModelBundle`.
    training : dict
        How it came to be (plan, steps, label maps by name): kept in the manifest.

    Raises
    ------
    BundleError
        If a weight is not a number or too large for float16; nothing is written then.
    """
    from safetensors.torch import save

    path = Path(path)
    stored = {key: _as_half(weight, key, path) for key, weight in net.weights().items()}
    path.mkdir(parents=True, exist_ok=True)
    # Not by the library's own writer: a full disk is no OSError there.
    (path / WEIGHTS).write_bytes(save(stored))
    table.write(path / LABELS)
    (path / CARD).write_text(card, encoding="utf-8")
    manifest = {
        "format": FORMAT,
        "name": name,
        "label_table": table.name,
        "voxel_size_mm": voxel_size_mm,
        "patch_vox": list(patch_vox),
        "contrasts": list(contrasts),
        "net": asdict(net.spec),
        "intensity": "0.5th to 99.5th percentile to 0..1, clipped",
        "training": training,
        "sha256": {n: _sha256((path / n).read_bytes()) for n in (WEIGHTS, LABELS, CARD)},
    }
    if seen is not None:
        manifest["seen"] = sorted(seen)
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return ModelBundle.read(path)


def _as_half(weight: Tensor, key: str, path: Path) -> Tensor:
    """Weight as float16 on the CPU; integers stay what they are."""
    if not weight.is_floating_point():
        return weight.cpu().contiguous()
    half = weight.half()
    if not half.isfinite().all():
        worst = float(weight.nan_to_num(float("inf"), float("inf"), float("-inf")).abs().max())
        what = f"reaches {worst:.3g}" if worst < float("inf") else "is not finite"
        raise BundleError(
            f"{path}: weight {key} {what}, which float16 (up to 65504) cannot store; no bundle "
            "was written. Take an earlier checkpoint or train with a smaller learning rate."
        )
    return half.cpu().contiguous()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
