# SPDX-License-Identifier: Apache-2.0
"""Make a model bundle of a training run's averaged weights.

``python -m brainseg_bids.cli.bundle --run DIR --name mine --contrasts T1w --card FILE --out DIR``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SEEN = "seen.json"


def read_seen(run: Path) -> list[str] | None:
    """Hashes of what a run was trained on, as `brainseg_bids.cli.train` has left them."""
    path = run / SEEN
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main(argv: list[str] | None = None) -> int:
    """Read ``plan.json`` and ``last.ckpt`` of a run, write the bundle, print its digest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder that training left")
    parser.add_argument("--name", required=True, help="name of the model")
    parser.add_argument(
        "--contrasts", nargs="+", required=True, help="BIDS suffixes it is made for"
    )
    parser.add_argument("--card", type=Path, required=True, help="model card, Markdown")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    options = parser.parse_args(argv)

    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.nets.bundle import write_bundle
    from brainseg_bids.training.fit import TrainPlan, averaged_net, steps_done

    plan = TrainPlan.from_json((options.run / "plan.json").read_text())
    checkpoint = options.run / "last.ckpt"
    steps = steps_done(checkpoint)
    bundle = write_bundle(
        options.out,
        name=options.name,
        net=averaged_net(plan, checkpoint),
        table=LabelTable.packaged(plan.target_table),
        voxel_size_mm=plan.voxel_size_mm,
        patch_vox=plan.patch_vox,
        contrasts=tuple(options.contrasts),
        card=options.card.read_text(encoding="utf-8"),
        training={"plan": json.loads(plan.to_json()), "steps": steps},
        seen=read_seen(options.run),
    )
    print(f"{bundle.path}: {bundle.name}, {steps} steps, digest {bundle.digest[:12]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
