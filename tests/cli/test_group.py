# SPDX-License-Identifier: Apache-2.0
"""The group level: what it does not follow is told."""

from __future__ import annotations

import pytest

from brainseg_bids.cli.group import run_group
from brainseg_bids.settings import Settings
from brainseg_bids.stages import GROUP
from brainseg_bids.stages.base import GroupResult


@pytest.mark.input(
    "metadata",
    "a filter file at the group level, or --contrasts for a stage that takes all",
    "warning that names flag and stage",
    0,
)
def test_a_choice_that_has_no_effect_is_told(tmp_path, caplog, monkeypatch):
    for name in ("summary", "priors"):
        monkeypatch.setattr(type(GROUP[name]), "run", lambda *_: GroupResult())

    def said(**choice) -> str:
        caplog.clear()
        run_group(Settings(tmp_path, tmp_path, **choice), tmp_path)
        return caplog.text

    assert "--bids-filter-file" in said(stages=("priors",), bids_filters={"t1w": {"run": 1}})
    assert "--contrasts" not in said(stages=("priors",), contrasts=("T1w",))
    both = said(stages=("summary", "priors"), contrasts=("T1w",))
    assert "--contrasts has no effect on stage summary\n" in both
    assert "--" not in said(stages=("summary", "priors"))
