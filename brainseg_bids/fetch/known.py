# SPDX-License-Identifier: Apache-2.0
"""Which datasets there are: a table each in ``data/datasets``, and what else one may name."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from brainseg_bids.exit_codes import FAILED, UNUSABLE

OPENNEURO_GIT = "https://github.com/OpenNeuroDatasets/{}.git"
OPENNEURO_BUCKET = "openneuro.org"
LICENCE_UNKNOWN = "see its dataset_description.json, LICENSE or README"


class FetchError(RuntimeError):
    """A dataset, or a part of it, cannot be had; the message is one line with the remedy.

    Parameters
    ----------
    message : str
    exit_code : int
        Of `brainseg_bids.exit_codes`.
    """

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Dataset:
    """Where a dataset is, and what it asks of those who use it.

    Parameters
    ----------
    name : str
    title, licence, citation : str
    subjects : int, optional
    size_gb : dict of str to float
        By what is fetched (``images``, ``derivatives``), in 10^9 bytes, as far as known.
    git : str
        URL or path of a git-annex repository, or empty.
    s3 : str
        ``bucket/prefix``, or empty.
    web : str
        URL of a folder with ``SHA256SUMS``, or empty.
    homepage : str
    notes : tuple of str
    """

    name: str
    title: str = ""
    licence: str = LICENCE_UNKNOWN
    citation: str = ""
    subjects: int | None = None
    size_gb: dict[str, float] = field(default_factory=dict)
    git: str = ""
    s3: str = ""
    web: str = ""
    homepage: str = ""
    notes: tuple[str, ...] = ()

    def card(self) -> list[str]:
        """What a user should know before, one line each.

        >>> print(*known_datasets()["cerebrum7t"].card()[1:4], sep="\\n")
        licence: CC0
        subjects: 3
        size: images 0.2 GB, derivatives 0.1 GB (approximate)
        """
        sizes = ", ".join(f"{what} {size:g} GB" for what, size in self.size_gb.items())
        facts = {
            "licence": self.licence,
            "subjects": f"{self.subjects}" if self.subjects else "",
            "size": f"{sizes} (approximate)" if sizes else "",
            "cite": self.citation or "see its dataset_description.json or README",
            "from": self.homepage or self.git or self.s3 or self.web,
        }
        lines = [f"{self.name}: {self.title}" if self.title else self.name]
        lines += [f"{key}: {value}" for key, value in facts.items() if value]
        return lines + [f"note: {note}" for note in self.notes]


def known_datasets() -> dict[str, Dataset]:
    """Packaged descriptions by name.

    >>> sorted(known_datasets())[-1]
    'ultracortex'
    """
    datasets = {}
    for file in (resources.files("brainseg_bids") / "data" / "datasets").iterdir():
        if file.name.endswith(".toml"):
            name = file.name.removesuffix(".toml")
            datasets[name] = _from_toml(name, file.read_text(encoding="utf-8"))
    return dict(sorted(datasets.items()))


def _from_toml(name: str, text: str) -> Dataset:
    values = tomllib.loads(text)
    accession = values.pop("accession", "")
    values["notes"] = tuple(values.get("notes", ()))
    return Dataset(name, **(_on_openneuro(accession) if accession else {}) | values)


def _on_openneuro(accession: str) -> dict[str, str]:
    return {
        "git": OPENNEURO_GIT.format(accession),
        "s3": f"{OPENNEURO_BUCKET}/{accession}",
        "homepage": f"https://openneuro.org/datasets/{accession}",
    }


def find_dataset(text: str) -> Dataset:
    """What a user means.

    Parameters
    ----------
    text : str
        A known name; an accession number of OpenNeuro; path or URL of a git-annex repository;
        ``s3://bucket/prefix``; or an http(s) URL of a folder with ``SHA256SUMS``.

    Raises
    ------
    FetchError
        If it is none of these.

    >>> find_dataset("ds005216").name, find_dataset("UltraCortex").name
    ('ultracortex', 'ultracortex')
    >>> find_dataset("ds000001").s3
    'openneuro.org/ds000001'
    >>> find_dataset("https://example.org/data/").web
    'https://example.org/data'
    """
    known = known_datasets()
    if text.lower() in known:
        return known[text.lower()]
    if re.fullmatch(r"ds[0-9]{6}", text.lower()):
        place = _on_openneuro(text.lower())
        same = [dataset for dataset in known.values() if dataset.s3 == place["s3"]]
        return same[0] if same else Dataset(text.lower(), **place)
    if text.startswith("s3://"):
        return Dataset(text, s3=text.removeprefix("s3://").strip("/"))
    if re.match(r"https?://", text):
        by_git = text.rstrip("/").endswith(".git") or re.match(
            r"https?://(?:github\.com|gitlab\.com|gin\.g-node\.org)/", text
        )
        return Dataset(text, git=text) if by_git else Dataset(text, web=text.rstrip("/"))
    if re.match(r"(?:ssh|git|file|ria\+\w+)://|[\w.-]+@[\w.-]+:|///", text):
        return Dataset(text, git=text)
    if Path(text).exists():
        bare = all((Path(text) / name).exists() for name in ("HEAD", "objects", "refs"))
        if bare or (Path(text) / ".git").exists():
            return Dataset(text, git=str(Path(text).resolve()))
        raise FetchError(
            f"{text}: this is not a git repository. Copy it, or use it as it is.", UNUSABLE
        )
    raise FetchError(
        f"{text}: no dataset is known by this name. Known: {', '.join(known)}. Or give an "
        "OpenNeuro accession (ds005216), a path or URL of a datalad dataset, s3://bucket/prefix, "
        "or the URL of a folder with SHA256SUMS.",
        UNUSABLE,
    )
