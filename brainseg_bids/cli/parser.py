# SPDX-License-Identifier: Apache-2.0
"""Command line to `Settings`. Imports nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import tempfile
from pathlib import Path

from brainseg_bids import __version__, options
from brainseg_bids.bids.filters import make_filters
from brainseg_bids.bids.names import STRUCTURAL
from brainseg_bids.bids.reused_transforms import PIPELINES
from brainseg_bids.console import OneLineParser
from brainseg_bids.documents import InputError, read_text
from brainseg_bids.exit_codes import in_words
from brainseg_bids.machine import allowed_cores
from brainseg_bids.settings import (
    ChoiceOptions,
    OtherOptions,
    Settings,
    SettingsError,
)
from brainseg_bids.stages import GROUP_STAGES, PARTICIPANT_STAGES

STAGES = {"participant": PARTICIPANT_STAGES, "group": GROUP_STAGES}
DEFAULT_STAGE = {level: stages[:1] for level, stages in STAGES.items()}
BY_NAME = {"tools": "--tool", "derivatives": "-d", "references": "--reference"}
"""Settings that are given as pairs of a name and a value."""

EPILOG = f"""\
{in_words()}
`brainseg doctor` tells which tools, licences, models and accelerators are there.
`brainseg fetch` gets datasets; nothing else downloads, and nothing is ever sent."""


def build_parser() -> argparse.ArgumentParser:
    """The parser, from the declarations of all options; `parse` checks what needs several."""
    parser = OneLineParser(
        prog="brainseg",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Whole-head segmentation of structural MR images, as a BIDS App.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"brainseg {__version__} (distribution brainseg-bids)",
    )
    sections = {
        group: options.add_group(parser, group, Settings) for group in options.groups_of(Settings)
    }
    sections[ChoiceOptions].add_argument(
        "--md-only-boilerplate",
        action="store_true",
        help="accepted for scripts; the methods text is always Markdown alone",
    )
    other = sections[OtherOptions].add_argument
    other(
        "--config-file",
        type=Path,
        metavar="FILE",
        help="settings.toml of an earlier run; flags have priority",
    )
    other("--notrack", action="store_true", help="accepted for scripts; nothing is ever tracked")
    return parser


def parse(argv: list[str] | None = None) -> Settings:
    """Read the command line; what cannot be used ends the program with exit code 2."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    config_file = given.pop("config_file")
    for no_setting in ("notrack", "md_only_boilerplate"):
        given.pop(no_setting)
    stored = _read_config(parser, config_file) if config_file else {}
    for name in BY_NAME.keys() & given.keys():
        given[name] = _by_name(parser, BY_NAME[name], given[name])
    values = stored | given
    level = values["analysis_level"]
    values["stages"] = _stages(parser, given.get("stages"), stored.get("stages"), level)
    for item in options.declared(Settings):
        if item.name in values and item.kind.startswith("tuple"):
            values[item.name] = tuple(values[item.name])
        elif item.name in values and item.kind.startswith("Path"):
            values[item.name] = values[item.name].absolute()
    if fault := options.without_effect(Settings, given, values["stages"]):
        parser.error(fault)
    if len(values.get("target_voxel_size_mm", ())) not in (0, 1, 3):
        parser.error("--target-voxel-size: give one number, or three.")
    for name in ("submit", "slurm_profile", "participants_per_job", "resubmit_failed"):
        if given.get(name) and not values.get("slurm"):
            parser.error(f"--{name.replace('_', '-')} needs --slurm.")
    values.setdefault("brain_tool", values.get("head_tool", Settings.head_tool))
    # Of a batch job: as the profile says (0), not what the machine has that submits it.
    values.setdefault("nprocs", 0 if values.get("slurm") else allowed_cores())
    values.setdefault("omp_nthreads", min(values["nprocs"], 8))
    values.setdefault("work_dir", Path("work").absolute())
    settings = Settings(**values)
    try:
        what = f"--bids-filter-file {getattr(settings.bids_filters, 'path', '')}".rstrip()
        make_filters(settings.bids_filters, settings.contrasts or STRUCTURAL, what=what)
    except InputError as error:
        parser.error(str(error))
    if settings.boilerplate_only and settings.analysis_level == "group":
        parser.error(
            "--boilerplate-only: only the participant level has a methods text. Leave it out."
        )
    if settings.boilerplate_only and settings.reports_only:
        parser.error("--boilerplate-only and --reports-only: give one of them.")
    if settings.analysis_level == "participant":
        _check_derivatives(parser, settings)
    _check_folders(parser, settings)
    _check_written(parser, settings)
    _check_given(parser, settings)
    return settings


def _read_config(parser: argparse.ArgumentParser, path: Path) -> dict:
    try:
        values = options.from_toml(Settings, read_text(path), what=str(path))
    except (InputError, SettingsError) as error:
        parser.error(f"--config-file {error}")
    return {
        k: v for k, v in values.items() if k not in ("bids_dir", "output_dir", "analysis_level")
    }


