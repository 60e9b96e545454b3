# SPDX-License-Identifier: Apache-2.0
"""What is installed from a wheel, apart from this checkout, works and brings its data."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from brainseg_bids import __version__

ROOT = Path(__file__).parents[1]
LIST_DATA = """\
import sys
from pathlib import Path
import brainseg_bids
folder = Path(brainseg_bids.__file__).parent
print(folder)
print(*(p.relative_to(folder / "data") for p in folder.joinpath("data").rglob("*") if p.is_file()))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel holds, without the libraries it depends on."""
    pytest.importorskip("hatchling", reason="pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(ROOT)],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile",
         "--target", str(folder / "site"), str(wheel)],
        check=True,
    )  # fmt: skip
    return folder


def answer(installed: Path, *command: str) -> str:
    """What a command says whose package is the installed one."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=installed,
        env=os.environ | {"PYTHONPATH": str(installed / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_answers(installed):
    program = str(installed / "site" / "bin" / "brainseg")
    assert __version__ in answer(installed, program, "--version")
    assert "--participant-label" in answer(installed, program, "--help")


def test_all_packaged_data_come_with_it(installed):
    where, files = answer(installed, sys.executable, "-c", LIST_DATA).splitlines()
    assert where == str(installed / "site" / "brainseg_bids")
    data = ROOT / "brainseg_bids" / "data"
    here = {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}
    assert set(files.split()) == here


def test_only_the_package_is_in_it(installed):
    (wheel,) = installed.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"brainseg_bids"}
    assert "brainseg_bids/py.typed" in names
