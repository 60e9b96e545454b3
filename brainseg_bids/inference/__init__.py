# SPDX-License-Identifier: Apache-2.0
"""Image and bundle in, labels on the image's own grid out."""
