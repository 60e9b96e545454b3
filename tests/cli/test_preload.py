# SPDX-License-Identifier: Apache-2.0
"""Many images with one start: a copy of one process for each, and what is killed fails alone."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
import pytest

from brainseg_bids import runner
from brainseg_bids.cli.parser import parse
from brainseg_bids.cli.run import run
from brainseg_bids.images import write_volume
from brainseg_bids.programs.preload import SEGMENT, preloaded
from brainseg_bids.resources import PROGRAM_GIB
from tests.fakes import dataset
from tests.phantom.head import phantom_grid, phantom_head, phantom_image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that was never trained."""
    return dataset.write_untrained_bundle(
        tmp_path_factory.mktemp("model") / "raw", voxel_size_mm=3.0
    )


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    labels = phantom_head(grid=phantom_grid((40, 40, 40), 3.0))
    picture = phantom_image(labels, np.random.default_rng(0))
    return write_volume(picture, labels.grid, tmp_path_factory.mktemp("image") / "T1w.nii.gz")


@pytest.fixture(scope="module")
def program(model):
    with preloaded([str(model)]) as program:
        yield program


def start(program, model, image, folder, further=()):
    folder.mkdir(exist_ok=True)
    words = ["--image", str(image), "--model", str(model), "--labels", "dseg.nii.gz"]
    words += ["--report", "report.json", "--device", "cpu", "--threads", "1"]
    return subprocess.Popen(
        [*program, *words, *further], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def children(process):
    try:
        return [child.pid for child in psutil.Process(process).children()]
    except psutil.NoSuchProcess:  # it has just ended
        return []


def server_of(program):
    """The process that has the models, a child of this one."""
    (server,) = [
        child.pid for child in psutil.Process().children() if "--serve" in child.cmdline()
    ]
    return server


def test_labels_are_those_of_a_process_of_its_own_byte_for_byte(program, model, image, tmp_path):
    folders = {"own": SEGMENT, "copy": program, "again": program}
    for name, how in folders.items():
        process = start(how, model, image, tmp_path / name)
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
        assert "T1w.nii.gz" in said  # its progress
    labels = [(tmp_path / name / "dseg.nii.gz").read_bytes() for name in folders]
    assert labels[0] == labels[1] == labels[2]
    (own, copy, _) = [
        json.loads((tmp_path / name / "report.json").read_text()) for name in folders
    ]
    for told in (own, copy):
        for key in ("SegmentationSeconds", "PeakMemoryGiB"):
            assert told["metadata"].pop(key) > 0
    assert own == copy


def test_what_an_image_lacks_is_told_as_ever(program, model, image, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(image.read_bytes()[:1000])
    process = start(program, model, broken, tmp_path / "out")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert f"brainseg: ERROR: {broken}" in said


def test_a_killed_copy_is_one_failed_image_and_the_next_goes_on(program, model, image, tmp_path):
    server = server_of(program)
    process = start(program, model, image, tmp_path / "killed")
    copy = _wait_for(lambda: [n for one in children(server) for n in children(one)])
    os.kill(copy[0], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "report.json").exists()
    process = start(program, model, image, tmp_path / "next")
    process.communicate(timeout=120)
    assert process.returncode == 0


def test_when_the_process_is_killed_no_image_fails(model, image, tmp_path):
    before = set(children(os.getpid()))
    with preloaded([str(model)]) as program:
        (server,) = set(children(os.getpid())) - before
        process = start(program, model, image, tmp_path / "at_work")
        _wait_for(lambda: [n for one in children(server) for n in children(one)], seconds=240)
        os.kill(server, signal.SIGKILL)
        further = start(program, model, image, tmp_path / "next")
        for one in (process, further):
            said = one.communicate(timeout=120)[1]
            assert one.returncode == 0, said
    labels = [tmp_path / name / "dseg.nii.gz" for name in ("at_work", "next")]
    assert labels[0].read_bytes() == labels[1].read_bytes()


def test_a_copy_ends_with_whoever_has_asked_for_it(program, model, image, tmp_path):
    server = server_of(program)
    process = start(program, model, image, tmp_path / "left")
    copy = _wait_for(lambda: [n for one in children(server) for n in children(one)])
    os.kill(copy[0], signal.SIGSTOP)  # on a busy machine it could be done before the next line
    process.kill()
    process.communicate(timeout=60)
    _wait_for(lambda: not psutil.pid_exists(copy[0]))
    assert not (tmp_path / "left" / "report.json").exists()


def test_without_the_process_an_image_is_segmented_by_one_of_its_own(model, image, tmp_path):
    with preloaded([str(tmp_path / "no model")]) as program:  # it ends at once
        process = start(program, model, image, tmp_path / "out")
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert (tmp_path / "out" / "dseg.nii.gz").exists()


def test_two_threads_of_a_copy_say_what_those_of_a_process_of_its_own_say(
    program, model, image, tmp_path
):
    said = {}
    for name, how in {"own": SEGMENT, "copy": program}.items():
        more = ["--threads", "2", "--probseg", "probseg.nii.gz", "--test-time-flips"]
        process = start(how, model, image, tmp_path / name, more)
        process.communicate(timeout=120)
        assert process.returncode == 0
        said[name] = gzip.decompress((tmp_path / name / "probseg.nii.gz").read_bytes())
    assert said["own"] == said["copy"]


def test_where_no_socket_can_be_each_image_has_a_process_of_its_own(model, tmp_path, monkeypatch):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with preloaded([str(model)]) as program:
        assert program == SEGMENT
    assert not list(long.iterdir())


def test_a_process_in_place_of_a_copy_ends_with_whoever_has_asked_for_it(image, tmp_path):
    stand_in = tmp_path / "tells.py"
    stand_in.write_text("import os; print(os.environ['BRAINSEG_PARENT'], end='')")
    asks = (
        "import sys\nfrom brainseg_bids.programs import preload\n"
        f"preload.SEGMENT = (sys.executable, {str(stand_in)!r})\n"
        f"preload.main([{str(tmp_path / 'nobody')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True)
    assert done.stdout == str(os.getpid())


def test_a_run_that_a_signal_ends_leaves_no_folder(model, tmp_path):
    program = (
        "import os, signal\nfrom brainseg_bids.lifetime import ended_by_signals\n"
        "from brainseg_bids.programs.preload import preloaded\n"
        f"with ended_by_signals(), preloaded([{str(model)!r}]):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, timeout=60)
    assert not list(tmp_path.glob("brainseg_*"))


def test_it_ends_with_a_run_that_is_killed_at_once(model):
    program = (
        "import os, psutil, signal\nfrom brainseg_bids.programs.preload import preloaded\n"
        f"with preloaded([{str(model)!r}]):\n"
        "    print(*(child.pid for child in psutil.Process().children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert run.returncode == -signal.SIGKILL
    _wait_for(lambda: not psutil.pid_exists(int(run.stdout)))


def test_it_ends_with_the_block(model):
    before = children(os.getpid())
    with preloaded([str(model)]) as program:
        assert len(children(os.getpid())) > len(before)
    assert set(children(os.getpid())) <= {*before}
    assert sys.executable == program[0]


@pytest.mark.parametrize(("n_images", "held_gib"), [(1, 0), (2, PROGRAM_GIB)])
def test_steps_are_planned_beside_the_memory_of_the_process(
    model, tmp_path, monkeypatch, n_images, held_gib
):
    names = [f"sub-0{number}_T1w" for number in range(n_images)]
    data = dataset.write_dataset(tmp_path / "data", *names)
    planned = []
    monkeypatch.setattr(
        runner, "run_workflow", lambda *_, memory_gb, **__: planned.append(memory_gb) or {}
    )
    words = [data, tmp_path / "out", "participant", "-w", tmp_path / "work", "--model", model]
    run(parse([*map(str, words), "--mem", "4G"]))
    assert planned == [pytest.approx(4 - held_gib)]


def test_the_process_takes_no_more_memory_than_is_planned(program, model, image, tmp_path):
    process = start(program, model, image, tmp_path / "out")
    process.communicate(timeout=120)  # it has answered, so all is imported
    assert process.returncode == 0
    resident_gib = psutil.Process(server_of(program)).memory_info().rss / 2**30
    assert resident_gib == pytest.approx(PROGRAM_GIB, rel=0.25)


def _wait_for(find, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found
