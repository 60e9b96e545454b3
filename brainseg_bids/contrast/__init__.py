# SPDX-License-Identifier: Apache-2.0
"""Contrast of real images: intensities of each label, noise, bias field and resolution."""
