# SPDX-License-Identifier: Apache-2.0
"""What a new stage costs: a file of its own and its two lines in the registry, nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import brainseg_bids
from tests.fakes import dataset

PACKAGE = Path(brainseg_bids.__file__).parent

TOY = '''
from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from typing import ClassVar

from brainseg_bids.bids.description import raw_uri
from brainseg_bids.bids.names import STRUCTURAL, sidecar
from brainseg_bids.options import OptionGroup, option, positive
from brainseg_bids.stages.base import Message, ParticipantStage
from brainseg_bids.stages.jobs import (
    REUSE, RUN, Job, SubjectPlan, fingerprint, read_object, why_run,
)


@dataclass(frozen=True, kw_only=True)
class ToyOptions(OptionGroup):
    title: ClassVar[str] = "toy (--stages toy)"
    belongs_to: ClassVar[tuple[str, ...]] = ("toy",)

    toy_factor: int = option("--toy-factor", default=2, parse=positive, metavar="N", help="factor")


@dataclass(frozen=True)
class ToyJob(Job):
    factor: int = 1

    stage: ClassVar[str] = "toy"
    shown: ClassVar[tuple[str, ...]] = ("table", "histogram")


def _count(image: str, factor: int) -> tuple[str, str, str]:
    """Write a table and a figure in the step's folder."""
    import json
    from pathlib import Path

    import matplotlib.pyplot as plt

    from brainseg_bids.images import read_volume

    voxels, _ = read_volume(Path(image))
    Path("table.tsv").write_text(f"voxels\\n{factor * voxels.size}\\n")
    Path("result.json").write_text(json.dumps({"Counted": int(voxels.size)}))
    figure, axis = plt.subplots()
    axis.hist(voxels.ravel())
    figure.savefig("histogram.png")
    files = ("table.tsv", "histogram.png", "result.json")
    return tuple(str(Path(name).absolute()) for name in files)


class Toy(ParticipantStage):
    name = "toy"
    options = ToyOptions
    results = "*_desc-toy_morph.json"
    result_files: ClassVar[dict] = {"count": "result.json"}

    def plan(self, run):
        settings = run.settings
        return [
            SubjectPlan(
                subject.label, tuple(self._job(scan, settings) for scan in subject.scans), {}
            )
            for subject in run.subjects(STRUCTURAL)
        ]

    def _job(self, scan, settings):
        stem = scan.path.name.split(".")[0]
        folder = settings.output_dir / f"sub-{scan.subject}"
        outputs = {
            "table": folder / "anat" / f"{stem}_desc-toy_morph.tsv",
            "histogram": folder / "figures" / f"{stem}_desc-toy_histogram.png",
        }
        known = read_object(sidecar(outputs["table"]))
        provenance = {
            "Input": raw_uri(scan.path, settings.bids_dir), **fingerprint(scan.path, known=known)
        }
        reason = why_run({"table": outputs["table"]}, provenance)
        action = RUN if reason else REUSE
        return ToyJob(scan, action, reason or "there", outputs, provenance, settings.toy_factor)

    def workflow(self, job, execution):
        from nipype import Function
        from nipype.pipeline import engine as pe
        from niworkflows.engine.workflows import LiterateWorkflow

        from brainseg_bids.stages.saving import init_ds_scan_wf

        workflow = LiterateWorkflow(name=job.name)
        function = Function(output_names=["table", "histogram", "result"], function=_count)
        count = pe.Node(function, name="count")
        count.inputs.trait_set(image=str(job.scan.path), factor=job.factor)
        outputs = {name: str(path) for name, path in job.outputs.items()}
        save = init_ds_scan_wf(outputs, {"table": job.provenance})
        fields = ("table", "histogram", "result")
        workflow.connect([(count, save, [(name, f"inputnode.{name}") for name in fields])])
        return workflow

    def messages(self, title, result):
        return [Message(logging.INFO, f"{title}: {result['Counted']} counted")]

    def section(self, job, folders):
        from brainseg_bids.reports.page import Section, blocks, figure, text

        with job.outputs["table"].open() as file:
            (row,) = csv.DictReader(file, delimiter="\\t")
        body = blocks(text(f"{row['voxels']} toys"), figure(job.outputs["histogram"], "toys"))
        return Section("toy", job.scan.title, body, "Toy", ("image", "counted"), (), {}, ())

    def methods(self, jobs):
        return ["Toys were counted." for _ in jobs]
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the package with one more stage: its file, and two lines of the registry."""
    copy = tmp_path_factory.mktemp("checkout") / "brainseg_bids"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "data"))
    (copy / "data").symlink_to(PACKAGE / "data")
    (copy / "stages" / "toy.py").write_text(TOY)
    registry = copy / "stages" / "__init__.py"
    text = registry.read_text()
    for line, more in (
        ("from brainseg_bids.stages.train import", "from brainseg_bids.stages.toy import Toy\n"),
        ("        Summary(),\n", "        Toy(),\n"),
    ):
        assert text.count(line) == 1
        text = text.replace(line, more + line)
    registry.write_text(text)
    return copy.parent


def brainseg(checkout, *arguments):
    folders = (str(checkout), str(PACKAGE.parent))  # tests' stand-ins come from the checkout
    return subprocess.run(
        [sys.executable, "-m", "brainseg_bids", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        cwd=checkout, capture_output=True, text=True,
    )  # fmt: skip


def test_it_is_asked_for_run_kept_shown_and_reused(checkout, tmp_path):
    data = dataset.write_dataset(tmp_path / "data", "sub-01_T1w")
    out = tmp_path / "out"
    command = (data, out, "participant", "--stages", "toy", "-w", tmp_path / "work", "--nprocs", 1)
    done = brainseg(checkout, *command, "--toy-factor", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    anat = out / "sub-01" / "anat"
    counted = json.loads((anat / "sub-01_T1w_desc-toy_morph.json").read_text())["Counted"]
    assert (anat / "sub-01_T1w_desc-toy_morph.tsv").read_text() == f"voxels\n{3 * counted}\n"
    assert f"{counted} counted" in done.stdout
    page = (out / "sub-01.html").read_text()
    assert f"{3 * counted} toys" in page
    assert "Toys were counted." in (out / "logs" / "CITATION.md").read_text() + page
    again = brainseg(checkout, *command, "--toy-factor", 3)
    assert "reused" in again.stdout


def test_its_flag_is_in_the_help_and_refused_without_the_stage(checkout, tmp_path):
    assert "--toy-factor" in brainseg(checkout, "--help").stdout
    data = dataset.write_dataset(tmp_path / "data", "sub-01_T1w")
    done = brainseg(checkout, data, tmp_path / "out", "participant", "--toy-factor", 3)
    assert done.returncode == 2
    assert "--stages toy" in done.stderr
