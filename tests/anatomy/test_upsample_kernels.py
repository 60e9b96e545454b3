# SPDX-License-Identifier: Apache-2.0
"""Compiled functions work wherever their cache lies."""

from __future__ import annotations

import errno

import pytest
from numba.core import caching

from brainseg_bids.anatomy.upsample_kernels import is_compiled, jit


def double(number: int) -> int:
    return 2 * number


@pytest.mark.input(
    "runs",
    "the folder of compiled functions (in the package or `~/.cache`): full, over quota, gone",
    "compiled again in each process; results are the same",
    0,
)
@pytest.mark.parametrize("step", ["save", "load"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_a_cache_that_cannot_be_used_stops_nothing(monkeypatch, step, number):
    def fail(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(caching.IndexDataCacheFile, step, fail)
    compiled = jit(double)
    assert compiled(21) == 42
    assert is_compiled(compiled)
