# SPDX-License-Identifier: Apache-2.0
"""HTTP from a server on this machine that breaks in every way: what arrives is whole and right."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import urllib3

from brainseg_bids.fetch import transfer
from brainseg_bids.fetch.http import Patience, open_session
from brainseg_bids.fetch.known import Dataset, FetchError
from brainseg_bids.fetch.listing import RemoteFile, list_files
from brainseg_bids.fetch.transfer import Transfer, fetch_files
from tests.fetch.server import Server, serving

QUICK = Patience(attempts=3, backoff_s=0.001, longest_wait_s=0.01, connect_s=2, read_s=2)
BIG = bytes(range(256)) * 2000  # two reads of a socket, at least
T1W = "ds000999/sub-01/anat/sub-01_T1w.nii.gz"
FILES = {
    "ds000999/dataset_description.json": b"{}",
    "ds000999/participants.tsv": b"participant_id\n",
    "ds000999/.git/config": b"",
    "ds000999/code/run & <see>.py": b"pass",
    T1W: BIG,
    "ds000999/sub-01/anat/sub-01_T1w.json": b'{"a": 1}',
    "ds000999/sub-01/func/sub-01_task-rest_bold.nii.gz": b"bold",
    "ds000999/sub-010/ses-1/anat/sub-010_ses-1_T2w.nii.gz": b"other",
    "ds000999/sub-010/sub-010_sessions.tsv": b"session_id\n",
    "ds000999/derivatives/masks/sub-01_mask.nii.gz": b"mask",
    "ds000999/derivatives/masks/sub-010_mask.nii.gz": b"mask of 010",
    "ds000999/derivatives/masks/README": b"about",
}
DATASET = Dataset("ds000999", s3="openneuro.org/ds000999")


@pytest.fixture
def server():
    with serving(Server(dict(FILES))) as server:
        yield server


def listed(server, **choice) -> list[RemoteFile]:
    return list_files(DATASET, open_session(QUICK), s3_url=server.url, **choice)


def fetch(server, root, *, jobs=2, **choice):
    task = Transfer(root, open_session(QUICK), QUICK)
    return fetch_files(task, listed(server, **choice), jobs=jobs)


def on_disk(root) -> dict[str, bytes]:
    return {
        f"ds000999/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def only(path: str) -> dict:
    return {"participants": ["01"], "what": "images"} if path == T1W else {}


# ---- what is listed


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({}, ["sub-01_T1w.json", "sub-01_T1w.nii.gz", "sub-010_ses-1_T2w.nii.gz"]),
        ({"participants": ["01"]}, ["sub-01_T1w.json", "sub-01_T1w.nii.gz"]),
        (
            {"participants": ["01"], "what": "derivatives"},
            ["README", "sub-01_mask.nii.gz"],
        ),
    ],
)
def test_a_listing_of_several_pages_gives_what_is_wanted(server, choice, wanted):
    names = {Path(file.path).name for file in listed(server, **choice)}
    # Tables above the images tell of them, and the root's files come always.
    always = {"dataset_description.json", "participants.tsv"}
    always |= {"sub-010_sessions.tsv"} if not choice else set()
    assert names == {*wanted, *always}


def test_everything_is_all_but_gits_own(server):
    paths = {f"ds000999/{file.path}" for file in listed(server, what="all")}
    assert paths == set(FILES) - {"ds000999/.git/config"}


def test_few_participants_do_not_cost_the_listing_of_all(server):
    listed(server, participants=["01"])
    assert {path for path, _ in server.asked} == {"ds000999/", "ds000999/sub-01/"}


def test_an_unknown_participant_is_told_with_some_that_there_are(server):
    with pytest.raises(FetchError, match=r"01, 010") as caught:
        listed(server, participants=["01", "99"])
    assert caught.value.exit_code == 2


def test_a_dataset_that_is_not_there_is_told(server):
    with pytest.raises(FetchError, match=r"ds000001/ "):
        list_files(
            Dataset("x", s3="openneuro.org/ds000001"), open_session(QUICK), s3_url=server.url
        )


def test_a_page_that_is_no_listing_is_told():
    with serving(Server({"x": b""})) as server:
        server.faults["ds000999/"] = [200]
        with pytest.raises(FetchError, match="not a listing"):
            listed(server)


# ---- what arrives


def test_files_arrive_whole_and_under_their_names(server, tmp_path):
    outcome = fetch(server, tmp_path, what="all")
    assert outcome.failures == []
    assert on_disk(tmp_path) == {k: v for k, v in FILES.items() if ".git/" not in k}


def test_a_connection_cut_in_mid_file_is_taken_up_where_it_broke_off(server, tmp_path):
    server.faults[T1W] = ["cut", "cut"]
    outcome = fetch(server, tmp_path, **only(T1W))
    assert outcome.failures == []
    assert on_disk(tmp_path)[T1W] == BIG
    half, more = len(BIG) // 2, len(BIG) // 2 + len(BIG) // 4
    assert server.ranges(T1W) == ["", f"bytes={half}-", f"bytes={more}-"]


def test_a_line_that_always_brings_more_is_borne_as_often_as_it_breaks(server, tmp_path):
    server.faults[T1W] = ["cut"] * (2 * QUICK.attempts)
    assert fetch(server, tmp_path, **only(T1W)).failures == []
    assert on_disk(tmp_path)[T1W] == BIG


def test_cuts_without_end_leave_a_part_that_the_next_run_takes_up(server, tmp_path):
    server.faults[T1W] = ["cut"] * 60
    outcome = fetch(server, tmp_path, **only(T1W))
    assert "the connection was cut again and again" in outcome.failures[0]
    assert T1W not in on_disk(tmp_path)
    (part,) = tmp_path.rglob("*.part")
    here = part.stat().st_size
    assert BIG.startswith(part.read_bytes())
    server.faults.clear()
    server.asked.clear()
    assert fetch(server, tmp_path, **only(T1W)).failures == []
    assert server.ranges(T1W) == [f"bytes={here}-"]
    assert on_disk(tmp_path)[T1W] == BIG
    assert list(tmp_path.rglob("*.part")) == []


def test_a_server_without_ranges_sends_all_again(tmp_path):
    with serving(Server(dict(FILES), {T1W: ["cut"]}, knows_ranges=False)) as server:
        assert fetch(server, tmp_path, **only(T1W)).failures == []
    assert on_disk(tmp_path)[T1W] == BIG


def test_wrong_bytes_never_get_the_name_and_are_asked_for_once_more(server, tmp_path):
    server.faults[T1W] = ["spoil"]
    assert fetch(server, tmp_path, **only(T1W)).failures == []
    assert on_disk(tmp_path)[T1W] == BIG
    server.faults[T1W] = ["spoil"] * 9
    server.asked.clear()
    other = tmp_path / "other"
    outcome = fetch(server, other, **only(T1W))
    assert len(server.ranges(T1W)) == 2
    assert "MD5 differs" in outcome.failures[0]
    assert not [path for path in on_disk(other) if "T1w.nii" in path]


def test_a_part_of_an_older_version_is_thrown_away(server, tmp_path):
    target = tmp_path / T1W.removeprefix("ds000999/")
    target.parent.mkdir(parents=True)
    target.with_name(target.name + ".part").write_bytes(b"of the version before")
    assert fetch(server, tmp_path, **only(T1W)).failures == []
    assert target.read_bytes() == BIG


@pytest.mark.parametrize("length", [0, 1000])
def test_a_part_that_is_too_long_or_only_lacks_its_name_is_no_trouble(server, tmp_path, length):
    target = tmp_path / T1W.removeprefix("ds000999/")
    target.parent.mkdir(parents=True)
    target.with_name(target.name + ".part").write_bytes(BIG + b"x" * length)
    assert fetch(server, tmp_path, **only(T1W)).failures == []
    assert target.read_bytes() == BIG
    assert len(server.ranges(T1W)) == (1 if length else 0)


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.faults[T1W] = [503, 429, 500]
    server.faults["ds000999/"] = [503]
    assert fetch(server, tmp_path, **only(T1W)).failures == []
    assert on_disk(tmp_path)[T1W] == BIG


def test_a_server_cannot_ask_for_hours(server):
    retry = open_session(QUICK).get_adapter(server.url).max_retries
    answer = urllib3.HTTPResponse(headers={"Retry-After": "7200"}, status=503)
    assert retry.get_retry_after(answer) == QUICK.longest_wait_s


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "not there"), (403, "not give it to everybody"), (503, "busy or broken")],
)
def test_what_cannot_be_had_is_told_and_the_others_come(server, tmp_path, status, words):
    server.faults[T1W] = [status] * 20
    outcome = fetch(server, tmp_path)
    assert len(outcome.failures) == 1
    assert words in outcome.failures[0]
    assert "\n" not in outcome.failures[0]
    # Nothing is tried again that will not change.
    assert len(server.ranges(T1W)) == (QUICK.attempts + 1 if status == 503 else 1)
    assert "ds000999/sub-01/anat/sub-01_T1w.json" in on_disk(tmp_path)
    assert list(tmp_path.rglob("*.part")) == []


def test_a_second_run_sends_for_nothing_and_checks_everything(server, tmp_path):
    fetch(server, tmp_path)
    server.asked.clear()
    outcome = fetch(server, tmp_path)
    assert outcome.counts == {"there already": 6}
    assert all(path.endswith("/") for path, _ in server.asked)


def test_a_file_with_other_content_is_not_overwritten(server, tmp_path):
    fetch(server, tmp_path)
    mine = tmp_path / "participants.tsv"
    mine.write_bytes(b"mine, as long..\n"[: mine.stat().st_size])
    before = mine.read_bytes()
    outcome = fetch(server, tmp_path)
    assert "other content" in outcome.failures[0]
    assert mine.read_bytes() == before


def test_pointers_and_empty_files_are_replaced_by_content(server, tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (anat / "sub-01_T1w.nii.gz").symlink_to("../../.git/annex/objects/x/y/MD5E-s9--z.nii.gz")
    (anat / "sub-01_T1w.json").write_bytes(b"")
    assert fetch(server, tmp_path, **only(T1W)).failures == []
    assert on_disk(tmp_path)[T1W] == BIG
    assert not (anat / "sub-01_T1w.nii.gz").is_symlink()


def test_a_checksum_of_several_parts_is_not_taken_for_an_md5(tmp_path):
    etags = {T1W: "0123456789abcdef0123456789abcdef-3"}
    with serving(Server(dict(FILES), etags=etags)) as server:
        assert fetch(server, tmp_path, **only(T1W)).failures == []
    assert on_disk(tmp_path)[T1W] == BIG


def test_a_path_that_leads_out_of_the_folder_is_left_out(tmp_path):
    evil = {"ds000999/sub-01/anat/../../../../evil.nii.gz": b"x"}
    with serving(Server(FILES | evil)) as server:
        paths = [file.path for file in listed(server, what="all")]
    assert not [path for path in paths if "evil" in path]


def test_a_list_of_sha256_sums_does_for_any_folder_on_the_web(tmp_path):
    files = {"data/sub-01/anat/sub-01_T1w.nii.gz": BIG, "data/README": b"hello"}
    lines = [
        f"{hashlib.sha256(body).hexdigest()}  ./{path.removeprefix('data/')}"
        for path, body in files.items()
    ]
    files["data/SHA256SUMS"] = "\n".join(lines).encode()
    name = "data/sub-01/anat/sub-01_T1w.nii.gz"
    # The server's first folder is the bucket of the other tests.
    with serving(Server(files, {name: ["cut"]})) as server:
        dataset = Dataset("mine", web=f"{server.url}/x/data")
        session = open_session(QUICK)
        wanted = list_files(dataset, session, participants=["01"])
        outcome = fetch_files(Transfer(tmp_path, session, QUICK), wanted)
    assert outcome.failures == []
    assert (tmp_path / "sub-01/anat/sub-01_T1w.nii.gz").read_bytes() == BIG


# ---- disks, two runs at once, interruption


def test_a_full_disk_ends_all(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(transfer.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(server, tmp_path)
    assert not [path for path in on_disk(tmp_path) if not path.endswith(".part")]


def test_what_cannot_fit_is_told_before(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: type("", (), {"free": 5000}))
    with pytest.raises(FetchError, match=r"5 kB"):
        transfer.check_space(tmp_path / "not" / "yet", listed(server, participants=["01"]))


def test_a_part_that_another_run_writes_is_left_to_it(server, tmp_path):
    import fcntl

    target = tmp_path / T1W.removeprefix("ds000999/")
    target.parent.mkdir(parents=True)
    with target.with_name(target.name + ".part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        outcome = fetch(server, tmp_path, **only(T1W))
    assert "another fetch" in outcome.failures[0]


def test_ctrl_c_ends_it_at_once_and_the_next_run_goes_on(server, tmp_path):
    server.faults[T1W] = ["slow"]
    command = [sys.executable, "-m", "brainseg_bids", "fetch", "ds000999", str(tmp_path / "d")]
    command += ["--participant-label", "01", "--s3-url", server.url]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Shells start what they put in the background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    part = tmp_path / "d" / (T1W.removeprefix("ds000999/") + ".part")
    until_s = time.monotonic() + 120
    while not (part.exists() and part.stat().st_size) and time.monotonic() < until_s:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "brainseg: ERROR: interrupted; run the same command again to go on\n"
    here = os.stat(part).st_size
    server.asked.clear()
    assert fetch(server, tmp_path / "d", **only(T1W)).failures == []
    assert server.ranges(T1W) == [f"bytes={here}-"]
    assert on_disk(tmp_path / "d")[T1W] == BIG
