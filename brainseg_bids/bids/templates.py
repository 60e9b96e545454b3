# SPDX-License-Identifier: Apache-2.0
"""Templates that lie in a TemplateFlow home, and names of results in their spaces.

Templates are listed by TemplateFlow's client. Nothing here ever downloads: its ``get`` would,
which takes an empty file of its skeleton for one to fetch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brainseg_bids.bids.names import Scan, folder, stem
from brainseg_bids.documents import InputError


@dataclass(frozen=True)
class Template:
    """A T1-weighted template.

    Parameters
    ----------
    name : str
        TemplateFlow's, e.g. ``MNI152NLin2009cAsym``.
    cohort, resolution : str
        Labels without leading zeros; empty where the template has none.
    image : Path
    mask : Path or None
        Its brain, if that is there.
    """

    name: str
    cohort: str
    resolution: str
    image: Path
    mask: Path | None = None

    @property
    def space(self) -> str:
        """Label of ``space-``; a cohort is put behind it, as fMRIPrep does.

        >>> Template("MNIInfant", "2", "1", Path("x")).space
        'MNIInfant+2'
        """
        return f"{self.name}+{self.cohort}" if self.cohort else self.name


def templateflow_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Where TemplateFlow looks.

    >>> templateflow_home({"TEMPLATEFLOW_HOME": "/templates"}).as_posix()
    '/templates'
    """
    given = environment.get("TEMPLATEFLOW_HOME")
    return Path(given) if given else default_home()


def default_home() -> Path:
    """Where TemplateFlow puts what it fetches, unless TEMPLATEFLOW_HOME says otherwise."""
    return Path.home() / ".cache" / "templateflow"


def template_names(home: Path) -> list[str]:
    """Templates of which there is a folder with at least one image that has content."""
    return sorted(
        path.name.removeprefix("tpl-")
        for path in home.glob("tpl-*")
        if any(file.stat().st_size for file in path.rglob("*_T1w.nii.gz") if file.is_file())
    )


def find_template(home: Path, name: str, *, cohort: str = "", resolution: str = "") -> Template:
    """T1-weighted template in a TemplateFlow home.

    Parameters
    ----------
    home : Path
    name, cohort, resolution : str
        An empty resolution means 1, or the only one there is.

    Raises
    ------
    InputError
        If it is not there; the message has the command that fetches it.
    """
    cohort, resolution = _plain(cohort), _plain(resolution)
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for kind, path in _fetched(home, name):
        found.setdefault(_which(path), {})[kind] = path
    there = {res: files for (own, res), files in found.items() if own == cohort and "T1w" in files}
    wanted = resolution
    if not wanted and there:
        wanted = "1" if "1" in there else next(iter(there)) if len(there) == 1 else ""
    if wanted not in there:
        raise InputError(_not_there(home, name, cohort, resolution, sorted(there)))
    files = there[wanted]
    return Template(name, cohort, wanted, files["T1w"], files.get("mask"))


def fetch_command(
    name: str, *, cohort: str = "", resolution: str = "", suffix: str = "T1w"
) -> str:
    """What to type on a machine with network.

    >>> fetch_command("MNI152NLin2009cAsym", resolution="1")
    'templateflow get MNI152NLin2009cAsym --res 1 -s T1w'
    """
    words = ["templateflow get", name]
    words += ["--cohort", cohort] if cohort else []
    words += ["--res", resolution] if resolution else []
    return " ".join([*words, "-s", suffix])


# TemplateFlow's program knows only templates that its home has a folder for, so that it cannot
# fetch others straight into a small one: its own home has them all.
def _not_there(home: Path, name: str, cohort: str, resolution: str, there: list[str]) -> str:
    which = f"{name}{f' cohort {cohort}' if cohort else ''}"
    what = f" at resolution {resolution}" if resolution else ""
    if there and not resolution:
        shown = ", ".join(there)
        return (
            f"--output-spaces {name}: {home} has it at several resolutions ({shown}). "
            f"Choose one, as {name}:res-{there[0]}."
        )
    fetch = {"cohort": cohort, "resolution": resolution or "1"}
    others = f" Here are: {', '.join(f'res-{res}' for res in there)}." if there else ""
    commands = f"{fetch_command(name, **fetch)} && {fetch_command(name, **fetch, suffix='mask')}"
    missing = f"--output-spaces: template {which}{what} is not in {home}"
    if home.resolve() == default_home().resolve():
        return (
            f"{missing}, where TemplateFlow puts what it fetches.{others} Fetch it: {commands}. "
            f"Without network: fetch it elsewhere and copy the folder tpl-{name}."
        )
    return (
        f"{missing} (TEMPLATEFLOW_HOME).{others} On a machine with network: {commands}, then copy "
        f"~/.cache/templateflow/tpl-{name} into that folder."
    )


def _fetched(home: Path, name: str) -> Iterator[tuple[str, Path]]:
    """T1-weighted images and brain masks of a template that have content, each with its kind."""
    if name not in template_names(home):  # importing TemplateFlow fills an empty home
        return
    client = _client(home)
    for kind, desc, suffix in (("T1w", None, "T1w"), ("mask", "brain", "mask")):
        found = client.ls(name, desc=desc, suffix=suffix, extension=".nii.gz")
        # Known but not fetched: empty files of TemplateFlow's skeleton, links of its git-annex.
        fetched = (path for path in sorted(found) if path.is_file() and path.stat().st_size)
        yield from ((kind, path) for path in fetched)


