# SPDX-License-Identifier: Apache-2.0
"""Command line to `Settings`. Imports nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import tempfile
from dataclasses import fields
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.bids.filters import make_filters
from brainseg_bids.bids.names import STRUCTURAL, is_label
from brainseg_bids.documents import InputError, read_json, read_text
from brainseg_bids.interfaces.tools import tool_names
from brainseg_bids.settings import (
    GROUP_STAGES,
    PARTICIPANT_STAGES,
    VOXEL_SIZE,
    Settings,
    SettingsError,
    read_values,
)
from brainseg_bids.training.deadline import MOST_MINUTES, check_minutes

STAGES = {"participant": PARTICIPANT_STAGES, "group": GROUP_STAGES}
DEFAULT_STAGE = {"participant": ("segment",), "group": ("summary",)}

EPILOG = """\
exit codes: 0 all done; 1 some image could not be done (the last lines say which and why);
2 the command line or the data it names cannot be used; 70 the workflow could not be built;
75 training was stopped and saved, or SIGUSR1 came, and the same command goes on;
126 a tool's licence is missing; 127 a tool is missing; 130 interrupted; 143 ended by SIGTERM.
`brainseg doctor` tells which tools, licences, models and accelerators are there.
`brainseg fetch` gets datasets; nothing else downloads, and nothing is ever sent."""

GIB_PER_UNIT = {"T": 1024.0, "G": 1.0, "M": 1 / 1024, "K": 1 / 1024**2}


class _Parser(argparse.ArgumentParser):
    """What is wrong in one line: two dozen lines of usage would hide it."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists all flags)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser; `parse` checks what one argument alone cannot tell."""
    parser = _Parser(
        prog="brainseg",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Whole-head segmentation of structural MR images, as a BIDS App.",
    )
    add = parser.add_argument
    add("bids_dir", type=Path, help="root of a BIDS dataset")
    add("output_dir", type=Path, help="where results go; made if it is not there")
    add(
        "analysis_level",
        choices=("participant", "group"),
        help="participant: segment images, label heads, measure contrast; group: one table of all "
        "volumes, contrast priors, synthetic pairs, training, evaluation",
    )
    add(
        "--version",
        action="version",
        version=f"brainseg {__version__} (distribution brainseg-bids)",
    )
    for add_group in (
        _add_choice,
        _add_segmentation,
        _add_heads,
        _add_finer,
        _add_contrast,
        _add_synth,
        _add_train,
        _add_evaluation,
        _add_elsewhere,
        _add_resources,
        _add_batch,
        _add_other,
    ):
        add_group(parser)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """What to do and on what."""
    choose = parser.add_argument_group("what to do")
    add = choose.add_argument
    add(
        "--participant-label",
        "--participant_label",
        nargs="+",
        type=_label("sub-"),
        metavar="LABEL",
        help="only these participants (with or without sub-); default: all",
    )
    add(
        "--session-label",
        "--session_label",
        "--session-id",
        nargs="+",
        type=_label("ses-"),
        metavar="LABEL",
        help="only these sessions (with or without ses-); default: all",
    )
    add(
        "--stages",
        nargs="+",
        metavar="STAGE",
        help="participant: segment (default), headlabels, upsample, contrast; group: summary "
        "(default), priors, synth, train, evaluate",
    )
    add(
        "--contrasts",
        nargs="+",
        metavar="SUFFIX",
        help="BIDS suffixes to take, e.g. T1w UNIT1; default: every structural one (headlabels: "
        "T1w), without "
        "parts such as inv-1 and without phase",
    )
    add(
        "--bids-filter-file",
        dest="bids_filters",
        type=_filters,
        metavar="FILE",
        help='JSON: {"t1w": {"acquisition": "mprage", "run": null}}; null: absent, "*": any',
    )
    add(
        "--bids-database-dir",
        type=Path,
        metavar="PATH",
        help="keep the index of the dataset there; made again when the dataset changes",
    )
    add(
        "--skip-bids-validation",
        "--skip_bids_validation",
        action="store_true",
        help="do not look at dataset_description.json",
    )
    add(
        "--reports-only",
        action="store_true",
        help="only write the pages again, from results that are there",
    )
    add(
        "--boilerplate-only",
        "--boilerplate_only",
        action="store_true",
        help="only write the methods text, logs/CITATION.md",
    )
    add(
        "--md-only-boilerplate",
        action="store_true",
        help="accepted for scripts; the methods text is always Markdown alone",
    )


