# SPDX-License-Identifier: Apache-2.0
"""Raters: people, programs and models that have labelled images; where their maps are.

`find_adapter` says how a rater is read, `find_rated` finds its maps of a reference's images, and
`named_by_models` says what tables call it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from brainseg_bids.bids.adapters import Adapter, packaged_adapters, read_adapter
from brainseg_bids.bids.label_codes import crosswalk_labels
from brainseg_bids.bids.matching import match_cases, partners
from brainseg_bids.bids.names import Scan, sidecar
from brainseg_bids.bids.references import Case, find_cases, scan_of
from brainseg_bids.documents import InputError, read_json
from brainseg_bids.interfaces.existing import find_existing
from brainseg_bids.interfaces.tools import find_tool, tool_names
from brainseg_bids.nets.bundle import BundleError, ModelBundle, find_bundle, packaged_models


@dataclass(frozen=True)
class Rater:
    """Somebody who labelled images: this app, another tool, a person.

    Parameters
    ----------
    name : str
        As tables call it.
    who : str
        What its adapter is found by.
    root : Path
    adapter : Adapter
    """

    name: str
    who: str
    root: Path
    adapter: Adapter

    @classmethod
    def of(cls, who: str, root: Path) -> Rater:
        """From the two sides of NAME=PATH.

        Raises
        ------
        InputError
            If the adapter cannot be used, or the name cannot be part of a file's.
        """
        own_file = who.endswith(".toml")
        name = Path(who).stem if own_file else who
        if not re.fullmatch(r"[0-9A-Za-z+_.-]+", name):
            raise InputError(f"{who}: give a name of letters, digits, dots and dashes.")
        # Steps run in folders of their own.
        who = str(Path(who).absolute()) if own_file else who
        return cls(name, who, root, find_adapter(who))

    @property
    def is_named_by_model(self) -> bool:
        """Whether it has another name than the user gave it."""
        return self.name != self.adapter.name


# ---- how they are read, and where their maps are


def find_adapter(name: str | Path) -> Adapter:
    """How a rater is read, from the NAME of ``NAME=PATH``.

    Parameters
    ----------
    name : str or path
        A packaged adapter, a file that ends in ``.toml``, a tool, or any other name: a BIDS
        derivative whose ``dseg.tsv`` explains its codes.

    Raises
    ------
    InputError
        If the file cannot be used.

    Examples
    --------
    >>> [bool(find_adapter(n).patterns) for n in ("ultracortex", "samseg", "mine")]
    [True, False, False]
    >>> find_adapter("samseg").tool, find_adapter("mine").tool
    ('samseg', '')
    """
    if Path(name).suffix == ".toml" or str(name) in packaged_adapters():
        return read_adapter(name)
    if str(name) in tool_names():
        tool = find_tool(str(name))
        return Adapter(
            tool.name,
            citation=tool.about,
            licence=tool.licence,
            labels=crosswalk_labels(tool.name),
            tool=tool.name,
        )
    return Adapter(str(name))


def find_rated(
    adapter: Adapter,
    root: str | Path,
    reference: Mapping[str, Case],
    *,
    all_reference_keys: Collection[str] = (),
    name_extra: bool = True,
) -> tuple[dict[str, Case], list[str]]:
    """A rater's maps of the images of a reference.

    Parameters
    ----------
    adapter : Adapter
    root : path
    reference : mapping of str to Case
        From `find_cases`, or from `tool_cases`.
    all_reference_keys : collection of str
        Keys that the reference has without a choice of participants: labels of these are not
        without a reference.
    name_extra : bool
        Whether labels without a reference are noted.

    Returns
    -------
    cases : dict of str to Case
        By the reference's key, with the reference's subject, stratum and image.
    notes : list of str
        Labels that were taken for others, images without a rating and the reverse.

    Raises
    ------
    InputError
        As `find_cases` and `match_cases`, and as the tool's own search.
    """
    if adapter.tool:
        scans = {key: scan_of(case) for key, case in reference.items()}
        theirs, notes = tool_cases(adapter, root, scans)
        missing = [key for key in reference if key not in theirs]
        extra: Sequence[str] = ()
    else:
        there, notes = find_cases(adapter, root)
        matching = match_cases(reference, there, name=adapter.name)
        notes += matching.notes
        theirs = {key: there[other] for key, other in matching.pairs.items()}
        known = partners([*reference, *all_reference_keys], there, name=adapter.name)
        missing = matching.missing
        extra = [key for key in matching.extra if key not in known]
    if missing:
        notes.append(f"{adapter.name}: no labels of {', '.join(missing)} in {root}.")
    if extra and name_extra:
        notes.append(f"{adapter.name}: labels without a reference: {', '.join(extra)}.")
    return {
        key: replace(
            theirs[key], key=key, subject=case.subject, stratum=case.stratum, image=case.image
        )
        for key, case in reference.items()
        if key in theirs
    }, notes


def tool_cases(
    adapter: Adapter, root: str | Path, scans: Mapping[str, Scan]
) -> tuple[dict[str, Case], list[str]]:
    """What a tool has written earlier of some images, in its own layout or as a derivative.

    Parameters
    ----------
    adapter : Adapter
        With a tool.
    root : path
    scans : mapping of str to Scan
        Images by key.

    Returns
    -------
    cases : dict of str to Case
    notes : list of str

    Raises
    ------
    InputError
        If there is no such folder, or two results could be meant.
    """
    tool = find_tool(adapter.tool)
    cases, notes = {}, []
    for key, scan in scans.items():
        labels = find_existing(tool, root, scan)
        if labels is None:
            labels = _under_another_label(adapter, root, scan, notes)
        if labels is not None:
            cases[key] = Case(key, scan.subject, "", scan.path, labels)
    return cases, notes


def _under_another_label(
    adapter: Adapter, root: str | Path, scan: Scan, notes: list[str]
) -> Path | None:
    """Result for the same subject with another number of leading zeros in its label."""
    number = scan.subject.lstrip("0") or "0"
    if not number.isdigit():
        return None
    widths = {f"{int(number):0{width}d}" for width in (1, 2, 3, 4)} - {scan.subject}
    tool = find_tool(adapter.tool)
    candidates = {}
    for label in sorted(widths, key=len):
        labels = find_existing(tool, root, _renamed(scan, label))
        # Without the files of that other subject the search cannot know of other sessions.
        if labels is not None and (_is_only(scan) or _names_all(labels, root, scan)):
            candidates[label] = labels
    if len(candidates) > 1:
        both = " and ".join(map(str, list(candidates.values())[:2]))
        raise InputError(
            f"{both}: both may be {adapter.name}'s labels of sub-{scan.subject}. Leave one."
        )
    for label, labels in candidates.items():
        notes.append(f"{adapter.name}: sub-{label} is taken as sub-{scan.subject}.")
        return labels
    return None


def _renamed(scan: Scan, label: str) -> Scan:
    """The scan of a subject of another label."""
    name = scan.path.name.replace(f"sub-{scan.subject}", f"sub-{label}", 1)
    return Scan(scan.path.with_name(name), scan.entities | {"sub": label}, scan.suffix)


def _is_only(scan: Scan) -> bool:
    """Whether a subject has no other image of the scan's suffix on disk."""
    home = next((p for p in scan.path.parents if p.name == f"sub-{scan.subject}"), None)
    return home is None or len(list(home.glob(f"**/*_{scan.suffix}.nii*"))) <= 1


