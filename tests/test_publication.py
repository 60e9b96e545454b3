# SPDX-License-Identifier: Apache-2.0
"""What a publication needs: citation, workflows, forms and a release check that refuses."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from brainseg_bids import __version__
from brainseg_bids.bids.description import write_description
from tests.fakes.dataset import write_dataset

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
SCHEMAS = {
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
    "vendor.readthedocs": [ROOT / ".readthedocs.yaml"],
    "vendor.github-workflows": sorted(GITHUB.glob("workflows/*.yml")),
    "vendor.github-issue-forms": [
        GITHUB / "ISSUE_TEMPLATE" / "bug.yml",
        GITHUB / "ISSUE_TEMPLATE" / "wish.yml",
    ],
}
NEEDED = ("pyproject.toml", "CHANGELOG.md", "CITATION.cff", "brainseg_bids/__init__.py")


@pytest.fixture(scope="module")
def release_check():
    """The module of ``.github/release_check.py``."""
    spec = importlib.util.spec_from_file_location("release_check", GITHUB / "release_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ready(tmp_path) -> Path:
    """A copy of what a release is judged by, made ready."""
    for name in NEEDED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("example.org", "git.invalid"))
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [{__version__}] - 2026-12-01\n")
    return tmp_path


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_for_other_services_follow_their_schemas(schema):
    pytest.importorskip("check_jsonschema", reason="pip install check-jsonschema")
    files = [str(path) for path in SCHEMAS[schema]]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_read_the_docs_installs_graphviz():
    build = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())["build"]
    assert "graphviz" in build["apt_packages"]
    assert "commands" not in build  # with it Read the Docs ignores apt_packages


def test_actions_are_pinned_to_a_commit():
    text = "".join(path.read_text() for path in GITHUB.glob("workflows/*.yml"))
    used = re.findall(r"uses: (\S+)", text)
    assert used
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used), used


def test_the_citation_names_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_a_release_that_is_ready_passes(release_check, ready):
    assert release_check.problems(ready, f"v{__version__}") == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pyproject.toml", "git.invalid", "example.org"),
        ("CHANGELOG.md", " - 2026-12-01", " (unreleased)"),
        ("CITATION.cff", f"version: {__version__}", "version: 0.0.1"),
        ("brainseg_bids/__init__.py", f'"{__version__}"', '"9.9.9"'),
    ],
)
def test_a_release_that_is_not_ready_is_refused_with_the_file(
    release_check, ready, name, old, new
):
    path = ready / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert name in " ".join(release_check.problems(ready, f"v{__version__}"))


@pytest.mark.parametrize(
    ("address", "code_url"),
    [
        ("Source, https://git.invalid/brainseg", {"CodeURL": "https://git.invalid/brainseg"}),
        ("Source, https://example.org/brainseg-bids", {}),
    ],
)
def test_a_derivative_names_no_address_that_is_a_placeholder(
    tmp_path, monkeypatch, address, code_url
):
    installed = metadata.metadata("pytest")
    del installed["Project-URL"]
    installed["Project-URL"] = address
    monkeypatch.setattr(metadata, "metadata", lambda name: installed)
    data = write_dataset(tmp_path / "data", "sub-01_T1w")
    (tmp_path / "out").mkdir()
    (entry, *_) = json.loads(write_description(data, tmp_path / "out").read_text())["GeneratedBy"]
    assert {key: entry[key] for key in ("CodeURL",) if key in entry} == code_url