def _add_segmentation(parser: argparse.ArgumentParser) -> None:
    """How images are segmented."""
    network = parser.add_argument_group("segmentation")
    add = network.add_argument
    add(
        "--model",
        metavar="NAME|PATH",
        help="a packaged model or a model folder; default: of the packaged ones made for the "
        "image's contrast, the one nearest to its voxel size",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        help="where the network runs; auto (default) takes an accelerator if there is one",
    )
    add(
        "--probseg",
        action="store_true",
        help="also write the probability of each label, and mask and tissues for sMRIPrep",
    )
    add(
        "--ensemble",
        nargs="+",
        metavar="NAME|PATH",
        help="further models; the probabilities of all are averaged",
    )
    add(
        "--test-time-flips",
        action=argparse.BooleanOptionalAction,
        help="also segment the mirrored image and average: the default, and more exact; without "
        "it half to two thirds of the time",
    )


def _add_heads(parser: argparse.ArgumentParser) -> None:
    """Head label maps."""
    heads = parser.add_argument_group("head label maps (--stages headlabels)")
    add = heads.add_argument
    names = tool_names()
    add(
        "--head-tool",
        choices=names,
        metavar="NAME",
        help=f"what labels the whole head: {', '.join(names)}; default: model, which needs no "
        "other program",
    )
    add(
        "--brain-tool",
        choices=names,
        metavar="NAME",
        help="what labels the brain in it; default: the head tool alone",
    )
    add(
        "--tool",
        dest="tools",
        action="append",
        type=named_command,
        metavar="NAME=COMMAND",
        help='where a tool lives, e.g. samseg="apptainer exec samseg.sif run_samseg"; default: '
        "PATH, or what make tools-NAME has built",
    )
    add(
        "-d",
        "--derivatives",
        nargs="+",
        action="extend",
        type=_derivative,
        metavar="NAME=PATH",
        help="take a tool's results from there instead of running it, e.g. freesurfer=/data/fs; "
        "stage contrast: measure with these labels; synth: make pairs from these; evaluate: judge "
        "these, too",
    )
    add(
        "--fs-license-file",
        type=Path,
        metavar="FILE",
        help="FreeSurfer's licence key; default: FS_LICENSE, then $FREESURFER_HOME/license.txt",
    )
    add(
        "--tool-timeout",
        dest="tool_timeout_h",
        type=_above_zero("a number of hours", below=10_000),
        metavar="HOURS",
        help="end an external tool that takes longer; default: 24",
    )


def _add_finer(parser: argparse.ArgumentParser) -> None:
    """Finer label maps."""
    finer = parser.add_argument_group("finer label maps (--stages upsample)")
    add = finer.add_argument
    add(
        "--target-voxel-size",
        dest="target_voxel_size_mm",
        nargs="+",
        type=_voxel_size_mm,
        metavar="MM",
        help="one number, or one per axis; default: 0.5, for synthetic pairs the contrast's own",
    )
    add(
        "--upsample-kernel",
        choices=("fitted", "linear", "lossless"),
        help="fitted (default): most faithful; lossless: taken back to its grid, the map is "
        "what it was. Where probabilities were kept, they are interpolated instead",
    )
    add(
        "--smoothing",
        dest="smoothing_mm",
        type=_above_zero("millimetres", below=100),
        metavar="MM",
        help="also smooth borders by a Gaussian of this standard deviation",
    )
    add("--keep-thin", action="store_true", help="guard thin structures, e.g. the optic nerve")


