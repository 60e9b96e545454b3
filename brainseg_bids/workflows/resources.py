# SPDX-License-Identifier: Apache-2.0
"""Moved to `brainseg_bids.resources`."""

from brainseg_bids.resources import *  # noqa: F403
