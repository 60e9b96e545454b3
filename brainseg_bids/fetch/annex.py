# SPDX-License-Identifier: Apache-2.0
"""Datasets kept by git-annex: cloned once, then the content of wanted files, by its own tools.

`datalad` is called where it is installed, `git annex` otherwise. Both check the content's
checksum, keep what has come, and go on from there when called again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from brainseg_bids.exit_codes import NO_PROGRAM, UNUSABLE
from brainseg_bids.fetch.choice import check_participants, is_wanted
from brainseg_bids.fetch.known import Dataset, FetchError
from brainseg_bids.lifetime import at_end
from brainseg_bids.pointers import ANNEX, pointer_kind

WAYS = ("datalad", "git-annex")
REMEDIES = {"git": "apt install git"} | dict.fromkeys(WAYS, "pip install 'brainseg-bids[fetch]'")
NO_REASON = "no reason was given"
AT_ONCE = 200
"""Paths on one command line; systems limit its length."""


def find_program(name: str) -> str | None:
    """Where a program is: on PATH, or beside this Python, where pip puts it."""
    return shutil.which(name, path=search_path())


def search_path() -> str:
    """PATH, and the folder of this Python."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)])


def installed_way() -> str:
    """``datalad`` or ``git-annex``, or nothing; both need git and git-annex."""
    if not (find_program("git") and find_program("git-annex")):
        return ""
    return "datalad" if find_program("datalad") else "git-annex"


def check_way(way: str) -> None:
    """Refuse a way whose programs are missing.

    Raises
    ------
    FetchError
        With exit code 127.
    """
    for program in ("git", "git-annex", *(["datalad"] if way == "datalad" else [])):
        if not find_program(program):
            raise FetchError(
                f"{program} is not on PATH. Install it ({REMEDIES[program]}), or fetch with "
                "--via http where the dataset is on the web.",
                exit_code=NO_PROGRAM,
            )


