# SPDX-License-Identifier: Apache-2.0
"""What a stage is. A new one is a file beside this one and a line in ``brainseg_bids.stages``.

Stages are imported before the command line is read, so their modules import what is heavy (numpy,
Nipype, matplotlib) where it is used.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from brainseg_bids.options import OptionGroup
from brainseg_bids.stages.jobs import Job, SubjectPlan

if TYPE_CHECKING:
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.anatomy.cohort import Cohort
    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.bids.inputs import Subject
    from brainseg_bids.bids.templates import Template
    from brainseg_bids.options import Settings
    from brainseg_bids.reports.page import Section
    from brainseg_bids.stages.models import Model


class Refused(Exception):
    """Nothing can be done for anyone; the message is one line, the exit code says what kind."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Message(NamedTuple):
    """A line of the log, at a level of `logging`."""

    level: int
    text: str


@dataclass
class Run:
    """What the stages of one run share.

    Parameters
    ----------
    settings : Settings
    program : tuple of str
        What segments one image, instead of ``brainseg_bids.programs.segment``.
    failed : set of str
        Titles of what an earlier stage of this run could not do: it has been reported.
    """

    settings: Settings
    program: tuple[str, ...] = ()
    failed: set[str] = field(default_factory=set)

    @cached_property
    def participants(self) -> list[str]:
        """Labels of the participants that were chosen.

        Raises
        ------
        InputError
            If one is not in the dataset.
        """
        from brainseg_bids.bids.inputs import find_participants

        return find_participants(self.settings.bids_dir, self.settings.participant_label)

    def subjects(self, usual: Sequence[str]) -> list[Subject]:
        """Images of the chosen participants; of the suffixes ``usual`` unless others are chosen.

        Raises
        ------
        InputError
            As `brainseg_bids.bids.inputs.find_subjects`.
        """
        from brainseg_bids.bids.inputs import find_subjects

        settings = self.settings
        return find_subjects(
            settings.bids_dir,
            self.participants,
            sessions=settings.session_label,
            contrasts=settings.contrasts,
            usual=usual,
            filters=settings.bids_filters,
            database_dir=settings.bids_database_dir,
        )

    def segmented(self) -> list[Subject]:
        """What stage ``segment`` was to segment; nothing if it was only described."""
        from brainseg_bids.bids.names import STRUCTURAL

        return [] if self.settings.boilerplate_only else self.subjects(STRUCTURAL)

    @cached_property
    def _models(self) -> tuple[tuple[Model, ...], LabelTable]:
        from brainseg_bids.stages.models import models_of

        return models_of(self.settings)

    @property
    def models(self) -> tuple[Model, ...]:
        """Models that images are shared out among, as `brainseg_bids.stages.models.models_of`."""
        return self._models[0]

    @property
    def model_table(self) -> LabelTable:
        """Labels of all of them."""
        return self._models[1]

    @cached_property
    def templates(self) -> tuple[Template, ...]:
        """Templates of ``--output-spaces``.

        Raises
        ------
        InputError
            If one is not there.
        """
        from brainseg_bids.bids.templates import read_spaces

        return read_spaces(self.settings.output_spaces)

    @cached_property
    def memory_gib(self) -> float:
        """What the run may use in all."""
        from brainseg_bids.resources import memory_gib

        return self.settings.memory_gb or memory_gib()


class Folders(NamedTuple):
    """Where results lie, and what maps of heads are compared with.

    Parameters
    ----------
    bids_dir, output_dir : Path
    cohort : Cohort or None
    """

    bids_dir: Path
    output_dir: Path
    cohort: Cohort | None = None


@dataclass(frozen=True)
class ExecutionOptions:
    """What is the same for every image of a run.

    Parameters
    ----------
    tables : dict of str to Path
        Label tables in the derivative's root, by the label of ``seg-``.
    output_dir : Path
    device : str
    threads : int
        Of one segmentation or external tool.
    tool_timeout_s : float
        After which an external tool is ended.
    program : tuple of str
        What segments; empty: ``brainseg_bids.programs.segment``. Tests put a stand-in here.
    register : tuple of str
        What registers images; empty: ``brainseg_bids.programs.register``. ANTs may live
        in an environment of its own.
    """

    tables: dict[str, Path]
    output_dir: Path
    device: str = "auto"
    threads: int = 1
    tool_timeout_s: float = 86400.0
    program: tuple[str, ...] = ()
    register: tuple[str, ...] = ()


