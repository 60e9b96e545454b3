# SPDX-License-Identifier: Apache-2.0
"""JSON and TOML from outside: read, or refused in one line that names file and key."""

from __future__ import annotations

import os

import pytest

from brainseg_bids.documents import (
    Flag,
    InputError,
    Items,
    Number,
    Text,
    parse_json,
    parse_toml,
    read_json,
    read_toml,
    sift_json,
)

DEEP = 100_000


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"], ids="{}".format)
def test_text_with_a_byte_order_mark_is_read(tmp_path, encoding):
    (tmp_path / "x.json").write_text('{"Name": "Zürich"}', encoding=encoding)
    assert read_json(tmp_path / "x.json") == {"Name": "Zürich"}
    (tmp_path / "x.toml").write_text('name = "Zürich"', encoding=encoding)
    assert read_toml(tmp_path / "x.toml") == {"name": "Zürich"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[" * DEEP + "]" * DEEP, "nested"),
        ('{"a":' * DEEP + "1" + "}" * DEEP, "nested"),
        ('{"a": {"b": ' + "[" * 80 + "]" * 80 + "}}", r"a\.b.*nested"),
        ('{"a": 12345678901234567890}', r"a is beyond 64 bits"),
        ('{"a": [1, ' + "9" * 5000 + "]}", r"a\[2\] is beyond 64 bits"),
        ('{"a": 1e999}', "a is 1e999"),
        ('{"a": {"b": [NaN]}}', r"a\.b\[1\] is NaN"),
        ('{"a": -Infinity}', "a is -Infinity"),
        (r'{"a": "\ud800"}', "a holds half of a character"),
        (r'{"\udfffa": 1}', r"udfffa holds half"),
        ('{"a": 1, "a": 2}', "a is given twice"),
        ("[1]", "a list, not an object"),
        ("3", "the value 3, not an object"),
        ("null", "the value null, not an object"),
        ('{"a": 1,\n"b" 2}', "line 2"),
        ("", "line 1"),
    ],
)
def test_json_that_cannot_be_used_is_one_line_with_file_and_place(text, named):
    with pytest.raises(InputError, match=f"(?s)^my.json.*{named}") as caught:
        parse_json(text, "my.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a = " + "[" * DEEP + "]" * DEEP, "nested"),
        ("a = " + "1" * 5000, "beyond 64 bits"),
        ("a = 12345678901234567890", "a is beyond 64 bits"),
        ("[t]\na = nan", r"t\.a is nan"),
        ("a = 1e999", "a is 1e999"),
        ("a = 1\na = 2", "not valid TOML"),
        ("x = 1\na = }", "line 2"),
    ],
)
def test_toml_that_cannot_be_used_is_one_line_with_file_and_place(text, named):
    with pytest.raises(InputError, match=f"^my.toml.*{named}") as caught:
        parse_toml(text, "my.toml")
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_with_one_value_is_no_fault():
    assert parse_json('{"a": [1], "a": [1]}', "my.json") == {"a": [1]}


def test_what_cannot_be_used_is_left_out_and_the_rest_stays():
    values, errors = sift_json('{"a": 1, "b": {"c": [NaN, NaN]}, "d": 1, "d": 2}', "my.json")
    assert values == {"a": 1}
    assert list(errors) == ["b", "d"]
    assert [fault.split()[1] for fault in errors.values()] == ["b.c[2]", "d"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "x.json")
    with pytest.raises(InputError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_latin_1_is_told_with_its_line(tmp_path):
    (tmp_path / "x.json").write_bytes('{\n"Name":\n"Zürich"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"x\.json, line 3:"):
        read_json(tmp_path / "x.json")
    with pytest.raises(InputError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Number(0, 1, below=True), [0, 0.5], [1, -1, float("nan"), True, "0.5", None]),
        (Number(1, 9, whole=True), [1, 9], [1.5, 0, 10, 10**400]),
        (Number(), [-1e300, 0], [float("inf"), [1]]),
        (Text(), ["", "x"], [1, None, ["x"]]),
        (Text(("a", "b")), ["a"], ["c", 1]),
        (Flag(), [True, False], [0, "true"]),
        (Items(), [[], ["a"], ("a", "b")], ["a", [1], {}]),
        (Items(or_one=True), ["a", ["a"]], [1, {}]),
        (Items(Number(), count=2, rising=True), [[1, 1], (1, 2)], [[2, 1], [1], [1, "2"], 3]),
    ],
)
def test_kinds_take_what_they_say(kind, good, bad):
    assert [kind.error_of(value) for value in good] == [""] * len(good)
    assert all(kind.error_of(value) for value in bad)
