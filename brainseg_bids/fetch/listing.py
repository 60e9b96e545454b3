# SPDX-License-Identifier: Apache-2.0
"""What files a place on the web has: of an S3 bucket, or by a list ``SHA256SUMS``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote
from xml.etree import ElementTree

import requests

from brainseg_bids.exit_codes import UNUSABLE
from brainseg_bids.fetch.choice import check_participants, is_wanted, participant_of
from brainseg_bids.fetch.http import get_text
from brainseg_bids.fetch.known import Dataset, FetchError

S3_URL = "https://s3.amazonaws.com"
SUMS = "SHA256SUMS"
XML = {"s3": "http://s3.amazonaws.com/doc/2006-03-01/"}


@dataclass(frozen=True)
class RemoteFile:
    """One file of a dataset on the web.

    Parameters
    ----------
    path : str
        From the dataset's root, with slashes.
    url : str
    size : int, optional
        Bytes, if the listing says.
    algorithm, digest : str
        ``md5`` or ``sha256`` and hex; empty if the listing has none.
    etag : str
        As the server names this version of the file.
    """

    path: str
    url: str
    size: int | None = None
    algorithm: str = ""
    digest: str = ""
    etag: str = ""


def list_files(
    dataset: Dataset,
    session: requests.Session,
    *,
    participants: Sequence[str] = (),
    what: str = "images",
    s3_url: str = S3_URL,
) -> list[RemoteFile]:
    """The wanted files of a dataset on the web.

    Raises
    ------
    FetchError
        No network, no such dataset, a participant it does not have, or nothing that is wanted.
    """
    if dataset.s3:
        files = _list_bucket(dataset, session, participants, what, s3_url)
    else:
        files = _list_sums(dataset, session, participants)
    wanted = [file for file in files if is_wanted(file.path, participants=participants, what=what)]
    if not any("/" in file.path for file in wanted):
        raise FetchError(
            f"{dataset.name}: it has no {'files' if what == 'all' else what} "
            + (f"of participants {', '.join(participants)}." if participants else "there."),
            exit_code=UNUSABLE,
        )
    return sorted(wanted, key=lambda file: file.path)


def _list_bucket(
    dataset: Dataset,
    session: requests.Session,
    participants: Sequence[str],
    what: str,
    s3_url: str,
) -> list[RemoteFile]:
    bucket, _, prefix = dataset.s3.partition("/")
    place = f"{s3_url.rstrip('/')}/{bucket}"
    root = f"{prefix}/" if prefix else ""
    # The root alone names all participants: for a few of them the rest is not listed.
    files, folders = _list_folder(session, place, root, root, flat=True)
    if not files and not folders:
        raise FetchError(
            f"{dataset.name}: {place}/{root} has no files. Is the name right?", UNUSABLE
        )
    check_participants(participants, _labels(folders), dataset.name)
    for folder in folders:
        if _is_listed(folder, participants, what):
            files += _list_folder(session, place, f"{root}{folder}/", root)[0]
    return files


def _labels(folders: Sequence[str]) -> list[str]:
    return [name.removeprefix("sub-") for name in folders if name.startswith("sub-")]


def _is_listed(folder: str, participants: Sequence[str], what: str) -> bool:
    if folder.startswith("sub-"):
        mine = not participants or folder.removeprefix("sub-") in participants
        return mine and what != "derivatives"
    return what == "all" or (what == "derivatives" and folder == "derivatives")


def _list_folder(
    session: requests.Session, place: str, prefix: str, root: str, *, flat: bool = False
) -> tuple[list[RemoteFile], list[str]]:
    """Files below a prefix, page by page; with ``flat`` only those in it, and its folders."""
    files: list[RemoteFile] = []
    folders: list[str] = []
    for page in _pages(session, place, prefix, flat):
        for entry in page.findall("s3:Contents", XML):
            key = entry.findtext("s3:Key", "", XML)
            path = key.removeprefix(root)
            if not path or path.endswith("/"):  # a folder, as some programs write them
                continue
            etag = entry.findtext("s3:ETag", "", XML)
            bare = etag.strip('"').lower()
            # That of a file sent in several parts has a dash, and is no MD5 of the whole.
            md5 = bare if re.fullmatch(r"[0-9a-f]{32}", bare) else ""
            size = int(entry.findtext("s3:Size", "0", XML))
            files.append(
                RemoteFile(path, f"{place}/{quote(key)}", size, "md5" if md5 else "", md5, etag)
            )
        for entry in page.findall("s3:CommonPrefixes", XML):
            folders.append(entry.findtext("s3:Prefix", "", XML).removeprefix(root).strip("/"))
    return files, folders


def _pages(
    session: requests.Session, place: str, prefix: str, flat: bool
) -> Iterator[ElementTree.Element]:
    query = {"list-type": "2", "prefix": prefix} | ({"delimiter": "/"} if flat else {})
    seen: set[str] = set()
    while True:
        text = get_text(session, f"{place}/", query)
        try:
            page = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise FetchError(f"{place}: this is not a listing of a bucket ({error}).") from error
        if not page.tag.endswith("}ListBucketResult"):
            raise FetchError(f"{place}: this is not a listing of a bucket.")
        yield page
        token = page.findtext("s3:NextContinuationToken", "", XML)
        if page.findtext("s3:IsTruncated", "false", XML) != "true":
            return
        if not token or token in seen:
            raise FetchError(f"{place}: the listing of {prefix} does not end. Try again later.")
        seen.add(token)
        query = query | {"continuation-token": token}


def _list_sums(
    dataset: Dataset, session: requests.Session, participants: Sequence[str]
) -> list[RemoteFile]:
    """Files of a list as ``sha256sum`` writes it."""
    where = f"{dataset.web}/{SUMS}"
    files = []
    for number, line in enumerate(get_text(session, where).splitlines(), 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line)
        if not found:
            raise FetchError(f"{where}: line {number} is not a checksum and a path.")
        url = f"{dataset.web}/{quote(found[2])}"
        files.append(RemoteFile(found[2], url, None, "sha256", found[1].lower()))
    labels = {participant_of(file.path) for file in files} - {""}
    check_participants(participants, labels, dataset.name)
    return files