def _names_all(labels: Path, root: str | Path, scan: Scan) -> bool:
    """Whether a result's path repeats all of a scan's entities but the subject."""
    parts = re.split(r"[/_]", labels.relative_to(root).as_posix())
    return all(f"{k}-{v}" in parts for k, v in scan.entities.items() if k != "sub")


# ---- what they are called, and what they have seen


def raters_by_name(given: Mapping[str, Path], flag: str) -> dict[str, Rater]:
    """Raters by name; two of one name are refused."""
    raters: dict[str, Rater] = {}
    for who, path in given.items():
        rater = Rater.of(who, Path(path))
        if rater.name in raters:
            raise InputError(f"{flag} {who}: {rater.name} is there already. Rename one of them.")
        raters[rater.name] = rater
    return raters


def named_by_models(sources: Sequence[Rater], maps: Sequence[Sequence[Path]]) -> dict[str, Rater]:
    """Raters by what tables call them: the model that made their maps, else NAME of NAME=PATH.

    Whose model is also another's is told apart by NAME, as ``head-1mm_mine``.

    Parameters
    ----------
    sources : sequence of Rater
    maps : sequence of sequence of Path
        What is compared of each.

    Raises
    ------
    InputError
        If two have the same model and the same NAME.
    """
    wanted = [
        rater.name if rater.who.endswith(".toml") else models_in(theirs) or rater.name
        for rater, theirs in zip(sources, maps, strict=True)
    ]
    raters: dict[str, Rater] = {}
    for rater, name in zip(sources, wanted, strict=True):
        if wanted.count(name) > 1 and name != rater.name:
            name = f"{name}_{rater.name}"
        if name in raters:
            raise InputError(
                f"-d {rater.name}={raters[name].root}: {name} is what {rater.root} is called. "
                "Give it another NAME."
            )
        raters[name] = replace(rater, name=name)
    return raters


