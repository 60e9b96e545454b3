# SPDX-License-Identifier: Apache-2.0
"""What answers at once, and what a bare machine needs."""

import os
import subprocess
import sys
import time

import pytest

from brainseg_bids import __version__

HEAVY = ("torch", "nipype", "bids", "monai", "matplotlib", "templateflow", "nibabel", "scipy")


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(flag):
    code = (
        "import sys\n"
        "from brainseg_bids.__main__ import main\n"
        "try:\n    main([sys.argv[1]])\n"
        f"finally:\n    print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


def test_help_answers_within_a_second():
    times_s = []
    for _ in range(3):  # the best of three: other work on the machine is not the question
        began_s = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "brainseg_bids", "--help"], check=True, capture_output=True
        )
        times_s.append(time.monotonic() - began_s)
    assert min(times_s) < 1.0


def test_version_says_which_distribution_answered():
    done = subprocess.run(
        [sys.executable, "-m", "brainseg_bids", "--version"], capture_output=True, text=True
    )
    assert done.stdout.strip() == f"brainseg {__version__} (distribution brainseg-bids)"


def test_workflows_do_not_import_torch_or_templateflow():
    code = (
        "import sys, brainseg_bids.stages.workflow, brainseg_bids.runner\n"
        "import brainseg_bids.interfaces.reportlets, brainseg_bids.reports.figures\n"
        "print([m for m in ('torch', 'templateflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def run_bare(code, **options):
    """Run code as in a container: unwritable home, hardly any variables."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/proc/nowhere", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True,
        text=True, **options,
    )  # fmt: skip


IMPORTS = (
    "import brainseg_bids.stages.workflow, brainseg_bids.runner\n"
    "import brainseg_bids.bids.inputs, brainseg_bids.reports.figures, bids.layout\n"
    "import getpass; getpass.getuser(); print('fine')"
)


def test_a_home_that_cannot_be_written_is_no_obstacle(tmp_path):
    done = run_bare(IMPORTS, cwd=tmp_path)
    assert done.stdout.strip() == "fine", done.stderr
    assert "matplotlib" not in done.stderr.lower()  # makes a folder of its own, without a word


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_user_without_a_name_is_no_obstacle(tmp_path):
    try:
        run_bare("import numpy", user=54321, cwd="/").check_returncode()
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("this Python may not be read by other users")
    done = run_bare(f"import monai\n{IMPORTS}", user=54321, cwd="/")
    assert done.stdout.strip() == "fine", done.stderr
