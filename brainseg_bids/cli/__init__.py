# SPDX-License-Identifier: Apache-2.0
"""Command lines: the app's, and the small ones that run as processes of their own."""
