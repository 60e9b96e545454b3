# SPDX-License-Identifier: Apache-2.0
"""JSON and TOML from outside: the one reader, and the kinds of values that files may hold.

Text is UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one. What no program can
use (numbers beyond 64 bits, NaN, keys given twice with different values, halves of characters,
nesting of more than `DEEPEST` levels) is refused here, by file and key, so that nobody who uses a
value has to think of it. A `Number`, `Text`, `Flag` or `Items` says what one value must be.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

DEEPEST = 64
"""Levels of lists and objects; ten times as many as any document here has."""
LARGEST = 2**63
"""Whole numbers of this size or more do not fit into 64 bits."""

_BOMS = (  # that of UTF-32 begins as that of UTF-16 does
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class InputError(ValueError):
    """Something is wrong with a user's file; the message names file, fault and remedy."""


# -- reading ------------------------------------------------------------------------------


def read_json(path: str | Path) -> dict:
    """The object in a JSON file.

    Raises
    ------
    InputError
        One line that names the file, the line or key, and the remedy.
    """
    return parse_json(read_text(path), str(path))


def read_toml(path: str | Path) -> dict:
    """Content of a TOML file; as `read_json`."""
    return parse_toml(read_text(path), str(path))


def read_object(path: Path) -> dict:
    """A JSON object, empty if there is none."""
    try:
        return read_json(path)
    except InputError:
        return {}


def parse_list(text: str, what: str) -> list:
    """The list in a JSON text; as `parse_json`."""
    return _faultless({"item": _load_json(text, what, list)}, what)["item"]


def parse_json(text: str, what: str) -> dict:
    """The object in a JSON text; ``what`` names its file in messages.

    >>> parse_json('{"a": [1, null]}', "my.json")
    {'a': [1, None]}
    >>> parse_json('{"a": {"b": 1e999}}', "my.json")
    Traceback (most recent call last):
    brainseg_bids.documents.InputError: my.json: a.b is 1e999, no finite number. Correct it.
    """
    return _faultless(_load_json(text, what, dict), what)


def parse_toml(text: str, what: str) -> dict:
    """Content of a TOML text; ``what`` names its file in messages."""
    try:
        found = tomllib.loads(text, parse_float=_float)
    except RecursionError as error:
        raise InputError(_too_deep(what)) from error
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at (line \d+), column \d+\)$", str(error))
        where = f"{what}, {place[1]}" if place else what
        why = str(error).removesuffix(place[0]) if place else error
        raise InputError(f"{where}: this is not valid TOML ({why}). Correct it.") from error
    except ValueError as error:  # of a whole number with thousands of digits
        raise InputError(f"{what}: a whole number is beyond 64 bits. Correct it.") from error
    return _faultless(found, what)


def sift_json(text: str, what: str) -> tuple[dict, dict[str, str]]:
    """As `parse_json`, but a key whose value cannot be used is left out.

    Returns
    -------
    values : dict
    errors : dict of str to str
        A line for each key that is left out.
    """
    found = _load_json(text, what, dict)
    bad = {top: f"{what}: {where} {why}; it is ignored." for top, where, why in _faults(found)}
    return {key: value for key, value in found.items() if key not in bad}, bad


def read_text(path: str | Path) -> str:
    """Text of a file.

    Raises
    ------
    InputError
        If it cannot be read, or its bytes are no text; names file, line and remedy.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise InputError(f"{path}: this is not a file. Give a file.")
        return decode(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file. Check its name.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check it.") from error


def decode(data: bytes, what: str) -> str:
    """Text of a file's bytes.

    >>> decode("é".encode("utf-16"), "my.json")
    'é'
    >>> decode("a\\né".encode("latin-1"), "my.json")
    Traceback (most recent call last):
    brainseg_bids.documents.InputError: my.json, line 2: byte 0xE9 is not UTF-8. Save it as UTF-8.
    """
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            raise InputError(f"{what}: damaged {encoding.upper()}. Save it as UTF-8.") from error
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise InputError(
            f"{what}, line {line}: byte 0x{byte:02X} is not UTF-8. Save it as UTF-8."
        ) from error


@dataclass(frozen=True)
class _Unusable:
    """Stands in the place of a value; ``why`` goes on after the key's name."""

    why: str


