# SPDX-License-Identifier: Apache-2.0
"""What stage ``train`` is going to do: decided, checked, and written down in ``job.json``."""

from __future__ import annotations

import contextlib
import datetime
import logging
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_json, write_model_description
from brainseg_bids.bids.head_maps import HeadMap, find_head_maps, median_voxel_size_mm
from brainseg_bids.bids.names import STRUCTURAL
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.documents import InputError, read_object, read_toml
from brainseg_bids.nets.bundle import BundleError, ModelBundle, find_bundle
from brainseg_bids.nets.devices import has_accelerator
from brainseg_bids.options import declared, to_arguments
from brainseg_bids.programs.map_cache import cache_folder
from brainseg_bids.stages.measured import warn_of_outdated
from brainseg_bids.stages.rated import without_bad
from brainseg_bids.stages.train_maps import absent_of, check_maps
from brainseg_bids.training.job_changes import IMPLIED, differences
from brainseg_bids.training.recipe import BY_STEPS, TrainRecipe
from brainseg_bids.training.spaces import (
    CONTRAST_OF,
    PRIOR,
    Spaces,
    choose_spaces,
    model_name,
    voxel_size_of,
)
from brainseg_bids.training.targets import SOURCE, MapFacts, find_target

if TYPE_CHECKING:
    from brainseg_bids.options import Settings
    from brainseg_bids.synth.prior_space import PriorSpace
    from brainseg_bids.synth.space import RecipeSpace

log = logging.getLogger("brainseg")


@dataclass(frozen=True)
class JobPlan:
    """What is trained from what; decided and checked, nothing written yet.

    Parameters
    ----------
    name : str
        Of the model.
    folder : Path
        ``derivatives/model-NAME``.
    heads, held_out : tuple of HeadMap
    facts : dict of Path to MapFacts
    cache : Path
        Where label maps are kept as they were read.
    recipe : TrainRecipe
    asked : dict
        What the recipe had for `BY_STEPS` before ``--steps``.
    spaces : Spaces
    prior : ContrastPrior or None
    kappa : float
    voxel_size_mm : float
    target : LabelTable
    start_from : ModelBundle or None
    before : dict
        ``job.json`` of the run that goes on; empty: a fresh one.
    """

    name: str
    folder: Path
    heads: tuple[HeadMap, ...]
    held_out: tuple[HeadMap, ...]
    facts: dict[Path, MapFacts]
    cache: Path
    recipe: TrainRecipe
    asked: dict
    spaces: Spaces
    prior: ContrastPrior | None
    kappa: float
    voxel_size_mm: float
    target: LabelTable
    start_from: ModelBundle | None
    before: dict

    @property
    def training(self) -> Path:
        """Where checkpoints and logs are."""
        return self.folder / "training"

    @property
    def checkpoint(self) -> Path:
        return self.training / "last.ckpt"

    def decay_share(self, settings: Settings) -> float:
        """Share of ``--minutes`` in which the rate decays: that of the recipe's steps.

        It stays constant with ``--steps``: whether time or steps end first is not known.
        """
        if not settings.minutes or settings.steps or self.asked["decay_steps"] <= 1:
            return 0.0
        return min(1.0, self.asked["decay_steps"] / self.asked["total_steps"])


# -- decide -------------------------------------------------------------------------------


