# SPDX-License-Identifier: Apache-2.0
"""Train a model in a process of its own.

``python -m brainseg_bids.cli.train --plan FILE --heads FILES --validation FILES --out DIR``
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path


def fitted_on(space) -> set[str]:
    """Hashes of the images that a recipe space was fitted on; none if on none."""
    prior = getattr(space, "prior", None)
    images = prior.images if prior is not None else ()
    return {said["voxels"] for said in images if said.get("voxels")}


def main(argv: list[str] | None = None) -> int:
    """Read label maps, train, leave the checkpoint in ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="TrainPlan as JSON")
    parser.add_argument(
        "--heads", type=Path, nargs="+", required=True, help="label maps to learn from"
    )
    parser.add_argument(
        "--validation", type=Path, nargs="+", required=True, help="label maps held out"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and log")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    parser.add_argument(
        "--start-from", type=Path, help="checkpoint whose averaged weights to begin from"
    )
    options = parser.parse_args(argv)
    try:
        return _train(options)
    except (OSError, ValueError) as error:
        print(f"train: ERROR: {error}", file=sys.stderr)
        return 2


def _train(options: argparse.Namespace) -> int:
    """Read, train."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    import torch

    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.bids.description import write_text
    from brainseg_bids.cli.bundle import SEEN, read_seen
    from brainseg_bids.synth.generator import Head
    from brainseg_bids.synth.space import read_space
    from brainseg_bids.training.fit import TrainPlan, averaged_net, fit, make_generator
    from brainseg_bids.volumes import read_label_map, voxel_hash

    if options.threads:
        torch.set_num_threads(options.threads)
    plan = TrainPlan.from_json(options.plan.read_text())
    table = LabelTable.packaged(plan.source_table)

    generator = make_generator(plan)

    seen: set[str] = set()

    def read(paths: list[Path]) -> list[Head]:
        maps = [read_label_map(path, table) for path in paths]
        for path, labels in zip(paths, maps, strict=True):
            generator.check_codes(labels, what=str(path))
            seen.add(voxel_hash(labels.voxels, labels.grid))
        return [Head.from_label_map(labels) for labels in maps]

    start = averaged_net(plan, options.start_from) if options.start_from else None
    heads, held_out = read(options.heads), read(options.validation)
    spaces = (*plan.spaces, plan.validation_space)
    seen |= {h for name in spaces for h in fitted_on(read_space(name))}
    # What went before this stretch, or lent its weights, was seen, too.
    for run in filter(None, (options.out, options.start_from and options.start_from.parent)):
        seen |= set(read_seen(run) or ())
    write_text(options.out / SEEN, json.dumps(sorted(seen), indent=1) + "\n")
    fit(plan, heads, held_out, options.out, start_from=start)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
