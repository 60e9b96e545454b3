# SPDX-License-Identifier: Apache-2.0
"""Pages and pictures of the gallery, made when the documentation is built.

``BRAINSEG_DOCS_RUNS`` names a folder with runs of the tutorials that shall be used; else they are run in ``docs/_runs``.
"""

from __future__ import annotations

import os
from pathlib import Path


def make_samples(app) -> None:
    """Run what was not run yet, and collect."""
    from docs import samples
    from docs.figures import gallery

    docs = Path(app.srcdir)
    runs = Path(os.environ.get("BRAINSEG_DOCS_RUNS", docs / "_runs"))
    samples.run_tutorials(runs)
    samples.collect(runs, docs / "_samples" / "samples")
    gallery.draw(runs, docs / "_samples" / "samples")


def setup(app) -> dict:
    app.connect("builder-inited", make_samples)
    return {"version": "1", "parallel_read_safe": True}
