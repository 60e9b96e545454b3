# SPDX-License-Identifier: Apache-2.0
"""``brainseg fetch`` as its users see it: one line for whatever is wrong, and exit codes."""

from __future__ import annotations

import errno
import io
import socket

import nibabel as nib
import pytest

from brainseg_bids.cli import fetch
from brainseg_bids.fetch import http
from brainseg_bids.fetch.known import find_dataset, known_datasets
from tests.fakes.dataset import assert_valid_bids, write_dataset
from tests.fetch.server import Server, serving


@pytest.fixture
def server(tmp_path_factory):
    """A bucket with a small dataset that is valid BIDS."""
    root = write_dataset(tmp_path_factory.mktemp("bucket"), "sub-01_T1w", "sub-02_T1w")
    files = {
        f"ds000999/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    files["ds000999/README"] = b"Two boxes, made up for tests of fetching. Nothing to see here.\n"
    with serving(Server(files)) as server:
        yield server


@pytest.fixture
def call(server, capsys):
    def call(*arguments) -> tuple[int, str, str]:
        try:
            code = fetch.main([*map(str, arguments), "--s3-url", server.url])
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_a_dataset_comes_with_licence_and_citation_and_is_valid_bids(call, tmp_path):
    dest = tmp_path / "new" / "ds"
    code, out, err = call("ds000999", dest)
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith("licence: ")
    assert "all 4 files" in out
    assert (dest / fetch.NOTE).read_text().startswith("ds000999\nlicence: ")
    assert nib.load(dest / "sub-02/anat/sub-02_T1w.nii.gz").shape
    assert_valid_bids(dest)


def test_a_dry_run_writes_nothing(call, tmp_path):
    code, out, _ = call("ds000999", tmp_path / "d", "--participant-label", "sub-01", "--dry-run")
    assert code == 0
    assert "  sub-01/anat/sub-01_T1w.nii.gz" in out
    assert "sub-02" not in out
    assert not (tmp_path / "d").exists()


def test_what_failed_is_told_at_the_end_with_what_is_there(call, server, tmp_path):
    server.faults["ds000999/sub-01/anat/sub-01_T1w.nii.gz"] = [404]
    code, _, err = call("ds000999", tmp_path / "d")
    assert code == 1
    assert err.splitlines()[-1].endswith(
        f"1 of 4 files were not fetched; the others are in {tmp_path / 'd'}"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing-like-that", "{}"], "no dataset is known by this name. Known: aomic-id1000"),
        (["ds000999"], "give DATASET and DEST"),
        (["ds000999", "{}", "--participant-label", "99"], "no participant 99. It has 01, 02"),
        (["ds000999", "{}", "--participant-label", "a/b"], "letters and digits only"),
        (["ds000999", "{}", "--what", "derivatives"], "it has no derivatives there"),
        (["ds000999", "{}", "--jobs", "0"], "from 1 to 99"),
        (["s3://bucket/x", "{}", "--via", "git-annex"], "it is not a git repository"),
        ([".", "{}", "--via", "http"], "not a git repository"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    call, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*[text.format(tmp_path / "d") for text in arguments])
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("installed", "name", "expected"),
    [
        ("", "ultracortex", "http"),
        ("git-annex", "ultracortex", "git-annex"),
        ("datalad", "ds000001", "datalad"),
        ("datalad", "s3://bucket/x", "http"),
        ("datalad", "https://example.org/data", "http"),
    ],
)
def test_the_way_is_the_best_that_can_be_gone(tmp_path, monkeypatch, installed, name, expected):
    monkeypatch.setattr(fetch.annex, "installed_way", lambda: installed)
    arguments = [name, str(tmp_path / "d")]
    options = fetch.build_parser().parse_args(arguments)
    assert fetch._choose(find_dataset(name), options) == expected
    # What HTTP has begun is gone on with by HTTP.
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "README").write_text("x")
    assert fetch._choose(find_dataset(name), options) == "http"


def test_a_missing_program_is_127(call, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    code, _, err = call("https://example.invalid/x.git", tmp_path / "d")
    assert code == 127
    assert "on PATH" in err


def test_without_network_it_is_one_line(tmp_path, capsys, monkeypatch):
    open_session = http.open_session
    monkeypatch.setattr(
        http,
        "open_session",
        lambda *_: open_session(http.Patience(attempts=1, backoff_s=0.0)),
    )
    arguments = ["ds000999", str(tmp_path / "d"), "--s3-url"]
    assert fetch.main([*arguments, "http://127.0.0.1:9"]) == 1
    assert "Run the same" in capsys.readouterr().err

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert fetch.main([*arguments, "http://nowhere.invalid"]) == 1
    err = capsys.readouterr().err
    assert "no network" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(errno.ENOSPC, 1, "the disk is full"), (errno.EACCES, 2, "Choose another folder")],
)
def test_a_disk_that_takes_nothing_is_one_line(call, tmp_path, monkeypatch, number, code, words):
    class Refusing(io.RawIOBase):
        def write(self, _):
            raise OSError(number, errno.errorcode[number])

    monkeypatch.setattr(fetch.tempfile, "TemporaryFile", lambda dir: Refusing())
    found, _, err = call("ds000999", tmp_path / "d")
    assert found == code
    assert words in err
    assert err.count("\n") == 1


def test_known_datasets_are_listed_with_what_they_ask_for(capsys):
    assert fetch.main(["--list"]) == 0
    out = capsys.readouterr().out
    for name, dataset in known_datasets().items():
        assert f"{name}: {dataset.title}" in out
    assert fetch.main(["ultracortex", "--list"]) == 0
    out = capsys.readouterr().out
    assert "licence: CC0" in out
    assert "doi:10.18112/openneuro.ds005216" in out


def test_every_known_dataset_says_where_it_is_its_licence_and_whom_to_cite():
    for dataset in known_datasets().values():
        assert dataset.title, dataset.name
        assert dataset.citation, dataset.name
        assert dataset.licence == "CC0", dataset.name
        assert dataset.s3.startswith("openneuro.org/ds00"), dataset.name
        assert dataset.git.endswith(f"{dataset.s3.rpartition('/')[2]}.git"), dataset.name


def test_programs_that_pip_has_put_beside_this_python_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert fetch.annex.installed_way() == ""
    for name in ("git", "git-annex", "datalad"):
        (tmp_path / name).touch(mode=0o755)
    assert fetch.annex.find_program("datalad") == str(tmp_path / "datalad")
    assert fetch.annex.installed_way() == "datalad"