def _add_contrast(parser: argparse.ArgumentParser) -> None:
    """Contrast statistics and priors."""
    contrast = parser.add_argument_group("contrast (--stages contrast; group: priors)")
    add = contrast.add_argument
    add(
        "--labels",
        metavar="NAME",
        help="measure with these labels: fullhead (of stage headlabels), brainseg (of segment) or "
        "a NAME given with -d; default: the first there is of -d, fullhead, brainseg",
    )
    add(
        "--contrast-by",
        nargs="+",
        metavar="KEY",
        help="images are of one contrast if these agree: Suffix, VoxelSizeMm, Sequence, a key of "
        "the images' JSON, or an entity such as acq; default: Suffix MagneticFieldStrength "
        "Sequence VoxelSizeMm",
    )


def _add_synth(parser: argparse.ArgumentParser) -> None:
    """Synthetic pairs."""
    synth = parser.add_argument_group("synthetic pairs (group: --stages synth)")
    add = synth.add_argument
    add(
        "--prior",
        metavar="NAME",
        help="contrast to draw from, as stage priors has named it; default: each there is",
    )
    add(
        "--kappa",
        type=_share,
        metavar="K",
        help="contrast dial from 0, any contrast, to 1 (default), the measured one",
    )
    add(
        "--pairs",
        type=_positive,
        metavar="N",
        help="also write N image-label pairs as a BIDS derivative; default: previews only",
    )
    add("--seed", type=_whole, metavar="S", help="other pairs for another number; default: 1")


def _add_train(parser: argparse.ArgumentParser) -> None:
    """Training."""
    train = parser.add_argument_group("training (group: --stages train)")
    add = train.add_argument
    add(
        "--architecture",
        metavar="NAME",
        help="dynunet (default), segresnet, unet, resenc_unet, mednext, swin_unetr, meshnet",
    )
    add(
        "--net-size",
        choices=("small", "medium", "large"),
        help="default: what fits the memory",
    )
    add(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="training recipe, TOML: what differs from the packaged one",
    )
    add("--name", dest="model_name", type=_model_name, help="name of the model")
    add("--steps", type=_positive, metavar="N", help="training steps; default: the recipe's")
    add(
        "--minutes",
        type=_minutes,
        metavar="N",
        help="end by itself N minutes after the command began: rate flat, model bundled, page "
        "written; the same command goes on for N more",
    )
    add(
        "--start-from",
        metavar="NAME|PATH",
        help="begin from the weights of this model, whatever its labels",
    )
    add(
        "--validation-label",
        nargs="+",
        type=_label("sub-"),
        metavar="LABEL",
        help="participants whose label maps are held out; default: every eighth, at least one",
    )
    add(
        "--validate-on",
        type=Path,
        metavar="BIDS_DIR",
        help="also validate on the real images there, whose labels --reference gives",
    )
    add(
        "--memory-budget",
        dest="memory_budget_gb",
        type=memory_gb,
        metavar="SIZE",
        help="memory of the device to use, with unit T, G, M or K; default: what is free",
    )
    add(
        "--precision",
        choices=("bf16", "fp32"),
        help="default: what the device is fast in",
    )
    add(
        "--devices",
        type=_positive,
        metavar="N",
        help="accelerators per node (on CPU: processes); default: all there are (on CPU: 1)",
    )
    add("--nodes", type=_positive, metavar="N", help="nodes of a batch job; default: 1")
    add("--plan-only", action="store_true", help="print and store the plan, and stop")


def _add_elsewhere(parser: argparse.ArgumentParser) -> None:
    """Results in the forms that other programs want."""
    elsewhere = parser.add_argument_group("beside other programs (--stages segment)")
    add = elsewhere.add_argument
    add(
        "--output-spaces",
        nargs="+",
        metavar="SPACE",
        help="also bring labels to these TemplateFlow templates, e.g. "
        "MNI152NLin2009cAsym:res-1; the template has to be in TEMPLATEFLOW_HOME",
    )
    add(
        "--freesurfer-export",
        action="store_true",
        help="also write labels as FreeSurfer reads them: mri/aseg.mgz and a colour table",
    )


