# SPDX-License-Identifier: Apache-2.0
"""The methods text: for the whole derivative and for one participant's page.

Markdown with citations (``[@key]`` of ``data/methods.bib``). Each stage has its own sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

from brainseg_bids import __version__
from brainseg_bids.bids.names import sidecar
from brainseg_bids.documents import read_object
from brainseg_bids.stages import PARTICIPANT
from brainseg_bids.stages.jobs import Job


def preamble(version: str = __version__) -> str:
    """What everything was made with."""
    return f"""\
Results were made with *brainseg-bids* {version}, a BIDS App [@gorgolewski2017] built on
*Nipype* [@gorgolewski2011] and *PyTorch* [@paszke2019].
"""


def of_results(jobs: Sequence[Job]) -> str:
    """Methods text of one participant: of the results that are there, whichever run made them.

    Parameters
    ----------
    jobs : sequence of Job
        With results; without any there is nothing to tell.
    """
    if not jobs:
        return ""
    metadata = [read_object(sidecar(job.main)) for job in jobs]
    found = (one["BrainsegVersion"] for one in metadata if "BrainsegVersion" in one)
    versions = sorted(set(map(str, found)))
    parts = [preamble(" and ".join(versions) or __version__)]
    for stage in PARTICIPANT.values():
        parts += stage.methods([job for job in jobs if job.stage == stage.name])
    return "\n".join(dict.fromkeys(parts))
