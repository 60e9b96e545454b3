# SPDX-License-Identifier: Apache-2.0
"""Segmentation of an image with one or several networks, on the grid of the image."""
