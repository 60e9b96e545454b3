# SPDX-License-Identifier: Apache-2.0
"""FreeSurfer's ``recon-all``: results that are there are reused, it is never run.

Its cortex comes from surfaces; ``24`` is fluid within the brain only.
"""

from __future__ import annotations

from brainseg_bids.interfaces.tools.base import Tool, ToolInterface


class Freesurfer(ToolInterface):
    """Only says that ``recon-all`` is not run here."""

    name = "freesurfer"


TOOL = Tool(
    name="freesurfer",
    program=(),
    regions=frozenset({"brain"}),
    same_grid=False,
    posteriors=False,
    licence="FreeSurfer",
    about="*FreeSurfer* [@fischl2012]",
    how_to_get="Run recon-all yourself and give its folder: -d freesurfer=SUBJECTS_DIR.",
    mem_base_gb=1.0,
    mem_gb_per_mvox=0.0,
    max_threads=1,
    gpu=False,
    existing=(
        "{id}/mri/aparc+aseg.mgz",
        "{id}/mri/aseg.mgz",
        "{bids}*_desc-aparcaseg_dseg.nii.gz",
        "{bids}*_desc-aseg_dseg.nii.gz",
    ),
    interface=Freesurfer,
)
