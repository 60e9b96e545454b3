# SPDX-License-Identifier: Apache-2.0
"""Run a program under a watcher, which ends it when time is up or whoever wanted it is gone.

`run_program` starts this file as a process of its own, and that process starts the program.
A worker that is killed can no longer end what it has started; the watcher sees its pipe close
and does. It imports nothing of this package, so it costs a few milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 5.0
"""Time to end in order before being killed; the client of a container ends the container."""


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Parameters
    ----------
    code : int
        Exit code; -n if signal n ended it; 127 if it could not be started.
    timed_out : bool
    seconds : float
    peak_gib : float
        Resident memory of the largest of its processes.
    """

    code: int
    timed_out: bool = False
    seconds: float = 0.0
    peak_gib: float = 0.0


def run_program(
    argv: Sequence[str],
    *,
    folder: Path,
    log: Path,
    timeout_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run to the end; what the program says is added to ``log`` as it says it.

    Parameters
    ----------
    argv : sequence of str
        Program and arguments; no shell sees them.
    folder : Path
        Its working directory.
    log : Path
    timeout_s : float, optional
        After that it is ended, with all it started.
    environment : mapping of str to str, optional
        Default: this process's.
    """
    watcher = [sys.executable, "-I", __file__, str(log.absolute()), str(timeout_s or 0), *argv]
    began_s = time.monotonic()
    # A session of its own: an interrupt from the keyboard must not reach the watcher first.
    with subprocess.Popen(
        watcher,
        cwd=folder,
        env=dict(os.environ if environment is None else environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        said = process.stdout.read()
    if not said:  # the watcher itself was killed
        return Ended(-signal.SIGKILL, seconds=time.monotonic() - began_s)
    return Ended(**json.loads(said))


def watch(argv: Sequence[str], log: Path, timeout_s: float) -> Ended:
    """Run a program until it ends, time is up, or standard input closes."""
    began_s = time.monotonic()
    with log.open("ab") as file:
        try:
            program = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_watcher,  # no thread runs yet
            )
        except OSError as error:
            file.write(f"{argv[0]}: {error.strerror or error}\n".encode())
            return Ended(127)
    timed_out = False
    threading.Thread(target=_end_when_alone, args=[program], daemon=True).start()
    try:
        program.wait(timeout_s or None)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:  # also when this process is asked to end
        end_tree(program)
    # Not `brainseg_bids.machine`: the watcher runs isolated, where this package may not be found.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Ended(
        program.wait(),
        timed_out,
        round(time.monotonic() - began_s, 3),
        round(peak / (2**30 if sys.platform == "darwin" else 2**20), 3),
    )


def _end_with_watcher() -> None:
    """Have the kernel end the program when this watcher is killed itself, where it can."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _end_when_alone(program: subprocess.Popen) -> None:
    # Returns when whoever holds the other end is gone. Not sys.stdin: its lock is awaited at exit.
    while os.read(0, 1024):
        pass
    end_tree(program)


_ending = threading.Lock()
"""Held while a tree is ended: this process must not end before what it has begun to end."""


def end_tree(program: subprocess.Popen) -> None:
    """End a program and whatever it has started: first asked, then killed."""
    with _ending:
        _end(program, _descendants(program.pid))


def _end(program: subprocess.Popen, family: list) -> None:
    for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 1.0)):
        with contextlib.suppress(OSError):
            os.killpg(program.pid, number)
        for process in family:
            with contextlib.suppress(Exception):  # psutil's, for processes that are gone
                process.send_signal(number)
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s:
            if program.poll() is not None and not any(_alive(process) for process in family):
                break
            time.sleep(0.02)


def end_children(pid: int, *, wait: bool = True) -> None:
    """Kill what a process has started, but for watchers: they end their programs in order.

    A watcher does so when whoever has started it is gone; it is waited for, and killed if it
    takes too long. Not if the watchers are children of the process ``pid`` itself: then that has
    to end first, so do not wait.
    """
    import psutil

    spared, watchers = set(), []
    family = _descendants(pid)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if __file__ in command:
                watchers.append(process)
                spared |= {process, *process.children(recursive=True)}
            elif "resource_tracker" in "".join(command):  # of multiprocessing; ends by itself
                spared.add(process)
    for process in family:
        if process not in spared:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    if not wait:
        return
    _, left = psutil.wait_procs(watchers, timeout=2 * GRACE_S)
    for watcher in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*watcher.children(recursive=True), watcher]:
                process.kill()


def _descendants(pid: int) -> list:
    """Children of children too, some of which may have left the process group."""
    try:
        import psutil

        return psutil.Process(pid).children(recursive=True)
    except Exception:  # without psutil, or the process is gone
        return []


def _alive(process) -> bool:
    try:
        return process.is_running() and process.status() != "zombie"
    except Exception:  # psutil's, for processes that are gone
        return False


def _stop(number: int, frame) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    ended = watch(sys.argv[3:], Path(sys.argv[1]), float(sys.argv[2]))
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(vars(ended)), flush=True)
