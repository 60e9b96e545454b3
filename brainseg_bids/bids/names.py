# SPDX-License-Identifier: Apache-2.0
"""Names: the entities of an input, and what its outputs are called.

An output's name is made from its input's name alone, never from which other images there
are: a later run with more images writes the same names. Three rules keep them apart.

1. Entities that BIDS allows on a segmentation stay: ``sub ses task acq ce rec run echo part
   chunk``.
2. All others (``dir inv flip mt mod``, and ones BIDS does not know) are put behind the label of
   ``acq-``: ``acq-mp2rage_inv-2`` becomes ``acq-mp2rage+inv2``.
3. The suffix of an image other than T1w becomes ``space-``: the segmentation lies in the space
   of that image. ``sub-01_T2w`` gives ``sub-01_space-T2w_seg-brainseg_dseg``; a T1w, the usual
   image, has no ``space-``, as in fMRIPrep and its kin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids.documents import read_object

STRUCTURAL = ("T1w", "T2w", "PDw", "T2starw", "FLAIR", "UNIT1", "FLASH", "PD")
"""Suffixes taken unless the user says otherwise: whole-head pictures of anatomy. Slabs (angio,
inplaneT1), quantitative maps (T1map) and raw parts (MP2RAGE, MPM, MEGRE) have to be asked for."""

# BIDS' order; a name in another order does not pass the validator.
BEFORE_SPACE = ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part")
AFTER_SPACE = ("chunk", "seg", "desc")
KEPT = frozenset({*BEFORE_SPACE, "chunk"})
_OF_THE_IMAGE = ("T1w", "orig", "individual", "scanner")
"""Labels of ``space-`` that say the image's own space, beside the suffixes of other images."""
_IMAGES = frozenset(STRUCTURAL) - {"T1w"}


@dataclass(frozen=True)
class Scan:
    """One image as BIDS offered it.

    Parameters
    ----------
    path : Path
    entities : dict of str to str
        Short BIDS keys (``sub``, ``acq``, ...) to labels, in the order of the name.
    suffix : str
        Such as ``T1w``.
    """

    path: Path
    entities: dict[str, str]
    suffix: str

    @classmethod
    def from_path(cls, path: str | Path) -> Scan:
        """Read the entities from a file name.

        >>> scan = Scan.from_path("/data/sub-01/ses-A/anat/sub-01_ses-A_run-2_T2w.nii.gz")
        >>> scan.suffix, scan.entities
        ('T2w', {'sub': '01', 'ses': 'A', 'run': '2'})
        """
        path = Path(path)
        *pairs, suffix = without_extension(path).split("_")
        entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
        return cls(path, entities, suffix)

    @property
    def subject(self) -> str:
        """Label without ``sub-``."""
        return self.entities["sub"]

    @property
    def session(self) -> str | None:
        """Label without ``ses-``, if there is one."""
        return self.entities.get("ses")

    @property
    def title(self) -> str:
        """How messages call it.

        >>> Scan.from_path("sub-01_ses-A_run-2_T2w.nii.gz").title
        'sub-01 ses-A run-2 T2w'
        """
        return without_extension(self.path).replace("_", " ")


def stem(scan: Scan, **extra: str) -> str:
    """Entities of an output in BIDS' order, without suffix.

    Parameters
    ----------
    scan : Scan
    **extra : str
        ``seg`` and ``desc``.

    Examples
    --------
    >>> stem(Scan.from_path("sub-01_acq-a_inv-2_run-1_T2w.nii.gz"), seg="brainseg")
    'sub-01_acq-a+inv2_run-1_space-T2w_seg-brainseg'
    >>> stem(Scan.from_path("sub-01_T1w.nii.gz"), desc="brain")
    'sub-01_desc-brain'
    """
    entities = {key: clean_label(label) for key, label in scan.entities.items() if key in KEPT}
    folded = [
        clean_label(key) + clean_label(label)
        for key, label in scan.entities.items()
        if key not in KEPT
    ]
    if folded:
        entities["acq"] = "+".join(filter(None, [entities.get("acq"), *folded]))
    if scan.suffix != "T1w":
        entities["space"] = clean_label(scan.suffix)
    entities |= extra
    order = (*BEFORE_SPACE, "space", *AFTER_SPACE)
    return "_".join(f"{key}-{entities[key]}" for key in order if key in entities)


