# SPDX-License-Identifier: Apache-2.0
"""Moved to `brainseg_bids.stages.jobs`."""

from brainseg_bids.stages.jobs import *  # noqa: F403