def plan_job(settings: Settings) -> JobPlan:
    """Find label maps, recipe and prior, check all of them, choose what is not said."""
    maps = _maps(settings)
    before = _before(settings, settings.model_name) if settings.model_name else {}
    base = before.get("recipe", {}).get("base") or (
        "default" if has_accelerator(settings.device) else "cpu"
    )
    if settings.recipe:
        recipe = TrainRecipe.read(settings.recipe, base)
    else:
        recipe = TrainRecipe.packaged(base)
    spaces, why, prior = _choose_spaces(settings, recipe)
    prior_mm = prior.voxel_size_mm if prior else None
    voxel_size_mm, why_voxels = voxel_size_of(
        settings.target_voxel_size_mm, recipe, prior_mm, median_voxel_size_mm(maps)
    )
    name = settings.model_name or model_name(spaces, voxel_size_mm)
    before = before or _before(settings, name)
    if before:
        # A run that ended by time has no number of steps of its own to go on to.
        other = bool(settings.steps or settings.minutes or before.get("minutes"))
        recipe = _as_before(recipe, before, other_steps=other)
        if not settings.target_voxel_size_mm and "voxel_size_mm" not in recipe.given:
            voxel_size_mm, why_voxels = before["voxel_size_mm"], "as before"
    asked = {key: recipe.values[key] for key in BY_STEPS}
    if settings.steps:
        recipe = recipe.with_steps(settings.steps)
    elif before:
        kept = before["recipe"].get("asked", {})
        asked |= {key: value for key, value in kept.items() if key not in recipe.given}
    if settings.minutes:
        recipe = recipe.by_time(at_most=settings.steps)
    target = find_target(recipe.values["target_table"])
    log.info("model %s, for %s: %s", name, ", ".join(spaces.contrasts), why)
    log.info("voxels of %g mm: %s", voxel_size_mm, why_voxels)
    folder = settings.output_dir / "derivatives" / f"model-{name}"
    cache = cache_folder(settings.bids_dir, folder / "training")
    if slow := recipe.slow_rate():
        log.warning("%s", slow)
    start = _start(settings)
    heads, held_out, facts = check_maps(
        settings, maps, voxel_size_mm, target, cache, start=None if before else start
    )
    return JobPlan(
        name=name,
        folder=folder,
        heads=heads,
        held_out=held_out,
        facts=facts,
        cache=cache,
        recipe=recipe,
        asked=asked,
        spaces=spaces,
        prior=prior,
        kappa=settings.kappa,
        voxel_size_mm=voxel_size_mm,
        target=target,
        start_from=start,
        before=before,
    )


def _maps(settings: Settings) -> list[HeadMap]:
    """Label maps of those who are asked for, without maps that are rated as bad."""
    maps = find_head_maps(settings.bids_dir, settings.participant_label, settings.session_label)
    return without_bad(maps, settings.ratings)


def _before(settings: Settings, name: str) -> dict:
    """``job.json`` of a run that has a checkpoint to go on from.

    Raises
    ------
    InputError
        If there is a checkpoint that nothing is known of.
    """
    training = settings.output_dir / "derivatives" / f"model-{name}" / "training"
    if not (training / "last.ckpt").is_file():
        return {}
    before = read_object(training / "job.json")
    if not {"recipe", "maps", "spaces", "voxel_size_mm"} <= set(before):
        raise InputError(
            f"{training}: has a checkpoint, but job.json does not say of what. Choose another "
            "--name, or move the folder away."
        )
    return before


def _as_before(recipe: TrainRecipe, before: Mapping, *, other_steps: bool) -> TrainRecipe:
    """What is not said stays as the run has it: another device may suggest other numbers.

    Other ``--steps`` are reckoned from what was asked for, not from what earlier ones made of it:
    after two steps to try it out, a long run is not looked at every two steps.
    """
    given = {key: recipe.values[key] for key in recipe.given if key in recipe.values}
    values = IMPLIED | before["recipe"]["values"]
    if other_steps:
        values = values | before["recipe"].get("asked", {})
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    # With other --steps the rate has risen already: only how it falls can be stretched.
    return replace(
        recipe, values=recipe.values | values | given, given=recipe.given | {"warmup_steps"}
    )


