# SPDX-License-Identifier: Apache-2.0
"""Streams that are closed, full or read by nobody are no traceback, and no reason to stop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from brainseg_bids.standard_streams import SafeStream, is_lost
from tests.fakes import dataset

ROOT = Path(__file__).parents[1]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


def shell(words: str, program: str = "-m brainseg_bids") -> tuple[int, str]:
    """Exit code of the app in a pipeline, and what all of it says."""
    line = f"{{ {sys.executable} -W ignore {program} {words}; }} 2>&1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("words", ["--version", "fetch --list"])
@pytest.mark.parametrize("stream", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_fault(words, stream):
    code, said = shell(f"{words} {stream}")
    assert code == 0
    assert "Traceback" not in said
    assert "ERROR" not in said


@pytest.mark.input("runs", "`brainseg --help | head -1`", "silent", 0)
@pytest.mark.parametrize("words", ["--help", "fetch --list"])
def test_a_reader_that_has_seen_enough_is_no_fault(words):
    python = f"{sys.executable} -m brainseg_bids"
    line = f"{python} {words} 2>said | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}; cat said"
    # Nobody reads at all: the first word fails.
    nobody = line.replace("head -1", "true")
    for one in (line, nobody):
        done = subprocess.run(
            ["bash", "-c", f"cd $(mktemp -d); export PYTHONPATH={ROOT}; {one}"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout == "0\n"


@needs_full
@pytest.mark.input(
    "runs", "`--help`, `--version` or `doctor` onto a full disk (`/dev/full`)", "one line", 1
)
@pytest.mark.parametrize("words", ["--help", "--version", "fetch --help"])
def test_what_is_asked_for_and_cannot_be_said_is_one_line(words):
    code, said = shell(f"{words} 2>&1 >/dev/full")
    assert code == 1
    assert said.count("\n") == 1
    assert "No space left on device" in said


def test_a_wrong_command_line_keeps_its_code_where_nobody_hears_why():
    assert shell("nowhere 2>&-")[0] == 2
    assert shell("nowhere 2>/dev/full")[0] == 2


@needs_full
def test_a_full_stream_is_dropped_and_said_once(tmp_path):
    stream = SafeStream(FULL.open("w"))
    assert stream.write("first\n") == 6
    stream.flush()
    assert is_lost(stream)
    stream.write("more\n")
    stream.flush()  # to nowhere
    os.write(stream.fileno(), b"of a child process")
    stream.close()


def test_letters_that_a_terminal_does_not_have_are_written_as_numbers(tmp_path):
    path = tmp_path / "said.txt"
    with path.open("w", encoding="ascii") as file:
        SafeStream(file).write("0.8 × 0.8 mm\n")
    assert path.read_text() == "0.8 \\xd7 0.8 mm\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(
            ">&- 2>&-",
            marks=pytest.mark.input(
                "runs", "output closed", "the run continues and writes to the log file", 0
            ),
        ),
        pytest.param(
            "| head -1",
            marks=pytest.mark.input(
                "runs",
                "a reader of the output that ends early",
                "the run continues and writes to the log file",
                0,
            ),
        ),
    ],
)
def test_work_goes_on_to_the_log_file(tmp_path, stream):
    dataset.write_dataset(tmp_path / "data", "sub-01_T1w")
    model = dataset.write_bundle(tmp_path / "model")
    code, said = shell(
        f"{tmp_path}/data {tmp_path}/out participant -w {tmp_path}/work --model {model} {stream}",
        program="-m tests.fakes.app",
    )
    assert code == 0, said
    assert "Traceback" not in said
    (log,) = tmp_path.glob("out/logs/*/brainseg.log")
    assert "finished successfully!" in log.read_text()
    assert (tmp_path / "out" / "sub-01.html").is_file()
