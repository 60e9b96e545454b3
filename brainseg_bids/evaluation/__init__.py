# SPDX-License-Identifier: Apache-2.0
"""Agreement of label maps: overlap, volumes, surface distances, and their statistics."""