def models_in(maps: Iterable[Path]) -> str:
    """Names of the models that made some label maps, by their sidecars; those of an ensemble
    with plus signs between. Empty if a map is not of a model, or there are more than three.
    """
    names = set()
    for path in maps:
        metadata = metadata_of(path)
        members = [metadata, *(m for m in metadata.get("Ensemble") or () if isinstance(m, dict))]
        name = "+".join(dict.fromkeys(str(m.get("ModelName", "")) for m in members))
        names.add(re.sub(r"[^0-9A-Za-z+_.-]", "-", name))
    return "" if "" in names or len(names) > 3 else "_and_".join(sorted(names))


def metadata_of(labels: Path) -> dict:
    """The JSON beside a label map; empty if there is none."""
    try:
        return read_json(sidecar(labels))
    except InputError:
        return {}


def seen_by(labels: Path, model: str, folders: Iterable[Path] = ()) -> tuple[frozenset[str], str]:
    """What the model, or the models, that made a segmentation were trained or fitted on.

    Parameters
    ----------
    labels : Path
    model : str
        As ``--model`` names it.
    folders : iterable of Path
        Derivatives in which a model of that name may have been trained.

    Returns
    -------
    seen : frozenset of str
        `images.voxel_hash` each.
    why_unknown : str
        Why that is not known; empty if it is, or if no model made the segmentation.
    """
    metadata = metadata_of(labels)
    members = [metadata, *(m for m in metadata.get("Ensemble") or () if isinstance(m, dict))]
    folders = tuple(folders)
    seen: frozenset[str] = frozenset()
    unknown = []
    for member in members:
        if "ModelName" in member or "ModelDigest" in member:
            own, why = _seen_by_model(
                str(member.get("ModelName", "")), str(member.get("ModelDigest")), model, folders
            )
            seen |= own
            unknown += [why] if why else []
    return seen, "; ".join(unknown)


@lru_cache(maxsize=64)
def _seen_by_model(
    name: str, digest: str, model: str, folders: tuple[Path, ...]
) -> tuple[frozenset[str], str]:
    """`seen_by` of one model, read once for all images; merged maps of heads do not name it."""
    trained = [
        path
        for folder in folders
        for path in (
            [folder / "derivatives" / f"model-{name}" / "bundle"]
            if name
            else sorted(folder.glob("derivatives/model-*/bundle"))
        )
    ]
    names = [name] if name else list(packaged_models())
    called = f"model {name}" if name else "the model of its labels"
    for candidate in filter(None, (model, *names, *map(str, trained))):
        try:
            bundle = ModelBundle.read(find_bundle(candidate))
        except BundleError:
            continue
        if bundle.digest == digest:
            if bundle.seen is None:
                return frozenset(), f"{called} does not say what it was trained on"
            return bundle.seen, ""
    return frozenset(), f"{called} of this digest is not here; give its folder with --model"