def _client(home: Path):
    """TemplateFlow's client of a home; the one that is there already if it is of this one."""
    from templateflow import TemplateFlowClient, api, conf  # late: indexes the whole home

    return api if Path(conf.TF_HOME) == home else TemplateFlowClient(root=home, autoupdate=False)


def _which(path: Path) -> tuple[str, str]:
    entities = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
    return _plain(entities.get("cohort", "")), _plain(entities.get("res", ""))


def _plain(label: str) -> str:
    """Without leading zeros: TemplateFlow writes ``res-01``, people ``res-1``."""
    return str(int(label)) if label.isdecimal() else label


# -- names of results ---------------------------------------------------------------------


def in_space(scan: Scan, template: Template, *, seg: str = "", desc: str = "") -> str:
    """Entities of a result in a template's space, without suffix.

    The suffix of an image other than T1w goes behind ``acq-``, as ``space-`` is taken.

    >>> mni = Template("MNI152NLin2009cAsym", "", "1", Path("x"))
    >>> in_space(Scan.from_path("sub-01_UNIT1.nii.gz"), mni, seg="brainseg")
    'sub-01_acq-UNIT1_space-MNI152NLin2009cAsym_seg-brainseg_res-1'
    """
    entities = dict(scan.entities)
    if scan.suffix != "T1w":
        entities["acq"] = "+".join(filter(None, [entities.get("acq"), scan.suffix]))
    plain = Scan(scan.path, entities, "T1w")
    parts = [stem(plain, space=template.space, **({"seg": seg} if seg else {}))]
    parts += [f"res-{template.resolution}"] if template.resolution else []
    return "_".join([*parts, *([f"desc-{desc}"] if desc else [])])


def transform_name(scan: Scan, template: Template, *, back: bool = False) -> str:
    """File of the transform from an image to a template, or back.

    >>> mni = Template("MNI152NLin2009cAsym", "", "1", Path("x"))
    >>> transform_name(Scan.from_path("sub-01_ses-A_T1w.nii.gz"), mni)
    'sub-01_ses-A_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5'
    """
    ends = (scan.suffix, template.space)[:: -1 if back else 1]
    return f"{stem(replace(scan, suffix='T1w'))}_from-{ends[0]}_to-{ends[1]}_mode-image_xfm.h5"


@dataclass(frozen=True)
class SpaceNames:
    """Where results in a template's space go, below the derivative's root. All `Path`."""

    labels: Path
    tissue: Path
    mask: Path
    image: Path
    figure: Path

    @classmethod
    def of(cls, scan: Scan, template: Template) -> SpaceNames:
        """Names for one scan and template.

        >>> mni = Template("MNI152NLin2009cAsym", "", "1", Path("x"))
        >>> SpaceNames.of(Scan.from_path("sub-01_T1w.nii.gz"), mni).mask.as_posix()
        'sub-01/anat/sub-01_space-MNI152NLin2009cAsym_res-1_desc-brain_mask.nii.gz'
        """
        home, segmented = folder(scan), in_space(scan, template, seg="brainseg")
        return cls(
            labels=home / f"{segmented}_dseg.nii.gz",
            tissue=home / f"{in_space(scan, template, seg='tissue')}_dseg.nii.gz",
            mask=home / f"{in_space(scan, template, desc='brain')}_mask.nii.gz",
            image=home / f"{in_space(scan, template, desc='warped')}_T1w.nii.gz",
            figure=Path(f"sub-{scan.subject}", "figures", f"{segmented}_dseg.png"),
        )


def read_spaces(wanted: Sequence[str], *, home: Path | None = None) -> tuple[Template, ...]:
    """Templates that ``--output-spaces`` names, from TemplateFlow's home alone.

    Raises
    ------
    InputError
        If one is no volumetric template or is not there; nothing is downloaded.
    """
    if not wanted:
        return ()
    home = home or templateflow_home()
    if not template_names(home):  # importing TemplateFlow would fill it with empty files
        name, _, rest = wanted[0].partition(":")
        find_template(home, name, resolution=_entity(rest, "res"), cohort=_entity(rest, "cohort"))
    from niworkflows.utils.spaces import Reference  # late: indexes the whole home

    templates: dict[tuple[str, str], Template] = {}
    for text in wanted:
        try:
            references = Reference.from_string(text)
        except ValueError as error:
            name, _, rest = text.partition(":")
            if not (home / f"tpl-{name}").is_dir() and "is invalid" in str(error):
                find_template(home, name, resolution=_entity(rest, "res"))
            raise InputError(f"--output-spaces {text}: {' '.join(str(error).split())}") from error
        for reference in references:
            if not reference.standard or reference.dim != 3:
                raise InputError(
                    f"--output-spaces {text}: this is not a volumetric template. Results on the "
                    "image's own grid are written always; surfaces are not made."
                )
            spec = {name: str(value) for name, value in reference.spec.items()}
            strange = sorted(set(spec) - {"res", "resolution", "cohort"})
            if strange:
                raise InputError(
                    f"--output-spaces {text}: {strange[0]} means nothing here. Give res and, for "
                    "templates that have them, cohort."
                )
            template = find_template(
                home,
                reference.space,
                cohort=spec.get("cohort", ""),
                resolution=spec.get("res", spec.get("resolution", "")),
            )
            templates[template.space, template.resolution] = template
    return tuple(templates.values())


def _entity(spec: str, name: str) -> str:
    return next(
        (part.split("-", 1)[1] for part in spec.split(":") if part.startswith(f"{name}-")), ""
    )
