# SPDX-License-Identifier: Apache-2.0
"""Small command lines that are run as processes of their own, and what they share."""
