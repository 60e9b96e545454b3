# SPDX-License-Identifier: Apache-2.0
"""What the derivative says about itself: description, label tables, README, ``.bidsignore``."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from brainseg_bids import __version__
from brainseg_bids.documents import InputError, read_json
from brainseg_bids.files import write_text
from brainseg_bids.locks import lock_file

if TYPE_CHECKING:
    from brainseg_bids.anatomy.labels import LabelTable

BIDS_VERSION = "1.10.1"

# Without trailing slashes: the validator does not match a folder by "figures/".
# morph: BIDS has no suffix for volumes yet; BEP011 and others use this one.
# xfm: BIDS has no name for transforms yet (BEP014); this is fMRIPrep's.
# Priors and tables of an evaluation are no BIDS files, and synthetic pairs a dataset of their own.
BIDSIGNORE = ("*.html", "figures", "*_morph.*", "*_xfm.*", "priors", "synth", "evaluation")


def made_by() -> dict[str, str]:
    """Entry of BIDS' ``GeneratedBy``; with ``CodeURL`` once the project has an address."""
    entry = {"Name": "brainseg-bids", "Version": __version__}
    try:
        addresses = metadata.metadata("brainseg-bids").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return entry
    for address in addresses:
        name, _, url = address.partition(", ")
        if name == "Source" and "example.org" not in url:
            return entry | {"CodeURL": url}
    return entry


def raw_link(bids_dir: Path, output_dir: Path) -> str:
    """What ``bids:raw:`` stands for: relative if the derivative lies in the dataset.

    >>> raw_link(Path("/data"), Path("/data/derivatives/brainseg"))
    '../..'
    >>> raw_link(Path("/data"), Path("/out"))
    'file:///data'
    """
    if output_dir.resolve().is_relative_to(bids_dir.resolve()):
        return os.path.relpath(bids_dir.resolve(), output_dir.resolve())
    return bids_dir.resolve().as_uri()


def raw_uri(path: Path, bids_dir: Path) -> str:
    """BIDS URI of an input.

    >>> raw_uri(Path("/data/sub-01/anat/sub-01_T1w.nii.gz"), Path("/data"))
    'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
    """
    return f"bids:raw:{path.relative_to(bids_dir).as_posix()}"


def raw_path(uri: str, bids_dir: Path) -> Path | None:
    """Input that a `raw_uri` stands for; None if it is none.

    >>> raw_path("bids:raw:sub-01/anat/sub-01_T1w.nii.gz", Path("/data")).as_posix()
    '/data/sub-01/anat/sub-01_T1w.nii.gz'
    """
    prefix, found, inside = uri.partition("bids:raw:")
    return bids_dir / inside if found and not prefix else None


