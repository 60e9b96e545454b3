# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, without a network."""

from __future__ import annotations

import shutil
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

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine (Debian: apt install chromium)"
)


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
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",
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