def folder(scan: Scan) -> Path:
    """Folder of a scan's outputs, below the derivative's root.

    >>> folder(Scan.from_path("sub-01_ses-A_T1w.nii.gz")).as_posix()
    'sub-01/ses-A/anat'
    """
    session = [f"ses-{scan.session}"] if scan.session else []
    return Path(f"sub-{scan.subject}", *session, "anat")


def without_extension(path: Path) -> str:
    """Name of an image without its extension."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def head_name(path: Path) -> str:
    """What the label maps of one head are called, at any voxel size and in any standard space.

    >>> head_name(Path("sub-01_space-MNI152Lin_seg-fullhead_res-2_dseg.nii.gz"))
    'sub-01_seg-fullhead_dseg'
    >>> head_name(Path("sub-01_space-T2w_seg-fullhead_dseg.nii"))
    'sub-01_space-T2w_seg-fullhead_dseg'
    """
    name = re.sub(r"_res-[0-9A-Za-z+]+", "", without_extension(path))
    space = re.search(r"_space-([0-9A-Za-z+]+)", name)
    return name.replace(space[0], "") if space and space[1] not in _IMAGES else name


def in_own_space(paths: Iterable[Path]) -> list[Path]:
    """Label maps without those in standard spaces of heads that have one in their own.

    >>> names = ("sub-1_dseg.nii", "sub-1_space-A_dseg.nii", "sub-2_space-A_dseg.nii")
    >>> [path.name for path in in_own_space(map(Path, names))]
    ['sub-1_dseg.nii', 'sub-2_space-A_dseg.nii']
    """
    paths = list(paths)
    own = {path.parent / head_name(path) for path in paths if not _is_standardised(path)}
    return [
        path
        for path in paths
        if not _is_standardised(path) or path.parent / head_name(path) not in own
    ]


def _is_standardised(path: Path) -> bool:
    space = Scan.from_path(path).entities.get("space")
    return space is not None and space not in (*_IMAGES, *_OF_THE_IMAGE)


def image_title(labels: Path) -> str:
    """How messages call the image of a label map, which the JSON beside the map names.

    Without that it is what the map's name begins with.
    """
    image = read_object(sidecar(labels)).get("Input")
    return Scan.from_path(str(image)).title if image else labels.name.split("_seg-")[0]


def is_label(text: str) -> bool:
    """Whether BIDS allows it as a label: letters, digits and plus.

    >>> is_label("CON01"), is_label("CON-01"), is_label("WMH_21"), is_label("")
    (True, False, False, False)
    """
    return re.fullmatch(r"[0-9A-Za-z+]+", text) is not None


def clean_label(text: str) -> str:
    """The letters, digits and pluses of a text."""
    return re.sub(r"[^0-9A-Za-z+]", "", text)


def output_file(scan: Scan, end: str, **extra: str) -> Path:
    """A file of results, below the derivative's root; ``extra`` as of `stem`.

    >>> output_file(Scan.from_path("sub-01_T1w.nii.gz"), "mask.nii.gz", desc="brain").as_posix()
    'sub-01/anat/sub-01_desc-brain_mask.nii.gz'
    """
    return folder(scan) / f"{stem(scan, **extra)}_{end}"


def figure_file(scan: Scan, end: str, **extra: str) -> Path:
    """A figure of the participant's page; as `output_file`."""
    return Path(f"sub-{scan.subject}", "figures", f"{stem(scan, **extra)}_{end}")


@dataclass(frozen=True)
class OutputNames:
    """Where the outputs of one scan go, below the derivative's root. All `Path`."""

    labels: Path
    tissue: Path
    mask: Path
    volumes: Path
    probseg: Path
    entropy: Path
    figure: Path
    viewer: Path

    @classmethod
    def of(cls, scan: Scan) -> OutputNames:
        """Names for one scan.

        >>> OutputNames.of(Scan.from_path("sub-01_T1w.nii.gz")).volumes.as_posix()
        'sub-01/anat/sub-01_seg-brainseg_desc-volumes_morph.tsv'
        """
        seg = "brainseg"
        return cls(
            labels=output_file(scan, "dseg.nii.gz", seg=seg),
            tissue=output_file(scan, "dseg.nii.gz", seg="tissue"),
            mask=output_file(scan, "mask.nii.gz", desc="brain"),
            volumes=output_file(scan, "morph.tsv", seg=seg, desc="volumes"),
            probseg=output_file(scan, "probseg.nii.gz", seg=seg),
            entropy=output_file(scan, "probseg.nii.gz", seg=seg, desc="entropy"),
            figure=figure_file(scan, "dseg.png", seg=seg),
            viewer=figure_file(scan, "dseg.html", seg=seg),
        )


