# SPDX-License-Identifier: Apache-2.0
"""Each relative link of a Markdown page points to a file, and each anchor to a heading."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FENCED = re.compile(r"^ *(```|~~~).*?^ *\1", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(\s*<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
ADDED_BY_THE_BUILD = ("samples/",)
"""Pages that only the built documentation has."""


def pages() -> list[Path]:
    """Markdown files of the repository; those that Git ignores do not count."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "--", "*.md"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):  # an unpacked source archive
        folders = ("docs", "paper", "benchmarks", "brainseg_bids", ".github")
        found = [*ROOT.glob("*.md"), *(p for name in folders for p in (ROOT / name).rglob("*.md"))]
        return sorted(found)
    return sorted(ROOT / name for name in listed if (ROOT / name).is_file())


def links(text: str) -> list[str]:
    """Targets of the links of a page, without addresses of the web."""
    prose = CODE.sub("code", FENCED.sub("", text))
    return [target for target in LINK.findall(prose) if not ADDRESS.match(target)]


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub and MyST make them, and labels like ``(name)=``."""
    prose = FENCED.sub("", text)
    found: set[str] = set(re.findall(r"^\(([\w-]+)\)=$", prose, flags=re.MULTILINE))
    for heading in HEADING.findall(prose):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        numbered = (f"{slug}-{n}" if n else slug for n in range(len(found) + 1))
        found.add(next(name for name in numbered if name not in found))
    return found


def broken(page: Path) -> list[str]:
    """Links of a page whose file or heading does not exist."""
    text = page.read_text(encoding="utf-8")
    bad = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        if any(part in path for part in ADDED_BY_THE_BUILD):
            continue
        target = page.parent / path if path else page
        if not target.exists():
            bad.append(f"{link}: no such file")
        elif (
            anchor and target.suffix == ".md" and anchor not in anchors(target.read_text("utf-8"))
        ):
            bad.append(f"{link}: no such heading")
    return bad


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page):
    assert broken(page) == []


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "other.md").write_text("# Other\n\n## A `b` (c)\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n[a](other.md) [b](other.md#a-b-c) [c](#page) [d](https://e.org/f)\n"
        "[g](other.md#twice-1) [h](gone.md) [i](other.md#gone) [j](#gone) ![k](gone.png)\n"
        "\n```\n[l](gone.md)\n```\n`[m](gone.md)`\n"
    )
    assert [text.partition(":")[0] for text in broken(page)] == [
        "gone.md",
        "other.md#gone",
        "#gone",
        "gone.png",
    ]
