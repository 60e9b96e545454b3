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
    regions=frozenset({"brain"}),
    licence="FreeSurfer",
    about="*FreeSurfer* [@fischl2012]",
    how_to_get="Run recon-all yourself and give its folder: -d freesurfer=SUBJECTS_DIR.",
    existing=(
        "{id}/mri/aparc+aseg.mgz",
        "{id}/mri/aseg.mgz",
        "{bids}*_desc-aparcaseg_dseg.nii.gz",
        "{bids}*_desc-aseg_dseg.nii.gz",
    ),
    interface=Freesurfer,
)
