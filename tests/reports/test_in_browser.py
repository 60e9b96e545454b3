# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, without a network."""

from __future__ import annotations

import base64
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports.figures import draw_segmentation
from brainseg_bids.reports.head_figures import draw_merge
from brainseg_bids.reports.image_section import image_section
from brainseg_bids.reports.page import write_subject_page
from brainseg_bids.stages.headlabels_section import ToolRun, merge_section
from tests.reports.browser import BROWSER, FLAGS, Browser, needs_browser


def rows(labels: LabelMap) -> list[dict]:
    volumes = labels.volumes_mm3()
    return [
        {
            "index": label.index,
            "name": label.name,
            "hemisphere": label.hemisphere,
            "color": label.color,
            "volume_mm3": volumes[label.index],
        }
        for label in labels.table
    ]


def page_of(folder: Path, section) -> Path:
    given = {"subject": "01", "settings": "", "errors": [], "methods": "", "version": "0"}
    return write_subject_page(folder / "sub-01.html", sections=[section], **given)


def screenshot(page: Path, folder: Path) -> np.ndarray:
    """Pixels of a page as a browser without a network shows it, (n, 3) int."""
    shot = folder / "shot.png"
    subprocess.run(
        [
            BROWSER,
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=1200,2400",
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3).astype(int)


@needs_browser
def test_the_report_opens_offline_and_shows_the_picture(head, head_image, tmp_path):
    figure = draw_segmentation(head_image, head, tmp_path / "figure.png", n_cuts=3)
    scan = image_section(
        title="sub-01 T1w", source="sub-01_T1w.nii.gz", figure=figure, volumes=rows(head)
    )
    pixels = screenshot(page_of(tmp_path, scan), tmp_path)
    red, green, blue = pixels.T
    # The cortex of the overlay is reddish; a page without its picture or style has no such pixels.
    assert ((red > 90) & (red > green + 40) & (red > blue + 30)).mean() > 0.01
    assert len(np.unique(pixels, axis=0)) > 1000


@needs_browser
def test_a_head_label_map_opens_offline_with_its_warning_in_sight(head, head_image, tmp_path):
    figure = draw_merge(head_image, head, [("charm", head)], tmp_path / "merge.png")
    report = merge_section(
        title="T1w",
        source="sub-01_T1w.nii.gz",
        figures={"Merged labels": figure},
        tools=[ToolRun("charm")],
        merge={"head": "charm", "flags": ["The head is cut."]},
        volumes=rows(head),
    )
    pixels = screenshot(page_of(tmp_path, report), tmp_path)
    red, green, blue = pixels.T
    assert ((red > 90) & (red > green + 40) & (red > blue + 30)).mean() > 0.01
    # The box of the flags, in the light or the dark palette.
    boxes = [(0xFF, 0xF6, 0xE5), (0x2D, 0x25, 0x16)]
    assert max((pixels == box).all(axis=1).mean() for box in boxes) > 0.01


def shown(tab, which: str) -> np.ndarray:
    """Pixels of a part of the page, (n, 3) int."""
    box = tab.js(
        f"(() => {{ const b = document.querySelector({which!r}).getBoundingClientRect();"
        " return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height,"
        " scale: 1}; })()"
    )
    taken = tab.ask("Page.captureScreenshot", clip=box, captureBeyondViewport=True)
    image = Image.open(io.BytesIO(base64.b64decode(taken["data"])))
    return np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)


def colored(pixels: np.ndarray) -> float:
    """Share of pixels that are not grey."""
    return float((np.ptp(pixels, axis=1) > 40).mean())


@needs_browser
@pytest.mark.parametrize("scripts", [True, False])
def test_one_row_is_shown_in_the_place_of_the_others(head, head_image, tmp_path, scripts):
    figure = draw_segmentation(head_image, head, tmp_path / "figure.png", n_cuts=3)
    scan = image_section(title="T1w", source="a.nii.gz", figure=figure, volumes=rows(head))
    with Browser(tmp_path, scripts=scripts) as tab:
        tab.open(page_of(tmp_path, scan))
        visible = (
            "['all', 'one', 'choice'].filter(name => getComputedStyle(document.querySelector("
            "`.picture .${name}`)).display !== 'none')"
        )
        assert tab.js(visible) == ["all", "choice"]
        tall = tab.js("document.querySelector('.picture .all').getBoundingClientRect().height")
        found = {}
        for number, name in enumerate(("image", "labels", "outlines"), start=1):
            if number == 1:
                tab.click('.picture input[value="1"]')
            else:  # from one to the next by the keyboard
                tab.press("ArrowRight", 39)
            tab.until(f"document.querySelector('.picture input[value=\"{number}\"]').checked")
            found[name] = colored(shown(tab, ".picture .one"))
        assert 2 * found["image"] < found["outlines"] < found["labels"] / 1.2
        assert (
            tab.js("document.querySelector('.picture .one').getBoundingClientRect().height")
            < 0.7 * tall
        )
        assert tab.js("document.querySelector('.picture .one').getAttribute('aria-label')")
        tab.ask("Emulation.setEmulatedMedia", media="print")
        assert tab.js(visible) == ["all"]
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
