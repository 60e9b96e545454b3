# SPDX-License-Identifier: Apache-2.0
"""Head label maps on the pages: flags first, numbers right, everything escaped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from brainseg_bids.anatomy.cohort import Cohort
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.rules import MergeRules
from brainseg_bids.interfaces.tools import tool_names
from brainseg_bids.reports.image_section import image_section
from brainseg_bids.reports.page import write_subject_page
from brainseg_bids.stages.headlabels_section import ToolRun, merge_section
from brainseg_bids.stages.summary_page import write_group_page
from tests.reports.reading import cells, read

TABLE = LabelTable.packaged("fullhead")
EVIL = "<script>alert('x')</script>&\"<img src=x onerror=y>"


def rows(volumes_mm3: dict[int, float]) -> list[dict]:
    return [
        {
            "index": label.index,
            "name": label.name,
            "hemisphere": label.hemisphere,
            "color": label.color,
            "mapping": label.mapping,
            "volume_mm3": volumes_mm3.get(label.index, 0.0),
        }
        for label in TABLE
    ]


def merge_report(**changes) -> dict:
    def rule(name: str, voxels: int) -> dict:
        reason = f"because of {name}"
        return {"rule": name, "voxels": voxels, "volume_mm3": 2.0 * voxels, "reason": reason}

    def conflict(structure: str, dice: float | None) -> dict:
        return {"structure": structure, "head_mm3": 5000.0, "brain_mm3": 4000.0, "dice": dice}

    return {
        "head": "charm",
        "brain": "synthseg",
        "voxel_volume_mm3": 2.0,
        "rules": [rule("outside air", 0), rule("brain wins", 12345), rule("islands", 0)],
        "conflicts": [
            conflict("Left-Thalamus", 0.93),
            conflict("5th-Ventricle", None),
            conflict("Left-Amygdala", 0.41),
        ],
        "holes": {"before_voxels": 1500, "before_mm3": 3000.0, "after_voxels": 0},
        "flags": ["The head is cut at the inferior edge of the image."],
    } | changes


@pytest.fixture
def head(figure) -> dict:
    return {
        "title": "T1w",
        "source": "sub-01/anat/sub-01_T1w.nii.gz",
        "figures": {"Merged labels": figure, "Tools compared": figure},
        "tools": [
            ToolRun(
                "charm",
                role="head",
                metadata={
                    "ToolVersion": "4.5",
                    "Seconds": 1260.0,
                    "Command": ["charm", "01", "'a b'"],
                },
            ),
            ToolRun("synthseg", role="brain", reused_from="fs/sub-01/synthseg.mgz"),
        ],
        "merge": merge_report(),
        "volumes": rows({10: 7300.0, 49: 6700.0, 16: 20000.0, 515: 4e5, 30: 9.0}),
        "outputs": ["sub-01/anat/sub-01_seg-fullhead_dseg.nii.gz"],
    }


def written(path: Path, heads: list[dict], scans=(), **changes) -> Path:
    given = {
        "subject": "01",
        "settings": "",
        "errors": [],
        "methods": "",
        "version": "1.2.3",
    }
    sections = [merge_section(**head) for head in heads]
    sections += [image_section(**scan) for scan in scans]
    return write_subject_page(path, sections=sections, **(given | changes))


def flags(head: dict, **changes) -> list[str]:
    return list(merge_section(**(head | changes)).warnings)


def outside_of_folds(path: Path) -> str:
    text = re.sub(r"<details.*?</details>", "", path.read_text(encoding="utf-8"), flags=re.S)
    return re.sub(r"<style>.*?</style>|data:image/png;base64,[^\"]*", "", text, flags=re.S)


def test_a_page_of_heads_alone_is_well_formed_and_says_what_was_done(head, tmp_path):
    path = written(tmp_path / "sub-01.html", [head, head])
    reader = read(path)
    for words in (
        "2 head label maps made",
        "2 warnings",
        "no errors",
        "charm + synthseg",
        "21 min",
        "4.5",
        "charm 01 'a b'",
        "fs/sub-01/synthseg.mgz",
        "1,500 (3.00 ml) before, none after",
        head["outputs"][0],
    ):
        assert words in reader.text, words
    assert "No image was segmented" not in reader.text
    assert len(reader.images) == 4


def test_heads_come_beside_segmentations_and_leave_their_section_as_it_was(head, figure, tmp_path):
    scan = {
        "title": "T1w",
        "source": "a.nii.gz",
        "figure": figure,
        "volumes": rows({10: 5.0}),
        "run": {"Model": "demo"},
        "warnings": ["thick"],
    }
    alone = written(tmp_path / "alone.html", [], [scan]).read_text(encoding="utf-8")
    both = written(tmp_path / "both.html", [head], [scan])
    section = re.search(r'<section id="scan-1">.*?</section>', alone, re.S)
    assert section[0] in both.read_text(encoding="utf-8")
    assert "1 head label" in read(both).text
    assert "1 image segmented" in read(both).text
    assert "2 warnings" in read(both).text


def test_flags_come_before_everything_else_and_are_never_folded(head, tmp_path):
    flagged = head | {"warnings": ["slices are 5 mm thick"], "missing": ("Brain-Stem", "Eyes")}
    shown = outside_of_folds(written(tmp_path / "sub-01.html", [flagged]))
    summary, section = shown.split('<section id="head-1">')
    for part in (summary, section[: section.index("<img")]):
        for words in ("cut at the inferior edge", "5 mm thick", "Brain-Stem, Eyes"):
            assert words in part
    assert "Nothing was flagged" not in shown


def test_a_head_without_flags_says_so(head, tmp_path):
    text = read(written(tmp_path / "a.html", [head | {"merge": merge_report(flags=[])}])).text
    assert "Nothing was flagged" in text
    assert "no warnings" in text


def test_holes_that_are_left_are_a_flag(head):
    holes = {"before_voxels": 1500, "before_mm3": 3000.0, "after_voxels": 7}
    found = flags(head, merge=merge_report(holes=holes))
    assert any("7 voxels" in flag for flag in found)


def test_rules_that_changed_nothing_are_folded_away(head, tmp_path):
    path = written(tmp_path / "sub-01.html", [head])
    shown = outside_of_folds(path)
    assert "brain wins" in shown
    assert "because of brain wins" in shown
    assert "outside air" not in shown
    assert "2 rules" in read(path).text
    table = cells(path)
    assert ["brain wins", "12,345", "24.69", "because of brain wins"] in table
    assert ["islands", "0", "0.00", "because of islands"] in table


def test_conflicts_are_listed_from_the_least_agreement(head, tmp_path):
    path = written(tmp_path / "sub-01.html", [head])
    found = [row for row in cells(path) if row[1:3] == ["5.00", "4.00"]]
    assert [row[0] for row in found] == ["Left-Amygdala", "Left-Thalamus", "5th-Ventricle"]
    assert [row[3] for row in found] == ["0.41", "0.93", "n/a"]
    assert "charm (ml)" in read(path).text
    bars = [attrs for tag, attrs in read(path).tags if tag == "i"]
    widths = [(bar["class"], bar["style"]) for bar in bars[:2]]
    assert widths == [("low", "width: 41.0%"), ("", "width: 93.0%")]


def test_one_tool_has_no_conflicts(head, tmp_path):
    one = head | {"merge": merge_report(brain=None, conflicts=[])}
    text = read(written(tmp_path / "sub-01.html", [one])).text
    assert "Where the tools differ" not in text


def test_an_empty_merge_report_still_makes_a_page(head, tmp_path):
    text = read(written(tmp_path / "sub-01.html", [head | {"merge": {}, "tools": []}])).text
    assert "No rule" in text


def test_labels_that_the_head_lacks_are_folded_away(head, tmp_path):
    path = written(tmp_path / "sub-01.html", [head])
    names = [row[0] for row in cells(path)]
    assert "Left-Thalamus" in names
    assert "5th-Ventricle" not in {
        row[0] for row in cells(path) if len(row) == 4 and row[1] == "72"
    }
    assert "Right-Caudate" not in outside_of_folds(path)
    assert "Right-Caudate" in read(path).text
    # One empty side of a pair is no absent pair.
    assert ["vessel", "0.01", "0.00", "+200.0 %", ""] in cells(path)
    assert "Caudate" not in names


def test_z_is_shown_when_there_is_a_cohort_and_far_ones_are_flags(head, tmp_path):
    far = head | {"z": {10: 0.4, 16: -4.2}}
    path = written(tmp_path / "sub-01.html", [far])
    table = cells(path)
    assert ["Left-Thalamus", "10", "7,300", "7.30", "+0.4"] in table
    assert ["Brain-Stem", "16", "20,000", "20.00", "−4.2"] in table
    assert ["Right-Thalamus", "49", "6,700", "6.70", "n/a"] in table
    assert any("Brain-Stem (−4.2)" in flag for flag in flags(far))
    assert not any("Thalamus" in flag for flag in flags(far))
    assert "Robust z" not in read(written(tmp_path / "b.html", [head])).text


def test_what_tools_and_users_write_is_shown_and_never_run(head, figure, tmp_path):
    report = {
        "head": EVIL,
        "brain": EVIL,
        "rules": [{"rule": EVIL, "voxels": n, "volume_mm3": 1.0, "reason": EVIL} for n in (0, 1)],
        "conflicts": [{"structure": EVIL, "head_mm3": 1.0, "brain_mm3": 1.0, "dice": 0.5}],
        "holes": None,
        "flags": [EVIL],
    }
    run = {"ToolVersion": EVIL, "Command": EVIL, "Seconds": 3.0, EVIL: EVIL}
    tool = ToolRun(EVIL, EVIL, run, EVIL)
    bad = {"index": 5, "name": EVIL, "hemisphere": "left", "volume_mm3": 3.0, "color": EVIL}
    attacked = {
        "title": EVIL,
        "source": EVIL,
        "figures": {EVIL: figure, EVIL + "2": tmp_path / "none.png"},
        "tools": [tool],
        "merge": report,
        "volumes": [bad, bad | {"index": 6, "volume_mm3": 0.0}],
        "z": {5: 9.0},
        "missing": (EVIL,),
        "run": {EVIL: EVIL},
        "warnings": [EVIL],
        "outputs": [EVIL],
    }
    reader = read(written(tmp_path / "sub-01.html", [attacked]))
    tags = {tag for tag, _ in reader.tags}
    assert "script" not in tags
    assert len(reader.images) == 1
    assert not any(name.startswith("on") for _, attrs in reader.tags for name in attrs)
    assert reader.text.count(EVIL) >= 20


def test_pages_with_heads_need_nothing_but_themselves(head, tmp_path):
    path = written(tmp_path / "sub-01.html", [head])
    group = write_group_page(
        tmp_path / "group.html", title="Demo", volumes={}, version="1", cohort=cohort()
    )
    for page in (path, group):
        text = page.read_text(encoding="utf-8")
        for words in ("http:", "https:", "url(", "@import"):
            assert words not in text
        # The page of a group links to those of participants, which lie beside it.
        fine = ("#", "data:image/png", *(["sub-01.html"] if page == group else []))
        for tag, attrs in read(page).tags:
            for name in ("src", "href", "srcset", "data"):
                assert attrs.get(name, "#").startswith(fine), (tag, attrs)


def test_of_one_tool_no_rule_between_two_is_told(head, tmp_path):
    between = MergeRules.packaged().precedence[0]
    idle = {"rule": between.rule, "voxels": 0, "volume_mm3": 0.0, "reason": between.reason}
    rules = [idle, {"rule": "islands", "voxels": 0, "volume_mm3": 0.0, "reason": ""}]
    one_tool = merge_report(rules=rules, brain="", conflicts=[])
    two = written(tmp_path / "two.html", [head | {"merge": merge_report(rules=rules)}])
    one = written(tmp_path / "one.html", [head | {"merge": one_tool}])
    told = {between.rule, "islands"}
    assert told <= {row[0] for row in cells(two)}
    assert told & {row[0] for row in cells(one)} == {"islands"}


def test_reasons_of_rules_name_no_tool():
    """They stand on pages of heads that other tools have labelled."""
    rules = MergeRules.packaged()
    lines = (*rules.precedence, *rules.resolve, *rules.islands, *rules.completion)
    said = " ".join(line.reason for line in lines).lower()
    assert not [name for name in tool_names() if name != "model" and name in said.split()]


def test_what_a_tool_does_not_say_is_left_out(head, tmp_path):
    run = ToolRun(
        "samseg", metadata={"ToolVersion": None, "Command": ["run", "-i", "x"], "Seconds": None}
    )
    text = read(written(tmp_path / "sub-01.html", [head | {"tools": [run]}])).text
    assert "run -i x" in text
    assert "None" not in text


def test_the_memory_that_a_tool_took_is_said_in_words(head, tmp_path):
    run = ToolRun("samseg", metadata={"PeakMemoryGiB": 5.7123, "Threads": 2})
    text = read(written(tmp_path / "sub-01.html", [head | {"tools": [run]}])).text
    assert "Peak memory" in text
    assert "5.7 GiB" in text
    assert "PeakMemoryGiB" not in text


# -- the group page -----------------------------------------------------------------------


def test_the_volumes_of_heads_are_not_called_segmentations(tmp_path):
    page = write_group_page(
        tmp_path / "group.html",
        title="Demo",
        volumes={f"sub-{k}": rows({16: 1000.0 + k}) for k in range(3)},
        version="1",
        cohort=cohort(),
    )
    found = re.findall(r"<h2[^>]*>(.*?)</h2>", page.read_text(encoding="utf-8"))
    assert found == ["Head label maps", "Volumes", "Structures"]


def cohort(**odd: dict[int, float]) -> Cohort:
    rng = np.random.default_rng(1)
    codes = [line.structure.codes[0] for line in Cohort.of({}).presence if line.structure.core]
    people = {
        f"sub-{k:02d}": {code: 1000 + 10 * rng.uniform(-1, 1) for code in codes} for k in range(20)
    }
    for k in range(3):
        people[f"sub-{k:02d}"][72] = 30.0
    return Cohort.of(people | odd)


def test_the_group_page_says_who_lacks_what(tmp_path):
    page = write_group_page(
        tmp_path / "group.html",
        title="Demo",
        volumes={},
        version="1",
        cohort=cohort(**{"sub-<odd>": {16: 9000.0, 999: 3.0}}),
    )
    text = " ".join(read(page).text.split())
    assert "21 heads" in text
    assert "sub-<odd>: Left-Cerebral-White-Matter, Left-Cerebral-Cortex" in text
    assert "sub-<odd>: Brain-Stem 9.00 ml (median 1.00, z" in text
    assert "code 999 (3 mm³) is not in label table fullhead" in text
    assert "Only in sub-00" in text
    assert "Missing in sub-<odd>" in text
    assert "Volumes of" not in text


def test_only_what_differs_between_heads_is_in_sight(tmp_path):
    page = write_group_page(
        tmp_path / "group.html", title="Demo", volumes={}, version="1", cohort=cohort()
    )
    shown = outside_of_folds(page)
    assert "5th-Ventricle" in shown
    assert "Brain-Stem" not in shown
    assert "Optic-Chiasm" not in shown
    text = read(page).text
    assert "Brain-Stem" in text
    assert "in all heads" in text
    assert "core structure" in text


def test_a_long_list_of_heads_is_cut_and_folded(tmp_path):
    people = {f"sub-{k:02d}": {16: 5.0, **({85: 1.0} if k < 20 else {})} for k in range(40)}
    page = write_group_page(
        tmp_path / "group.html", title="Demo", volumes={}, version="1", cohort=Cohort.of(people)
    )
    assert "and 8 more" in read(page).text


def test_few_heads_and_no_heads_make_a_page_too(tmp_path):
    for n in (0, 2):
        people = {f"sub-{k}": {16: 5.0} for k in range(n)}
        path = tmp_path / f"{n}.html"
        write_group_page(path, title="Demo", volumes={}, version="1", cohort=Cohort.of(people))
        assert f"{n} heads side by side" in read(path).text
        assert "no one is called an outlier" in read(path).text


def test_segmentations_and_heads_share_the_group_page(tmp_path):
    volumes = {f"sub-{k:02d}": rows({16: 5.0 + k}) for k in range(6)}
    page = write_group_page(
        tmp_path / "group.html", title="Demo", volumes=volumes, version="1", cohort=cohort()
    )
    text = " ".join(read(page).text.split())
    assert "20 heads" in text
    assert "in 6 segmentations" in text
