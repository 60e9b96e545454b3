# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``charm`` of SimNIBS 4: files, header checks and refusals as there."""

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from behaviour import Switches, head_on, read_grid, recode, save


def check_forms(scan, force_qform: bool, force_sform: bool) -> None:
    """What charm demands of a header, in its words."""
    if scan.get_qform(coded=True)[1] <= 0 and not force_sform:
        raise ValueError(
            "The qform_code is 0. Please check the header of the input scan. "
            "You can use the sform instead by using --forcesform option."
        )
    if np.allclose(scan.get_qform(), scan.get_sform(), rtol=1e-5, atol=1e-6):
        return
    if not (force_qform or force_sform):
        raise ValueError(
            "The qform and sform matrices do not match. Please run charm with the --forceqform "
            "(preferred) or --forcesform option"
        )
    if force_sform and scan.get_sform(coded=True)[1] <= 0:
        raise ValueError(
            "The sform_code is 0, but you are forcing it. Please check the header of the input."
        )


def main() -> None:
    switches = Switches(sys.argv[1:])
    parser = argparse.ArgumentParser()
    parser.add_argument("subid")
    parser.add_argument("t1")
    parser.add_argument("t2", nargs="?")
    for name in (
        "forceqform",
        "forcesform",
        "forcerun",
        "initatlas",
        "segment",
        "surfaces",
        "mesh",
    ):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--usesettings")
    options = parser.parse_args(switches.arguments)
    print("[ simnibs ]INFO: simnibs version 4.1.0")
    m2m = Path(f"m2m_{options.subid}")
    if m2m.exists() and not options.forcerun:
        raise RuntimeError(f"ERROR: --forcerun has to be set to overwrite existing {m2m} folder.")
    m2m.mkdir(exist_ok=True)
    (m2m / "segmentation").mkdir()
    scan = nib.load(options.t1)
    check_forms(scan, options.forceqform, options.forcesform)
    nib.save(nib.Nifti1Image(np.float32(scan.dataobj), scan.affine), m2m / "T1.nii.gz")
    text = Path(options.usesettings).read_text() if options.usesettings else "threads = 8\n"
    (m2m / "settings.ini").write_text(text)
    switches.fail_early(options.t1)
    grid = read_grid(options.t1)
    labels = recode(head_on(grid), {24: 520})
    # Masked air within the atlas' box is 517; beyond it is 0.
    box = np.zeros(labels.shape, dtype=bool)
    box[:, 2:-2, 2:] = True
    labels[box & (labels == 0)] = 517
    save(labels.astype(np.float32), grid, m2m / "segmentation" / "labeling.nii.gz", switches)
    (m2m / "segmentation" / "labeling_LUT.txt").write_text("517 Background 0 168 255 0\n")
    (m2m / "charm_log.html").write_text("<HTML></HTML>")


if __name__ == "__main__":
    main()
