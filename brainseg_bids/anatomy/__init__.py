# SPDX-License-Identifier: Apache-2.0
"""Labels and their geometry: label tables, grids, label maps, crosswalks, merging, upsampling."""
