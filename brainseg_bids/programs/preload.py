# SPDX-License-Identifier: Apache-2.0
"""Segment many images with one start: a process that has all at hand and forks for each image.

It imports PyTorch and reads the models once. For each image it makes a copy of itself, which is a
process of its own like ``brainseg_bids.programs.segment``: it gives its memory back, and one that
the system kills is one failed image. `main` asks for such a copy and stands for it: same output,
same end. Where nobody answers it becomes ``brainseg_bids.programs.segment`` itself.

Copies share the models' memory. No GPU is touched before a copy is made.
"""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from brainseg_bids.exit_codes import DONE, FAILED
from brainseg_bids.lifetime import PARENT, at_end, end_with_parent, for_children

log = logging.getLogger("brainseg")

BEGUN = b"begun\n"
LOOK_EVERY_S, REAP_EVERY_S = 0.1, 1.0
LARGEST_REQUEST = 1 << 20
SEGMENT = (sys.executable, "-m", "brainseg_bids.programs.segment")


@contextlib.contextmanager
def preloaded(models: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Keep a process with these models at hand while the block lasts.

    Yields
    ------
    tuple of str
        Program and first arguments, to use like ``brainseg_bids.programs.segment``; that very
        program where there can be no such process.
    """
    if sys.platform == "darwin":  # its frameworks for computing do not work in a forked process
        yield SEGMENT
        return
    with contextlib.ExitStack() as stack:
        try:
            program = _start(models, stack)
        except OSError as error:  # no place for a socket, a path too long for one, no memory
            log.debug("models are read for each image: %s", error)
            program = SEGMENT
        yield program


def _start(models: Sequence[str], stack: contextlib.ExitStack) -> tuple[str, ...]:
    """Start the process, which ends with the stack; what asks it."""
    # A socket's path has to be short, which that of a scratch folder is not.
    folder = Path(tempfile.mkdtemp(prefix="brainseg_"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    stack.enter_context(at_end(lambda _: shutil.rmtree(folder, ignore_errors=True)))
    address = str(folder / "socket")
    module = (sys.executable, "-m", "brainseg_bids.programs.preload")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        # Its standard input ends with this process, also with one that is killed before the other
        # has begun to look for its parent.
        process = subprocess.Popen(
            [*module, "--serve", str(listener.fileno()), *models],
            pass_fds=[listener.fileno()],
            env=for_children() | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    stack.callback(process.stdin.close)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return (*module, address)


# -- who asks -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Have an image segmented by a copy of the process at an address; arguments as of segment."""
    address, *arguments = sys.argv[1:] if argv is None else argv
    if address == "--serve":
        return serve(socket.socket(fileno=int(arguments[0])), arguments[1:])
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = {"arguments": arguments, "folder": os.getcwd()}
        outputs = array.array("i", [sys.stdout.fileno(), sys.stderr.fileno()])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, outputs)]
        server.sendmsg([json.dumps(request).encode() + b"\n"], ancillary)
        answer = server.makefile("rb")
        if answer.readline() == BEGUN:
            return _end_like(answer.readline())
    # What has started this process is what the other has to end with.
    os.execve(SEGMENT[0], [*SEGMENT, *arguments], os.environ | {PARENT: str(os.getppid())})


def _end_like(status: bytes) -> int:
    """End as the copy has ended; one whose end nobody can tell was killed."""
    code = int(status) if status else -signal.SIGKILL
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    return code


# -- who answers --------------------------------------------------------------------------


def serve(listener: socket.socket, models: Sequence[str]) -> int:
    """Answer until standard input ends: one copy of this process for each image."""
    _prepare(models)
    while True:
        asked = select.select([listener, sys.stdin], [], [], REAP_EVERY_S)[0]
        with contextlib.suppress(ChildProcessError):  # what it took is counted as this one's
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if sys.stdin in asked:
            return DONE
        if not asked:
            continue
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            code = FAILED
            try:
                code = _answer(client)
            finally:
                os._exit(code)
        client.close()


def _prepare(models: Sequence[str]) -> None:
    """Import what segmenting needs, and read the models.

    With one thread: a process whose threads have begun to work must not be forked.
    """
    import torch

    from brainseg_bids.nets.bundle import read_models
    from brainseg_bids.programs import segment

    torch.set_num_threads(1)
    segment.import_all()
    for bundle in read_models(models):
        segment.cache_network(bundle)


def _answer(client: socket.socket) -> int:
    """Start the copy that segments, and tell its end; end it if who has asked is gone."""
    text, outputs, _, _ = socket.recv_fds(client, LARGEST_REQUEST, 2)
    request = json.loads(text)
    worker = os.fork()
    if worker == 0:
        os._exit(_segment(request, outputs))
    client.sendall(BEGUN)
    while True:
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            return 0
        if select.select([client], [], [], LOOK_EVERY_S)[0]:  # it says nothing more, it is gone
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            return FAILED


def _segment(request: dict, outputs: Sequence[int]) -> int:
    """The copy that segments: an ordinary run of ``brainseg_bids.programs.segment``."""
    from brainseg_bids.programs import segment

    try:
        os.environ[PARENT] = str(os.getppid())
        end_with_parent()
        for number, output in zip((1, 2), outputs, strict=True):
            os.dup2(output, number)
        os.chdir(request["folder"])
        code = segment.main(request["arguments"])
    except SystemExit as end:  # of the parser
        code = end.code if isinstance(end.code, int) else FAILED
    except BaseException:
        traceback.print_exc()
        code = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
