# SPDX-License-Identifier: Apache-2.0
"""Synthetic image-label pairs from label maps: draw a ``Recipe``, then render it."""
