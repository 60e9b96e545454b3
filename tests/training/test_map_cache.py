# SPDX-License-Identifier: Apache-2.0
"""What is kept of label maps and probes: the same as read anew, and never used when damaged."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.head_maps import HeadMap
from brainseg_bids.documents import InputError
from brainseg_bids.images import write_label_map
from brainseg_bids.programs import map_cache
from brainseg_bids.programs.map_cache import cache_folder, read_checked_map, read_facts
from brainseg_bids.programs.map_cache_pruning import prune
from brainseg_bids.training.probe_cache import probe_once
from tests.phantom.head import phantom_head

SMALL = phantom_head((24, 28, 26), 8.0)
NAME = "sub-01_seg-fullhead_dseg.nii"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A label map and its cache; files are read only where a test allows it."""
    path, cache = write_label_map(SMALL, tmp_path / NAME), tmp_path / "cache"
    read_checked_map(path, cache)
    read = []

    def counted(*arguments):
        read.append(arguments)
        return original(*arguments)

    original = map_cache.read_label_map
    monkeypatch.setattr(map_cache, "read_label_map", counted)
    return path, cache, read


def same(one, other) -> bool:
    heads = one.head, other.head
    return (
        one.facts == other.facts
        and torch.equal(*(head.indices for head in heads))
        and torch.equal(*(head.ventricles.vectors for head in heads))
        and heads[0].ventricles.spacing_vox == heads[1].ventricles.spacing_vox
        and heads[0].voxel_size_mm == heads[1].voxel_size_mm
        and all(np.array_equal(a, b) for a, b in zip(*map(boxes, heads), strict=True))
    )


def of_the_cache(caplog) -> list[str]:
    """Warnings, but that the phantom lacks structures."""
    return [text for text in caplog.messages if "look at it" not in text]


def boxes(head):
    return head.box_vox, head.brain_box_vox


def test_what_is_kept_is_what_reading_gives_and_nothing_is_read_again(kept):
    path, cache, read = kept
    found = read_checked_map(path, cache)
    assert read == []
    assert same(found, read_checked_map(path))


def test_a_copy_elsewhere_is_known_by_its_content(kept):
    path, cache, read = kept
    other = path.with_name("sub-02_seg-fullhead_dseg.nii")
    other.write_bytes(path.read_bytes())
    read_checked_map(other, cache)
    assert read == []


@pytest.mark.input(
    "training",
    "a label map that changed since it was kept in the cache, its size and time as before",
    "read, checked and cached again: content decides",
    0,
)
def test_a_changed_source_is_read_anew_even_with_the_same_size_and_time(kept):
    path, cache, read = kept
    stat = path.stat()
    changed = SMALL.voxels.copy()
    changed[12, 14, 13] = 0
    write_label_map(type(SMALL)(changed, SMALL.grid, SMALL.table), path)
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = read_checked_map(path, cache)
    assert len(read) == 1
    assert same(found, read_checked_map(path))
    assert len(list(cache.glob("*.json"))) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def reshape(path: Path) -> None:
    np.save(path, np.zeros((3, 3, 3), np.uint8))


def other_number(path: Path) -> None:
    path.write_text(path.read_text().replace("8.0", "7.0"))


def other_json(path: Path) -> None:
    path.write_text("[1]")


@pytest.mark.parametrize(
    ("which", "damage"),
    [
        pytest.param(
            "_indices.npy",
            cut,
            marks=pytest.mark.input(
                "training", "a truncated cache of a label map", "named, made again, not used", 0
            ),
        ),
        ("_indices.npy", empty),
        pytest.param(
            "_indices.npy",
            flip,
            marks=pytest.mark.input(
                "training",
                "a bit of a label map's cache flipped",
                "named, made again, not used",
                0,
            ),
        ),
        pytest.param(
            "_indices.npy",
            reshape,
            marks=pytest.mark.input(
                "training",
                "an array of another shape in a label map's cache",
                "named, made again, not used",
                0,
            ),
        ),
        ("_indices.npy", Path.unlink),
        ("_walls.npy", flip),
        ("_walls.npy", Path.unlink),
        (".json", cut),
        (".json", empty),
        (".json", other_number),
        (".json", other_json),
    ],
)
def test_a_damaged_cache_is_named_made_anew_and_never_used(kept, which, damage, caplog):
    path, cache, read = kept
    (victim,) = (one for one in cache.iterdir() if one.name.endswith(which))
    damage(victim)
    with caplog.at_level(logging.WARNING, "brainseg"):
        found = read_checked_map(path, cache)
    assert len(read) == 1
    (line,) = of_the_cache(caplog)
    assert str(cache) in line
    assert str(path) in line
    assert same(found, read_checked_map(path))
    read.clear()
    read_checked_map(path, cache)
    assert read == []