TOP = "top4"
"""Label of ``desc-`` for the most probable labels of each voxel and their probabilities."""


@dataclass(frozen=True)
class ToolNames:
    """Where one tool's labels of a scan go, below the derivative's root. All `Path`."""

    labels: Path
    top_codes: Path
    top_weights: Path

    @classmethod
    def of(cls, scan: Scan, tool: str) -> ToolNames:
        """Names for one scan and tool.

        >>> ToolNames.of(Scan.from_path("sub-01_T1w.nii.gz"), "charm").labels.as_posix()
        'sub-01/anat/sub-01_seg-charm_dseg.nii.gz'
        """
        return cls(
            labels=output_file(scan, "dseg.nii.gz", seg=tool),
            top_codes=output_file(scan, "dseg.nii.gz", seg=tool, desc=TOP),
            top_weights=output_file(scan, "probseg.nii.gz", seg=tool, desc=TOP),
        )


@dataclass(frozen=True)
class ParcelNames:
    """Where a tool's parcels of the cortex go, below the derivative's root. All `Path`."""

    labels: Path
    volumes: Path
    figure: Path

    @classmethod
    def of(cls, scan: Scan, tool: str) -> ParcelNames:
        """Names for one scan and tool.

        >>> ParcelNames.of(Scan.from_path("sub-01_T1w.nii.gz"), "gouhfi").volumes.as_posix()
        'sub-01/anat/sub-01_seg-gouhfi_desc-parcellation_morph.tsv'
        """
        desc = "parcellation"
        return cls(
            labels=output_file(scan, "dseg.nii.gz", seg=tool, desc=desc),
            volumes=output_file(scan, "morph.tsv", seg=tool, desc=desc),
            figure=figure_file(scan, "dseg.png", seg=tool, desc=desc),
        )


@dataclass(frozen=True)
class HeadNames(ToolNames):
    """Where the merged head labels of a scan go, below the derivative's root. All `Path`."""

    volumes: Path
    merge: Path
    figure: Path
    viewer: Path

    @classmethod
    def of(cls, scan: Scan, tool: str = "fullhead") -> HeadNames:
        """Names for one scan.

        >>> HeadNames.of(Scan.from_path("sub-01_T1w.nii.gz")).merge.as_posix()
        'sub-01/anat/sub-01_seg-fullhead_desc-merge_morph.tsv'
        """
        return cls(
            **vars(ToolNames.of(scan, tool)),
            volumes=output_file(scan, "morph.tsv", seg=tool, desc="volumes"),
            merge=output_file(scan, "morph.tsv", seg=tool, desc="merge"),
            figure=figure_file(scan, "dseg.png", seg=tool),
            viewer=figure_file(scan, "dseg.html", seg=tool),
        )


@dataclass(frozen=True)
class ContrastNames:
    """Where the contrast statistics of a scan go, below the derivative's root. All `Path`."""

    statistics: Path
    figure: Path

    @classmethod
    def of(cls, scan: Scan, labels: str) -> ContrastNames:
        """Names for one scan and the labels that it was measured with.

        >>> ContrastNames.of(Scan.from_path("sub-01_T2w.nii.gz"), "brainseg").statistics.as_posix()
        'sub-01/anat/sub-01_space-T2w_seg-brainseg_desc-contrast_morph.tsv'
        """
        return cls(
            statistics=output_file(scan, "morph.tsv", seg=labels, desc="contrast"),
            figure=figure_file(scan, "morph.png", seg=labels, desc="contrast"),
        )


def upsampled_name(path: Path, resolution: str) -> Path:
    """Name of a segmentation at another voxel size; BIDS wants ``res-`` behind ``seg-``.

    >>> upsampled_name(Path("sub-01_seg-fullhead_dseg.nii.gz"), "0p5mm").name
    'sub-01_seg-fullhead_res-0p5mm_dseg.nii.gz'
    """
    return path.with_name(path.name.replace("_dseg.", f"_res-{resolution}_dseg."))


def sidecar(path: Path) -> Path:
    """JSON beside an image or a table.

    >>> sidecar(Path("sub-01_dseg.nii.gz")).name
    'sub-01_dseg.json'
    """
    return path.with_name(path.name.split(".")[0] + ".json")
