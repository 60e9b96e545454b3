# SPDX-License-Identifier: Apache-2.0
"""``ModelBundle``: a trained model as a folder, with label table, model card and digests.

A bundle has the files ``weights.safetensors``, ``labels.tsv``, ``README.md`` (the model card)
and ``bundle.json``, which holds the SHA-256 of the others. The SHA-256 of ``bundle.json`` is
therefore the digest of the whole bundle. ``confidence.json`` is optional: the calibration of the
model's probabilities, see `brainseg_bids.evaluation.confidence`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import (
    InputError,
    Items,
    Kind,
    Number,
    Object,
    Text,
    check,
    read_json,
    read_text,
)

if TYPE_CHECKING:
    from torch import Tensor

    from brainseg_bids.nets.architectures import PackedNet

DEFAULT_MODELS = ("head-1mm", "head-0.8mm", "head-flair")
"""Models of the package; `brainseg_bids.stages.models.model_for` chooses one of them for an
image."""
DEFAULT_MODEL = DEFAULT_MODELS[0]
"""Model for functions that use a single model, such as ensembles."""
FORMAT = 1
WEIGHTS, LABELS, CARD, MANIFEST = "weights.safetensors", "labels.tsv", "README.md", "bundle.json"
CONFIDENCE = "confidence.json"


class BundleError(ValueError):
    """A model bundle that cannot be used; the message gives reason and remedy."""


_KINDS: dict[str, Kind] = {
    "name": Text(),
    "label_table": Text(),
    "voxel_size_mm": Number(0.1, 10, "mm"),
    "patch_vox": Items(Number(8, 1024, whole=True), count=3),
    "contrasts": Items(Text()),
    "net": Object(),
    "sha256": Object(Text()),
    "seen": Items(Text()),
}
_OPTIONAL = ("seen",)
_NET_KINDS: dict[str, Kind] = {
    "architecture": Text(),
    "n_labels": Number(2, 32768, whole=True),
    "stem": Number(1, 8, whole=True),
    "features": Number(1, 4096, whole=True),
    "options": Object(Items(Number(0, 4096, whole=True), or_one=True)),
}
LARGEST_WINDOW_VOX = 400**3
"""Largest patch of a bundle: larger ones are errors that would exhaust the memory."""


def packaged_models() -> dict[str, Path]:
    """Folders of the models of the package, by name."""
    folder = Path(str(resources.files("brainseg_bids"))) / "data" / "models"
    if not folder.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))}


def find_bundle(name_or_path: str | Path) -> Path:
    """Folder of a bundle, from the name of a packaged model or from a path.

    Raises
    ------
    BundleError
        If there is no such model or bundle.
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
    """A trained model on disk.

    Parameters
    ----------
    path : Path
    name : str
    digest : str
        SHA-256 of ``bundle.json`` as hexadecimal digits.
    table : LabelTable
        Labels of the network; channels are in the order of codes.
    voxel_size_mm : float
        Voxel size of the grid that the network works on.
    patch_vox : tuple of 3 int
        Patch size of the training.
    contrasts : tuple of str
        BIDS suffixes that the model is meant for.
    net : dict
        `brainseg_bids.nets.spec.NetSpec` as a dictionary.
    card : str
        Text of the model card.
    seen : frozenset of str or None
        `images.voxel_hash` of every image and label map used in training or calibration; None if
        unknown.
    confidence : str
        Text of ``confidence.json``; empty if there is none.
    """

    path: Path
    name: str
    digest: str
    table: LabelTable
    voxel_size_mm: float
    patch_vox: tuple[int, int, int]
    contrasts: tuple[str, ...]
    net: dict[str, Any]
    card: str
    seen: frozenset[str] | None = None
    confidence: str = ""

    @classmethod
    def read(cls, path: str | Path) -> ModelBundle:
        """Bundle from its folder, after checks of all files; weights are read by `load`.

        Raises
        ------
        BundleError
            If files are missing, were changed, or are of another format.
        """
        path = Path(path)
        try:
            manifest = read_json(path / MANIFEST)
            data = (path / MANIFEST).read_bytes()
        except (OSError, InputError) as error:
            raise _damaged(path, error) from error
        if manifest.get("format") != FORMAT:
            raise BundleError(
                f"{path}: bundle format {manifest.get('format')} is not {FORMAT}, the one that "
                "this version reads. Install the version of brainseg-bids that made it."
            )
        _check_manifest(path, manifest)
        for name, expected in manifest["sha256"].items():
            file = path / name
            if not file.is_file():
                raise _damaged(path, f"{name} is missing")
            try:
                content = file.read_bytes()
            except OSError as error:
                raise BundleError(
                    f"{file}: cannot be read ({error.strerror}). Check permissions and disk."
                ) from error
            if _sha256(content) != expected:
                raise _damaged(
                    path, f"{name} is not the file that it was made with (its SHA-256 differs)"
                )
        _check_weights(path)
        try:
            table = LabelTable.read(path / LABELS, name=manifest["label_table"])
            card = read_text(path / CARD)
            calibrated = CONFIDENCE in manifest["sha256"]
            confidence = read_text(path / CONFIDENCE) if calibrated else ""
        except ValueError as error:
            raise _damaged(path, error) from error
        _check_table(path, table, manifest["net"])
        return cls(
            path=path,
            name=manifest["name"],
            digest=_sha256(data),
            table=table,
            voxel_size_mm=manifest["voxel_size_mm"],
            patch_vox=tuple(manifest["patch_vox"]),
            contrasts=tuple(manifest["contrasts"]),
            net=manifest["net"],
            card=card,
            seen=frozenset(manifest["seen"]) if "seen" in manifest else None,
            confidence=confidence,
        )

    def load(self, device: str = "cpu") -> PackedNet:
        """Network with its weights, in evaluation mode and float32.

        Raises
        ------
        BundleError
            If the weights are not those of the network.
        """
        from safetensors.torch import load_file

        net = self._build()
        try:
            net.load_weights(load_file(self.path / WEIGHTS, device="cpu"))
        except ValueError as error:
            raise _damaged(self.path, error) from error
        return net.eval().to(device)

    def check_network(self) -> None:
        """Raise an error unless network, weights and patch size are consistent.

        Only shapes of weights are read, but PyTorch is imported.

        Raises
        ------
        BundleError
            If weights have other names or shapes, or the patch size does not fit the network.
        """
        import torch
        from safetensors import safe_open

        from brainseg_bids.nets.sizes import patch_multiple

        with torch.device("meta"):
            net = self._build()
        own = {name: list(weight.shape) for name, weight in net.weights().items()}
        with safe_open(self.path / WEIGHTS, framework="np") as file:
            there = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        odd = sorted(name for name in {*own, *there} if own.get(name) != there.get(name))
        if odd:
            raise _damaged(
                self.path, f"its weights are of another network ({len(odd)} differ, e.g. {odd[0]})"
            )
        multiple = patch_multiple(net.spec)
        if any(edge % multiple for edge in self.patch_vox):
            raise _damaged(
                self.path, f"patch_vox is {list(self.patch_vox)}: give multiples of {multiple}"
            )

    def _build(self) -> PackedNet:
        from brainseg_bids.nets.architectures import build
        from brainseg_bids.nets.spec import NetSpec

        try:
            return build(NetSpec.from_dict(self.net))
        except ImportError:  # a library that the architecture needs; the message says which
            raise
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise _damaged(self.path, f"net cannot be built ({why})") from error


