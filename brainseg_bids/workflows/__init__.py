# SPDX-License-Identifier: Apache-2.0
"""Decide (``plan``), wire (``base``, ``segment``, ``outputs``), run (``runner``)."""
