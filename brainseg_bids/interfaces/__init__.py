# SPDX-License-Identifier: Apache-2.0
"""Thin typed Nipype wrappers: open, call, save."""
