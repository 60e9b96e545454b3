# SPDX-License-Identifier: Apache-2.0
"""Fill a TemplateFlow home with the templates that are used, and with nothing else.

``python docker/templates.py HOME [TEMPLATE:RESOLUTION ...]``

Libraries index the whole home when they are imported: TemplateFlow's own skeleton of 2,500 mostly
empty files costs them ten seconds, an empty home that cannot be written to makes them fail. So
the home always has the text files of one template, from the skeleton that the package
``templateflow`` ships. T1w images and brain masks of what is named are fetched; empty
placeholders of everything else are left out, so that a file that is there has content.
"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from importlib import resources
from pathlib import Path

ALWAYS = "MNI152NLin2009cAsym"
"""The template that pipelines beside this one report in."""


def text_files(home: Path, templates: set[str], placeholders: bool) -> None:
    """Unpack these templates from the packaged skeleton.

    Parameters
    ----------
    home : Path
    templates : set of str
        Without ``tpl-``.
    placeholders : bool
        Empty files, too: TemplateFlow's client fetches what it has a placeholder for.

    Raises
    ------
    SystemExit
        A template that TemplateFlow does not know.
    """
    skeleton = resources.files("templateflow") / "conf" / "templateflow-skel.zip"
    with resources.as_file(skeleton) as path, zipfile.ZipFile(path) as archive:
        names = archive.infolist()
        known = {name.filename.split("/")[0] for name in names}
        for template in sorted(templates):
            if f"tpl-{template}" not in known:
                sys.exit(f"{template}: TemplateFlow has no such template.")
        for name in names:
            folder = name.filename.split("/")[0].removeprefix("tpl-")
            if folder in templates and not name.is_dir() and (name.file_size or placeholders):
                archive.extract(name, home)


def fetch(home: Path, wanted: list[tuple[str, int]]) -> None:
    """Download T1w image and brain mask of each template and resolution."""
    os.environ["TEMPLATEFLOW_HOME"] = str(home)
    from templateflow import api  # late: it reads the variable when it is imported

    for template, resolution in wanted:
        for query in ({"desc": None, "suffix": "T1w"}, {"desc": "brain", "suffix": "mask"}):
            found = api.get(template, resolution=resolution, extension=".nii.gz", **query)
            paths = found if isinstance(found, list) else [found]
            if not paths or not all(Path(path).stat().st_size for path in paths):
                sys.exit(f"{template}:{resolution}: no {query['suffix']} could be fetched.")
            print(f"{template}:{resolution}: {', '.join(Path(path).name for path in paths)}")


def remove_placeholders(home: Path) -> None:
    """Remove files without content."""
    for path in home.rglob("*"):
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()


def _wanted(word: str) -> tuple[str, int]:
    """Take "MNI152NLin2009cAsym:1" apart.

    >>> _wanted("MNI152NLin2009cAsym:1")
    ('MNI152NLin2009cAsym', 1)
    """
    template, _, resolution = word.partition(":")
    if not resolution.isdigit():
        raise argparse.ArgumentTypeError(f"{word} is not TEMPLATE:RESOLUTION, e.g. {ALWAYS}:1")
    return template, int(resolution)


def main(argv: list[str] | None = None) -> int:
    """Fill the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("wanted", nargs="*", type=_wanted, metavar="TEMPLATE:RESOLUTION")
    options = parser.parse_args(argv)
    templates = {ALWAYS} | {template for template, _ in options.wanted}
    text_files(options.home, templates, placeholders=bool(options.wanted))
    if options.wanted:
        fetch(options.home, options.wanted)
    remove_placeholders(options.home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