def write_description(
    bids_dir: Path, output_dir: Path, *, links: Mapping[str, Path] | None = None
) -> Path:
    """Write ``dataset_description.json``, ``.bidsignore`` and ``README.md`` if they are not there.

    Jobs that write one derivative at the same time find what the first of them has written and
    leave it alone; a reader sees each file whole.

    Parameters
    ----------
    bids_dir, output_dir : Path
    links : mapping of str to Path, optional
        Further folders that ``Sources`` refer to, by name. Those of earlier runs stay.
    """
    raw = _raw_description(bids_dir)
    doi = raw.get("DatasetDOI", "")
    source = {
        "URL": bids_dir.resolve().as_uri(),
        "DOI": doi if doi.startswith("doi:") else "",  # a bare DOI does not pass the validator
        "Version": raw.get("DatasetVersion", ""),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    with _alone_in(output_dir):  # or two would each add a link to what both have read
        content = {
            "Name": f"Whole-head segmentations of {raw.get('Name') or bids_dir.name}",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "License": raw.get("License"),
            "GeneratedBy": [made_by() | _container()],
            "SourceDatasets": [{key: value for key, value in source.items() if value}],
            "DatasetLinks": _known_links(output_dir)
            | {name: path.resolve().as_uri() for name, path in (links or {}).items()}
            | {"raw": raw_link(bids_dir, output_dir)},
        }
        write_once(output_dir / "dataset_description.json", json_text(content))
    write_once(output_dir / ".bidsignore", "\n".join(BIDSIGNORE) + "\n")
    write_once(output_dir / "README.md", packaged_readme("derivative"))
    return output_dir / "dataset_description.json"


def _raw_description(bids_dir: Path) -> dict[str, str]:
    """Texts of the dataset's description; nothing of one that cannot be read.

    That is told where the dataset is looked at. What is of another kind than BIDS says would make
    the derivative's description invalid, too.
    """
    try:
        raw = read_json(bids_dir / "dataset_description.json")
    except InputError:
        return {}
    return {key: value for key, value in raw.items() if isinstance(value, str)}


def _container() -> dict[str, dict[str, str]]:
    """The image that this process runs in, as ``GeneratedBy`` tells it; else nothing."""
    apptainer = {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"} & set(os.environ)
    # The second is how NiPreps' images say that they are images.
    if not apptainer and "IS_DOCKER_8395080871" not in os.environ:
        return {}
    tag = os.environ.get("BRAINSEG_DOCKER_TAG", __version__)
    kind = "apptainer" if apptainer else "docker"
    return {"Container": {"Type": kind, "Tag": f"brainseg-bids:{tag}"}}


def packaged_readme(name: str) -> str:
    """A README that the package holds for what it writes."""
    file = resources.files("brainseg_bids") / "data" / "readme" / f"{name}.md"
    return file.read_text(encoding="utf-8")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time, on one machine; between machines only if the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock_file(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _known_links(output_dir: Path) -> dict:
    """Links that an earlier run has written."""
    try:
        known = read_json(output_dir / "dataset_description.json").get("DatasetLinks", {})
    except InputError:
        return {}
    return known if isinstance(known, dict) else {}


def write_label_tables(output_dir: Path, tables: Mapping[str, LabelTable]) -> dict[str, Path]:
    """Write ``seg-NAME_dseg.tsv`` for each table into the derivative's root.

    Raises
    ------
    InputError
        If the root has another table of that name: its segmentations would change meaning.
    """
    paths = {}
    for name, table in tables.items():
        path = output_dir / f"seg-{name}_dseg.tsv"
        if not path.is_file():
            _add(path, table)
        try:
            same = type(table).read(path) == table
        except ValueError:
            same = False
        if not same:
            raise InputError(
                f"{path}: segmentations with other labels are there already. "
                "Choose another output_dir for this model."
            )
        paths[name] = path
    return paths


def _add(path: Path, table: LabelTable) -> None:
    """Write a table that is not there; one that another job has written meanwhile stays."""
    temporary = path.with_name(f".{path.stem}.{uuid4().hex}.tsv")
    try:
        table.write(temporary)
        os.link(temporary, path)  # unlike a renamed file, a link never replaces another
    except FileExistsError:
        pass
    except OSError:  # perhaps a file system without hard links
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> Path:
    """Write JSON whole or not at all; keys without a value are left out."""
    return write_text(path, json_text(content))


def json_text(content: dict) -> str:
    """JSON as people read it; keys without a value are left out.

    JSON has no NaN: within a value it is null.

    >>> json_text({"Name": "x", "License": None, "Dice": [float("nan")]})
    '{\\n  "Name": "x",\\n  "Dice": [\\n    null\\n  ]\\n}\\n'
    """
    content = {key: finite(value) for key, value in content.items() if value is not None}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value):
    """The same with None for each number that is none: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_once(path: Path, text: str) -> Path:
    """Write text whole or not at all, unless the file says this already."""
    try:
        if path.read_text(encoding="utf-8") == text:
            return path
    except (OSError, UnicodeDecodeError):
        pass
    return write_text(path, text)


def write_model_description(folder: Path, name: str) -> Path:
    """Make the folder of a trained model a BIDS derivative, whose files BIDS has no names for."""
    content = {
        "Name": f"Segmentation model {name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made_by()],
    }
    write_once(folder / ".bidsignore", "training\nbundle\n")
    write_once(folder / "README.md", packaged_readme("model").format(name=name))
    return write_once(folder / "dataset_description.json", json_text(content))
