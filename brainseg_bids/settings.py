# SPDX-License-Identifier: Apache-2.0
"""``Settings``: everything the user chose, frozen, TOML in and out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import tomli_w

from brainseg_bids.documents import Flag, InputError, Items, Number, Text, parse_json, parse_toml

PARTICIPANT_STAGES = ("segment", "headlabels", "upsample", "contrast")
GROUP_STAGES = ("summary", "priors", "synth", "train", "evaluate")


class SettingsError(ValueError):
    """A settings file that cannot be used; the message names file and remedy."""


@dataclass(frozen=True)
class Settings:
    """One run of the app.

    Parameters
    ----------
    bids_dir, output_dir, work_dir : Path
    analysis_level : {"participant", "group"}
    stages : tuple of str
        What to do at this level.
    participant_label, session_label : tuple of str
        Without ``sub-`` and ``ses-``; empty means all.
    contrasts : tuple of str
        BIDS suffixes to take; empty means every structural one.
    bids_filters : dict
        Lower-case suffix to entity to value, as in the filter file; None: absent, "*": any.
    model : str
        Name of a packaged model or a folder.
    device : {"auto", "cpu", "cuda", "mps"}
    probseg : bool
        Also write probabilities.
    head_tool, brain_tool : str
        What labels the head and the brain in stage ``headlabels``.
    tools : dict
        Where a tool lives: name to program and first arguments.
    derivatives : dict
        Folders that hold results already: name to path.
    target_voxel_size_mm : tuple of float
        What label maps are brought to in stage ``upsample`` (empty: 0.5 mm), and voxels of pairs
        in stage ``synth`` (empty: the contrast's own): one number, or one per axis.
    upsample_kernel : {"fitted", "linear", "lossless"}
    smoothing_mm : float
        Standard deviation; 0: none.
    keep_thin : bool
        Guard thin structures while upsampling.
    labels : str
        What labels images are measured with in stage ``contrast``: ``fullhead``, ``brainseg`` or
        a name in ``derivatives``; empty: the first there is.
    contrast_by : tuple of str
        What makes two images one contrast in stage ``priors``.
    prior : str
        Contrast that stage ``synth`` draws from; empty: all there are.
    kappa : float
        Contrast dial of stage ``synth``: 0 any contrast, 1 the measured one.
    pairs : int
        How many image-label pairs stage ``synth`` exports.
    seed : int
        Of the pairs.
    references : dict
        What stage ``evaluate`` compares with: name of the adapter (or its TOML file) to folder.
    nsd_tolerances_mm : tuple of float
    surfaces : {"surface", "voxel"}
        Definition of surface distances.
    on_other_grid : {"resample", "refuse"}
        What becomes of label maps on another grid than the reference's.
    protocol : {"label-restricted", "within-evaluable"}
        What counts where a reference labels part of the brain only.
    include_seen : bool
        Also evaluate on what a model was trained or fitted on, marked.
    ensemble : tuple of str
        Further models whose probabilities are averaged with those of ``model``, which is the
        first packaged one unless it is named.
    test_time_flips : bool
        Also segment the image mirrored left to right, and average; measured to help
        (docs/performance.md).
    architecture : str
        Network of stage ``train``; a key of `brainseg_bids.nets.architectures.ARCHITECTURES`.
    net_size : {"", "small", "medium", "large"}
        Empty: what fits the device.
    recipe : Path or None
        Training recipe (TOML): what differs from the packaged one.
    model_name : str
        What the trained model is called; empty: from the contrast.
    memory_budget_gb : float or None
        What training may use of its device; None: what is free.
    devices, nodes : int
        Accelerators (or CPU processes) per node, and nodes; 0 devices: all there are.
    precision : {"", "bf16", "fp32"}
        Empty: what the device is fast in.
    steps : int
        Of training; 0: as the recipe says.
    minutes : float
        After which training ends by itself; 0: never.
    start_from : str
        Model whose weights training begins from.
    validation_label : tuple of str
        Participants whose label maps are held out; empty: every eighth, at least one.
    validate_on : Path or None
        BIDS dataset of real images, whose labels ``references`` gives, to validate on, too.
    plan_only : bool
        Print and store the training plan, and stop.
    output_spaces : tuple of str
        Standard spaces that results are also brought to.
    freesurfer_export : bool
        Also write labels as FreeSurfer's files.
    slurm, submit : bool
        Print a batch script instead of running; hand it to Slurm.
    slurm_profile : str
        Name of a packaged site profile, or a TOML file.
    offline : bool
        Forbid every network connection of this run.
    fs_license_file : Path or None
        FreeSurfer's licence key, handed on to tools.
    tool_timeout_h : float
        An external tool that takes longer is ended.
    nprocs, omp_nthreads : int
        CPUs in all, and threads of one step.
    memory_gb : float or None
        What the run may use in all; None: what the machine has.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str = "participant"
    stages: tuple[str, ...] = ("segment",)
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    contrasts: tuple[str, ...] = ()
    bids_filters: dict = field(default_factory=dict)
    model: str = ""
    device: str = "auto"
    probseg: bool = False
    head_tool: str = "model"
    brain_tool: str = "model"
    tools: dict = field(default_factory=dict)
    derivatives: dict = field(default_factory=dict)
    target_voxel_size_mm: tuple[float, ...] = ()
    upsample_kernel: str = "fitted"
    smoothing_mm: float = 0.0
    keep_thin: bool = False
    labels: str = ""
    contrast_by: tuple[str, ...] = (
        "Suffix",
        "MagneticFieldStrength",
        "Sequence",
        "VoxelSizeMm",
    )
    prior: str = ""
    kappa: float = 1.0
    pairs: int = 0
    seed: int = 1
    references: dict = field(default_factory=dict)
    nsd_tolerances_mm: tuple[float, ...] = (0.6, 1.0)
    surfaces: str = "surface"
    on_other_grid: str = "resample"
    protocol: str = "label-restricted"
    include_seen: bool = False
    ensemble: tuple[str, ...] = ()
    test_time_flips: bool = True
    architecture: str = "dynunet"
    net_size: str = ""
    recipe: Path | None = None
    model_name: str = ""
    memory_budget_gb: float | None = None
    devices: int = 0
    nodes: int = 1
    precision: str = ""
    steps: int = 0
    minutes: float = 0.0
    start_from: str = ""
    validation_label: tuple[str, ...] = ()
    validate_on: Path | None = None
    plan_only: bool = False
    output_spaces: tuple[str, ...] = ()
    freesurfer_export: bool = False
    slurm: bool = False
    submit: bool = False
    slurm_profile: str = ""
    offline: bool = False
    fs_license_file: Path | None = None
    tool_timeout_h: float = 24.0
    nprocs: int = 1
    omp_nthreads: int = 1
    memory_gb: float | None = None
    work_dir: Path = Path("work")
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    clean_workdir: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    stop_on_first_crash: bool = False
    resource_monitor: bool = False
    write_graph: bool = False
    nipype_plugin_file: Path | None = None
    debug: bool = False
    verbose: int = 0

    def to_toml(self) -> str:
        """Text that `from_toml` turns into an equal object.

        >>> settings = Settings(Path("/in"), Path("/out"), bids_filters={"t1w": {"run": None}})
        >>> Settings.from_toml(settings.to_toml()).bids_filters
        {'t1w': {'run': None}}
        """
        values = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None:  # TOML has no null: what is absent has its default
                continue
            if isinstance(value, Path):
                value = str(value)
            elif isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, dict):  # its nulls carry meaning, so it travels as JSON
                value = json.dumps(value)
            values[item.name] = value
        return tomli_w.dumps(values)

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Read what `to_toml` wrote.

        Raises
        ------
        SettingsError
            If it is no TOML or has a setting that this version does not know.
        """
        return cls(**read_values(text))


KINDS_BY_TYPE = {
    "str": Text(),
    "bool": Flag(),
    "int": Number(0, 1e9, whole=True),
    "float": Number(0, 1e9),
}
"""What a value of a settings file must be if `KINDS` does not say more."""

VOXEL_SIZE = Number(0.1, 10, "mm")
"""Of label maps and of pairs: a head of finer voxels fits into no memory."""

KINDS = {
    "device": Text(("auto", "cpu", "cuda", "mps")),
    "upsample_kernel": Text(("fitted", "linear", "lossless")),
    "surfaces": Text(("surface", "voxel")),
    "on_other_grid": Text(("resample", "refuse")),
    "protocol": Text(("label-restricted", "within-evaluable")),
    "net_size": Text(("", "small", "medium", "large")),
    "precision": Text(("", "bf16", "fp32")),
    "kappa": Number(0, 1),
    "target_voxel_size_mm": Items(VOXEL_SIZE),
    "nsd_tolerances_mm": Items(Number(0, 100, "mm", above=True)),
    "nodes": Number(1, 1e6, whole=True),
    "memory_gb": Number(0, 1e6, "GiB", above=True),
    "memory_budget_gb": Number(0, 1e6, "GiB", above=True),
    "tool_timeout_h": Number(0, 1e6, "h", above=True),
}
"""Bounds and words of single settings; those of the command line."""


def read_values(text: str, *, what: str = "settings") -> dict:
    """Values of a settings file by name, in the types that `Settings` has.

    Raises
    ------
    SettingsError
        As `Settings.from_toml`; ``what`` names the file in the message.
    """
    try:
        values = parse_toml(text, what)
    except InputError as error:
        raise SettingsError(str(error)) from error
    kinds = {item.name: str(item.type) for item in fields(Settings)}
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise SettingsError(
            f"{what}: unknown setting {', '.join(unknown)}. Known: {', '.join(sorted(kinds))}."
        )
    for name, value in values.items():
        kind = kinds[name]
        try:
            if kind.startswith("Path"):
                values[name] = Path(value)
            elif kind.startswith("tuple"):
                if isinstance(value, str):
                    raise TypeError("a list is expected")
                item_kind = float if "float" in kind else str
                values[name] = tuple(item_kind(item) for item in value)
            elif kind == "dict":
                values[name] = parse_json(value, name) if isinstance(value, str) else dict(value)
            elif kind.startswith("float"):
                values[name] = float(value)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{what}: {name} = {value!r}: {error}.") from error
        usual = KINDS_BY_TYPE.get(kind.removesuffix(" | None"))
        fits = KINDS.get(name, usual)
        if fits and (why := fits.fault(values[name])):
            raise SettingsError(f"{what}: {name} {why}.")
    return values
