# SPDX-License-Identifier: Apache-2.0
"""What is written again for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from brainseg_bids.options import OptionGroup, option


@dataclass(frozen=True, kw_only=True)
class ExportOptions(OptionGroup):
    """Results in the forms that other programs want."""

    title: ClassVar[str] = "beside other programs (--stages segment)"
    belongs_to: ClassVar[tuple[str, ...]] = ("segment",)

    output_spaces: tuple[str, ...] = option(
        "--output-spaces",
        default=(),
        metavar="SPACE",
        help="also bring labels to these TemplateFlow templates, e.g. "
        "MNI152NLin2009cAsym:res-1; the template has to be in TEMPLATEFLOW_HOME",
    )
    freesurfer_export: bool = option(
        "--freesurfer-export",
        default=False,
        help="also write labels as FreeSurfer reads them: mri/aseg.mgz and a colour table",
    )