def _damaged(path: Path, why: object) -> BundleError:
    text = str(why).rstrip(".").removesuffix(". Correct it")
    return BundleError(f"{path}: this bundle is damaged: {text}. Fetch the model again.")


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Raise `BundleError` unless each key is there and of its kind."""
    missing = set(_KINDS) - set(manifest) - set(_OPTIONAL)
    try:
        if missing:
            raise InputError(f"{MANIFEST} has no {min(missing)}")
        check(manifest, _KINDS, MANIFEST)
        check(manifest["net"], _NET_KINDS, f"{MANIFEST}: net")
        if lacking := {WEIGHTS, LABELS, CARD} - set(manifest["sha256"]):
            raise InputError(f"{MANIFEST} has no digest of {min(lacking)}")
        if any("/" in name or name.startswith(".") for name in manifest["sha256"]):
            raise InputError(f"{MANIFEST}: sha256 names a file elsewhere")
        if math.prod(manifest["patch_vox"]) > LARGEST_WINDOW_VOX:
            raise InputError(f"{MANIFEST}: patch_vox is larger than a head of fine voxels")
    except InputError as error:
        raise _damaged(path, error) from error


def _check_weights(path: Path) -> None:
    """Raise `BundleError` unless the file holds finite numbers."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / WEIGHTS, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                weight = file.get_tensor(name)
                if weight.dtype.kind == "f" and not np.isfinite(weight).all():
                    raise _damaged(path, f"weight {name} is not finite")
    except (SafetensorError, OSError, TypeError) as error:
        raise _damaged(path, f"{WEIGHTS} cannot be read ({error})") from error