def clone(dataset: Dataset, root: Path, way: str) -> None:
    """Clone without content, or accept the clone that is there.

    Raises
    ------
    FetchError
        If the folder holds something else, or the clone fails.
    """
    if (root / ".git").exists():
        if _run(["git", "-C", str(root), "rev-parse", "--verify", "-q", "HEAD"]).returncode:
            raise FetchError(f"{root}: a clone that was not finished is there. Remove it.")
        origin = _git(root, "remote", "get-url", "origin").strip()
        if origin and not _same_place(origin, dataset.git):
            raise FetchError(
                f"{root}: another dataset is there, cloned from {origin}. Choose another folder.",
                exit_code=UNUSABLE,
            )
        return
    if root.exists() and any(root.iterdir()):
        raise FetchError(
            f"{root}: the folder is not empty, and no clone of the dataset. "
            "Choose another, or add files to it with --via http.",
            exit_code=UNUSABLE,
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    program = ["datalad", "clone"] if way == "datalad" else ["git", "clone", "--quiet"]
    done = _run([*program, dataset.git, str(root)])
    if done.returncode:
        raise FetchError(f"{dataset.git}: it could not be cloned ({_last_line(done)}).")


def wanted_paths(
    dataset: Dataset, root: Path, *, participants: Sequence[str] = (), what: str = "images"
) -> list[Path]:
    """The wanted files of a clone, whether their content is there or not.

    Raises
    ------
    FetchError
        If it has no such participant, or no such files.
    """
    tracked = [path for path in _git(root, "ls-files", "-z").split("\0") if path]
    if not tracked:
        raise FetchError(f"{root}: a clone that was not finished is there. Remove it.")
    folders = {path.partition("/")[0] for path in tracked if "/" in path}
    labels = [name.removeprefix("sub-") for name in folders if name.startswith("sub-")]
    check_participants(participants, labels, dataset.name)
    wanted = [path for path in tracked if is_wanted(path, participants=participants, what=what)]
    if not any("/" in path for path in wanted):
        raise FetchError(f"{dataset.name}: it has no {what} for these participants.", UNUSABLE)
    # A subdataset is one entry here, and a folder.
    return [root / path for path in wanted if not (root / path).is_dir()]


def put_back(root: Path, paths: Sequence[Path]) -> None:
    """Have files in the folder again that somebody removed, or a clone that was cut off lacks.

    Raises
    ------
    FetchError
        If git cannot.
    """
    gone = [str(path.relative_to(root)) for path in paths if not os.path.lexists(path)]
    for start in range(0, len(gone), AT_ONCE):
        _git(root, "checkout", "--quiet", "--", *gone[start : start + AT_ONCE])


def changed(root: Path, paths: Sequence[Path]) -> list[str]:
    """One line for each of some files whose content is not what the clone has of it."""
    differ = {root / path for path in _git(root, "diff", "--name-only", "-z").split("\0") if path}
    return [
        f"{path}: a file with other content is there. Move it away and run it again, or commit it."
        for path in paths
        if path in differ
    ]


def get(
    root: Path,
    paths: Sequence[Path],
    way: str,
    *,
    jobs: int,
    on_file: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Get content.

    Parameters
    ----------
    root : Path
        Of the clone.
    paths : sequence of Path
    way : {"datalad", "git-annex"}
    jobs : int
        Files at a time.
    on_file : callable
        Told after each file: 1.

    Returns
    -------
    list of str
        One line for each file whose content was not fetched.
    """
    reasons: dict[Path, str] = {}
    absent = [path for path in paths if is_absent(path)]
    for start in range(0, len(absent), AT_ONCE):
        some = absent[start : start + AT_ONCE]
        if way == "datalad":
            command = ["datalad", "-f", "json", "--on-failure", "continue", "get"]
            command += ["-d", str(root), "-J", str(jobs), *map(str, some)]
        else:
            command = ["git", "-C", str(root), "annex", "get", f"--jobs={jobs}"]
            command += ["--json", "--json-error-messages", "--"]
            command += [str(path.relative_to(root)) for path in some]
        for result in _results(command):
            on_file(1)
            name = result.get("path") or result.get("file") or ""
            if result.get("success") is False or result.get("status") in ("error", "impossible"):
                reasons[root / name] = _reason(result)
    return [
        f"{path}: its content was not fetched ({reasons.get(path, NO_REASON)})."
        for path in absent
        if is_absent(path)
    ]


def _results(command: Sequence[str]) -> Iterator[dict]:
    """What a program says of each file, as it says it: a JSON object a line."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # repeats the same in words
        text=True,
        errors="replace",
        env=_environment(),
    )
    # A signal may have reached this process alone.
    with process, at_end(lambda _: process.terminate()):
        try:
            for line in process.stdout:
                with contextlib.suppress(ValueError):
                    result = json.loads(line)
                    if isinstance(result, dict):
                        yield result
        except BaseException:
            process.terminate()
            raise


def _reason(result: Mapping) -> str:
    """Why a file did not come, in the program's own words and in one line.

    >>> _reason({"error-messages": ["  unable to access remote: x"], "note": "not available"})
    'unable to access remote: x'
    >>> _reason({"message": "not available"})
    'not available'
    """
    keys = ("error-messages", "error_message", "note", "message")
    words = next((result[key] for key in keys if result.get(key)), "")
    text = " ".join(map(str, words)) if isinstance(words, list) else str(words)
    return " ".join(text.split())[:300] or NO_REASON


def is_absent(path: Path) -> bool:
    """Whether git-annex has a file's content elsewhere."""
    return pointer_kind(path) == ANNEX


def key_size(path: Path) -> int:
    """Bytes of a file whose content is not here, as its git-annex key says; 0 if it does not."""
    text = os.readlink(path) if path.is_symlink() else path.read_text("utf-8", "replace")
    size = re.search(r"-s(\d+)(?:-|$)", text.rpartition("/")[2])
    return int(size[1]) if size else 0


def _same_place(one: str, other: str) -> bool:
    """Whether two addresses of a repository are the same but for their spelling.

    >>> _same_place("https://github.com/A/b.git", "https://github.com/A/b/")
    True
    """

    def bare(text: str) -> str:
        return text.removeprefix("file://").rstrip("/").removesuffix(".git").rstrip("/")

    return bare(one) == bare(other)


def _git(root: Path, *arguments: str) -> str:
    done = _run(["git", "-C", str(root), *arguments])
    if done.returncode:
        raise FetchError(f"{root}: git {arguments[0]} failed ({_last_line(done)}).")
    return done.stdout


def _run(command: Sequence[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=_environment(),
        check=False,
    )


def _environment() -> dict[str, str]:
    """Nobody is there to type a password, and messages are to be English.

    git finds git-annex, and git-annex datalad, where pip has put them.
    """
    return os.environ | {"PATH": search_path(), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"}


def _last_line(done: subprocess.CompletedProcess) -> str:
    """The line of what a program said that most likely tells why it failed."""
    lines = [line.strip() for line in (done.stderr or done.stdout or "").splitlines()]
    lines = [line for line in lines if line and not line.startswith(("(", "hint:"))]
    telling = [line for line in lines if "fatal:" in line or "error" in line.lower()]
    return (telling or lines or [f"exit code {done.returncode}"])[-1].rstrip(".")
