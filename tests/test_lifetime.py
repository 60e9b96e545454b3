# SPDX-License-Identifier: Apache-2.0
"""A signal ends the app with one code from the first instant, and children end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brainseg_bids.lifetime import CODES, for_children
from tests.fakes import dataset

ROOT = Path(__file__).parents[1]
HEARS = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
"""A shell's background jobs ignore SIGINT, and their children inherit that."""


def start(program: str, *arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **HEARS | options,
    )  # fmt: skip


def wait_until(true, within_s: float = 10.0) -> bool:
    until_s = time.monotonic() + within_s
    while not (done := true()) and time.monotonic() < until_s:
        time.sleep(0.02)
    return bool(done)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# -- signals ------------------------------------------------------------------------------

STUBBORN = """\
import sys, time
from brainseg_bids.lifetime import at_end, ended_by_signals
with ended_by_signals(), at_end(lambda number: open(sys.argv[1], "w").write(str(int(number)))):
    print("ready", flush=True)
    while True:
        try:
            time.sleep(1)
        except BaseException:
            pass
"""


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_what_would_swallow_an_exception(tmp_path, number):
    process = start(STUBBORN, tmp_path / "note")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    said, _ = process.communicate(timeout=10)
    assert process.returncode == CODES[number]
    assert said.count("\n") == 1
    assert "same command again" in said
    assert (tmp_path / "note").read_text() == str(int(number))


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    deaf = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = start(STUBBORN, tmp_path / "note", **deaf)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143


@pytest.mark.parametrize(
    ("after_s", "number"),
    [
        pytest.param(
            0.3, signal.SIGTERM,
            marks=pytest.mark.input(
                "runs", "SIGTERM at any moment, but while training runs", "one line", 143
            ),
        ),
        pytest.param(
            0.8, signal.SIGINT,
            marks=pytest.mark.input(
                "runs", "Ctrl-C at any moment, but while training runs", "one line", 130
            ),
        ),
        pytest.param(
            1.5, signal.SIGUSR1,
            marks=pytest.mark.input(
                "runs", "SIGUSR1, as batch systems send it before a job's time is over",
                "one line; the same command resumes", 75,
            ),
        ),
    ],
)  # fmt: skip
def test_the_app_ends_with_one_line_while_it_starts(tmp_path, after_s, number):
    data = dataset.write_dataset(tmp_path / "data", "sub-01_T1w")
    command = [sys.executable, "-m", "brainseg_bids", data, tmp_path / "out", "participant"]
    process = subprocess.Popen(
        [*map(str, command), "-w", str(tmp_path / "work")], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **HEARS,
    )  # fmt: skip
    time.sleep(after_s)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == CODES[number], said
    assert "Traceback" not in said
    assert "same command again" in said.splitlines()[-1]


WRITES = """\
import sys, time
from pathlib import Path
from brainseg_bids.lifetime import ended_by_signals
from brainseg_bids.images import whole_or_nothing
with ended_by_signals(), whole_or_nothing(Path(sys.argv[1]) / "page.html") as beside:
    beside.write_text("half a page")
    print("ready", flush=True)
    time.sleep(30)
"""


def test_a_signal_leaves_nothing_half_written(tmp_path):
    process = start(WRITES, tmp_path)
    assert process.stdout.readline() == "ready\n"
    assert list(tmp_path.iterdir())
    process.terminate()
    assert process.wait(10) == 143
    assert list(tmp_path.iterdir()) == []


# -- children -----------------------------------------------------------------------------

PARENT = """\
import subprocess, sys, time
from brainseg_bids.lifetime import for_children
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], env=for_children())
print(child.pid, flush=True)
time.sleep(60)
"""
CHILD = """\
import signal, sys, time
from pathlib import Path
import brainseg_bids
def save(*_):
    Path(sys.argv[1], "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""


@pytest.mark.input(
    "runs", "the main process is killed with -9", "its children end, training after saving", 137
)
def test_a_child_is_asked_to_end_when_its_parent_is_killed(tmp_path):
    parent = start(PARENT, CHILD, tmp_path)
    child = int(parent.stdout.readline())
    assert wait_until((tmp_path / "ready").exists)
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not is_alive(child)), child
    assert (tmp_path / "saved").exists()


def test_what_nobody_wants_to_end_lives_on(tmp_path):
    orphan = PARENT.replace("env=for_children()", "")
    parent = start(orphan, CHILD, tmp_path)
    child = int(parent.stdout.readline())
    assert wait_until((tmp_path / "ready").exists)
    parent.kill()
    parent.wait()
    time.sleep(0.8)
    assert is_alive(child)
    os.kill(child, signal.SIGTERM)


def test_a_child_of_a_launcher_in_between_is_left_to_the_launcher():
    # A process with another parent than the variable says: nothing is watched, nothing ends.
    program = "import brainseg_bids, threading; print(threading.active_count())"
    said = subprocess.run(
        [sys.executable, "-c", program], env=for_children() | {"BRAINSEG_PARENT": "1"},
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert said.stdout == "1\n", said.stderr