def _check_table(path: Path, table: LabelTable, net: dict[str, Any]) -> None:
    """Raise `BundleError` unless the table serves the network, and its colours are colours."""
    n_labels = net.get("n_labels", len(table))
    if len(table) < 2 or 0 not in table:
        raise _damaged(path, f"{LABELS} lacks the background (index 0) or all other labels")
    if n_labels != len(table):
        raise _damaged(path, f"{LABELS} has {len(table)} labels, the network {n_labels}")
    for label in table:
        if not 0 <= label.mapping <= 11:
            raise _damaged(path, f"{LABELS}: mapping of {label.name} is {label.mapping}")
        if not re.fullmatch("#[0-9a-fA-F]{6}", label.color):
            raise _damaged(
                path, f"{LABELS}: color of {label.name} is {label.color!r}: give #rrggbb"
            )


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
    training: dict[str, Any],
    seen: Collection[str] | None = None,
) -> ModelBundle:
    """Write a bundle and return it; weights are stored as float16.

    Parameters
    ----------
    path : path
        Folder of the bundle.
    name, net, table, voxel_size_mm, patch_vox, contrasts, card, seen
        As in `ModelBundle`.
    training : dict
        Description of the training for the manifest: plan, steps, names of label maps.

    Raises
    ------
    BundleError
        If a weight is NaN, infinite or too large for float16; nothing is written then.
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
        "net": net.spec.to_dict(),
        "intensity": "0.5th to 99.5th percentile to 0..1, clipped",
        "training": training,
        "sha256": {n: _sha256((path / n).read_bytes()) for n in (WEIGHTS, LABELS, CARD)},
    }
    if seen is not None:
        manifest["seen"] = sorted(seen)
    _write_manifest(path, manifest)
    return ModelBundle.read(path)


def add_confidence(path: str | Path, text: str) -> ModelBundle:
    """Write or replace ``confidence.json`` of a bundle, which changes its digest.

    If this is interrupted, the bundle remains valid, possibly without ``confidence.json``.
    """
    path = Path(path)
    ModelBundle.read(path)
    manifest = read_json(path / MANIFEST)
    manifest["sha256"].pop(CONFIDENCE, None)
    _write_manifest(path, manifest)
    (path / CONFIDENCE).write_text(text, encoding="utf-8")
    manifest["sha256"][CONFIDENCE] = _sha256(text.encode())
    _write_manifest(path, manifest)
    return ModelBundle.read(path)


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    fresh = path / f".{MANIFEST}"
    fresh.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path / MANIFEST)


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


def read_models(names: Sequence[str | Path]) -> list[ModelBundle]:
    """Bundles of an ensemble, whose probabilities can be averaged, in the given order.

    Raises
    ------
    BundleError
        If a bundle cannot be read, is given twice, or has other labels than the first.
    """
    bundles = [ModelBundle.read(find_bundle(name)) for name in names]
    first, *others = bundles
    for number, other in enumerate(others, start=1):
        if other.digest in {bundle.digest for bundle in bundles[:number]}:
            raise BundleError(
                f"{other.path}: model {other.name} is in the ensemble twice. Name each model once."
            )
        if differs := _differing_labels(first.table, other.table):
            raise BundleError(
                f"{other.path}: its labels are not those of model {first.name} ({differs}). "
                "Models of an ensemble have one label table; leave it out."
            )
    return bundles


def _differing_labels(one: LabelTable, other: LabelTable) -> str:
    """How many labels differ in code, name or side, and one of them; empty if none does."""
    ours, theirs = (
        {(label.index, label.name, label.mirror) for label in table} for table in (one, other)
    )
    odd = sorted(ours ^ theirs)
    return f"{len(odd)} differ, e.g. {odd[0][0]} {odd[0][1]}" if odd else ""
