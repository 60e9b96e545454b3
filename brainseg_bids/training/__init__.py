# SPDX-License-Identifier: Apache-2.0
"""Networks learn from pairs made on the way."""
