# SPDX-License-Identifier: Apache-2.0
"""Network architectures, model bundles, and the memory of a training step."""
