# SPDX-License-Identifier: Apache-2.0
"""The methods text as HTML: emphasis, code and citations of its Markdown, nothing more."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from markupsafe import Markup, escape

_MARKS = re.compile(r"`([^`]+)`|\*([^*\s][^*]*)\*|\[(@[\w-]+(?:;\s*@[\w-]+)*)\]")


def prose(text: str) -> Markup:
    """A paragraph with its marks as HTML; everything else is escaped.

    >>> str(prose("*Nipype* <b> `x` [@paszke2019]"))
    '<em>Nipype</em> &lt;b&gt; <code>x</code> (Paszke et al., 2019)'
    """
    parts, end = [], 0
    for mark in _MARKS.finditer(text):
        code, emphasis, keys = mark.groups()
        parts.append(escape(text[end : mark.start()]))
        end = mark.end()
        if code:
            parts.append(Markup("<code>{}</code>").format(code))
        elif emphasis:
            parts.append(Markup("<em>{}</em>").format(emphasis))
        else:
            parts.append(escape(f"({'; '.join(map(_short, _keys(keys)))})"))
    return Markup("").join([*parts, escape(text[end:])])


def references(text: str) -> list[str]:
    """What a text cites, in full, sorted by name.

    >>> references("*Nipype* [@gorgolewski2011], once more [@gorgolewski2011].")[0][:32]
    'Gorgolewski, Krzysztof; Burns, C'
    """
    cited = {key for mark in _MARKS.finditer(text) if mark[3] for key in _keys(mark[3])}
    return sorted(_full(_bibliography()[key]) for key in cited if key in _bibliography())


def _keys(text: str) -> list[str]:
    return [key.strip().removeprefix("@") for key in text.split(";")]


@cache
def _bibliography() -> dict[str, dict[str, str]]:
    """Fields of each entry of ``data/methods.bib``."""
    path = resources.files("brainseg_bids") / "data" / "methods.bib"
    entries = {}
    for entry in re.split(r"\n(?=@)", path.read_text(encoding="utf-8")):
        head = re.match(r"\s*@\w+\{(\w+),", entry)
        if head:
            fields = re.findall(r"(\w+)\s*=\s*\{(.*?)\},?\s*(?=\n)", entry)
            entries[head[1]] = {name: re.sub("[{}]", "", value) for name, value in fields}
    return entries


def _short(key: str) -> str:
    """Author and year.

    >>> _short("efron1993"), _short("nobody2000")
    ('Efron and Tibshirani, 1993', 'nobody2000')
    """
    entry = _bibliography().get(key)
    if entry is None:
        return key
    names = [name.split(",")[0] for name in entry["author"].split(" and ")]
    who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
    return f"{who}, {entry['year']}"


def _full(entry: dict[str, str]) -> str:
    names = entry["author"].replace(" and others", " et al.").replace(" and ", "; ")
    where = entry.get("journal") or entry.get("booktitle") or entry.get("publisher", "")
    volume = f" {entry['volume']}" if "volume" in entry else ""
    doi = f" doi:{entry['doi']}" if "doi" in entry else ""
    stop = "" if names.endswith(".") else "."
    return f"{names}{stop} {entry['title']}. {where}{volume} ({entry['year']}).{doi}"
