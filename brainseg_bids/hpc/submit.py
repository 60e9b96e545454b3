# SPDX-License-Identifier: Apache-2.0
"""``--slurm``: a command as jobs of a cluster, printed or handed over."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

from brainseg_bids.documents import InputError
from brainseg_bids.exit_codes import DONE, FAILED, NO_PROGRAM, UNUSABLE
from brainseg_bids.files import write_text
from brainseg_bids.hpc.command import OF_SLURM
from brainseg_bids.hpc.profiles import Profile, read_profile
from brainseg_bids.hpc.schedulers import SCHEDULERS
from brainseg_bids.hpc.slurm import make_script, refused_labels
from brainseg_bids.nets.bundle import BundleError
from brainseg_bids.options import declared
from brainseg_bids.settings import Settings


def submit(settings: Settings) -> int:
    """Print the script that does what the settings say, or with ``submit`` hand it to Slurm.

    Returns
    -------
    int
        Exit code: `FAILED` if Slurm refuses it or a participant's label is none.
    """
    try:
        profile = read_profile(settings.slurm_profile or "default")
        _check_models(settings)
        script = make_script(settings, profile)
        if settings.analysis_level == "participant":
            _keep(settings, profile)
        refused = refused_labels(settings)
        for line in refused:
            print(f"brainseg: ERROR: {line} The others are in the script.", file=sys.stderr)
        done = FAILED if refused else DONE
        if not settings.submit:
            print(script, end="")
            return done
        return _hand_over(script, profile) or done
    except (InputError, BundleError, OSError) as error:
        print(f"brainseg: ERROR: {' '.join(str(error).split())}", file=sys.stderr)
        return UNUSABLE


def _check_models(settings: Settings) -> None:
    """Raise `BundleError` if there is no such model: found now, not in a thousand jobs."""
    if settings.analysis_level != "participant":
        return
    from brainseg_bids.stages.models import models_of, read_ensemble  # late: nibabel

    models, _ = models_of(settings)
    if {"segment", "headlabels"} & set(settings.stages):
        read_ensemble(settings, models[0])


def _keep(settings: Settings, profile: Profile) -> None:
    """Leave the settings for ``brainseg status``, which then knows what should be there."""
    defaults = {item.name: item.default for item in declared(Settings) if item.name in OF_SLURM}
    path = settings.output_dir / "logs" / profile.scheduler / "submitted.toml"
    write_text(path, replace(settings, **defaults).to_toml())


def _hand_over(script: str, profile: Profile) -> int:
    program = SCHEDULERS[profile.scheduler].program
    if shutil.which(program) is None:
        print(
            f"brainseg: ERROR: there is no program {program} here. Where there is (outside of the "
            "container, on a login node), give the script to bash: brainseg ... --slurm | bash",
            file=sys.stderr,
        )
        return NO_PROGRAM
    done = subprocess.run(["bash", "-s"], input=script, text=True)
    if done.returncode:
        print(
            f"brainseg: ERROR: {profile.scheduler.capitalize()} refused it; its words are above.",
            file=sys.stderr,
        )
    return FAILED if done.returncode else DONE
