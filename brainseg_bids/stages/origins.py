# SPDX-License-Identifier: Apache-2.0
"""Whether results that are put side by side were made alike, from images as they are now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from brainseg_bids.bids.description import raw_path
from brainseg_bids.bids.names import Scan, sidecar
from brainseg_bids.pointers import pointer_kind
from brainseg_bids.stages.jobs import date_and_size, is_unchanged, read_object
from brainseg_bids.units import listed

SHOWN = 3
"""Images that a sentence names."""


def doubts(results: Mapping[str, Path], bids_dir: Path | None = None) -> list[str]:
    """Sentences about results that do not belong together, or whose images are others by now.

    The participant level makes such results again, but only those of the participants that it is
    asked for, and it removes none.

    Parameters
    ----------
    results : mapping of str to Path
        Title of an image to a file made from it, beside which a JSON says how.
    bids_dir : Path, optional
        Root of the images; without it they are not looked at.
    """
    described = {title: read_object(sidecar(path)) for title, path in results.items()}
    described = {title: said for title, said in described.items() if said}
    of_others = _of_other_images(described, bids_dir) if bids_dir else ()
    return [*_made_unlike(described), *_of_several_models(described), *of_others]


def _made_unlike(described: Mapping[str, Mapping]) -> Iterator[str]:
    ways: dict[str, dict[str, list[str]]] = {}
    for title, said in described.items():
        for what, way in _ways(said).items():
            ways.setdefault(what, {}).setdefault(way, []).append(title)
    differing = [
        f"{what} {' and '.join(f'{way} ({listed(who, SHOWN)})' for way, who in found.items())}"
        for what, found in ways.items()
        if len(found) > 1
    ]
    if differing:
        yield (
            f"results were not made alike: {'; '.join(differing)}. Run the participant level "
            "again for all of them."
        )


def _ways(said: Mapping) -> dict[str, str]:
    """How a result was made; images of other voxels or contrasts may have another model."""
    models = [said, *(one for one in said.get("Ensemble") or () if isinstance(one, Mapping))]
    by_name = {
        str(one["ModelName"]): str(one.get("ModelDigest")) for one in models if "ModelName" in one
    }
    return {
        "version": str(said.get("BrainsegVersion")),
        "flips": "yes" if said.get("TestTimeFlips") else "no",
        "number of models": str(len(by_name)),
        "tools": "+".join(str(said[key]) for key in ("HeadTool", "BrainTool") if key in said),
        **{f"model {name}": digest[:12] for name, digest in by_name.items()},
    }


def _of_several_models(described: Mapping[str, Mapping]) -> Iterator[str]:
    """Images of one contrast have several models if their voxels differ: their volumes, too."""
    found: dict[str, dict[str, list[str]]] = {}
    for title, said in described.items():
        if "ModelName" in said and said.get("Input"):
            suffix = Scan.from_path(str(said["Input"])).suffix
            found.setdefault(suffix, {}).setdefault(str(said["ModelName"]), []).append(title)
    for suffix, models in found.items():
        if len(models) > 1:
            shown = [f"{name} ({listed(who, SHOWN)})" for name, who in sorted(models.items())]
            yield (
                f"{suffix} images were segmented by different models, chosen by their voxel size: "
                f"{' and '.join(shown)}. Volumes may differ by the model, too: compare images of "
                "one model, or segment all with the same one (--model)."
            )


def _of_other_images(described: Mapping[str, Mapping], bids_dir: Path) -> Iterator[str]:
    gone, changed = [], []
    for title, said in described.items():
        image = raw_path(str(said.get("Input", "")), bids_dir)
        with contextlib.suppress(OSError):  # nobody knows
            if image is None or pointer_kind(image):
                continue
            if not image.exists():
                gone.append(title)
            elif _has_changed(image, said):
                changed.append(title)
    if gone:
        yield (
            f"{bids_dir} no longer has the image of {listed(gone, SHOWN)}. Remove the results if "
            "it was withdrawn or renamed."
        )
    if changed:
        yield (
            f"the image of {listed(changed, SHOWN)} has changed since its results were made. Run "
            "the participant level again."
        )


def _has_changed(image: Path, said: Mapping) -> bool:
    """Whether an image is another one; it is read only if its size tells nothing, and its date."""
    now = date_and_size(image)
    if now["InputBytes"] != said.get("InputBytes", now["InputBytes"]):
        return True
    same = "InputModified" in now and said.get("InputModified") == now["InputModified"]
    return not same and not is_unchanged(image, said)
