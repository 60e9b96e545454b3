# SPDX-License-Identifier: Apache-2.0
"""What a label is, and where: tables, grids, label maps, crosswalks."""
