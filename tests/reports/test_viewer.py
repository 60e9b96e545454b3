# SPDX-License-Identifier: Apache-2.0
"""The viewer: what it holds, and that it can be turned and clicked in a real browser."""

from __future__ import annotations

import base64
import json
import re
import zlib

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.reports.viewer import make_view, write_viewer
from tests.reports.browser import Browser, needs_browser

ABOUT = {"source": "sub-01/anat/sub-01_T1w.nii.gz", "page": "../../sub-01.html"}
LEFT, RIGHT = "Left-Cerebral-White-Matter", "Right-Cerebral-White-Matter"


@pytest.fixture(scope="module")
def viewer(head, head_image, tmp_path_factory):
    path = tmp_path_factory.mktemp("viewer") / "v.html"
    return write_viewer(path, head_image, head, title="sub-01 T1w", **ABOUT)


def held(path):
    """Facts, image and labels that a viewer holds; arrays on axes towards R, A, S."""
    text = path.read_text(encoding="utf-8")

    def part(name):
        return re.search(rf'<script [^>]* id="{name}">(.*?)</script>', text, re.DOTALL)[1]

    facts = json.loads(part("facts"))
    arrays = [
        np.frombuffer(zlib.decompress(base64.b64decode(part(name))), np.uint8).reshape(
            facts["shape"], order="F"
        )
        for name in ("image", "labels")
    ]
    return facts, *arrays


