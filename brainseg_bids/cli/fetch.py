# SPDX-License-Identifier: Apache-2.0
"""``brainseg fetch``: get a dataset, or the part of it that one wants.

By datalad or git-annex where they are installed and the dataset is kept so, by HTTP otherwise.
Run again, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import errno
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from brainseg_bids import exit_codes, offline
from brainseg_bids.console import OneLineParser
from brainseg_bids.exit_codes import DONE, FAILED, INTERRUPTED, NO_PROGRAM, TERMINATED, UNUSABLE
from brainseg_bids.fetch import annex
from brainseg_bids.fetch.choice import WHAT, gigabytes
from brainseg_bids.fetch.known import Dataset, FetchError, find_dataset, known_datasets
from brainseg_bids.files import DISK_FAULTS
from brainseg_bids.options import label

VIA = ("auto", *annex.WAYS, "http")
JOBS, MOST_SHOWN = 4, 40
NOTE = ".brainseg_fetch.txt"
"""Licence and citation, in the dataset; validators pass over names that begin with a dot."""

MEANINGS = {
    DONE: "all is there",
    FAILED: "something was not fetched (the last lines say what and why)",
    UNUSABLE: "the command line cannot be used",
    NO_PROGRAM: "a program is missing",
    **{code: exit_codes.MEANINGS[code] for code in (INTERRUPTED, TERMINATED)},
}
EPILOG = f"""\
DATASET is a known name (brainseg fetch --list), an OpenNeuro accession such as ds005216, the path
or URL of a datalad or git-annex dataset, s3://BUCKET/PREFIX, or the http(s) URL of a folder with
SHA256SUMS.
{exit_codes.in_words(MEANINGS)}
Run the same command again to go on."""


def build_parser() -> argparse.ArgumentParser:
    """Arguments of ``brainseg fetch``."""
    parser = OneLineParser(
        prog="brainseg fetch",
        description=__doc__.splitlines()[0].partition(": ")[2],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("dataset", nargs="?", metavar="DATASET", help="what to get")
    add("dest", nargs="?", metavar="DEST", type=Path, help="folder; made if it is not there")
    add(
        "--participant-label",
        "--participant_label",
        nargs="+",
        type=label("sub-"),
        default=[],
        metavar="LABEL",
        help="only these participants (with or without sub-); default: all",
    )
    add(
        "--what",
        choices=WHAT,
        default="images",
        help="images (default): folders anat, with what describes them; derivatives: results "
        "that come with the dataset; all: everything",
    )
    add("--list", action="store_true", help="tell what is known of DATASET, or of all")
    add("--dry-run", action="store_true", help="tell what would be fetched, and fetch nothing")
    add("--jobs", "-j", type=_jobs, default=JOBS, metavar="N", help="at a time; default: 4")
    add(
        "--via",
        choices=VIA,
        default="auto",
        help="auto (default): datalad, else git-annex, else http, as they are there",
    )
    add(
        "--s3-url",
        metavar="URL",
        help="another server that speaks S3, e.g. a mirror; default: Amazon's",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Fetch.

    Returns
    -------
    int
        Exit code; see ``brainseg fetch --help``.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        if options.list:
            return _list(options.dataset)
        if options.dataset is None or options.dest is None:
            parser.error("give DATASET and DEST; --list tells which datasets are known")
        if offline.is_on():
            raise FetchError(f"{offline.VARIABLE} is set: the network is forbidden.", UNUSABLE)
        dataset = find_dataset(options.dataset)
        print("\n".join(dataset.card()), flush=True)
        via = _choose(dataset, options)
        if not options.dry_run:
            _check_writable(options.dest.absolute())
        if via == "http":
            return _fetch_http(dataset, options)
        return _fetch_annex(dataset, options, via)
    except FetchError as error:
        _complain(str(error))
        return error.exit_code
    except OSError as error:
        return _complain_of_disk(error, options.dest)
    except KeyboardInterrupt:
        _complain("interrupted; run the same command again to go on")
        return INTERRUPTED


def _list(text: str | None) -> int:
    datasets = [find_dataset(text)] if text else list(known_datasets().values())
    print("\n\n".join("\n".join(dataset.card()) for dataset in datasets))
    return DONE


def _choose(dataset: Dataset, options: argparse.Namespace) -> str:
    """Which way to take."""
    via, dest = options.via, options.dest
    on_web = bool(dataset.s3 or dataset.web)
    if via == "http" and not on_web:
        raise FetchError(
            f"{dataset.name}: it is not on a web server. Fetch it --via git-annex.", UNUSABLE
        )
    if via in annex.WAYS:
        if not dataset.git:
            raise FetchError(
                f"{dataset.name}: it is not a git repository. Fetch it --via http.", UNUSABLE
            )
        annex.check_way(via)
    if via != "auto":
        return via
    if options.s3_url and dataset.s3:
        return "http"
    # A folder that HTTP has begun is gone on with by HTTP.
    begun = dest.is_dir() and any(dest.iterdir()) and not (dest / ".git").exists()
    if on_web and (begun or not dataset.git or not annex.installed_way()):
        return "http"
    if not annex.installed_way():
        annex.check_way("git-annex")
    return annex.installed_way()


def _check_writable(folder: Path) -> None:
    """Raise `OSError` if nothing can be written where the folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0" * 4096)


