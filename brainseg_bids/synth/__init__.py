# SPDX-License-Identifier: Apache-2.0
"""Label maps in, image-label pairs out: draw a ``Recipe``, then render it."""
