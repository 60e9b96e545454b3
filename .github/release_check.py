# SPDX-License-Identifier: Apache-2.0
"""Refuse a release whose version, changelog or addresses are not ready.

``python .github/release_check.py --tag v0.1.0``; exit code 1 names everything that is missing.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version_of(root: Path) -> str:
    """The version, from the one place where it stands."""
    text = (root / "brainseg_bids" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, flags=re.MULTILINE)[1]


def problems(root: Path, tag: str) -> list[str]:
    """What is not ready for a release under this tag."""
    version = version_of(root)
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, brainseg_bids/__init__.py says {version}")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(
        rf"^## \[?{re.escape(version)}\]? - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE
    ):
        found.append(f"CHANGELOG.md has no heading '## [{version}] - YYYY-MM-DD'")
    if f"version: {version}\n" not in (root / "CITATION.cff").read_text(encoding="utf-8"):
        found.append(f"CITATION.cff does not say version {version}")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, url in project.get("urls", {}).items():
        if "example.org" in url:
            found.append(f"pyproject.toml: project.urls.{name} is still a placeholder, {url}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Print what is missing, a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tag", required=True, help="such as v0.1.0")
    found = problems(ROOT, parser.parse_args(argv).tag)
    for line in found:
        print(f"not ready: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
