# SPDX-License-Identifier: Apache-2.0
"""How Sphinx makes the pages: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import brainseg_bids  # noqa: E402

project = "brainseg-bids"
copyright = "the authors of brainseg-bids"
version = release = brainseg_bids.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "api_pages",
    "graphs",
    "sample_pages",
]
exclude_patterns = ["_build", "_runs", "_samples"]
templates_path: list[str] = []
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Notebooks are run when the pages are built; an error in one is an error of the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 1200
nb_merge_streams = True

# Docstrings are numpydoc's; single backticks are code there.
default_role = "code"
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"  # signatures show them
autodoc_inherit_docstrings = False  # those of other packages have markup of their own
suppress_warnings = ["ref.python"]  # two classes of one name, in two packages

smartquotes = False  # --stages is no dash

html_theme = "furo"
html_title = "brainseg-bids"
html_static_path = ["_static"]
html_extra_path = ["_samples"]  # pages that the app left, as they are: sample_pages fills it
(DOCS / "_samples").mkdir(exist_ok=True)
html_css_files = ["brainseg.css"]
html_show_sphinx = False
html_copy_source = False
highlight_language = "text"  # blocks without a language are shells' and logs
pygments_style = "tango"
pygments_dark_style = "monokai"