def _add_batch(parser: argparse.ArgumentParser) -> None:
    """Batch systems."""
    batch = parser.add_argument_group("Slurm")
    add = batch.add_argument
    add(
        "--slurm",
        action="store_true",
        help="print the batch script that does this, one participant a job, instead of doing it",
    )
    add("--submit", action="store_true", help="with --slurm: hand the script to Slurm, too")
    add(
        "--slurm-profile",
        metavar="NAME|FILE",
        help="with --slurm: what the site wants, a packaged profile (default, a100, mi300a) or a "
        "TOML file",
    )


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Comparison with manual labels."""
    evaluation = parser.add_argument_group("evaluation (group: --stages evaluate)")
    add = evaluation.add_argument
    add(
        "--reference",
        dest="references",
        nargs="+",
        action="extend",
        type=_derivative,
        metavar="NAME=PATH",
        help="what to compare with: a packaged adapter (ultracortex, oasis_manual, "
        "freesurfer_aseg), FILE.toml of your own, or any other name for a BIDS derivative",
    )
    add(
        "--nsd-tolerance",
        dest="nsd_tolerances_mm",
        nargs="+",
        type=_above_zero("millimetres", below=100),
        metavar="MM",
        help="tolerances of the normalised surface distance; default: 0.6 1.0",
    )
    add(
        "--surfaces",
        choices=("surface", "voxel"),
        help="definition of surface distances: of surfels, as DeepMind's surface-distance "
        "(default), or of border voxels, as MONAI",
    )
    add(
        "--on-other-grid",
        choices=("resample", "refuse"),
        help="label maps on another grid than the reference's; default: resample",
    )
    add(
        "--protocol",
        choices=("label-restricted", "within-evaluable"),
        help="where a reference labels part of the brain only: judge its labels over all voxels "
        "(default), or leave out voxels that it leaves at 0 and somebody calls other brain tissue",
    )
    add(
        "--include-seen",
        action="store_true",
        help="also evaluate a model on what it was trained or fitted on, and mark it",
    )


def _add_resources(parser: argparse.ArgumentParser) -> None:
    """CPUs, memory, batch systems."""
    resources = parser.add_argument_group("resources")
    add = resources.add_argument
    add(
        "--nprocs",
        "--nthreads",
        "--n_cpus",
        "--n-cpus",
        type=_positive,
        metavar="N",
        help="CPUs to use in all; default: all",
    )
    add(
        "--omp-nthreads",
        type=_positive,
        metavar="N",
        help="threads of one segmentation; default: --nprocs, at most 8",
    )
    add(
        "--mem",
        "--mem_mb",
        "--mem-mb",
        dest="memory_gb",
        type=memory_gb,
        metavar="SIZE",
        help="memory to use in all, with unit T, G, M or K; a bare number is MB",
    )
    add(
        "--use-plugin",
        "--nipype-plugin-file",
        dest="nipype_plugin_file",
        type=Path,
        metavar="FILE",
        help="YAML with plugin and plugin_args of another Nipype plugin",
    )
    add(
        "--resource-monitor",
        action="store_true",
        help="record memory and CPU of each step (needs psutil)",
    )


def _add_other(parser: argparse.ArgumentParser) -> None:
    """All else."""
    other = parser.add_argument_group("other")
    add = other.add_argument
    add("-w", "--work-dir", type=Path, metavar="PATH", help="scratch folder; default: ./work")
    add("--clean-workdir", action="store_true", help="empty the scratch folder first")
    add(
        "--config-file",
        type=Path,
        metavar="FILE",
        help="settings.toml of an earlier run; what the command line says wins",
    )
    add("--write-graph", action="store_true", help="draw the workflow into logs (graph.dot)")
    add("--stop-on-first-crash", action="store_true", help="do not go on with other images")
    add(
        "--offline",
        action="store_true",
        help="forbid every network connection; nothing needs one",
    )
    add("--notrack", action="store_true", help="accepted for scripts; nothing is ever tracked")
    add("--debug", action="store_true", help="show tracebacks, keep going as usual")
    add("-v", "--verbose", action="count", help="tell more")


def parse(argv: list[str] | None = None) -> Settings:
    """Read the command line; what cannot be used ends the program with exit code 2."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    config_file = given.pop("config_file")
    for no_setting in ("notrack", "md_only_boilerplate"):
        given.pop(no_setting)
    values = _read_config(parser, config_file) if config_file else {}
    # What was not said on the command line is its default, None or False.
    values |= {key: given[key] for key in _said(parser, given)}
    for name, flag in (
        ("tools", "--tool"),
        ("derivatives", "-d"),
        ("references", "--reference"),
    ):
        if given[name]:
            values[name] = _by_name(parser, flag, given[name])
    level = values["analysis_level"]
    values["stages"] = _stages(parser, given["stages"], values.get("stages"), level)
    known = {item.name: item for item in fields(Settings)}
    for name, value in values.items():
        if str(known[name].type).startswith("tuple"):
            values[name] = tuple(value)
        elif str(known[name].type).startswith("Path"):
            values[name] = value.absolute()
    _check_stage_flags(parser, given, values["stages"])
    if len(values.get("target_voxel_size_mm", ())) not in (0, 1, 3):
        parser.error("--target-voxel-size: give one number, or three.")
    for name in ("submit", "slurm_profile"):
        if given[name] and not values.get("slurm"):
            parser.error(f"--{name.replace('_', '-')} needs --slurm.")
    values.setdefault("brain_tool", values.get("head_tool", Settings.head_tool))
    # Of a batch job: as the profile says (0), not what the machine has that submits it.
    values.setdefault("nprocs", 0 if values.get("slurm") else available_cpus())
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
    _check_folders(parser, settings)
    return settings


