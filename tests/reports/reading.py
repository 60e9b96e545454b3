# SPDX-License-Identifier: Apache-2.0
"""Pages as tests read them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from brainseg_bids.reports.page import Script

SCRIPTS = ("rating.js", "viewer.js")
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"}


class Reader(HTMLParser):
    """Collects tags, attributes and text; refuses tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""

    @property
    def links(self) -> set[str]:
        return {attrs["href"] for tag, attrs in self.tags if tag == "a"}

    @property
    def images(self) -> list[dict]:
        return [attrs for tag, attrs in self.tags if tag == "img"]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data


def read(path: Path) -> Reader:
    """A page; refused if it is not well formed, runs what is not ours, or links to nothing."""
    reader = Reader()
    text = path.read_text(encoding="utf-8")
    for script in map(Script.packaged, SCRIPTS):
        text = text.replace(f"<script>{script.text}</script>", "")
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert "script" not in {tag for tag, _ in reader.tags}
    anchors = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(anchors) == len(set(anchors))
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(anchors)
    return reader


def cells(path: Path) -> list[list[str]]:
    """Texts of all table rows."""
    found = []
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", path.read_text(encoding="utf-8"), re.S):
        parts = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
        found.append([" ".join(re.sub(r"<[^>]+>", " ", part).split()) for part in parts])
    return found
