# SPDX-License-Identifier: Apache-2.0
"""Real git-annex repositories on this disk: cloned, got in parts, lost, told."""

from __future__ import annotations

import logging.handlers
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest

from brainseg_bids.bids.inputs import find_subjects
from brainseg_bids.cli.fetch import main
from brainseg_bids.exit_codes import TERMINATED
from brainseg_bids.fetch import annex
from brainseg_bids.fetch.known import Dataset, FetchError
from brainseg_bids.pointers import pointer_kind, why_unfetched
from tests.fakes.dataset import write_dataset

pytestmark = pytest.mark.skipif(
    not annex.installed_way(), reason="git-annex is not installed: pip install .[fetch]"
)
WAYS = [
    "git-annex",
    pytest.param(
        "datalad",
        marks=pytest.mark.skipif(
            not annex.find_program("datalad"), reason="datalad is not installed"
        ),
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _programs():
    """For the tests' own calls of git."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", annex.search_path())
        yield


@pytest.fixture(scope="module")
def origin(tmp_path_factory, _programs):
    """A dataset of two participants, images annexed, texts not."""
    home = tmp_path_factory.mktemp("annex")
    root = write_dataset(home / "ds", "sub-01_T1w", "sub-02_T1w", "sub-02_T2w")
    masks = root / "derivatives" / "masks"
    masks.mkdir(parents=True)
    shutil.copy(root / "sub-01/anat/sub-01_T1w.nii.gz", masks / "sub-01_mask.nii.gz")
    (masks / "sub-01_mask.nii.gz").write_bytes(b"another" * 100)
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "HOME": str(home)}
    (root / ".gitattributes").write_text(
        "* annex.largefiles=nothing\n*.nii.gz annex.largefiles=anything\n"
    )
    for command in (
        "init -q", "config user.name T", "config user.email t@example.org",
        "annex init -q origin", "annex add -q .", "add .", "commit -q -m all",
    ):  # fmt: skip
        subprocess.run(["git", *command.split()], cwd=root, env=environment, check=True)
    yield root
    for path in root.rglob("*"):  # git-annex protects its objects from being removed
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


@pytest.fixture(autouse=True)
def _identity(monkeypatch, tmp_path):
    for key in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{key}_NAME", "T")
        monkeypatch.setenv(f"GIT_{key}_EMAIL", "t@example.org")
    yield
    for path in tmp_path.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def here(root) -> list[str]:
    return sorted(
        path.name
        for path in root.rglob("sub-*.nii.gz")
        if ".git" not in path.parts and path.exists()
    )


@pytest.mark.parametrize("way", WAYS)
def test_one_participants_images_come_and_then_the_rest(origin, tmp_path, way, capsys):
    dest = tmp_path / "d"
    arguments = [str(origin), str(dest), "--via", way, "--jobs", "2"]
    assert main([*arguments, "--participant-label", "sub-02"]) == 0
    assert here(dest) == ["sub-02_T1w.nii.gz", "sub-02_T2w.nii.gz"]
    said = capsys.readouterr()
    assert "all 3 files" in said.out, said
    assert main([*arguments, "--what", "all"]) == 0
    assert len(here(dest)) == 4
    assert "2 of them are here" not in capsys.readouterr().err


def test_what_is_here_already_is_not_got_again(origin, tmp_path, capsys):
    arguments = [str(origin), str(tmp_path / "d"), "--via", "git-annex"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert "4 files" in capsys.readouterr().out


def test_a_file_that_was_removed_comes_again(origin, tmp_path):
    arguments = [str(origin), str(tmp_path / "d"), "--via", "git-annex"]
    assert main(arguments) == 0
    image = tmp_path / "d" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    image.unlink()
    assert main(arguments) == 0
    assert image.is_file()


@pytest.mark.input(
    "files",
    "`brainseg fetch` where an image of the clone was overwritten",
    "this file is named as not fetched, the others come",
    1,
)
def test_a_file_with_other_content_is_not_called_verified(origin, tmp_path, capsys):
    arguments = [str(origin), str(tmp_path / "d"), "--via", "git-annex"]
    assert main(arguments) == 0
    image = tmp_path / "d" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    image.unlink()
    image.write_bytes(b"cut")
    capsys.readouterr()
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert str(image) in said.err
    assert "Move it away" in said.err
    assert "verified" not in said.out


def test_the_printed_command_really_gets_the_content(origin, tmp_path):
    dest = tmp_path / "with space"
    subprocess.run(["git", "clone", "-q", str(origin), str(dest)], check=True)
    image = dest / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    told = why_unfetched(image)
    assert told.startswith(f"{image}: the file's content is not here (git-annex). Fetch it with: ")
    command = told.partition("Fetch it with: ")[2]
    subprocess.run(command, shell=True, check=True, cwd="/", capture_output=True)
    assert why_unfetched(image) == ""
    assert here(dest) == ["sub-01_T1w.nii.gz"]


def test_what_is_not_here_is_told_before_work_and_the_others_go_on(origin, tmp_path):
    dest = tmp_path / "d"
    subprocess.run(["git", "clone", "-q", str(origin), str(dest)], check=True)
    subprocess.run(["git", "annex", "get", "-q", "sub-01"], cwd=dest, check=True)
    told = logging.handlers.BufferingHandler(99)
    logging.getLogger("brainseg").addHandler(told)
    first, second = find_subjects(dest, ["01", "02"])
    logging.getLogger("brainseg").removeHandler(told)
    assert [scan.title for scan in first.scans] == ["sub-01 T1w"]
    assert sorted(second.errors) == ["sub-02 T1w", "sub-02 T2w"]
    (line,) = [record.getMessage() for record in told.buffer]
    command = line.partition("to fetch all images that are not here: ")[2]
    subprocess.run(command, shell=True, check=True, cwd="/", capture_output=True)
    assert [subject.errors for subject in find_subjects(dest, ["01", "02"])] == [{}, {}]


def test_unlocked_files_are_pointers_too(origin, tmp_path):
    dest = tmp_path / "d"
    subprocess.run(["git", "clone", "-q", str(origin), str(dest)], check=True)
    subprocess.run(["git", "annex", "init", "-q"], cwd=dest, check=True)
    subprocess.run(
        ["git", "annex", "adjust", "-q", "--unlock"], cwd=dest, check=True, capture_output=True
    )
    image = dest / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    assert not image.is_symlink()
    assert image.read_text().startswith("/annex/objects/")
    assert pointer_kind(image) == "git-annex"
    assert main([str(origin), str(dest), "--via", "git-annex"]) == 0
    assert pointer_kind(image) == ""


@pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed")
def test_a_store_of_the_content_beside_the_repository_is_switched_on(origin, tmp_path):
    """As OpenNeuro's bucket is one, of which the repository on GitHub only knows."""
    store, bare, dest = (tmp_path / name for name in ("store", "bare", "d"))
    middle = tmp_path / "m"
    store.mkdir()
    kept = f"git annex initremote -q s type=rsync rsyncurl={store} encryption=none"
    kept += " autoenable=true"
    for command, folder in (
        (f"git clone -q {origin} {middle}", tmp_path),
        (kept, middle),
        ("git annex get -q sub-01", middle),
        ("git annex copy -q sub-01 --to s", middle),
        (f"git init -q --bare {bare}", tmp_path),
        (f"git push -q {bare} HEAD git-annex", middle),
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    assert main([str(bare), str(dest), "--via", "git-annex", "--participant-label", "01"]) == 0
    assert here(dest) == ["sub-01_T1w.nii.gz"]


@pytest.mark.parametrize("way", WAYS)
def test_content_that_nobody_has_is_told_and_the_others_come(origin, tmp_path, way, capsys):
    middle = tmp_path / "m"
    subprocess.run(["git", "clone", "-q", str(origin), str(middle)], check=True)
    subprocess.run(["git", "annex", "get", "-q", "sub-01"], cwd=middle, check=True)
    subprocess.run(["git", "remote", "remove", "origin"], cwd=middle, check=True)
    dest = tmp_path / "d"
    assert main([str(middle), str(dest), "--via", way]) == 1
    assert here(dest) == ["sub-01_T1w.nii.gz"]
    error = capsys.readouterr().err
    assert error.count(": its content") == 2
    assert "2 of 4 files" in error


def test_an_unknown_participant_is_told_with_some_that_there_are(origin, tmp_path, capsys):
    assert main([str(origin), str(tmp_path / "d"), "--participant-label", "99"]) == 2
    assert "01, 02" in capsys.readouterr().err


def test_a_dry_run_lists_files_and_leaves_nothing(origin, tmp_path, capsys):
    dest = tmp_path / "d"
    assert main([str(origin), str(dest), "--participant-label", "02", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2 files" in out
    assert "  sub-02/anat/sub-02_T2w.nii.gz" in out
    assert not dest.exists()


def test_a_folder_with_something_else_is_left_alone(origin, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    assert main([str(origin), str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    other = tmp_path / "other"
    subprocess.run(["git", "clone", "-q", str(origin), str(other)], check=True)
    subprocess.run(
        ["git", "remote", "set-url", "origin", "https://e.org/x"], cwd=other, check=True
    )
    assert main([str(origin), str(other)]) == 2
    assert "another dataset" in capsys.readouterr().err


def test_a_clone_that_fails_is_one_line(tmp_path):
    with pytest.raises(FetchError, match=r"be cloned") as caught:
        annex.clone(
            Dataset("x", git=f"file://{tmp_path}/nothing.git"), tmp_path / "d", "git-annex"
        )
    assert "\n" not in str(caught.value)


def test_a_signal_to_this_process_alone_ends_the_program_that_gets_content():
    getting = """
import os, time
print('{"pid": %d}' % os.getpid(), flush=True)
time.sleep(60)
"""
    fetching = """
import sys
from brainseg_bids.fetch import annex
from brainseg_bids.lifetime import ended_by_signals
with ended_by_signals():
    for result in annex._results([sys.executable, "-c", sys.argv[1]]):
        print(result["pid"], flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", fetching, getting], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    process.terminate()
    assert process.wait(timeout=60) == TERMINATED
    until_s = time.monotonic() + 60
    while psutil.pid_exists(child) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)
