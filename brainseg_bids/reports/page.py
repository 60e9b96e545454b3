# SPDX-License-Identifier: Apache-2.0
"""HTML pages that open anywhere: one file, nothing fetched.

A page is one template; what stands on it is made of the blocks below (`text`, `facts`, `box`,
`figure`, ..., and `brainseg_bids.reports.tables.html_table`). Whatever is passed in is escaped,
but for what is `Markup` already.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from brainseg_bids.files import whole_or_nothing
from brainseg_bids.reports import tables
from brainseg_bids.reports.canvas import row_blocks
from brainseg_bids.reports.prose import prose, references

BRAIN_AND_CSF = (
    "Brain is grey and white matter, cerebellum and brainstem. CSF is what is labelled of it, "
    "ventricles included."
)
CLICK = "Click the picture to enlarge it."


@dataclass(frozen=True)
class Section:
    """What one stage has to say about one image.

    Parameters
    ----------
    kind : str
        Sections of one kind share a table at the top; their anchors are ``KIND-1``, ...
    title : str
        E.g. ``T1w, session 1``.
    body : Markup
        Blocks, see `blocks`.
    stage : str
        Said before the title, e.g. ``Contrast``. Empty for segmentations.
    counted : (str, str)
        How it is counted: "2 images segmented".
    warnings : sequence of str
        Repeated at the top of the page.
    overview : mapping of str to str
        Its row of the table at the top: cells by heading.
    numbers : tuple of str
        Headings of ``overview`` whose cells are numbers.
    """

    kind: str
    title: str
    body: Markup
    stage: str = ""
    counted: tuple[str, str] = ("image", "segmented")
    warnings: Sequence[str] = ()
    overview: Mapping[str, object] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()


# -- blocks -------------------------------------------------------------------------------


def blocks(*parts: Markup | str) -> Markup:
    """Blocks one after the other; empty ones are left out."""
    # Not Markup.join, which would copy each embedded picture once more.
    shown = (part if isinstance(part, Markup) else escape(part) for part in parts if part)
    return Markup("\n".join(shown))


def text(words: object, *, faint: bool = False) -> Markup:
    """A paragraph."""
    return Markup('<p class="faint">{}</p>' if faint else "<p>{}</p>").format(words)


def code(words: object) -> Markup:
    """A file name or a command within a paragraph or a cell."""
    return Markup("<code>{}</code>").format(words)


def heading(words: object, note: str = "", *, level: int = 3, stay: bool = False) -> Markup:
    """A heading, and faint words behind it; of ``level`` 2 it starts a new printed page."""
    behind = Markup(' <span class="faint">({})</span>').format(note) if note else ""
    return Markup("<h{0}{1}>{2}{3}</h{0}>").format(
        level, Markup(' class="stay"') if stay else "", words, behind
    )


def facts(pairs: Mapping[str, object], title: str = "") -> Markup:
    """Names with their values side by side; those without a value are left out."""
    known = {name: value for name, value in pairs.items() if value}
    if not known:
        return Markup()
    return blocks(heading(title) if title else "", macro("facts")(known))


def box(
    words: object,
    items: Iterable[object] = (),
    *,
    kind: str = "",
    note: str = "",
    most: int = 0,
    anchor: str = "",
) -> Markup:
    """A framed message; with ``items`` its words head a list.

    Parameters
    ----------
    kind : {"", "warn", "bad"}
    note : str
        Faint words at the end.
    most : int
        Items beyond these are folded away; 0: none is.
    anchor : str
        Its ``id``.
    """
    items = list(items)
    shown, more = (items[:most], items[most:]) if most else (items, [])
    return macro("box")(words, shown, more, kind, note, anchor)


def warnings_box(warnings: Sequence[str], title: str, *, most: int = 0) -> Markup:
    """Quality warnings of a section, or that there are none."""
    if not warnings:
        return box("Nothing was flagged.")
    return box(title, warnings, kind="warn", most=most)


def figure(
    image: Path | bytes | None,
    alt: str,
    *,
    caption: str = "",
    missing: str = "This picture could not be made.",
) -> Markup:
    """A picture that a click enlarges, embedded; ``missing`` is said in place of one not there.

    Parameters
    ----------
    image : Path or bytes, optional
        PNG.
    """
    if isinstance(image, Path):
        image = image.read_bytes() if image.is_file() else None
    if not image:
        return box(missing, kind="bad")
    size, rows = row_blocks(image)
    if not rows:
        return macro("figure")(embedded(image), alt, caption, CLICK)
    anchor = "picture-" + hashlib.sha256(image + alt.encode()).hexdigest()[:12]
    return macro("rows")(embedded(image), alt, caption, CLICK, anchor, size, rows)


def fold(summary: object, *content: Markup | str, is_open: bool = False) -> Markup:
    """What is seen after a click, and in print."""
    return Markup("<details{}><summary>{}</summary>{}</details>").format(
        Markup(" open") if is_open else "", summary, blocks(*content)
    )


def small(content: Markup) -> Markup:
    """A wide table in smaller letters."""
    return Markup('<div class="small">{}</div>').format(content)


def pre(words: str) -> Markup:
    """Text with its line breaks, such as a command."""
    return Markup("<pre>{}</pre>").format(words)


def bullets(items: Iterable[object], *, faint: bool = False) -> Markup:
    """A list."""
    lines = Markup("").join(Markup("<li>{}</li>").format(item) for item in items)
    return Markup('<ul class="faint">{}</ul>' if faint else "<ul>{}</ul>").format(lines)


def beside(*columns: Markup) -> Markup:
    """Tables side by side where there is room, else one below the other."""
    shown = Markup("").join(Markup("<div>{}</div>").format(one) for one in columns if one)
    return Markup('<div class="tables">{}</div>').format(shown)


def files(outputs: Sequence[object]) -> Markup:
    """Files that a run has written."""
    if not outputs:
        return Markup()
    return blocks(heading("Files written"), bullets(map(code, outputs)))


def section(anchor: str, *content: Markup | str) -> Markup:
    """A part of a page that can be linked to."""
    return Markup('<section id="{}">\n{}\n</section>').format(anchor, blocks(*content))


def plural(n: int, noun: str) -> str:
    """A count in words.

    >>> plural(1, "head"), plural(0, "label")
    ('1 head', '0 labels')
    """
    return f"{n} {noun}{'' if n == 1 else 's'}"


def embedded(image: bytes) -> str:
    """Data URI of a PNG."""
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


# -- pages --------------------------------------------------------------------------------


def write_page(
    path: Path,
    *content: Markup | str,
    title: str,
    name: str,
    version: str,
    scripts: Iterable[str] = (),
) -> Path:
    """Write a page as one HTML file, whole or not at all.

    Figures are embedded; the page runs packaged scripts alone and asks the network for nothing
    (its own content policy forbids the rest), follows the reader's light or dark setting, and
    prints.

    Parameters
    ----------
    path : Path
        HTML file.
    *content : Markup
        Sections and blocks.
    title : str
        Heading.
    name : str
        Of the browser's window.
    version : str
        Of this software.
    scripts : iterable of str
        Names of packaged scripts that it needs.
    """
    return render_page(
        path,
        "page.html.j2",
        scripts=scripts,
        title=title,
        name=name,
        version=version,
        body=blocks(*content),
    )


def write_subject_page(
    path: Path,
    *,
    subject: str,
    sections: Sequence[Section],
    settings: str,
    errors: Sequence[str],
    methods: str,
    version: str,
) -> Path:
    """Write one participant's page.

    Parameters
    ----------
    path : Path
        HTML file.
    subject : str
        Participant label, without ``sub-``.
    sections : sequence of Section
        In the order of the page; may be empty when everything failed.
    settings : str
        TOML text.
    errors : sequence of str
        One per thing that failed; line breaks are kept.
    methods : str
        Markdown; blank lines separate paragraphs.
    version : str
        Of this software.
    """
    title = f"sub-{subject.removeprefix('sub-')}"
    return write_page(
        path,
        section("summary", *_summary(sections, errors)),
        *anchored(sections),
        methods_section(methods),
        section(
            "settings",
            heading("Settings", level=2, stay=True),
            fold("Settings of this run (TOML)", pre(settings)),
        ),
        title=title,
        name=f"{title}: brainseg report",
        version=version,
        scripts=("rating.js",),
    )


def anchored(sections: Sequence[Section]) -> list[Markup]:
    """Sections under their headings, with anchors that `overviews` link to."""
    return [
        section(
            anchor,
            heading(f"{one.stage}: " * bool(one.stage) + one.title, level=2),
            one.body,
        )
        for anchor, one in _anchors(sections).items()
    ]


def overviews(sections: Sequence[Section]) -> list[Markup]:
    """A table of each kind of sections."""
    found: dict[str, list[tuple[str, Section]]] = {}
    for anchor, one in _anchors(sections).items():
        found.setdefault(one.kind, []).append((anchor, one))
    return [
        tables.html_table(
            pd.DataFrame(
                [
                    {one.stage or "Image": _link(anchor, one.title), **one.overview}
                    for anchor, one in same
                ]
            ),
            numbers=same[0][1].numbers,
        )
        for same in found.values()
    ]


def _anchors(sections: Sequence[Section]) -> dict[str, Section]:
    """Sections by their anchors, numbered within each kind."""
    seen: Counter[str] = Counter()
    found = {}
    for one in sections:
        seen[one.kind] += 1
        found[f"{one.kind}-{seen[one.kind]}"] = one
    return found


def _link(anchor: str, words: str) -> Markup:
    return Markup('<a href="#{}">{}</a>').format(anchor, words)


def _summary(sections: Sequence[Section], errors: Sequence[str]) -> list[Markup]:
    """Counts, errors, warnings, and tables."""
    counts = Counter(one.counted for one in sections)
    n_warnings = sum(len(one.warnings) for one in sections)
    words = [f"{plural(n, noun)} {done}; " for (noun, done), n in counts.items()]
    words = words or ["No image was segmented; "]
    words.append(f"{n_warnings or 'no'} warning{'s' * (n_warnings != 1)}, ")
    words.append(f"{len(errors) or 'no'} error{'s' * (len(errors) != 1)}.")
    failed = f"{'This' if len(errors) == 1 else 'These'} failed"
    flagged = [
        Markup("{}: {}").format(
            _link(anchor, f"{one.stage}, " * bool(one.stage) + one.title), warning
        )
        for anchor, one in _anchors(sections).items()
        for warning in one.warnings
    ]
    explained = any("Brain (ml)" in one.overview for one in sections)
    return [
        text("".join(words)),
        box(failed, errors, kind="bad", anchor="errors") if errors else Markup(),
        box("Look at this before using the numbers", flagged, kind="warn")
        if flagged
        else Markup(),
        *overviews(sections),
        text(BRAIN_AND_CSF, faint=True) if explained else Markup(),
    ]


def methods_section(words: str, *, stay: bool = False) -> Markup:
    """How results were made, and what is cited; blank lines separate paragraphs."""
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", words) if part.strip()]
    if not paragraphs:
        return Markup()
    cited = references(words)
    return section(
        "methods",
        heading("Methods", level=2, stay=stay),
        *(text(prose(paragraph)) for paragraph in paragraphs),
        *([heading("References"), bullets(cited, faint=True)] if cited else []),
    )


# -- the template -------------------------------------------------------------------------


class Script(NamedTuple):
    """A packaged script, and how the page's content policy names it: no other one is run."""

    text: Markup
    digest: str

    @classmethod
    def packaged(cls, name: str) -> Script:
        """One of the package's data."""
        source = resources.files("brainseg_bids") / "data" / name
        text = source.read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
        return cls(Markup(text), f"sha256-{digest}")


def render_page(
    path: Path, template: str, *, scripts: Iterable[str] = (), **content: object
) -> Path:
    """Fill a packaged template and write it, whole or not at all; everything is escaped.

    ``scripts``: names of packaged files; without any the page runs none.
    """
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    filled = (
        environment()
        .get_template(template)
        .render(written=written, scripts=[Script.packaged(name) for name in scripts], **content)
    )
    path = Path(path)
    with whole_or_nothing(path) as temporary:
        temporary.write_text(filled, encoding="utf-8")
    return path


def macro(name: str):
    """One of the packaged macros."""
    return getattr(environment().get_template("parts.html.j2").module, name)


@cache
def environment() -> Environment:
    """The packaged templates."""
    return Environment(
        loader=PackageLoader("brainseg_bids", "data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
