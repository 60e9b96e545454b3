# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every folder uses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.phantom.head import phantom_head, phantom_image

# Small jobs are faster on one thread, and two workers do not wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Bounded in examples, not in time: how long one takes depends on what else the machine does.
settings.register_profile(
    "bounded", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("bounded")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture(scope="session")
def head():
    """Phantom label map, 4 mm, codes of ``fullhead``."""
    return phantom_head()


@pytest.fixture(scope="session")
def head_image(head) -> np.ndarray:
    """T1-like image of the phantom."""
    return phantom_image(head, np.random.default_rng(3))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real heads and label maps, which are not part of the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("BRAINSEG_SHARED_DATA", beside))
    if not path.is_dir():
        pytest.skip(f"real heads are not here ({path}); set BRAINSEG_SHARED_DATA to their folder")
    return path


@pytest.fixture(scope="session")
def impatient_workflows():
    """Steps of toy images end in no time: a workflow of 25 would wait for five seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brainseg_bids.runner.POLL_SECONDS", 0.02)
        yield
