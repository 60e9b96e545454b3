# SPDX-License-Identifier: Apache-2.0
"""A small TemplateFlow home; nothing in it is anatomical."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.fakes.dataset import write_image

NAME = "MNI152NLin2009cAsym"
REGISTER = "ants=" + shlex.join([sys.executable, str(Path(__file__).parent / "register.py")])


def write_home(
    home: Path, *, name: str = NAME, resolutions=("01", "02"), mask: bool = True
) -> Path:
    """A home with one template: a box as in `tests.fakes.dataset`, voxels of 5 mm and coarser."""
    folder = home / f"tpl-{name}"
    folder.mkdir(parents=True)
    said = {"Name": name, "BIDSVersion": "1.8.0", "res": {res: {} for res in resolutions}}
    (folder / "template_description.json").write_text(json.dumps(said))
    for res in resolutions:
        image = folder / f"tpl-{name}_res-{res}_T1w.nii.gz"
        size_mm = 4.0 + float(res)
        write_image(image, shape=(20, 22, 18), voxel_size_mm=size_mm)
        if mask:
            loaded = nib.load(image)
            brain = nib.Nifti1Image((loaded.get_fdata() > 100).astype(np.uint8), loaded.affine)
            nib.save(brain, folder / f"tpl-{name}_res-{res}_desc-brain_mask.nii.gz")
    # TemplateFlow's skeleton: names of what could be fetched, without content. And by DataLad.
    (folder / f"tpl-{name}_res-03_T1w.nii.gz").touch()
    (folder / f"tpl-{name}_res-04_T1w.nii.gz").symlink_to("../.git/annex/objects/a")
    return home


def use_home(home: Path, monkeypatch) -> Path:
    """Make a home the one that TemplateFlow looks into, even if it has been imported."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    if "niworkflows.utils.spaces" in sys.modules:
        from niworkflows.utils.spaces import Reference

        names = tuple(path.name.removeprefix("tpl-") for path in home.glob("tpl-*"))
        monkeypatch.setattr(Reference, "_standard_spaces", names)
    return home