def turned(head, image, order, signs):
    """The same head on permuted and flipped axes."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        affine[old, new] = sign
        affine[old, 3] = 0 if sign > 0 else head.grid.shape[old] - 1
    flips = tuple(slice(None, None, sign) for sign in signs)
    voxels = head.voxels.transpose(order)[flips]
    grid = Grid(voxels.shape, head.grid.affine @ affine)
    return LabelMap(voxels, grid, head.table), image.transpose(order)[flips]


def test_codes_and_places_are_those_of_the_file(viewer, head):
    facts, image, labels = held(viewer)
    inverse = np.linalg.inv(head.grid.affine)
    rng = np.random.default_rng(1)
    for at in rng.integers(0, facts["shape"], (200, 3)):
        world = np.array(facts["affine"]) @ [*at, 1]
        voxel = tuple(np.rint(inverse[:3] @ [*world, 1]).astype(int))
        assert facts["labels"][labels[tuple(at)]]["code"] == head.voxels[voxel]
    present = set(np.unique(head.voxels))
    assert {label["code"] for label in facts["labels"]} == present
    assert image.max() > 200


def test_it_is_the_same_whichever_way_the_axes_of_the_file_run(head, head_image):
    first = make_view(head_image, head)
    labels, image = turned(head, head_image, (2, 0, 1), (1, -1, 1))
    second = make_view(image, labels)
    np.testing.assert_array_equal(first.codes, second.codes)
    np.testing.assert_allclose(first.grid.affine, second.grid.affine, atol=1e-9)


def test_a_large_head_is_thinned_and_that_is_told(head, head_image, tmp_path, monkeypatch):
    whole = make_view(head_image, head)
    view = make_view(head_image, head, largest=whole.grey.size // 4)
    assert view.factors == (2, 2, 2)
    assert view.grey.size <= whole.grey.size // 4
    assert view.grid.voxel_size_mm == pytest.approx(2 * np.array(whole.grid.voxel_size_mm))
    # The middle of the block lies where its voxels lay.
    block = whole.grid.affine[:3] @ [0.5, 0.5, 0.5, 1]
    np.testing.assert_allclose(view.grid.affine[:3, 3], block)
    monkeypatch.setattr("brainseg_bids.reports.viewer.make_view", lambda *_: view)
    path = write_viewer(tmp_path / "v.html", head_image, head, title="x", **ABOUT)
    assert "2 × 2 × 2 voxels of the file are one here" in path.read_text(encoding="utf-8")


def test_an_image_of_much_noise_gets_fewer_levels(head, head_image, tmp_path, monkeypatch):
    path = write_viewer(tmp_path / "v.html", head_image, head, title="x", **ABOUT)
    _, fine, _ = held(path)
    size = path.stat().st_size
    monkeypatch.setattr("brainseg_bids.reports.viewer.LARGEST_BYTES", 10_000)
    write_viewer(path, head_image, head, title="x", **ABOUT)
    _, coarse, _ = held(path)
    assert len(np.unique(coarse)) <= 32
    assert np.abs(coarse.astype(int) - fine).max() <= 4
    assert path.stat().st_size < size
    assert "32 levels of grey" in path.read_text(encoding="utf-8")


def test_nothing_labelled_and_odd_voxels_are_shown_all_the_same(head, head_image, tmp_path):
    image = head_image.copy()
    image[0, 0, 0], image[1, 1, 1] = np.nan, np.inf
    empty = LabelMap(np.zeros_like(head.voxels), head.grid, head.table)
    path = write_viewer(tmp_path / "v.html", image, empty, title="x", **ABOUT)
    facts, image, labels = held(path)
    assert not labels.any()
    assert image.shape == head.voxels.shape
    assert facts["window"][0] < facts["window"][1]


def test_a_bright_spot_does_not_take_the_brains_shades(head, head_image):
    image = head_image.copy()
    image[-3:, -3:, -3:] *= 100
    view = make_view(image, head)
    assert view.window[1] - view.window[0] > 100


def test_more_labels_than_a_byte_has_and_names_from_outside(tmp_path):
    names = ["Background", *(f"region {n}" for n in range(1, 300))]
    names[1] = "</script><script>alert(1)</script>"
    table = LabelTable([Label(code, name) for code, name in enumerate(names)])
    voxels = np.arange(7 * 8 * 9).reshape(7, 8, 9) % 300
    labels = LabelMap(voxels, Grid(voxels.shape, np.diag([20, 20, 20, 1])), table)
    image = voxels.astype(np.float32)
    path = write_viewer(tmp_path / "v.html", image, labels, title=names[1], **ABOUT)
    text = path.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    packed = base64.b64decode(re.search(r'id="labels">(.*?)<', text)[1])
    found = np.frombuffer(zlib.decompress(packed), "<u2")
    np.testing.assert_array_equal(found, voxels.ravel(order="F"))


def test_image_and_labels_of_two_shapes_are_refused(head, head_image):
    with pytest.raises(ValueError, match="shape"):
        make_view(head_image[1:], head)


@needs_browser
def test_a_click_moves_the_cut_and_nothing_is_asked_for(viewer, tmp_path):
    facts, _, labels = held(viewer)
    code = {label["name"]: label["code"] for label in facts["labels"]}

    def place(tab):
        """Name, and R, A, S in mm, as the page tells them."""
        text = tab.js("document.getElementById('here').textContent")
        return text.split(" (")[0], [float(x) for x in re.findall(r"[RAS] (-?[\d.]+)", text)]

    with Browser(tmp_path) as tab:
        tab.open(viewer)
        tab.until("document.getElementById('here').textContent !== ''")
        tab.click("#axial", 0.35, 0.5)
        tab.until(f"document.getElementById('here').textContent.startsWith({LEFT!r})")
        _, left = place(tab)
        tab.click("#axial", 0.65, 0.5)
        tab.until(f"document.getElementById('here').textContent.startsWith({RIGHT!r})")
        _, right = place(tab)
        assert right[0] > left[0] + 10
        assert right[2] == left[2]
        # What the page tells is what the file holds there.
        at = tab.js(
            "['axis0', 'axis1', 'axis2'].map(id => Number(document.getElementById(id).value))"
        )
        assert facts["labels"][labels[tuple(at)]]["code"] == code[RIGHT]
        # Sagittal shows A to the right and S upwards: a click there changes no R.
        tab.click("#sagittal", 0.7, 0.3)
        tab.until(f"!document.getElementById('here').textContent.includes('S {right[2]:.1f}')")
        assert place(tab)[1][0] == right[0]
        tab.js("document.getElementById('coronal').focus()")
        before = place(tab)[1]
        tab.press("PageUp", 33)
        tab.until(f"!document.getElementById('here').textContent.includes('A {before[1]:.1f}')")
        assert place(tab)[1][1] > before[1]
        buttons = "[...document.querySelectorAll('#structures button')]"
        tab.js(f"{buttons}.find(b => b.textContent === {LEFT!r}).click()")
        tab.until(f"document.getElementById('here').textContent.startsWith({LEFT!r})")
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    assert tab.requests.count(viewer.as_uri()) == 1
    assert tab.messages == []


@needs_browser
def test_labels_can_be_faded_and_drawn_as_outlines(viewer, tmp_path):
    colored = (
        "(() => { const c = document.getElementById('axial'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i = 0; i < d.length;"
        " i += 4) n += Math.max(d[i], d[i+1], d[i+2]) - Math.min(d[i], d[i+1], d[i+2]) > 20;"
        " return n; })()"
    )

    def set_to(name, value):
        tab.js(
            f"(() => {{ const i = document.getElementById({name!r}); i.value = {value};"
            " i.dispatchEvent(new Event('input')); })()"
        )

    with Browser(tmp_path) as tab:
        tab.open(viewer)
        tab.until("document.getElementById('here').textContent !== ''")
        filled = tab.js(colored)
        picture = "document.getElementById('axial').toDataURL()"
        tab.js(f"window.before = {picture}")
        tab.click("#outlines")
        tab.until(f"{picture} !== window.before")
        tab.click("#outlines")
        tab.until(f"{picture} === window.before")
        set_to("opacity", 0)
        tab.until(f"{colored} < {filled} / 5")  # the crosshair stays
    assert tab.messages == []


@needs_browser
def test_without_scripts_it_says_what_is_missing(viewer, tmp_path):
    with Browser(tmp_path, scripts=False) as tab:
        tab.open(viewer)
        assert "needs JavaScript" in tab.js("document.querySelector('noscript').innerText")


@needs_browser
def test_a_browser_that_is_too_old_says_so(viewer, tmp_path):
    with Browser(tmp_path) as tab:
        tab.ask(
            "Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.DecompressionStream"
        )
        tab.open(viewer)
        tab.until("document.getElementById('status').textContent.includes('too old')")
        assert tab.js("document.getElementById('here').textContent") == ""
