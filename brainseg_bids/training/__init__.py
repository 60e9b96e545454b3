# SPDX-License-Identifier: Apache-2.0
"""Training of networks on synthetic pairs that are generated during the training."""