def _load_json(text: str, what: str, top: type):
    """What the text holds, with `_Unusable` for numbers and keys that cannot be used."""
    try:
        found = json.loads(
            text,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_float,
            object_pairs_hook=_object,
        )
    except RecursionError as error:
        raise InputError(_too_deep(what)) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{what}, line {error.lineno}: this is not valid JSON ({error.msg}). Correct it."
        ) from error
    if not isinstance(found, top):
        wanted = "an object in braces" if top is dict else "a list"
        raise InputError(f"{what}: this is {_kind_of(found)}, not {wanted}. Correct it.")
    return found


def _too_deep(what: str) -> str:
    return f"{what}: lists or objects are nested more than {DEEPEST} deep. Correct it."


def _int(text: str) -> int | _Unusable:
    if len(text) > 20:
        return _Unusable("is beyond 64 bits")
    return int(text)


def _float(text: str) -> float | _Unusable:
    value = float(text.replace("_", ""))
    return value if math.isfinite(value) else _Unusable(f"is {text}, no finite number")


def _object(pairs: list[tuple[str, object]]) -> dict:
    values: dict = {}
    for key, value in pairs:
        twice = key in values and values[key] != value
        values[key] = _Unusable("is given twice, with different values") if twice else value
    return values


def _faultless(found: dict, what: str) -> dict:
    for _, where, why in _faults(found):
        raise InputError(f"{what}: {where} {why}. Correct it.")
    return found


def _faults(found: Mapping) -> Iterator[tuple[str, str, str]]:
    """Top-level key, place and fault of each value that cannot be used."""
    # A stack, not recursion: what is nested deeply is just what is looked for.
    stack = [(key, _shown_key(key), value, 1) for key, value in reversed(found.items())]
    while stack:
        top, where, value, depth = stack.pop()
        why = _fault(value, depth) or _fault(where, 0)
        if why:
            shown = where if len(where) < 80 else f"{where[:60]}..."
            yield top, shown.encode("ascii", "backslashreplace").decode(), why
        elif isinstance(value, dict):
            inner = [(top, f"{where}.{k}", v, depth + 1) for k, v in value.items()]
            stack += reversed(inner)
        elif isinstance(value, list):
            inner = [(top, f"{where}[{n}]", v, depth + 1) for n, v in enumerate(value, start=1)]
            stack += reversed(inner)


def _shown_key(key: str) -> str:
    return key if key and len(key) < 80 else repr(key[:80])


def _fault(value: object, depth: int) -> str:
    if isinstance(value, _Unusable):
        return value.why
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        return "is beyond 64 bits"
    if isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
        return "holds half of a character (a lone surrogate)"
    if isinstance(value, dict | list) and depth > DEEPEST:
        return f"is nested more than {DEEPEST} deep"
    return ""


# -- kinds of values ----------------------------------------------------------------------


class Kind(Protocol):
    """What a value must be."""

    def error_of(self, value: object) -> str:
        """What is wrong with a value, to go on after its name; nothing if it fits."""


@dataclass(frozen=True)
class Number:
    """A finite number.

    Parameters
    ----------
    low, high : float
        Bounds; both are allowed.
    unit : str
    above : bool
        Whether ``low`` itself is not allowed.
    below : bool
        Whether ``high`` itself is not allowed.
    whole : bool

    Examples
    --------
    >>> Number(0, 25, "T", above=True).error_of(1500)
    'is 1500: give a number above 0 and up to 25 T'
    >>> Number(0, 1).error_of(True), Number(0, 1).error_of(1)
    ('is true: give a number from 0 to 1', '')
    """

    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    above: bool = False
    below: bool = False
    whole: bool = False

    def error_of(self, value: object) -> str:
        """As of `Kind`."""
        kinds = int if self.whole else int | float
        if isinstance(value, kinds) and not isinstance(value, bool):
            over = value > self.low if self.above else value >= self.low
            under = value < self.high if self.below else value <= self.high
            if over and under and -math.inf < value < math.inf:
                return ""
        return f"is {_shown(value)}: give {self}"

    def __str__(self) -> str:
        words = ["a whole number" if self.whole else "a number"]
        if self.low > -math.inf:
            words.append(f"above {self.low:g}" if self.above else f"from {self.low:g}")
        if self.high < math.inf:
            joint = ["and"] if self.above else []
            to = "below" if self.below else "up to" if self.above or len(words) == 1 else "to"
            words += [*joint, to, f"{self.high:g}"]
        elif self.low > -math.inf and not self.above:
            words.append("on")
        return " ".join([*words, self.unit]).rstrip()


