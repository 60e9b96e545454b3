# SPDX-License-Identifier: Apache-2.0
"""Stages of the app, one file each: what it is asked, what it decides, runs, leaves and tells."""

PARTICIPANT_STAGES = ("segment", "headlabels", "upsample", "contrast")
GROUP_STAGES = ("summary", "priors", "synth", "train", "evaluate")
