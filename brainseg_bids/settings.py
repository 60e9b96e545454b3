# SPDX-License-Identifier: Apache-2.0
"""``Settings``: everything the user chose, frozen, TOML in and out.

Options that belong to every run are declared here, those of a stage in the stage's own file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from brainseg_bids import options
from brainseg_bids.documents import Number
from brainseg_bids.options import (
    OptionGroup,
    SettingsError,
    argument,
    in_gib,
    label,
    memory_gb,
    option,
    positive,
)
from brainseg_bids.stages import GROUP_STAGES, OPTIONS, PARTICIPANT_STAGES

__all__ = ["Settings", "SettingsError"]


def _listed(stages: tuple[str, ...]) -> str:
    """Names of stages, the first of which is the default."""
    first, *others = stages
    return ", ".join([f"{first} (default)", *others])


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions(OptionGroup):
    """What to do and on what."""

    title: ClassVar[str] = "what to do"

    bids_dir: Path = argument("bids_dir", help="root of a BIDS dataset")
    output_dir: Path = argument("output_dir", help="folder for results; made if it does not exist")
    analysis_level: str = argument(
        "analysis_level",
        default="participant",
        choices=("participant", "group"),
        help="participant: segment images, label heads, measure contrast; group: one table of all "
        "volumes, contrast priors, synthetic pairs, training, evaluation",
    )
    participant_label: tuple[str, ...] = option(
        "--participant-label",
        "--participant_label",
        default=(),
        parse=label("sub-"),
        metavar="LABEL",
        help="only these participants (with or without sub-); default: all",
    )
    session_label: tuple[str, ...] = option(
        "--session-label",
        "--session_label",
        "--session-id",
        default=(),
        parse=label("ses-"),
        metavar="LABEL",
        help="only these sessions (with or without ses-); default: all",
    )
    stages: tuple[str, ...] = option(
        "--stages",
        default=("segment",),
        metavar="STAGE",
        help=f"participant: {_listed(PARTICIPANT_STAGES)}; group: {_listed(GROUP_STAGES)}",
    )
    contrasts: tuple[str, ...] = option(
        "--contrasts",
        default=(),
        metavar="SUFFIX",
        help="BIDS suffixes to use, e.g. T1w UNIT1; default: every structural one (headlabels: "
        "T1w), without "
        "parts such as inv-1 and without phase",
    )
    bids_filters: dict = option(
        "--bids-filter-file",
        default={},
        parse=options.filter_file,
        metavar="FILE",
        help='JSON: {"t1w": {"acquisition": "mprage", "run": null}}; null: absent, "*": any',
    )
    bids_database_dir: Path | None = option(
        "--bids-database-dir",
        metavar="PATH",
        help="keep the index of the dataset there; updated when the dataset changes",
    )
    skip_bids_validation: bool = option(
        "--skip-bids-validation",
        "--skip_bids_validation",
        default=False,
        help="do not check dataset_description.json",
    )
    reports_only: bool = option(
        "--reports-only",
        default=False,
        help="only write the pages again, from existing results",
    )
    boilerplate_only: bool = option(
        "--boilerplate-only",
        "--boilerplate_only",
        default=False,
        help="only write the methods text, logs/CITATION.md",
    )


@dataclass(frozen=True, kw_only=True)
class ResourceOptions(OptionGroup):
    """CPUs, memory, batch systems."""

    title: ClassVar[str] = "resources"

    nprocs: int = option(
        "--nprocs",
        "--nthreads",
        "--n_cpus",
        "--n-cpus",
        default=1,
        parse=positive,
        metavar="N",
        always=True,
        help="CPUs to use in all; default: all",
    )
    omp_nthreads: int = option(
        "--omp-nthreads",
        default=1,
        parse=positive,
        metavar="N",
        always=True,
        help="threads of one segmentation; default: --nprocs, at most 8",
    )
    memory_gb: float | None = option(
        "--mem",
        "--mem_mb",
        "--mem-mb",
        parse=memory_gb,
        arguments=in_gib,
        fits=Number(0, 1e6, "GiB", above=True),
        metavar="SIZE",
        help="memory to use in all, with unit T, G, M or K; a bare number is MB",
    )
    nipype_plugin_file: Path | None = option(
        "--use-plugin",
        "--nipype-plugin-file",
        metavar="FILE",
        help="YAML with plugin and plugin_args of another Nipype plugin",
    )
    resource_monitor: bool = option(
        "--resource-monitor",
        default=False,
        help="record memory and CPU of each step (needs psutil)",
    )


@dataclass(frozen=True, kw_only=True)
class SlurmOptions(OptionGroup):
    """Batch scripts; a job that one of them starts is not given these again."""

    title: ClassVar[str] = "Slurm"

    slurm: bool = option(
        "--slurm",
        default=False,
        help="print the batch script for this run instead of running it",
    )
    submit: bool = option(
        "--submit", default=False, help="with --slurm: also submit the script to Slurm"
    )
    slurm_profile: str = option(
        "--slurm-profile",
        default="",
        metavar="NAME|FILE",
        help="with --slurm: settings of the cluster: a packaged profile (default, a100, mi300a) "
        "or a TOML file",
    )
    participants_per_job: int = option(
        "--participants-per-job",
        default=1,
        parse=positive,
        fits=Number(1, 1e6, whole=True),
        metavar="N",
        help="with --slurm: number of participants per job, one after the other; default: 1",
    )
    resubmit_failed: bool = option(
        "--resubmit-failed",
        default=False,
        help="with --slurm: only participants that failed, are outdated or were never started "
        "(brainseg status)",
    )


@dataclass(frozen=True, kw_only=True)
class OtherOptions(OptionGroup):
    """All else."""

    title: ClassVar[str] = "other"

    work_dir: Path = option(
        "-w",
        "--work-dir",
        default=Path("work"),
        metavar="PATH",
        help="scratch folder; default: ./work",
    )
    clean_workdir: bool = option(
        "--clean-workdir", default=False, help="empty the scratch folder first"
    )
    write_graph: bool = option(
        "--write-graph", default=False, help="draw the workflow into logs (graph.dot)"
    )
    stop_on_first_crash: bool = option(
        "--stop-on-first-crash", default=False, help="stop after the first image that fails"
    )
    offline: bool = option(
        "--offline",
        default=False,
        help="forbid every network connection; a run needs none",
    )
    debug: bool = option("--debug", default=False, help="show tracebacks, otherwise run as usual")
    verbose: int = option("-v", "--verbose", default=0, action="count", help="log more")


@dataclass(frozen=True, kw_only=True)
class Settings(  # type: ignore[misc]
    ChoiceOptions, *OPTIONS, ResourceOptions, SlurmOptions, OtherOptions, options.Settings
):
    """One run of the app: the options of every stage, in the order of ``--help``."""

    def to_toml(self) -> str:
        """Text that `from_toml` turns into an equal object.

        >>> settings = Settings(Path("/in"), Path("/out"), bids_filters={"t1w": {"run": None}})
        >>> Settings.from_toml(settings.to_toml()).bids_filters
        {'t1w': {'run': None}}
        """
        return options.to_toml(self)

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Read what `to_toml` wrote.

        Raises
        ------
        SettingsError
            If it is no TOML or has a setting that this version does not know.
        """
        return cls(**options.from_toml(cls, text))
