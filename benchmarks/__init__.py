# SPDX-License-Identifier: Apache-2.0
"""Measurements against rivals. Run from the checkout: ``python -m benchmarks.generator``."""
