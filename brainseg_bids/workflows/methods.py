# SPDX-License-Identifier: Apache-2.0
"""Sentences of the methods text, for the whole derivative and for one participant's page.

Markdown with citations (``[@key]`` of ``data/methods.bib``).
"""

from __future__ import annotations

from collections.abc import Sequence

from brainseg_bids import __version__
from brainseg_bids.bids.names import sidecar
from brainseg_bids.interfaces.tools import find_tool
from brainseg_bids.workflows.contrast_plan import ContrastPlan
from brainseg_bids.workflows.headlabels_plan import HeadPlan
from brainseg_bids.workflows.plan import ScanPlan, read_object
from brainseg_bids.workflows.segment_plan import SegmentPlan
from brainseg_bids.workflows.spaces_plan import KIND, SpacePlan
from brainseg_bids.workflows.upsample_plan import Target, UpsamplePlan

Named = tuple[str, str]
"""Name and digest of a model."""

CONTRAST = """\
The contrast of each image was measured label by label: robust location and scale away from the
labels' borders and free of a smooth field that was estimated jointly with them, mixtures of
Gaussians where one did not do, spatial correlation within labels, the law and strength of the
noise from the background, and the effective resolution.
"""


def preamble(version: str = __version__) -> str:
    """What everything was made with."""
    return f"""\
Results were made with *brainseg-bids* {version}, a BIDS App [@gorgolewski2017] built on
*Nipype* [@gorgolewski2011] and *PyTorch* [@paszke2019].
"""


def segmentation(images: str, model: Named, *, ensemble: Sequence[Named] = (), flips: bool) -> str:
    """How images were segmented.

    Parameters
    ----------
    images : str
        Which of them got the model; empty: all.
    model : (str, str)
    ensemble : sequence of (str, str)
        Further models whose probabilities were averaged with the first one's.
    flips : bool
        Whether the mirrored image was averaged with, too.

    Examples
    --------
    >>> segmentation("FLAIR images", ("mine", "0123456789abcdef"), flips=False)[:40]
    'FLAIR images were segmented on their own'
    """
    which = (
        f"{images} were segmented on their own grids"
        if images
        else "Each structural image was segmented on its own grid"
    )
    named = " and ".join(f"*{name}* (`{digest[:12]}`)" for name, digest in ensemble)
    averaged = f"Its probabilities were averaged with those of {named}. " if named else ""
    if flips:
        averaged += "Probabilities of the image and of its mirror image, sides swapped back, were "
        averaged += "averaged. "
    return f"""\
{which} with the convolutional network
*{model[0]}* (model digest `{model[1][:12]}`), which labels brain, fluid, bone and soft
tissues of the head. The network was trained on images synthesised from label maps
[@billot2023]. It worked window by window, and its probabilities, not its labels,
were interpolated to the voxels of the image.
{averaged}Tissue classes, the brain mask and the volumes were
derived from these labels.
"""


def head_labels(tools: Sequence[str]) -> str:
    """How maps of whole heads were made, by the names of the tools."""
    named = " and ".join(find_tool(name).about for name in tools)
    merged = "merged" if len(tools) > 1 else "mended"
    return f"""\
Label maps of the whole head were made with {named}. Codes were translated into one table, maps
were brought to the grid of the image by their affines, and {merged} by a table of rules; what no
tool labelled inside the head was told apart into tissue and air, islands were removed, and the
voxels that each rule changed were counted.
"""


def upsampling(target: Target) -> str:
    """How maps were brought to finer voxels."""
    cleaned = "" if target.kernel == "lossless" else "Holes and islands that this had made were "
    cleaned += "removed by the rules of the merge.\n" if cleaned else ""
    return f"""\
Label maps were brought to voxels of {target.shown}: where a tool had given probabilities, these
were interpolated (cubic convolution) and each voxel got the most probable label; elsewhere each
voxel got the label with the largest weight under a separable kernel (*{target.kernel}*). The
maps' world extent was kept.
{cleaned}Each map has a certificate of what it is when taken back to its source's voxels.
"""


def standard_space(template: str, *, probabilities: bool) -> str:
    """How results were brought to a template."""
    through = (
        "their probabilities" if probabilities else "each label's linearly interpolated share"
    )
    return f"""\
T1-weighted images were registered to template {template} with *ANTs*
(`{KIND}`) [@avants2011], by their brains where the template has a brain mask. Labels were
brought there once, through {through}; tissues and brain masks were derived from the result.
"""


def of_results(scans: Sequence[ScanPlan]) -> str:
    """Methods text of one participant: of the results that are there, whichever run made them.

    Parameters
    ----------
    scans : sequence of ScanPlan
        With results.
    """
    said = [read_object(sidecar(scan.main)) for scan in scans]
    versions = sorted({str(one["BrainsegVersion"]) for one in said if "BrainsegVersion" in one})
    parts = [preamble(" and ".join(versions) or __version__)]
    suffixes: dict[tuple, list[str]] = {}
    for scan, facts in zip(scans, said, strict=True):
        if isinstance(scan, SegmentPlan):
            suffixes.setdefault(_network(facts), []).append(scan.scan.suffix)
    for (model, ensemble, flips), found in suffixes.items():
        images = f"{_listed(found)} images"
        parts.append(segmentation(images, model, ensemble=ensemble, flips=flips))
    for scan, facts in zip(scans, said, strict=True):
        if isinstance(scan, HeadPlan):
            parts.append(head_labels([tool.tool.name for tool in scan.tools.values()]))
        elif isinstance(scan, UpsamplePlan):
            parts.append(upsampling(scan.target))
        elif isinstance(scan, ContrastPlan):
            parts.append(CONTRAST)
        elif isinstance(scan, SpacePlan):
            soft = bool(facts.get("Probabilities"))
            parts.append(standard_space(scan.templates[0].name, probabilities=soft))
    return "\n".join(dict.fromkeys(parts))


def _network(facts: dict) -> tuple[Named, tuple[Named, ...], bool]:
    """Model, ensemble and flips of a segmentation, from the JSON beside it."""
    first, *others = (
        (str(one.get("ModelName", "")), str(one.get("ModelDigest", "")))
        for one in (facts, *(facts.get("Ensemble") or ()))
    )
    return first, tuple(others), bool(facts.get("TestTimeFlips"))


def _listed(words: Sequence[str]) -> str:
    """Words in a sentence, each once.

    >>> _listed(["T1w", "FLAIR", "T1w"]), _listed(["T1w", "T2w", "FLAIR"])
    ('T1w and FLAIR', 'T1w, T2w and FLAIR')
    """
    *first, last = dict.fromkeys(words)
    return f"{', '.join(first)} and {last}" if first else last
