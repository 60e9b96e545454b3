# SPDX-License-Identifier: Apache-2.0
"""Worker processes that steps run in; the run goes on whatever happens to one of them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from typing import NamedTuple

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer

from brainseg_bids.files import read_ahead
from brainseg_bids.interfaces.tools._process import end_children
from brainseg_bids.standard_streams import protect

log = logging.getLogger("brainseg")

KILLED = (
    "a worker process was killed, most likely because memory ran out. Give the job more memory, "
    "or run fewer at a time with --nprocs or --mem."
)

LONGEST_TEMPORARY = 60
"""Bytes of the path of a folder for sockets, whose own paths may have 104 to 108, with what Python
adds: ``/pymp-xxxxxxxx/listener-xxxxxxxx``."""

EXIT_CODES = {"LicenceError": 126, "MissingToolError": 127}
"""Kinds of failure that have an exit code of their own."""

NIPYPES_NOTES = ("When creating this crashfile", "During the creation of this crashfile")
"""What Nipype adds below a traceback."""

PRELOADED = [
    "brainseg_bids.interfaces.headlabels",
    "brainseg_bids.interfaces.labels",
    "brainseg_bids.interfaces.reportlets",
    "brainseg_bids.interfaces.segment",
    "brainseg_bids.interfaces.tools.base",
    "brainseg_bids.reports.head_figures",
    "nipype.pipeline.plugins.multiproc",
]
"""Imported once and shared by all workers. None of them imports torch."""


class Crash(NamedTuple):
    """Why a step failed: one line, and the exit code of this kind of failure, or 0."""

    reason: str
    exit_code: int = 0


def run_step(node, updatehash: bool, taskid: int) -> dict:
    """Run a step in a worker; what Nipype cannot write or read of it is the step's failure, too.

    Nipype's own reads the result file of a step that failed, and ends without a word when it is
    broken.
    """
    try:
        return {"result": node.run(updatehash=updatehash), "traceback": None, "taskid": taskid}
    except BaseException as error:  # a worker tells, it does not end
        return _failed(taskid, error)


def _failed(taskid: int, error: BaseException) -> dict:
    """What a worker hands back of a step that failed."""
    return {"result": None, "traceback": traceback.format_exception(error), "taskid": taskid}


class SafeMultiProcPlugin(MultiProcPlugin):
    """MultiProc that goes on whatever happens to a step, to its worker or to its files.

    Nipype's own loses a killed worker in a callback and waits for ever (nipy/nipype#2700). Here
    each step that was running gets one more try in fresh workers, and then counts as failed. A
    step also fails that cannot be started, whose result cannot be handed back, or whose files of
    an earlier run cannot be read; and failures are kept in memory, since their files may have no
    room.
    """

    def __init__(self, plugin_args: dict | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self._renew_pool()
        self._nodes: dict[int, tuple] = {}
        self._retried: set[int] = set()
        self._broken: set[int] = set()
        self._order: list[int] = []
        self._read: set[str] = set()
        self._lock = threading.Lock()
        self.crashes: dict[str, Crash] = {}

    def _generate_dependency_list(self, graph) -> None:
        super()._generate_dependency_list(graph)
        self._follows = {id(node) for node in self.procs if graph.in_degree(node)}

    def _is_light(self, job: int) -> bool:
        """Whether a step is a small one that goes on with an image: volumes, a picture."""
        return not self._begins(job) and self.procs[job].n_procs == 1

    def _check_resources(self, running_tasks):
        """One small step runs beside those that take all processors, unless there is but one.

        The next image would otherwise wait for the picture of the last one.
        """
        memory_gb, _, gpu_slots = super()._check_resources(running_tasks)
        jobs = [job for _, job in running_tasks]
        light = sum(self._is_light(job) for job in jobs)
        taken = sum(self.procs[job].n_procs for job in jobs if not self._is_light(job))
        beside = 1 if self.processors > 1 else 0
        free = self.processors - taken - max(0, light - beside)
        self._only_light = free <= 0
        return memory_gb, 1 if free <= 0 and light < beside else max(0, free), gpu_slots

    def _sort_jobs(self, jobids, scheduler="tsort"):
        """What goes on with an image first: it is done before another is begun; light ones first.

        The order is kept for `_read_ahead`.

        Nipype's own ``mem_thread`` goes by memory alone, and a figure may take more than the
        network.
        """

        def order(job: int) -> tuple[bool, float, int]:
            node = self.procs[job]
            return self._begins(job), node.mem_gb, node.n_procs

        self._order = sorted(jobids, key=order)
        return [job for job in self._order if self._is_light(job) or not self._only_light]

    def _send_procs_to_workers(self, updatehash=False, graph=None):
        super()._send_procs_to_workers(updatehash=updatehash, graph=graph)
        self._read_ahead()

    def _begins(self, job: int) -> bool:
        """Whether a step is the first one of an image."""
        return id(self.procs[job]) not in self._follows

    def _read_ahead(self) -> None:
        """Have the images read that come next, as many as are at work.

        They then lie in the system's cache when their turn comes, on a file system of a cluster
        too. What is wrong with one is told by the step that it is for.
        """
        at_work = sum(self._begins(job) for _, job in self.pending_tasks)
        waiting = (job for job in self._order if not self.proc_done[job] and self._begins(job))
        for job in islice(waiting, at_work):
            image = getattr(self.procs[job].inputs, "image", None)
            if isinstance(image, str) and image not in self._read:
                self._read.add(image)
                with suppress(RuntimeError):  # no thread can be started
                    threading.Thread(target=read_ahead, args=[image], daemon=True).start()

    def _submit_job(self, node, updatehash=False):
        self._taskid += 1
        self._nodes[self._taskid] = (node, updatehash)
        self._start(self._taskid)
        return self._taskid

    def _start(self, taskid: int) -> None:
        node, updatehash = self._nodes[taskid]
        try:
            try:
                future = self.pool.submit(run_step, node, updatehash, taskid)
            except BrokenProcessPool:
                self._renew_pool()
                future = self.pool.submit(run_step, node, updatehash, taskid)
        except Exception as error:  # no process can be started: too many files, no memory
            self._task_obj[taskid] = None
            self._taskresult[taskid] = _failed(taskid, error)
            return
        self._task_obj[taskid] = future
        future.add_done_callback(partial(self._ended, taskid))

    def _ended(self, taskid: int, future: Future) -> None:
        try:
            self._async_callback(future)
        except BrokenProcessPool:
            with self._lock:
                self._broken.add(taskid)
        except Exception as error:  # the result could not be handed back
            self._taskresult[taskid] = _failed(taskid, error)

    def _get_result(self, taskid):
        with self._lock:
            broken = taskid in self._broken
            self._broken.discard(taskid)
        if not broken:
            return super()._get_result(taskid)
        if taskid in self._retried:
            return {"result": None, "traceback": [f"WorkerKilled: {KILLED}\n"], "taskid": taskid}
        self._retried.add(taskid)
        self._start(taskid)
        return None

    def _local_hash_check(self, jobid, graph):
        """Whether an earlier run has done a step; what it left of it must be readable."""
        node = self.procs[jobid]
        try:
            try:
                if node.is_cached()[0]:
                    node.result  # noqa: B018  reads it
            except Exception:
                log.debug("%s: made again", node.fullname, exc_info=True)
                shutil.rmtree(node.output_dir(), ignore_errors=True)
                node.is_cached()
        except Exception as error:
            self._clean_queue(jobid, graph, result=_failed(0, error))
            self.proc_pending[jobid] = False
            return True
        return super()._local_hash_check(jobid, graph)

    def _report_crash(self, node, result=None):
        text = "".join((result or {}).get("traceback") or traceback.format_exc())
        kind, message = last_line(text)
        self.crashes.setdefault(node.fullname, Crash(message, EXIT_CODES.get(kind, 0)))
        try:
            return super()._report_crash(node, result=result)
        except Exception:  # no room for it
            log.debug("%s: no crash file", node.fullname, exc_info=True)
            return ""

    def _postrun_check(self):
        # Of a step that could not be started nobody waits for the result.
        self.pool.shutdown(cancel_futures=True)

    def stop(self) -> None:
        """End all workers at once.

        Python waits for its workers when it ends, and a worker waits for work: when an
        interrupt has reached the thread between them, both would wait for ever.
        """
        end_children(os.getpid())
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _renew_pool(self) -> None:
        self.pool.shutdown(wait=False)
        # fork would inherit locks of threads that libraries have started.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        _start_server()
        self.pool = ProcessPoolExecutor(
            max_workers=self.processors + 1,  # a small step runs beside those that take all
            mp_context=context,
            initializer=_start_worker,
            initargs=(self._cwd,),
        )


def _start_server() -> None:
    """Start the process that workers are forked from, deaf to interrupts.

    A terminal sends one to all processes; the app alone ends the others, and half an import in
    the server would be half an import in every worker.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    resource_tracker.ensure_running()  # it would hear again what is blocked here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with _temporary_for_sockets():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _temporary_for_sockets() -> Iterator[None]:
    """While the block lasts, temporary files lie in /tmp if there can be no socket in TMPDIR."""
    before = tempfile.tempdir
    if not _takes_sockets(tempfile.gettempdir()) and _takes_sockets("/tmp"):
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


