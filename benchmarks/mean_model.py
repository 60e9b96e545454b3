# SPDX-License-Identifier: Apache-2.0
"""A model whose weights are the mean of those of several models of one network.

``python -m benchmarks.mean_model --models FIRST SECOND [THIRD ...] --name NAME --out FOLDER``

Models that were trained one from another lie in one basin of the loss, where the mean of their
weights is often better than each (Wortsman et al., Model soups, ICML 2022). The mean has seen what
all of them have seen. Its card and training record, the calibration of volumes included, are those
of the last model, with the digests of all (``mean_of``); it has no calibrated confidence.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from brainseg_bids.nets.bundle import ModelBundle, find_bundle, write_bundle


def mean_model(models: list[ModelBundle], name: str, out: Path) -> ModelBundle:
    """Write the bundle of the mean of all weights.

    Raises
    ------
    ValueError
        If there are fewer than two models, they differ in network, labels or purpose, or there
        is something at ``out``.
    """
    if out.exists():
        raise ValueError(f"{out}: exists already. Choose another folder, or remove it.")
    if len(models) < 2:
        raise ValueError("give at least two models")
    last = models[-1]
    for other in models:
        if what := [key for key, value in _shared(last).items() if _shared(other)[key] != value]:
            raise ValueError(f"{other.path}: {', '.join(what)} differ from those of {last.path}")
    nets = [model.load() for model in models]
    weights = [net.weights() for net in nets]
    nets[-1].load_weights({key: sum(w[key] for w in weights) / len(weights) for key in weights[0]})
    manifest = json.loads((last.path / "bundle.json").read_text(encoding="utf-8"))
    known = all(model.seen is not None for model in models)
    return write_bundle(
        out,
        name=name,
        net=nets[-1],
        table=last.table,
        voxel_size_mm=last.voxel_size_mm,
        patch_vox=last.patch_vox,
        contrasts=last.contrasts,
        card=last.card,
        training=manifest["training"] | {"mean_of": [model.digest for model in models]},
        seen=set().union(*(model.seen for model in models)) if known else None,
    )


def _shared(model: ModelBundle) -> dict[str, object]:
    return {
        "network": model.net,
        "labels": list(model.table),
        "voxel size": model.voxel_size_mm,
        "patch": model.patch_vox,
        "contrasts": model.contrasts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, help="packaged names or folders")
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the new bundle")
    options = parser.parse_args()
    try:
        models = [ModelBundle.read(find_bundle(model)) for model in options.models]
        bundle = mean_model(models, options.name, options.out)
    except ValueError as error:
        parser.error(str(error))
    print(f"{bundle.path}: {bundle.name}, digest {bundle.digest[:12]}")


if __name__ == "__main__":
    main()