def test_other_code_makes_it_anew(kept, monkeypatch):
    path, cache, read = kept
    monkeypatch.setattr(map_cache, "code_digest", lambda _: "other")
    read_checked_map(path, cache)
    assert len(read) == 1


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = write_label_map(SMALL, tmp_path / NAME)
    monkeypatch.setattr(np, "save", full)
    with caplog.at_level(logging.WARNING, "brainseg"):
        found = read_checked_map(path, tmp_path / "cache")
    assert "No space left on device" in caplog.text
    assert same(found, read_checked_map(path))
    assert list((tmp_path / "cache").iterdir()) == []


def test_warnings_of_a_map_are_told_each_time(tmp_path, caplog, monkeypatch):
    def odd(path, table):
        logging.getLogger("brainseg").warning("%s: is odd", path)
        return SMALL

    path = write_label_map(SMALL, tmp_path / NAME)
    monkeypatch.setattr(map_cache, "read_label_map", odd)
    with caplog.at_level(logging.WARNING, "brainseg"):
        read_checked_map(path, tmp_path / "cache")
        read_checked_map(path, tmp_path / "cache")
    assert [text for text in caplog.messages if "odd" in text] == [f"{path}: is odd"] * 2


@pytest.mark.input(
    "training",
    "a label map whose left and right are swapped, or that lacks structures",
    "learned from; a warning names the map and what is wrong, each time",
    0,
)
def test_what_cannot_be_right_about_a_map_is_told_each_time(tmp_path, caplog):
    path = write_label_map(replace(SMALL, voxels=SMALL.voxels[::-1]), tmp_path / NAME)
    for _ in range(2):
        read_checked_map(path, tmp_path / "cache")
    told = [text for text in caplog.messages if text.startswith(f"{path}: look at it: ")]
    assert len(told) == 2
    assert all("left and right look swapped" in text for text in told)


def read_in_process(path, cache, barrier):
    barrier.wait()
    read_checked_map(path, cache)


def test_two_runs_may_make_it_at_once(tmp_path, caplog):
    path, cache = write_label_map(SMALL, tmp_path / NAME), tmp_path / "cache"
    many = multiprocessing.get_context("fork")
    barrier = many.Barrier(2)
    runs = [many.Process(target=read_in_process, args=(path, cache, barrier)) for _ in range(2)]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert [one.exitcode for one in runs] == [0, 0]
    assert len(list(cache.iterdir())) == 3
    assert same(read_checked_map(path, cache), read_checked_map(path))
    assert of_the_cache(caplog) == []


def test_where_the_cache_lies(tmp_path):
    maps, training = tmp_path / "maps", tmp_path / "out" / "training"
    maps.mkdir()
    folder = cache_folder(maps, training)
    assert folder == maps / ".brainseg-cache"
    assert (folder / ".gitignore").read_text() == "*\n"
    (tmp_path / "other").write_text("")
    # A file where the dataset should be stands for one that cannot be written: root may all.
    assert cache_folder(tmp_path / "other", training) == training / "cache"
    assert not training.exists()


def test_faults_are_told_in_the_order_of_the_maps(tmp_path):
    paths = [tmp_path / f"sub-0{n}_dseg.nii.gz" for n in range(4)]
    for path in paths[1:3]:
        write_label_map(SMALL, path)
    skin = type(SMALL)(np.where(SMALL.voxels == 511, 511, 0), SMALL.grid, SMALL.table)
    write_label_map(skin, paths[3])
    maps = [HeadMap(path, "0", (8.0,) * 3) for path in paths]
    facts, errors = read_facts(maps, LabelTable.packaged("brainseg"), tmp_path / "c", readers=2)
    assert list(facts) == paths[1:3]
    assert [fault.split(":")[0] for fault in errors] == [str(paths[0]), str(paths[3])]
    assert "no structure" in errors[1]
    with pytest.raises(InputError, match="no such file"):
        read_checked_map(paths[0], tmp_path / "c")


# -- probes -------------------------------------------------------------------------------


