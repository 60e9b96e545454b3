# SPDX-License-Identifier: Apache-2.0
"""Run a workflow to its end, whatever fails on the way, and say what failed."""

from __future__ import annotations

import getpass
import json
import logging
import multiprocessing.util
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import NamedTuple

from nipype import config
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

from brainseg_bids.interfaces.tools._process import end_children
from brainseg_bids.lifetime import at_end
from brainseg_bids.standard_streams import protect

log = logging.getLogger("brainseg")

KILLED = (
    "a worker process was killed, most likely because memory ran out. Give the job more memory, "
    "or run fewer at a time with --nprocs or --mem."
)

WATCHED = {
    "segment": "report.json",
    "run": "facts.json",
    "merge": "report.json",
    "upsample": "facts.json",
    "measure": "facts.json",
    "register": "report.json",
}
"""Steps that take long, by the last part of their name, and the file with what they have to
tell in the end."""

EXIT_CODES = {"LicenceError": 126, "MissingToolError": 127}
"""Kinds of failure that have an exit code of their own."""

GRAPH_PLUGINS = ("SLURMGraph", "PBSGraph", "SGEGraph", "CondorDAGMan")
"""They hand over all steps at once and return: nobody would wait for results or see failures."""

PLUGINS = (
    "Condor", "IPython", "LSF", "LegacyMultiProc", "Linear", "MultiProc", "OAR", "PBS", "SGE",
    "SLURM", "SomaFlow",
)  # fmt: skip

SUBMITS_WITH = {
    "Condor": "condor_qsub", "LSF": "bsub", "OAR": "oarsub", "PBS": "qsub", "SGE": "qsub",
    "SLURM": "sbatch",
}  # fmt: skip

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


