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
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from nipype import config

from brainseg_bids.console import in_thread
from brainseg_bids.interfaces.tools._process import end_children
from brainseg_bids.lifetime import at_end
from brainseg_bids.workers import EXIT_CODES, Crash, SafeMultiProcPlugin, last_line

log = logging.getLogger("brainseg")

POLL_SECONDS = 0.2
"""How often is looked for steps that have ended, and for those that may begin."""

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
    with in_thread(partial(_watch, working, on_progress)):
        chosen = SafeMultiProcPlugin(arguments) if name == "MultiProc" else name
        died = _run(workflow, chosen, arguments)
    # Files of failures may have had no room.
    failures = read_crashes(crash_dir) if isinstance(chosen, str) else chosen.crashes
    if died and not failures:
        failures[workflow.name] = Crash(last_line(str(died))[1])
    return failures


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
    working: dict[str, Path], on_progress: Callable[[str, int], None], ended: threading.Event
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
        kind, message = last_line(text)
        failures[name] = Crash(message, EXIT_CODES.get(kind, 0))
    return failures
