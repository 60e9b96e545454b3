# SPDX-License-Identifier: Apache-2.0
"""Run a workflow to its end, whatever fails on the way, and say what failed."""

from __future__ import annotations

import gc
import getpass
import json
import logging
import multiprocessing.util
import os
import re
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import NamedTuple

from nipype import config
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer

from brainseg_bids.interfaces.tools._process import end_children
from brainseg_bids.lifetime import at_end
from brainseg_bids.standard_streams import protect

log = logging.getLogger("brainseg")

KILLED = (
    "a worker process was killed, most likely because memory ran out. Give the job more memory, "
    "or run fewer at a time with --nprocs or --mem."
)

POLL_SECONDS = 0.2
"""How often is looked for steps that have ended, and for those that may begin."""

LONGEST_TEMPORARY = 60
"""Bytes of the path of a folder for sockets, whose own paths may have 104 to 108, with what Python
adds: ``/pymp-xxxxxxxx/listener-xxxxxxxx``."""

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
        self._lock = threading.Lock()
        self.crashes: dict[str, Crash] = {}

    def _generate_dependency_list(self, graph) -> None:
        super()._generate_dependency_list(graph)
        self._follows = {id(node) for node in self.procs if graph.in_degree(node)}

    def _is_light(self, job: int) -> bool:
        """Whether a step is a small one that goes on with an image: volumes, a picture."""
        node = self.procs[job]
        return id(node) in self._follows and node.n_procs == 1

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

        Nipype's own ``mem_thread`` goes by memory alone, and a figure may take more than the
        network.
        """

        def order(job: int) -> tuple[bool, float, int]:
            node = self.procs[job]
            return id(node) not in self._follows, node.mem_gb, node.n_procs

        if self._only_light:
            jobids = [job for job in jobids if self._is_light(job)]
        return sorted(jobids, key=order)

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
        kind, message = _last_line(text)
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
        with _short_temporary_names():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _short_temporary_names() -> Iterator[None]:
    """While the block lasts, temporary files lie in /tmp if TMPDIR is too long for a socket."""
    before = tempfile.tempdir
    too_long = len(os.fsencode(tempfile.gettempdir())) > LONGEST_TEMPORARY
    if too_long and os.access("/tmp", os.W_OK):
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


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
                # Two files of the same size and time are not the same file.
                "hash_method": "content",
                # Pages on each step in the scratch folder: nobody reads them, all runs share one.
                "create_report": "false",
                "poll_sleep_duration": str(POLL_SECONDS),
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
    result_file: Callable[[str], str] = lambda name: "",
    plugin: Mapping | None = None,
    on_end: Callable[[str, dict], None] = lambda name, facts: None,
    on_progress: Callable[[str, int], None] = lambda name, percent: None,
    on_step: Callable[[str, str], None] = lambda name, status: None,
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
        Of Nipype, for each failed step.
    result_file : callable
        By the full name of a step, the file of its metadata, if it takes long, else nothing.
    plugin : mapping, optional
        ``plugin`` and ``plugin_args`` of another Nipype plugin.
    on_end : callable
        Told the full name and the metadata of each step with a ``result_file``, at its end.
    on_progress : callable
        Gets name and per cent of each segmentation at work, from a thread, every second.
    on_step : callable
        Gets the full name of each step and ``start``, ``end`` or ``exception``.

    Returns
    -------
    dict of str to Crash
        By full name of each failed step.
    """
    working: dict[str, Path] = {}
    arguments = {
        "n_procs": nprocs,
        "raise_insufficient": False,
        "status_callback": _status_callback(working, result_file, on_end, on_step),
    }
    if memory_gb:
        arguments["memory_gb"] = memory_gb
    name = (plugin or {}).get("plugin", "MultiProc")
    if plugin:
        arguments |= plugin.get("plugin_args") or {}
        _name_user()
    with _watched(working, on_progress):
        chosen = SafeMultiProcPlugin(arguments) if name == "MultiProc" else name
        died = _run(workflow, chosen, arguments)
    # Files of failures may have had no room.
    failures = read_crashes(crash_dir) if isinstance(chosen, str) else chosen.crashes
    if died and not failures:
        failures[workflow.name] = Crash(_last_line(str(died))[1])
    return failures


@contextmanager
def _watched(
    working: Mapping[str, Path], on_progress: Callable[[str, int], None]
) -> Iterator[None]:
    """Tell the progress of the steps at work while the block lasts."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(working, ended, on_progress), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _run(workflow, chosen: SafeMultiProcPlugin | str, arguments: dict) -> Exception | None:
    """Run to the end; what Nipype raised: whatever the first failed step has."""
    try:
        with at_end(_end_workers), _garbage_of_imports_spared():
            workflow.run(plugin=chosen, plugin_args=arguments)
    except KeyboardInterrupt:
        if isinstance(chosen, SafeMultiProcPlugin):
            chosen.stop()
        raise
    except Exception as error:
        log.debug("workflow", exc_info=True)
        return error
    return None


def _status_callback(
    working: dict[str, Path],
    result_file: Callable[[str], str],
    on_end: Callable[[str, dict], None],
    on_step: Callable[[str, str], None],
) -> Callable:
    """What Nipype calls as each step begins and ends; others as of `run_workflow`.

    ``working`` is kept up to date: the file with what each step at work says, by its full name.
    """

    def changed(node, status: str) -> None:
        kept = result_file(node.fullname)
        if status == "start" and kept:
            # Of external tools, which say many things in per cent, only our own model is read.
            output = "model.log" if node.name == "run" else "stderr.nipype"
            working[node.fullname] = Path(node.output_dir()) / output
        else:
            working.pop(node.fullname, None)
        if status == "end" and kept:
            _hand_over(node, kept, on_end)
        on_step(node.fullname, status)

    return changed


@contextmanager
def _garbage_of_imports_spared() -> Iterator[None]:
    """Have garbage sought only among what is made from here on.

    Nipype's MultiProc collects garbage each time it looks for work. Of the hundreds of thousands
    of objects of the imported libraries none is garbage, but looking at them took nine tenths of
    the app's own time.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _hand_over(node, name: str, on_end: Callable[[str, dict], None]) -> None:
    """Tell what a step has left in its file, if it has."""
    facts = Path(node.output_dir()) / name
    try:
        if facts.is_file():
            on_end(node.fullname, json.loads(facts.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # what is needed of it comes with the results
        log.debug("%s: cannot be read (%s)", facts, error)


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
            None,
        )
        if name is None:  # half a file, of a disk that is full
            continue
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
