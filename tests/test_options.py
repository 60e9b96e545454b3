# SPDX-License-Identifier: Apache-2.0
"""Options are declared once; what is made from them says the same."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest

from brainseg_bids import options
from brainseg_bids.cli.parser import build_parser
from brainseg_bids.settings import Settings

HERE = Settings(Path("/in"), Path("/out"))


def test_the_number_of_cpus_is_said_though_it_is_the_default():
    """A job would else take all CPUs of its node."""
    assert options.to_arguments(HERE) == ["--nprocs 1", "--omp-nthreads 1"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"probseg": True}, "--probseg"),
        ({"test_time_flips": False}, "--no-test-time-flips"),
        ({"session_label": ("A", "B")}, "--session-label A B"),
        ({"memory_gb": 2.5}, "--mem 2.5G"),
        (
            {"tools": {"samseg": ["apptainer", "a b"]}},
            "--tool 'samseg=apptainer '\"'\"'a b'\"'\"''",
        ),
    ],
)
def test_arguments_are_read_back_as_the_settings_they_were_made_from(changes, line):
    changed = replace(HERE, stages=("segment", "headlabels"), **changes)
    lines = options.to_arguments(changed)
    assert line in lines
    words = shlex.split(" ".join(["/in", "/out", "participant", *lines]))
    given = vars(build_parser().parse_args(words))
    for name, value in changes.items():
        found = dict(given[name]) if isinstance(value, dict) else given[name]
        assert (tuple(found) if isinstance(value, tuple) else found) == value


def test_every_setting_is_declared_once_and_survives_toml():
    names = [item.name for item in options.declared(Settings)]
    assert sorted(names) == sorted(item.name for item in fields(Settings))
    assert len(set(names)) == len(names)
    assert Settings.from_toml(HERE.to_toml()) == HERE