class SafeMultiProcPlugin(MultiProcPlugin):
    """MultiProc that goes on when a worker is killed.

    Nipype's own loses the failure in a callback and waits for ever (nipy/nipype#2700). Here
    each step that was running gets one more try in fresh workers, and then counts as failed.
    """

    def __init__(self, plugin_args: dict | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self._renew_pool()
        self._nodes: dict[int, tuple] = {}
        self._retried: set[int] = set()
        self._broken: set[int] = set()
        self._lock = threading.Lock()

    def _submit_job(self, node, updatehash=False):
        try:
            taskid = super()._submit_job(node, updatehash=updatehash)
        except BrokenProcessPool:
            self._renew_pool()
            taskid = super()._submit_job(node, updatehash=updatehash)
        self._nodes[taskid] = (node, updatehash)
        return taskid

    def _async_callback(self, args: Future) -> None:
        try:
            super()._async_callback(args)
        except BrokenProcessPool:
            # The newest task is not in the list yet when its future breaks while it is submitted.
            known = [task for task, future in self._task_obj.items() if future is args]
            with self._lock:
                self._broken.add(known[0] if known else self._taskid)

    def _get_result(self, taskid):
        with self._lock:
            broken = taskid in self._broken
            self._broken.discard(taskid)
        if not broken:
            return super()._get_result(taskid)
        if taskid in self._retried:
            return {"result": None, "traceback": [f"WorkerKilled: {KILLED}\n"], "taskid": taskid}
        self._retried.add(taskid)
        self._resubmit(taskid)
        return None

    def _resubmit(self, taskid: int) -> None:
        node, updatehash = self._nodes[taskid]
        try:
            future = self.pool.submit(run_node, node, updatehash, taskid)
        except BrokenProcessPool:
            self._renew_pool()
            future = self.pool.submit(run_node, node, updatehash, taskid)
        self._task_obj[taskid] = future
        future.add_done_callback(self._async_callback)

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
            max_workers=self.processors,
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
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def configure_nipype(
    *, crash_dir: Path, stop_on_first_crash: bool, resource_monitor: bool
) -> None:
    """Set what Nipype keeps in one place for the whole process."""
    crash_dir.mkdir(parents=True, exist_ok=True)
    config.update_config(
        {
            "execution": {
                "crashdump_dir": str(crash_dir),
                "crashfile_format": "txt",  # the default is a pickle
                "stop_on_first_crash": str(stop_on_first_crash).lower(),
                "check_version": "false",
                "get_linked_libs": "false",
                "parameterize_dirs": "false",
                "poll_sleep_duration": "0.2",
            },
            "monitoring": {
                "enabled": str(resource_monitor).lower(),
                "sample_frequency": "0.5",
                "summary_append": "true",
            },
        }
    )
    if resource_monitor:
        config.enable_resource_monitor()


def check_plugin(plugin: Mapping) -> None:
    """Refuse what would end badly, before anything is submitted.

    Parameters
    ----------
    plugin : mapping
        ``plugin`` and ``plugin_args``, as the user has written them.

    Raises
    ------
    ValueError
        One line: what, and the remedy.

    Examples
    --------
    >>> check_plugin({"plugin": "SLURMGraph"})
    Traceback (most recent call last):
    ValueError: SLURMGraph returns before its jobs have ended. ...
    """
    name, arguments = plugin["plugin"], plugin.get("plugin_args")
    if name in GRAPH_PLUGINS:
        raise ValueError(
            f"{name} returns before its jobs have ended. Give --slurm instead, for one job per "
            "participant, or the plugin without a graph."
        )
    if name not in PLUGINS:
        raise ValueError(f"Nipype has no plugin {name!r}. Known here: {', '.join(PLUGINS)}.")
    if not isinstance(arguments, Mapping | None):
        raise ValueError("plugin_args are keys with values, such as sbatch_args: --time=60")
    program = SUBMITS_WITH.get(name)
    if program and shutil.which(program) is None:
        raise ValueError(
            f"{name} needs the program {program}, which is not here; in a container it seldom is. "
            "Use --slurm outside of it, or MultiProc."
        )


def _name_user() -> None:
    """Nipype names its jobs after LOGNAME, which containers and batch jobs often lack."""
    if "LOGNAME" not in os.environ:
        try:
            os.environ["LOGNAME"] = getpass.getuser()
        except (KeyError, OSError):  # a number without a name
            os.environ["LOGNAME"] = str(os.getuid())


def run_workflow(
    workflow,
    *,
    nprocs: int,
    memory_gb: float | None,
    crash_dir: Path,
    plugin: Mapping | None = None,
    on_end: Callable[[str, dict], None] = lambda name, facts: None,
    on_progress: Callable[[str, int], None] = lambda name, percent: None,
) -> dict[str, Crash]:
    """Run; what fails is told and does not stop what does not depend on it.

    Parameters
    ----------
    workflow : nipype Workflow
        Its ``config`` must come from `configure_nipype`.
    nprocs : int
        CPUs in all.
    memory_gb : float or None
        Memory in all; None: nine tenths of the machine's.
    crash_dir : Path
        Where Nipype leaves what it knows of a failed step.
    plugin : mapping, optional
        ``plugin`` and ``plugin_args`` of another Nipype plugin.
    on_end : callable
        Told the full name and the facts of each step of `WATCHED` when it has ended well.
    on_progress : callable
        Told the full name and per cent of each segmentation at work, from a thread, every
        second.

    Returns
    -------
    dict of str to Crash
        By full name of each failed step.
    """

    working: dict[str, Path] = {}

    def told(node, status: str) -> None:
        if node.name not in WATCHED:
            return
        if status == "start":
            working[node.fullname] = Path(node.output_dir()) / "stderr.nipype"
            return
        working.pop(node.fullname, None)
        if status == "end":
            facts = Path(node.output_dir()) / WATCHED[node.name]
            if facts.is_file():
                on_end(node.fullname, json.loads(facts.read_text(encoding="utf-8")))

    arguments = {
        "n_procs": nprocs,
        "raise_insufficient": False,
        # Small steps first: an image's results are written before the next image is begun.
        "scheduler": "mem_thread",
        "status_callback": told,
        **({"memory_gb": memory_gb} if memory_gb else {}),
    }
    if plugin:
        name = plugin.get("plugin", "MultiProc")
        arguments |= plugin.get("plugin_args") or {}
        chosen = SafeMultiProcPlugin(arguments) if name == "MultiProc" else name
        _name_user()
    else:
        chosen = SafeMultiProcPlugin(arguments)
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(working, ended, on_progress), daemon=True)
    watcher.start()
    try:
        with at_end(_end_workers):
            workflow.run(plugin=chosen, plugin_args=arguments)
    except KeyboardInterrupt:
        if isinstance(chosen, SafeMultiProcPlugin):
            chosen.stop()
        raise
    except Exception as error:  # Nipype raises whatever the first failed step raised
        failures = read_crashes(crash_dir)
        if not failures:
            log.debug("workflow", exc_info=True)
            failures[workflow.name] = Crash(_last_line(str(error))[1])
        return failures
    finally:
        ended.set()
        watcher.join()
    return read_crashes(crash_dir)


def _end_workers(_signal: int) -> None:
    end_children(os.getpid())
    # Semaphores that are shared with the workers outlive all of them unless they are removed.
    multiprocessing.util._run_finalizers(0)


def _watch(
    working: dict[str, Path], ended: threading.Event, on_progress: Callable[[str, int], None]
) -> None:
    """Read what the processes say about their progress: the last ``NN %`` of their stderr."""
    while not ended.wait(1.0):
        for name, path in list(working.items()):
            try:
                said = re.findall(r"(\d+) ?%", path.read_text(errors="replace"))
            except OSError:  # not begun yet
                continue
            if said and name in working:
                on_progress(name, int(said[-1]))


def read_crashes(crash_dir: Path) -> dict[str, Crash]:
    """Failed steps by full name, with the last line of their traceback."""
    failures = {}
    for path in sorted(crash_dir.glob("crash-*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        name = next(
            (
                line.removeprefix("Node: ").strip()
                for line in text.splitlines()
                if line.startswith("Node: ")
            ),
            path.stem,
        )
        kind, message = _last_line(text)
        failures[name] = Crash(message, EXIT_CODES.get(kind, 0))
    return failures


def _last_line(text: str) -> tuple[str, str]:
    """Kind and message of a traceback's last exception.

    >>> _last_line("Traceback\\n  File x\\n\\tmodule.SaveError: out.nii: the disk is full.\\n")
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
