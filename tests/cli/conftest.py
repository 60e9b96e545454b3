# SPDX-License-Identifier: Apache-2.0
"""Runs of the app with a stand-in for the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from brainseg_bids.cli.parser import parse
from brainseg_bids.cli.run import run
from tests.fakes import dataset


@pytest.fixture(scope="session", autouse=True)
def _impatient(impatient_workflows) -> None:
    """For every test of this folder."""


@dataclass(frozen=True)
class Run:
    """What a run left: exit code, what it said, and where."""

    code: int
    said: str
    data: Path
    output: Path
    work: Path

    @property
    def files(self) -> list[str]:
        """Every file of the derivative, its log folders left out."""
        return sorted(
            path.relative_to(self.output).as_posix()
            for path in self.output.rglob("*")
            if path.is_file() and not path.relative_to(self.output).as_posix().startswith("logs/2")
        )

    @property
    def log(self) -> str:
        """Text of the newest log file."""
        logs = self.output.glob("logs/*/brainseg.log")  # two may begin in the same second
        return max(logs, key=lambda path: path.stat().st_mtime_ns).read_text()


@dataclass(frozen=True)
class App:
    """The app with its folders; call it with further arguments."""

    root: Path
    capture: object

    def __call__(self, *arguments, level="participant", output="out", work="work", kill="") -> Run:
        data, output, work = self.root / "data", self.root / output, self.root / work
        self.capture.readouterr()
        settings = parse([
            str(data), str(output), level, "-w", str(work), "--model", str(self.model),
            "--nprocs", "2", "--omp-nthreads", "1", *map(str, arguments),
        ])  # fmt: skip
        program = (*dataset.PREDICT, "--kill", kill) if kill else dataset.PREDICT
        code = run(settings, program=program)
        said = self.capture.readouterr()
        return Run(code, said.out + said.err, data, output, work)

    @property
    def model(self) -> Path:
        return self.root / "model"

    def images(self, *names: str) -> Path:
        """Write the dataset; see `tests.fakes.dataset.write_dataset`."""
        return dataset.write_dataset(self.root / "data", *names)


class NoCapture:
    """Where a fixture that outlives a test cannot capture, the log is read instead."""

    def readouterr(self):
        return type("Said", (), {"out": "", "err": ""})


@pytest.fixture
def app(tmp_path, capsys) -> App:
    dataset.write_bundle(tmp_path / "model")
    return App(tmp_path, capsys)


@pytest.fixture(scope="module")
def lasting_app(tmp_path_factory, impatient_workflows) -> App:
    """The same for a run that several tests look at."""
    root = tmp_path_factory.mktemp("app")
    dataset.write_bundle(root / "model")
    return App(root, NoCapture())
