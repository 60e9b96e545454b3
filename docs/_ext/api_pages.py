# SPDX-License-Identifier: Apache-2.0
"""Pages of the API: one a package of the inside, with all its public modules.

They are written before Sphinx reads, into ``reference/api``, which git ignores.
"""

from __future__ import annotations

import re
from pathlib import Path

import brainseg_bids

PACKAGES = {
    "anatomy": "labels, grids, label maps, merge, upsampling",
    "contrast": "how labels look: statistics and priors",
    "evaluation": "agreement of label maps, statistics of it",
    "nets": "architectures and model bundles",
    "synth": "recipes and the generator of pairs",
    "inference": "windows, segmentation, upsampling on a device",
    "training": "plans, pairs, losses, fitting",
}
"""The inside: what can be used from Python without BIDS, Nipype or files."""


def pages() -> dict[str, str]:
    """Text of each page, reStructuredText, by its name."""
    root = Path(brainseg_bids.__file__).parent
    found = {}
    for package, about in PACKAGES.items():
        heading = f"brainseg_bids.{package}"
        lines = [heading, "=" * len(heading), "", f"{about[0].upper()}{about[1:]}.", ""]
        for path in sorted((root / package).glob("[!_]*.py")):
            lines += [path.stem, "-" * len(path.stem), ""]
            lines += [f".. automodule:: {heading}.{path.stem}", "   :members:", ""]
        found[package] = "\n".join(lines)
    return found


def write_pages(app) -> None:
    """Write what has changed; unchanged pages are not read again by Sphinx."""
    folder = Path(app.srcdir) / "reference" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        path = folder / f"{name}.rst"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def escape_formulas(app, what, name, item, options, lines: list[str]) -> None:
    """Docstrings are plain text: |x| and a*b are no markup there."""
    doctest = False
    for number, line in enumerate(lines):
        doctest = line.lstrip().startswith(">>>") or (doctest and bool(line.strip()))
        if not doctest:
            parts = re.split("(`+[^`]+`+)", line)
            parts[::2] = [re.sub(r"(?<![\\])[|*]", r"\\\g<0>", part) for part in parts[::2]]
            lines[number] = "".join(parts)
    if what in ("data", "attribute"):
        app.env.temp_data[f"lines of {name}"] = list(lines)


def restore_sentences(app, what, name, item, options, lines: list[str]) -> None:
    """Of variables: napoleon takes what stands before a colon for a type."""
    kept = app.env.temp_data.pop(f"lines of {name}", None)
    if kept is not None:
        lines[:] = kept


def setup(app) -> dict:
    """For Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", escape_formulas, priority=100)
    app.connect("autodoc-process-docstring", restore_sentences, priority=900)
    return {"parallel_read_safe": True}