class Stage(ABC):
    """One of the things that ``--stages`` names.

    Attributes
    ----------
    name : str
    level : {"participant", "group"}
    after : tuple of str
        Stages whose results it reads: they are run before it.
    options : type or None
        Dataclass of its options, if it has any of its own.
    has_name : bool
        Whether ``--stages`` takes its name; else another flag asks for it, see `is_chosen`.
    """

    name: ClassVar[str]
    level: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[type[OptionGroup] | None] = None
    has_name: ClassVar[bool] = True

    def is_chosen(self, settings: Settings) -> bool:
        """Whether the settings ask for it."""
        return self.name in settings.stages


class ParticipantStage(Stage):
    """A stage that makes something of each image.

    Attributes
    ----------
    results : str
        Pattern of the JSON beside its main results; empty: they are not on the page.
    result_files : dict of str to str
        Steps of its workflow that leave metadata of their result: name to file (JSON).
    """

    level: ClassVar[str] = "participant"
    results: ClassVar[str] = ""
    result_files: ClassVar[Mapping[str, str]] = {}

    def check(self, run: Run) -> None:
        """Raise before anything is planned if nothing can be done for anyone.

        Raises
        ------
        InputError, BundleError, Refused
        """

    @abstractmethod
    def plan(self, run: Run) -> list[SubjectPlan]:
        """Jobs of every chosen participant: run or reuse, each with its reason. No Nipype.

        Images come from `Run.subjects`, or from `Run.segmented` for a stage that reads the results
        of ``segment``: with ``--boilerplate-only`` there are none.

        Raises
        ------
        InputError
            If there is nothing for anyone.
        Refused
            If a program or a licence is missing.
        """

    @abstractmethod
    def workflow(self, job: Job, execution: ExecutionOptions) -> Workflow:
        """Nodes and edges for one job."""

    def tables(self, run: Run) -> dict[str, LabelTable]:
        """Label tables that the derivative's root has to hold, by the label of ``seg-``."""
        return {}

    def messages(self, title: str, result: Mapping) -> list[Message]:
        """Lines of the log for what a step of `result_files` has left; called for each of them."""
        return []

    def read(self, path: Path, metadata: Mapping, folders: Folders) -> Job | None:
        """Job of results that are there, from the JSON beside them; None if they are outdated."""
        return None

    def section(self, job: Job, folders: Folders) -> Section | None:
        """Its part of the participant's page, read from the files that the job left."""
        return None

    def methods(self, jobs: Iterable[Job]) -> list[str]:
        """Sentences of the methods text for results that are there."""
        return []

    def memory_gib(self, settings: Settings, images: Sequence, at_once: int) -> list[float]:
        """Memory of its steps for the largest of some images, for batch jobs.

        Parameters
        ----------
        images : sequence of (Scan, Grid)
        at_once : int
            How many images are worked on at the same time.
        """
        return []


class GroupResult(NamedTuple):
    """How a stage of the group level ended.

    Parameters
    ----------
    to_review : tuple of str
        Images and models whose results cannot be right.
    failures : dict of str to str
        What could not be done, and why.
    exit_code : int
        Other than 0: the run ends here with it.
    """

    to_review: tuple[str, ...] = ()
    failures: Mapping[str, str] = {}
    exit_code: int = 0


class GroupStage(Stage):
    """A stage over all participants."""

    level: ClassVar[str] = "group"
    heeds_contrasts: ClassVar[bool] = False
    """Whether ``--contrasts`` chooses among what it takes."""

    @abstractmethod
    def run(self, settings: Settings, run_dir: Path, began_s: float) -> GroupResult:
        """Do it, and write its page; with ``--reports-only`` the page alone.

        Parameters
        ----------
        run_dir : Path
            Where this run keeps its log.
        began_s : float
            Of `time.time`, when the command began.

        Raises
        ------
        InputError
            If what it needs is not there.
        """


def takes_gpu(device: str) -> bool:
    """Whether a step on ``device`` needs one of Nipype's GPU slots."""
    return device == "cuda" or (device == "auto" and shutil.which("nvidia-smi") is not None)
