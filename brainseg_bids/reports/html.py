# SPDX-License-Identifier: Apache-2.0
"""Packaged templates filled in: one file, no script, nothing fetched, everything escaped."""

from __future__ import annotations

import base64
from collections.abc import Collection
from datetime import datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brainseg_bids.volumes import whole_or_nothing


def render_page(path: Path, template: str, **content: object) -> Path:
    """Fill a packaged template and write it, whole or not at all; everything is escaped."""
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    text = _environment().get_template(template).render(written=written, **content)
    path = Path(path)
    with whole_or_nothing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def embedded(figure: Path) -> str | None:
    """Data URI of a PNG, None if there is no such file."""
    if not figure.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(figure.read_bytes()).decode("ascii")


def _ml(volume_mm3: float | None) -> str:
    return "n/a" if volume_mm3 is None else f"{volume_mm3 / 1000:,.2f}"


def _mm3(volume_mm3: float | None) -> str:
    return "n/a" if volume_mm3 is None else f"{volume_mm3:,.0f}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.1f}".replace("-", "−")


def _linked(who: str, pages: Collection[str]) -> str:
    """What an image's results are called, linked to the participant's page if that is there.

    >>> str(_linked("sub-01_ses-A", {"sub-01.html"})), _linked("sub-02", {"sub-01.html"})
    ('<a href="sub-01.html">sub-01_ses-A</a>', 'sub-02')
    """
    page = f"{who.split('_')[0]}.html"
    return Markup('<a href="{}">{}</a>').format(page, who) if page in pages else who


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("brainseg_bids", "data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ml": _ml, "mm3": _mm3, "percent": _percent, "linked": _linked}
    return environment
