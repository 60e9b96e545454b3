# SPDX-License-Identifier: Apache-2.0
"""What each stage says on a page: one file a stage."""
