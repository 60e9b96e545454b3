# SPDX-License-Identifier: Apache-2.0
"""Clusters: what a site asks for, what a job needs, and the scripts that Slurm is given."""