def _choose_spaces(
    settings: Settings, recipe: TrainRecipe
) -> tuple[Spaces, str, ContrastPrior | None]:
    """Spaces, why, and the prior among them; priors are those of the output, else of the maps."""
    folders = (settings.output_dir, settings.bids_dir)
    there = [d for d in folders if next((d / "priors").glob("contrast-*_prior.json"), None)]
    read: dict[str, ContrastPrior] = {}
    if there:
        from brainseg_bids.stages.pooling import read_priors  # late: pandas, Matplotlib

        found = read_priors(there[0], settings.prior)
        read = {name: prior for name, (_, prior) in found.items()}
    own = _priors_of_files(recipe.spaces)
    spaces, why = choose_spaces(
        recipe,
        priors={name: _suffix(prior) for name, prior in read.items()},
        any_contrast=STRUCTURAL,
        of_files={name: _suffix(prior) for name, prior in own.items()},
        wanted=settings.prior,
        weight_given=settings.kappa != type(settings).kappa,
    )
    # Files of priors lie in OUTPUT_DIR/priors; elsewhere there is nothing to compare with.
    used = [(prior, Path(name).absolute().parents[1]) for name, prior in own.items()]
    used += [(read[spaces.prior], there[0])] if spaces.prior else []
    for prior, output_dir in used:
        warn_of_outdated([prior], output_dir, ratings=settings.ratings)
    if spaces.prior:
        why += f", prior weight {settings.kappa:g}"
    elif idle := sorted(recipe.given & {"agnostic", "center_frac"}):
        log.warning(
            "--recipe: %s has no effect without a contrast prior; recipe spaces have their own",
            " and ".join(idle),
        )
    return spaces, why, read.get(spaces.prior)


def _suffix(prior: ContrastPrior) -> str:
    return str((prior.metadata or {}).get("Suffix", "T1w"))


def _priors_of_files(names: Iterable[str]) -> dict[str, ContrastPrior]:
    """Prior of each recipe space that is a file made from one."""
    from brainseg_bids.synth.prior_space import PriorSpace

    found = {}
    for name in names:
        # What cannot be read is refused with the reason when it is needed.
        with contextlib.suppress(ValueError):
            if name.endswith(".toml") and "prior" in read_toml(Path(name)):
                found[name] = PriorSpace.read(name).prior
    return found


def _start(settings: Settings) -> ModelBundle | None:
    """Model whose weights training begins from."""
    if not settings.start_from:
        return None
    try:
        return ModelBundle.read(find_bundle(settings.start_from))
    except BundleError as error:
        raise InputError(f"--start-from {error}") from error


# -- write down ---------------------------------------------------------------------------


def describe_job(job: JobPlan, settings: Settings) -> dict:
    """Content of ``job.json``."""
    spaces = {space_key(name, job): _said_of(name, job) for name in job.spaces.shares}
    _space_of(job.spaces.validation, job)  # raises, before anything is tried
    start = job.start_from.digest if job.start_from else ""
    return {
        "name": job.name,
        "command": command_of(settings),
        "started": job.before.get("started") or now(),
        "seconds": job.before.get("seconds", 0.0),
        "minutes": settings.minutes,
        "decay_share": job.decay_share(settings),
        "contrasts": list(job.spaces.contrasts),
        "voxel_size_mm": job.voxel_size_mm,
        "table": job.target.name,
        "architecture": settings.architecture,
        "seed": settings.seed,
        # Once it has begun, where from need not be said again.
        "start_from": start or job.before.get("start_from", ""),
        "started_from": (job.start_from.name if job.start_from else "")
        or job.before.get("started_from", ""),
        "recipe": {
            "base": job.recipe.base,
            "asked": job.asked,
            "values": {k: v for k, v in job.recipe.values.items() if k != "voxel_size_mm"},
        },
        "spaces": spaces,
        "validation_space": space_key(job.spaces.validation, job),
        "map_cache": str(job.cache.absolute()),
        "heads": [str(one.path) for one in job.heads],
        "validation": [str(one.path) for one in job.held_out],
        "maps": {
            one.path.name: {
                "digest": job.facts[one.path].digest,
                "voxel_size_mm": list(one.voxel_size_mm),
                "held_out": one in job.held_out,
            }
            for one in (*job.heads, *job.held_out)
        },
        "absent": list(absent_of(job.heads, job.facts, job.target)),
        "source": read_object(settings.bids_dir / "dataset_description.json").get("Name")
        or settings.bids_dir.name,
        "data_licence": read_object(settings.bids_dir / "dataset_description.json").get("License")
        or "",
    }