def _stages(
    parser, said: list[str] | None, stored: tuple[str, ...] | None, level: str
) -> tuple[str, ...]:
    stages = said or [s for s in stored or () if s in STAGES[level]] or DEFAULT_STAGE[level]
    for stage in stages:
        if stage in STAGES[level]:
            continue
        other = next((name for name, known in STAGES.items() if stage in known), None)
        if other:
            parser.error(f"--stages {stage}: this is a stage of the {other} level.")
        parser.error(
            f"--stages {stage}: this version has no such stage. "
            f"At {level} level it has: {', '.join(STAGES[level])}."
        )
    return tuple(dict.fromkeys(stages))


def _check_derivatives(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """Refuse a derivative that nothing would be taken from."""
    labels_are_read = {"headlabels", "contrast"} & set(settings.stages)
    for name in settings.derivatives:
        if name in PIPELINES and not settings.output_spaces:
            parser.error(
                f"-d {name}=...: its transforms are for --output-spaces. Give that, or leave this "
                "out."
            )
        if name not in PIPELINES and not labels_are_read:
            parser.error(
                f"-d {name}=...: stage segment takes only transforms, of "
                f"{' or '.join(PIPELINES)}. Labels are for --stages headlabels or contrast."
            )


def _check_folders(parser: argparse.ArgumentParser, settings: Settings) -> None:
    bids_dir, output_dir = settings.bids_dir.resolve(), settings.output_dir.resolve()
    work_dir = settings.work_dir.resolve()
    if not bids_dir.is_dir():
        parser.error(
            f"{settings.bids_dir}: there is no such folder. Give the root of a BIDS dataset."
        )
    advice = f"Use e.g. {bids_dir / 'derivatives' / 'brainseg'}."
    if output_dir == bids_dir:
        parser.error(f"{settings.output_dir}: output_dir is the input dataset. {advice}")
    if output_dir.is_relative_to(bids_dir) and not output_dir.is_relative_to(
        bids_dir / "derivatives"
    ):
        parser.error(f"{settings.output_dir}: output_dir lies inside the input dataset. {advice}")
    if output_dir == bids_dir / "derivatives":
        parser.error(
            f"{settings.output_dir}: derivatives/ holds one folder per derivative. {advice}"
        )
    if work_dir == bids_dir or work_dir.is_relative_to(bids_dir):
        parser.error(
            f"{settings.work_dir}: the scratch folder lies inside the input dataset. "
            "Choose another with -w."
        )
    if work_dir == output_dir:
        parser.error(
            f"{settings.work_dir}: this is output_dir too. Choose another scratch folder with -w."
        )
    if re.search(r"[][*?]", str(work_dir)):  # Nipype looks for its files there by patterns
        parser.error(
            f"{settings.work_dir}: brackets, * and ? cannot be in the scratch folder's path. "
            "Choose another with -w."
        )


def _check_written(parser: argparse.ArgumentParser, settings: Settings) -> None:
    try:
        tempfile.gettempdir()  # tries TMPDIR, /tmp and others: a full disk is none of use, either
    except OSError:
        tried = os.environ.get("TMPDIR") or "/tmp"
        parser.error(
            f"{tried}: temporary files cannot be written there. Set TMPDIR to a folder that has "
            "room and can be written."
        )
    written = [("output_dir", settings.output_dir)]
    computes = not (settings.reports_only or settings.boilerplate_only)
    if settings.analysis_level == "participant" and computes:
        written.append(("scratch folder", settings.work_dir))
    for what, folder in written:
        fault = _write_fault(folder)
        if fault:
            parser.error(
                f"{folder}: the {what} cannot be written ({fault}). Choose another"
                + (" with -w." if what == "scratch folder" else ".")
            )


def _check_given(parser: argparse.ArgumentParser, settings: Settings) -> None:
    licence = settings.fs_license_file
    if licence and not licence.is_file():
        parser.exit(
            126,
            f"{parser.prog}: error: --fs-license-file {licence}: there is no such file. A key is "
            "free: https://surfer.nmr.mgh.harvard.edu/registration.html\n",
        )
    if settings.resource_monitor and importlib.util.find_spec("psutil") is None:
        parser.error("--resource-monitor needs psutil. Install it: pip install psutil")
    plugin = settings.nipype_plugin_file
    if plugin and not plugin.is_file():
        parser.error(f"--use-plugin {plugin}: there is no such file.")


def _write_fault(folder: Path) -> str:
    """Why nothing can be written there, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _by_name(parser: argparse.ArgumentParser, flag: str, pairs: list[tuple]) -> dict:
    by_name: dict = {}
    for name, value in pairs:
        if name in by_name:
            parser.error(f"{flag} {name}: given twice.")
        by_name[name] = value
    return by_name
