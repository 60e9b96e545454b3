# SPDX-License-Identifier: Apache-2.0
"""Get datasets: by git-annex and datalad where they are installed, by HTTP otherwise."""