def command_of(settings: Settings) -> str:
    """The command line that says what these settings say of training."""
    others = {
        item.name
        for item in declared(type(settings))
        if "train" not in item.stages and item.name not in ("participant_label", "session_label")
    }
    where = [shlex.quote(str(path)) for path in (settings.bids_dir, settings.output_dir)]
    flags = to_arguments(settings, leave_out=others)
    return " ".join(["brainseg", *where, "group", "--stages train", *flags])


def space_key(name: str, job: JobPlan) -> str:
    """What the plan calls a space: that of the prior lies in the training folder itself."""
    return f"contrast-{job.spaces.prior}_kappa-{job.kappa:g}.toml" if name == PRIOR else name


def _said_of(name: str, job: JobPlan) -> dict:
    """What is known of a recipe space; raises as `_space_of`."""
    said: dict = {"share": job.spaces.shares[name]}
    if name == PRIOR:
        said |= {"contrast": job.spaces.contrasts[0], "kappa": job.kappa}
    else:
        said |= {"contrast": CONTRAST_OF.get(name, "")}
    return said | {"digest": _space_of(name, job).at(job.voxel_size_mm).digest}


def _space_of(name: str, job: JobPlan) -> RecipeSpace | PriorSpace:
    """A recipe space, by its name in the training recipe.

    Raises
    ------
    InputError
        If it cannot be read or lacks labels.
    """
    from brainseg_bids.synth.prior_space import PriorSpace
    from brainseg_bids.synth.recipe_files import read_space

    if name == PRIOR and job.prior is None:
        raise InputError("validation_space names prior, but [spaces] does not. Add it there.")
    try:
        prior = name == PRIOR
        space = PriorSpace(_agnostic(job), job.prior, job.kappa) if prior else read_space(name)
        space.covers(LabelTable.packaged(SOURCE))
    except ValueError as error:
        raise InputError(f"recipe space {name}: {error}") from error
    return space


def _agnostic(job: JobPlan) -> RecipeSpace:
    """Space at prior weight 0; a run that goes on has a copy of it, as the file may be gone."""
    from brainseg_bids.synth.prior_space import PriorSpace
    from brainseg_bids.synth.space import RecipeSpace

    copy = job.training / space_key(PRIOR, job)
    if job.before and "agnostic" not in job.recipe.given and copy.is_file():
        space = PriorSpace.read(copy).agnostic
    else:
        space = RecipeSpace.named(job.recipe.values.get("agnostic", "agnostic"))
    return space.changed(_centre(job))


def _centre(job: JobPlan) -> dict:
    """Where a prior's crops lie, if the training recipe says it."""
    values = job.recipe.values
    return {"center_frac": values["center_frac"]} if "center_frac" in values else {}


def check_same(job: JobPlan, described: Mapping) -> None:
    """Raise `InputError` naming what has changed since the run began."""
    changed = differences(job.before, described)
    if changed:
        raise InputError(
            f"model {job.name} was begun with other settings: {'; '.join(changed)}. Go on with "
            "those it was begun with, or train another model with --name."
        )


def write_job(job: JobPlan, described: dict) -> dict:
    """Write ``job.json`` and, beside it, prior and recipe file, which may change elsewhere."""
    from brainseg_bids.synth.recipe_files import write_prior_space

    if job.prior is not None and not job.before:
        prior = job.prior.write(job.training, brainseg_version=__version__)
        recipe = job.training / space_key(PRIOR, job)
        write_prior_space(recipe, prior, job.kappa, job.recipe.values.get("agnostic", "agnostic"))
        if centre := _centre(job):
            low, high = centre["center_frac"]
            with recipe.open("a", encoding="utf-8") as file:
                file.write(
                    f"# Where crops lie, by the training recipe.\ncenter_frac = [{low}, {high}]\n"
                )
    write_model_description(job.folder, job.name)
    write_json(job.training / "job.json", described)
    return described


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
