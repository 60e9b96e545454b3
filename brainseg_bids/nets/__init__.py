# SPDX-License-Identifier: Apache-2.0
"""Architectures by name, and the bundle that makes weights usable."""