def _takes_sockets(folder: str) -> bool:
    """Whether sockets can be in a folder: its path may be too long, or its file system has none.

    Some of those that clusters share among their nodes do not know sockets.
    """
    if len(os.fsencode(folder)) > LONGEST_TEMPORARY:
        return False
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder) as inside,
            socket.socket(socket.AF_UNIX) as trial,
        ):
            trial.bind(os.path.join(inside, "trial"))
    except OSError:
        return False
    return True


def _start_worker(folder: str) -> None:
    """Nipype prints each step to stdout; what fails is in the crash file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    protect()
    process_initializer(folder)
    for name in ("nipype", "nipype.workflow", "nipype.interface", "nipype.utils"):
        logging.getLogger(name).handlers[:] = [logging.NullHandler()]
    threading.Thread(target=_end_when_orphaned, daemon=True).start()


def _end_when_orphaned() -> None:
    """End this worker, and what it has started, when the app itself was killed.

    The worker's parent is the server that forked it, so no signal tells; a pipe that the app
    alone holds open does.
    """
    app = multiprocessing.parent_process()
    if app is None:  # not a worker
        return
    app.join()
    end_children(os.getpid(), wait=False)
    os.kill(os.getpid(), signal.SIGKILL)


def last_line(text: str) -> tuple[str, str]:
    """Kind and message of a traceback's last exception.

    >>> last_line("Traceback\\n  File x\\n\\tmodule.SaveError: out.nii: the disk is full.\\n")
    ('SaveError', 'out.nii: the disk is full.')
    """
    for note in NIPYPES_NOTES:
        text = text.partition(note)[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "", "no message"
    kind, found, message = lines[-1].partition(": ")
    if found and all(part.isidentifier() for part in kind.split(".")):
        return kind.split(".")[-1], message
    return "", lines[-1]