@dataclass(frozen=True)
class Text:
    """A text, or one of some words.

    >>> Text(("bf16", "fp32")).error_of("fp16")
    "is 'fp16': give bf16 or fp32"
    """

    choices: tuple[str, ...] = ()

    def error_of(self, value: object) -> str:
        """As of `Kind`."""
        fits = isinstance(value, str) and (not self.choices or value in self.choices)
        return "" if fits else f"is {_shown(value)}: give {self}"

    def __str__(self) -> str:
        return " or ".join(filter(None, [", ".join(self.choices[:-1]), *self.choices[-1:]])) or (
            "a text"
        )


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def error_of(self, value: object) -> str:
        """As of `Kind`."""
        return "" if isinstance(value, bool) else f"is {_shown(value)}: give {self}"

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Items:
    """A list of one kind.

    Parameters
    ----------
    kind : Kind
        Of each item.
    count : int or None
        How many there are; None: any number of them.
    or_one : bool
        Whether a single value may stand without its list.
    least : int
        How many there are at least.
    rising : bool
        Whether no item may be smaller than the one before, as in [low, high].

    Examples
    --------
    >>> Items(Number(0, 1), count=2, rising=True).error_of([0.8, 0.2])
    'is [0.8, 0.2]: give [low, high]'
    """

    kind: Kind = field(default_factory=Text)
    count: int | None = None
    least: int = 0
    or_one: bool = False
    rising: bool = False

    def error_of(self, value: object) -> str:
        """As of `Kind`."""
        if self.or_one and not isinstance(value, list | tuple):
            return self.kind.error_of(value)
        fits = isinstance(value, list | tuple) and self.count in (None, len(value))
        fits = fits and len(value) >= self.least
        if not fits:
            return f"is {_shown(value)}: give {self}"
        wrong = next((why for one in value if (why := self.kind.error_of(one))), "")
        if wrong:
            return f"has an item that {wrong}"
        falls = self.rising and any(a > b for a, b in pairwise(value))
        return f"is {_shown(value)}: give {self}" if falls else ""

    def __str__(self) -> str:
        if self.rising and self.count == 2:
            return "[low, high]"
        if self.count is not None:
            return f"a list of {self.count}"
        return f"a list of at least {self.least}" if self.least else "a list"


@dataclass(frozen=True)
class Object:
    """A JSON object, or a table of TOML.

    Parameters
    ----------
    kind : Kind or None
        Of each of its values; None: any.
    """

    kind: Kind | None = None

    def error_of(self, value: object) -> str:
        """As of `Kind`."""
        if not isinstance(value, Mapping):
            return f"is {_shown(value)}: give an object"
        for key, one in value.items():
            if self.kind and (why := self.kind.error_of(one)):
                return f"has {key}, which {why}"
        return ""


def check(values: Mapping, kinds: Mapping[str, Kind], what: str, *, remedy: str = "") -> None:
    """Raise `InputError` for the first value that is not of its kind; other keys are passed over.

    >>> check({"p": 2}, {"p": Number(0, 1)}, "my.toml")
    Traceback (most recent call last):
    brainseg_bids.documents.InputError: my.toml: p is 2: give a number from 0 to 1.
    """
    for key, kind in kinds.items():
        if key in values and (why := kind.error_of(values[key])):
            raise InputError(f"{what}: {key} {why}.{f' {remedy}' if remedy else ''}")


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "an object"
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind_of(value: object) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return "a text" if isinstance(value, str) else f"the value {_shown(value)}"