def test_a_probe_is_measured_once_as_long_as_all_that_decides_it_is_the_same(
    tmp_path, monkeypatch
):
    asked = []

    def probe():
        asked.append(1)
        return 1.5

    assert probe_once(tmp_path, {"patch": (8, 8, 8)}, probe) == (1.5, False)
    assert probe_once(tmp_path, {"patch": [8, 8, 8]}, probe) == (1.5, True)
    assert len(asked) == 1
    assert probe_once(tmp_path, {"patch": (8, 8, 9)}, probe) == (1.5, False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert probe_once(tmp_path, {"patch": (8, 8, 8)}, probe) == (1.5, False)


def test_that_a_step_did_not_fit_is_not_kept(tmp_path):
    assert probe_once(tmp_path, {}, lambda: None) == (None, False)
    assert probe_once(tmp_path, {}, lambda: 2.0) == (2.0, False)


@pytest.mark.parametrize("text", ["", "[]", '{"probed_gib": NaN}', '{"probed_gib": 1.0}'])
def test_a_damaged_probe_is_named_and_measured_anew(tmp_path, text, caplog):
    probe_once(tmp_path, {}, lambda: 1.5)
    (path,) = tmp_path.iterdir()
    if text:
        content = json.loads(text)
        text = json.dumps(json.loads(path.read_text()) | content) if content else text
        text = text.replace('"code"', '"cod"') if "1.0" in text else text
    path.write_text(text)
    with caplog.at_level(logging.WARNING, "brainseg"):
        assert probe_once(tmp_path, {}, lambda: 1.7) == (1.7, False)
    assert str(path) in caplog.text
    assert probe_once(tmp_path, {}, lambda: 1.9) == (1.7, True)


# -- pruning ------------------------------------------------------------------------------


@pytest.fixture
def two_maps(tmp_path):
    """Label maps of two people in a dataset, both kept."""
    paths = []
    for number in (1, 2):
        voxels = np.roll(SMALL.voxels, number, axis=0)
        path = tmp_path / f"sub-0{number}" / "anat" / f"sub-0{number}_seg-fullhead_dseg.nii"
        path.parent.mkdir(parents=True)
        write_label_map(LabelMap(voxels, SMALL.grid, SMALL.table), path)
        read_checked_map(path, tmp_path / "cache")
        paths.append(path)
    return tmp_path, paths


def sources(cache):
    """Whose maps are kept."""
    return sorted(json.loads(path.read_text())["source"][:6] for path in cache.glob("*.json"))


def test_entries_go_with_their_label_map(two_maps):
    root, (first, second) = two_maps
    assert prune(root / "cache", root, [first, second]) == 0
    assert prune(root / "cache", root, [first]) == 0  # another run's participant
    second.unlink()
    assert prune(root / "cache", root, [first]) == 1
    assert sources(root / "cache") == ["sub-01"]
    assert len(list((root / "cache").iterdir())) == 3


def test_entries_of_an_earlier_content_go(two_maps):
    root, (first, second) = two_maps
    first.unlink()
    write_label_map(SMALL, first)
    read_checked_map(first, root / "cache")
    assert sources(root / "cache") == ["sub-01", "sub-01", "sub-02"]
    assert prune(root / "cache", root, [second]) == 0  # not read: content is not known
    assert prune(root / "cache", root, [first, second]) == 1
    assert sources(root / "cache") == ["sub-01", "sub-02"]
    assert read_checked_map(first, root / "cache").facts == read_checked_map(first).facts


def test_a_link_without_content_and_a_copy_keep_what_belongs_to_them(two_maps):
    root, (first, second) = two_maps
    second.unlink()
    second.symlink_to("content/that/git-annex/has/elsewhere")
    assert prune(root / "cache", root, [first]) == 0
    renamed = first.rename(first.with_name("sub-03_seg-fullhead_dseg.nii"))
    assert prune(root / "cache", root, [renamed]) == 0


def test_what_other_code_made_and_halves_of_entries_go_when_they_are_old(two_maps, monkeypatch):
    root, (first, second) = two_maps
    (root / "cache" / "probe_abc.json").write_text(json.dumps({"peak_gib": 1}))
    half = root / "cache" / f"{'0' * 32}_indices.npy"
    half.write_bytes(b"half")
    monkeypatch.setattr(map_cache, "code_digest", lambda makers: "other code")
    read_checked_map(first, root / "cache")
    assert prune(root / "cache", root, [first, second]) == 0
    assert half.exists()
    long_ago = time.time() - 40 * 86400
    newest = max(root.glob("cache/*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in root.glob("cache/*"):
        if not path.name.startswith(newest.stem):
            os.utime(path, (long_ago, long_ago))
    assert prune(root / "cache", root, [first, second]) == 1
    assert not half.exists()
    assert (root / "cache" / "probe_abc.json").exists()


def test_half_an_entry_of_a_killed_process_goes_after_a_day(kept):
    path, cache, _ = kept
    old, young = (cache / f".entry_indices.{digit * 32}.npy" for digit in "ab")
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    prune(cache, path.parent, [path])
    assert [part.exists() for part in (old, young)] == [False, True]