def _read_config(parser: argparse.ArgumentParser, path: Path) -> dict:
    try:
        values = read_values(read_text(path), what=str(path))
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


def _label(prefix: str):
    def label(text: str) -> str:
        text = text.removeprefix(prefix)
        if not is_label(text):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no BIDS label, which has letters and digits only"
            )
        return text

    return label


def _model_name(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_.-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a name has letters, digits, dots, - and _ only, e.g. mp2rage-0.7mm"
        )
    return text


class _FilterFile(dict):
    """Content of a filter file that knows its path, for messages."""

    def __init__(self, path: str) -> None:
        super().__init__(read_json(path))
        self.path = path


def _filters(text: str) -> dict:
    try:
        return _FilterFile(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def named_command(text: str) -> tuple[str, list[str]]:
    """Name and command of a tool.

    >>> named_command("samseg=apptainer exec 'my image.sif' run_samseg")
    ('samseg', ['apptainer', 'exec', 'my image.sif', 'run_samseg'])
    """
    name, _, command = text.partition("=")
    known = (*tool_names(), "ants")  # ants: what registers images to --output-spaces
    if name not in known:
        known = ", ".join(known)
        raise argparse.ArgumentTypeError(f"{text!r}: no tool is called {name!r}; known: {known}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not words:
        raise argparse.ArgumentTypeError(
            f'{text!r}: give a command, e.g. {name}="/opt/{name}/bin/run"'
        )
    return name, words


def _derivative(text: str) -> tuple[str, str]:
    """Name and folder; the folder's own name if none is given."""
    name, found, folder = text.partition("=")
    path = Path(folder if found else text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such folder")
    return (name if found else path.resolve().name), str(path.absolute())


def _said(parser: argparse.ArgumentParser, given: dict) -> set[str]:
    """Names of what was said on the command line. A flag that can be denied may be False."""
    return {name for name, value in given.items() if value is not parser.get_default(name)}


STAGE_FLAGS = {
    "head_tool": ("--head-tool", ("headlabels",)),
    "brain_tool": ("--brain-tool", ("headlabels",)),
    "tools": ("--tool", ("headlabels", "segment")),  # ants, for --output-spaces
    "derivatives": ("-d", ("headlabels", "contrast", "synth", "evaluate")),
    "tool_timeout_h": ("--tool-timeout", ("headlabels",)),
    "target_voxel_size_mm": ("--target-voxel-size", ("upsample", "synth", "train")),
    "upsample_kernel": ("--upsample-kernel", ("upsample",)),
    "smoothing_mm": ("--smoothing", ("upsample",)),
    "keep_thin": ("--keep-thin", ("upsample",)),
    "labels": ("--labels", ("contrast",)),
    "contrast_by": ("--contrast-by", ("priors",)),
    "ensemble": ("--ensemble", ("segment",)),
    "test_time_flips": ("--test-time-flips", ("segment", "headlabels")),
    "output_spaces": ("--output-spaces", ("segment",)),
    "freesurfer_export": ("--freesurfer-export", ("segment",)),
    "prior": ("--prior", ("synth", "train")),
    "kappa": ("--kappa", ("synth", "train")),
    "pairs": ("--pairs", ("synth",)),
    "seed": ("--seed", ("synth", "train")),
    "architecture": ("--architecture", ("train",)),
    "net_size": ("--net-size", ("train",)),
    "recipe": ("--recipe", ("train",)),
    "model_name": ("--name", ("train",)),
    "steps": ("--steps", ("train",)),
    "minutes": ("--minutes", ("train",)),
    "start_from": ("--start-from", ("train",)),
    "validation_label": ("--validation-label", ("train",)),
    "validate_on": ("--validate-on", ("train",)),
    "memory_budget_gb": ("--memory-budget", ("train",)),
    "precision": ("--precision", ("train",)),
    "devices": ("--devices", ("train",)),
    "nodes": ("--nodes", ("train",)),
    "plan_only": ("--plan-only", ("train",)),
    "references": ("--reference", ("evaluate", "train")),
    "nsd_tolerances_mm": ("--nsd-tolerance", ("evaluate",)),
    "surfaces": ("--surfaces", ("evaluate",)),
    "on_other_grid": ("--on-other-grid", ("evaluate",)),
    "protocol": ("--protocol", ("evaluate",)),
    "include_seen": ("--include-seen", ("evaluate",)),
}
"""What would have no effect in a run without one of its stages."""


def _check_stage_flags(parser: argparse.ArgumentParser, given: dict, stages: tuple) -> None:
    said = _said(parser, given)
    for name, (flag, wanted) in STAGE_FLAGS.items():
        if name in said and not set(wanted) & set(stages):
            parser.error(
                f"{flag} belongs to --stages {' or '.join(wanted)}, which was not asked for."
            )


def _by_name(parser: argparse.ArgumentParser, flag: str, pairs: list[tuple]) -> dict:
    by_name: dict = {}
    for name, value in pairs:
        if name in by_name:
            parser.error(f"{flag} {name}: given twice.")
        by_name[name] = value
    return by_name


def _above_zero(what: str, *, below: float):
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < below:
            raise argparse.ArgumentTypeError(f"{text!r}: give {what} above 0")
        return value

    return number


def _voxel_size_mm(text: str) -> float:
    value = _above_zero("millimetres", below=100)(text)
    if why := VOXEL_SIZE.fault(value):
        raise argparse.ArgumentTypeError(f"a voxel {why}")
    return value


def _minutes(text: str) -> float:
    try:
        return check_minutes(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give a number above 0, at most {MOST_MINUTES}"
        ) from error


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 to 1")
    return value


def _whole(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 0")
    return int(text)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return number


def memory_gb(text: str) -> float:
    """Memory in GiB.

    >>> memory_gb("16G"), memory_gb("2048")
    (16.0, 2.0)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([TGMK]?)I?B?", text.strip().upper())
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number and T, G, M or K, e.g. 16G")
    return float(match[1]) * GIB_PER_UNIT[match[2] or "M"]


def available_cpus() -> int:
    """CPUs that this process may use; a batch job may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
