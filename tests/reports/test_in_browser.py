# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, without a network."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.reports.figures import draw_segmentation
from brainseg_bids.reports.page import ScanReport, write_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine (Debian: apt install chromium)"
)
def test_the_report_opens_offline_and_shows_the_picture(head, head_image, tmp_path):
    figure = draw_segmentation(head_image, head, tmp_path / "figure.png", n_cuts=3)
    volumes = [
        {
            "index": label.index,
            "name": label.name,
            "hemisphere": label.hemisphere,
            "color": label.color,
            "volume_mm3": head.volumes_mm3()[label.index],
        }
        for label in head.table
    ]
    scan = ScanReport(
        title="sub-01 T1w", source="sub-01_T1w.nii.gz", figure=figure, volumes=volumes
    )
    page = write_page(
        tmp_path / "sub-01.html",
        subject="01",
        scans=[scan],
        settings="",
        errors=[],
        methods="",
        version="0",
    )
    shot = tmp_path / "shot.png"
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
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,2400",
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3).astype(int)
    red, green, blue = pixels.T
    # The cortex of the overlay is reddish; a page without its picture or style has no such pixels.
    assert ((red > 90) & (red > green + 40) & (red > blue + 30)).mean() > 0.01
    assert len(np.unique(pixels, axis=0)) > 1000
