# SPDX-License-Identifier: Apache-2.0
"""Label maps of the whole head that the user has already, in codes of ``fullhead``."""

from __future__ import annotations

from brainseg_bids.interfaces.tools.base import Tool, ToolInterface


class Fullhead(ToolInterface):
    """Only says that there is nothing to run."""

    name = "fullhead"


TOOL = Tool(
    name="fullhead",
    regions=frozenset({"head", "brain"}),
    licence="the user's",
    about="label maps provided by the user",
    how_to_get="Give the folder of your label maps: -d fullhead=FOLDER.",
    existing=("{id}_seg.nii.gz", "{id}_labels.nii.gz", "{id}.nii.gz", "{id}.mgz"),
    interface=Fullhead,
)
