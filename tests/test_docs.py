# SPDX-License-Identifier: Apache-2.0
"""What the documentation says happens: its code blocks are run, its pages are built."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.samples import SAMPLES, TUTORIALS, Step, run, steps_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def pattern_of(line: str) -> re.Pattern:
    """A shown line, loosely: any number for a number, anything for ``…`` and for folders."""
    parts = []
    for word in re.split(r"(…|\d+(?:\.\d+)?|\s+|/\S*/)", line.strip()):
        if word == "…" or re.fullmatch(r"/\S*/", word):
            parts.append(".*")
        elif re.fullmatch(r"\d+(?:\.\d+)?", word):
            parts.append(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
        else:
            parts.append(r"\s+" if word.isspace() else re.escape(word))
    return re.compile("".join(parts))


def missing_line(shown: tuple[str, ...], said: str) -> str:
    """The first shown line that was not said, in this order; nothing if all were."""
    lines = iter(said.splitlines())
    for line in shown:
        if line.strip() == "…":
            continue
        pattern = pattern_of(line)
        if not any(pattern.fullmatch(other.strip()) for other in lines):
            return line
    return ""


def follow(page: Path, folder: Path, *, with_slow: bool) -> int:
    """Run a page's commands one after the other; those after a slow one are left out with it."""
    (folder / "brainseg-bids").symlink_to(ROOT)
    done = 0
    for step in steps_of(page.read_text(encoding="utf-8")):
        if step.slow and not with_slow:
            continue
        output = run(step, folder)
        missing = missing_line(step.shown, output)
        assert not missing, f"{step.command}\nprinted\n{output}\nand not\n{missing}"
        done += 1
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Where the slow pages are run; their results are in the built documentation."""
    return tmp_path_factory.mktemp("runs")


PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
WITH_STEPS = [name for name in PAGES if steps_of((DOCS / name).read_text(encoding="utf-8"))]
QUICK = [
    name
    for name in WITH_STEPS
    if not all(s.slow for s in steps_of((DOCS / name).read_text(encoding="utf-8")))
]
SLOW = [
    name
    for name in WITH_STEPS
    if any(s.slow for s in steps_of((DOCS / name).read_text(encoding="utf-8")))
]


def test_steps_are_read_with_their_options_and_outputs():
    text = (
        "<!-- run: slow, exit 2 -->\n```\n$ a \\\n    b\nsaid\n\n$ c\n```\n\n```\n$ not run\n```"
    )
    assert steps_of(text) == [Step("a b", ("said",), 2, True), Step("c", (), 2, True)]


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        (("04:05:06 made in 3 s", "report: /other/place/sub-*.html"), ""),
        (("…", "report: …"), ""),
        (("made in 3 s",), "made in 3 s"),
        (("report: …", "04:05:06 made in 3 s"), "04:05:06 made in 3 s"),
    ],
)
def test_outputs_are_compared_line_by_line_but_for_numbers_and_folders(shown, missing):
    said = "warning\n12:00:01 made in 21.5 s\nreport: /tmp/x/sub-*.html\n"
    assert missing_line(shown, said) == missing


@pytest.mark.parametrize("name", QUICK)
def test_what_a_page_shows_is_what_happens(name, tmp_path):
    assert follow(DOCS / name, tmp_path, with_slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_what_a_page_shows_from_beginning_to_end_is_what_happens(name, runs):
    run_name = {page: run for run, page in TUTORIALS.items()}.get(name, Path(name).stem)
    part = runs / f"{run_name}.part"
    part.mkdir()
    assert follow(DOCS / name, part, with_slow=True)
    part.rename(runs / run_name)


@pytest.mark.parametrize("name", PAGES)
def test_python_on_a_page_gives_what_is_shown(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    examples = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, {}, name, name, 0)
    said = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not said, "".join(said)


def test_every_stage_of_the_command_line_has_a_row_and_is_a_workflow_or_said_not_to_be():
    from brainseg_bids.stages import GROUP_STAGES, PARTICIPANT_STAGES

    text = (DOCS / "explanation" / "stages.md").read_text(encoding="utf-8")
    for stage in (*PARTICIPANT_STAGES, *GROUP_STAGES):
        assert f"| `{stage}` |" in text
    assert set(re.findall(r"{workflow-graph} (\w+)", text)) == set(PARTICIPANT_STAGES)


@pytest.fixture
def graphs(monkeypatch):
    """The extension that draws workflows."""
    pytest.importorskip("docutils", reason="pip install '.[docs]' brings what builds the pages")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    return importlib.import_module("graphs")


@pytest.mark.parametrize("name", ["segment", "headlabels", "upsample", "contrast"])
def test_a_graph_shows_each_step_that_the_workflow_has(graphs, name, tmp_path):
    workflow = graphs.GRAPHS[name](tmp_path)
    edges = graphs.edges_of(workflow)
    shown = {step for edge in edges for step in edge[:2]}
    steps = {node.fullname.split(".", 1)[1] for node in workflow._create_flat_graph().nodes}
    assert shown <= steps
    assert {step.rpartition(".")[2] for step in steps - shown} <= set(graphs.RELAYS)
    assert all(f'"{step}"' in graphs.as_dot(edges) for step in shown)


def test_without_graphviz_a_graph_is_text(graphs, monkeypatch):
    monkeypatch.setenv("PATH", "")
    edges = [("a", "b", ["labels"]), ("b.c", "d", ["x", "y"])]
    assert graphs.as_svg(edges) == ""
    assert graphs.as_text(edges) == "a   -> b  (labels)\nb.c -> d  (x, y)"


PAGES_OF_CODE = ["command-line", "evaluation-tables", "labels", "outputs", "recipes"]


@pytest.mark.parametrize("page", PAGES_OF_CODE)
def test_tables_of_the_reference_are_those_of_the_code(page, monkeypatch):
    """To write them anew: python docs/reference_tables.py."""
    monkeypatch.syspath_prepend(str(DOCS))
    import reference_tables

    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert reference_tables.BLOCK.search(text)
    assert text == reference_tables.filled(text), "python docs/reference_tables.py"


@pytest.mark.slow
def test_pages_are_built_without_a_warning(tmp_path, runs):
    for module in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(module, reason="pip install '.[docs]' brings what builds the pages")
    build = subprocess.run(
        [
            sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html",
            "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html"),
        ],
        capture_output=True, text=True, env=os.environ | {"BRAINSEG_DOCS_RUNS": str(runs)},
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    assert all(
        (tmp_path / "html" / "samples" / f"{name}.html").is_file() for name in SAMPLES.values()
    )
    flags = (tmp_path / "html" / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert "--participant-label" in flags