def _fetch_annex(dataset: Dataset, options: argparse.Namespace, way: str) -> int:
    dest = options.dest.absolute()
    if options.dry_run and not (dest / ".git").exists():
        with tempfile.TemporaryDirectory(prefix="brainseg_fetch_") as folder:
            look = Path(folder) / "clone"  # has no content, only names and sizes
            annex.clone(dataset, look, "git-annex")
            _show_absent(dataset, look, options)
        return DONE
    annex.clone(dataset, dest, way)
    if options.dry_run:
        _show_absent(dataset, dest, options)
        return DONE
    paths = _wanted(dataset, dest, options)
    annex.put_back(dest, paths)
    absent = [path for path in paths if annex.is_absent(path)]
    print(f"{len(paths)} files, {len(paths) - len(absent)} of them are here", flush=True)
    shown = sys.stderr.isatty()
    with tqdm(total=len(absent), unit=" files", disable=not shown) as bar:
        failures = annex.get(dest, absent, way, jobs=options.jobs, on_file=bar.update)
    return _conclude([*failures, *annex.changed(dest, paths)], len(paths), dest)


def _wanted(dataset: Dataset, clone: Path, options: argparse.Namespace) -> list[Path]:
    return annex.wanted_paths(
        dataset, clone, participants=options.participant_label, what=options.what
    )


def _show_absent(dataset: Dataset, clone: Path, options: argparse.Namespace) -> None:
    paths = [path for path in _wanted(dataset, clone, options) if annex.is_absent(path)]
    size = gigabytes(sum(annex.key_size(path) for path in paths))
    print(f"{len(paths)} files to get content of, {size}")
    _show([path.relative_to(clone).as_posix() for path in paths])


def _fetch_http(dataset: Dataset, options: argparse.Namespace) -> int:
    from brainseg_bids.fetch import http, listing, transfer  # late: requests

    patience = http.Patience()
    session = http.open_session(patience, options.jobs)
    files = listing.list_files(
        dataset,
        session,
        participants=options.participant_label,
        what=options.what,
        s3_url=options.s3_url or listing.S3_URL,
    )
    total = sum(file.size or 0 for file in files)
    size = f", {gigabytes(total)}" if total else ""
    print(f"{len(files)} files{size}", flush=True)
    if options.dry_run:
        _show([file.path for file in files])
        return DONE
    dest = options.dest.absolute()
    transfer.check_space(dest, files)
    dest.mkdir(parents=True, exist_ok=True)
    note = dest / NOTE
    note.write_text("\n".join(dataset.card()) + "\n", encoding="utf-8")
    # On a terminal a bar, in a log nothing until the end.
    shown = sys.stderr.isatty()
    with tqdm(total=total or None, unit="B", unit_scale=True, disable=not shown) as bar:
        task = transfer.Transfer(dest, session, patience, on_bytes=bar.update)
        outcome = transfer.fetch_files(task, files, jobs=options.jobs)
    unsure = sum(1 for file in files if not file.algorithm)
    if unsure:
        print(f"{unsure} files: the listing has no checksum, only their sizes were compared")
    there = outcome.counts.get("there already", 0)
    if there:
        print(f"{there} files were here already and are as they should be")
    return _conclude(outcome.failures, len(files), dest)


def _conclude(failures: Sequence[str], total: int, dest: Path) -> int:
    for failure in failures:
        _complain(failure)
    if failures:
        _complain(f"{len(failures)} of {total} files were not fetched; the others are in {dest}")
        return FAILED
    print(f"{dest}: all {total} files are there and verified")
    return DONE


def _show(paths: Sequence[str]) -> None:
    for path in paths[:MOST_SHOWN]:
        print(f"  {path}")
    if len(paths) > MOST_SHOWN:
        print(f"  and {len(paths) - MOST_SHOWN} more")


def _complain(line: str) -> None:
    print(f"brainseg: ERROR: {line}", file=sys.stderr, flush=True)


def _complain_of_disk(error: OSError, dest: Path) -> int:
    where = error.filename or dest
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        fault = DISK_FAULTS[error.errno]
        _complain(f"{where}: {fault}. Make room, and run the same command again.")
        return FAILED
    _complain(f"{where}: {error.strerror or error}. Choose another folder, or mend that.")
    return UNUSABLE


def _jobs(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]?", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 1 to 99")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
