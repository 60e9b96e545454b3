# SPDX-License-Identifier: Apache-2.0
"""One declaration for each option of the app.

A dataclass of options is a group of ``--help``; each field says by `option` what its flag is
called, what it takes and what it is for. From these the parser, the settings file (TOML) and the
arguments of jobs that run elsewhere are made, so that a flag is written once.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from brainseg_bids.bids.names import is_label
from brainseg_bids.documents import (
    Flag,
    InputError,
    Kind,
    Number,
    Text,
    parse_json,
    parse_toml,
    read_json,
)
from brainseg_bids.training.recipe import VOXEL_SIZE


class SettingsError(ValueError):
    """A settings file that cannot be used; the message names file and remedy."""


@dataclass(frozen=True)
class Option:
    """What one field of a dataclass of options is on the command line.

    Parameters
    ----------
    names : tuple of str
        The flag and its other spellings, or the name of a positional argument.
    help : str
    parse : callable, optional
        Text to value, as argparse's ``type``; by default what the field's annotation says.
    choices : tuple of str
    metavar : str or None
    action : str
        As argparse's; by default what the annotation says.
    many : bool
        Whether one flag takes several values.
    fits : Kind or None
        What a value of a settings file must be; by default what choices and annotation say.
    stages : tuple of str
        Without one of these stages the flag would have no effect and is refused; by default
        those of the group. Empty: it belongs to every run.
    always : bool
        Whether another process is given it even where it has its default.
    arguments : callable, optional
        Value to the words that follow the flag, as `parse` reads them.
    """

    names: tuple[str, ...]
    help: str
    parse: Callable[[str], Any] | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    action: str = ""
    many: bool = False
    fits: Kind | None = None
    stages: tuple[str, ...] | None = None
    always: bool = False
    arguments: Callable[[Any], list[str]] | None = None

    @property
    def flag(self) -> str:
        """The spelling that messages and scripts use: the first long one."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])


def option(*names: str, help: str, default: Any = None, **more: Any) -> Any:
    """A field of a dataclass of options; ``more`` are the other parameters of `Option`."""
    metadata = {"option": Option(names, help, **more)}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def argument(name: str, *, help: str, default: Any = MISSING, **more: Any) -> Any:
    """A field that is a positional argument; ``more`` as of `option`."""
    metadata = {"option": Option((name,), help, **more)}
    return field(kw_only=False, default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Base of dataclasses of options: one group of ``--help`` each.

    Attributes
    ----------
    title : str
        Heading of the group.
    belongs_to : tuple of str
        Stages that its options belong to; empty: every run.
    """

    title: ClassVar[str] = ""
    belongs_to: ClassVar[tuple[str, ...]] = ()


class Settings:
    """What the user chose, to code that does not know which stages there are.

    `brainseg_bids.settings.Settings` inherits from it, and from the options of all stages. Those
    of every run are named here, others are attributes as well.
    """

    bids_dir: Path
    output_dir: Path
    work_dir: Path
    participant_label: tuple[str, ...]
    session_label: tuple[str, ...]
    stages: tuple[str, ...]
    contrasts: tuple[str, ...]
    bids_filters: dict
    nprocs: int
    memory_gb: float | None
    reports_only: bool
    boilerplate_only: bool

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


@dataclass(frozen=True)
class Declared:
    """An option with the field that it is stored in."""

    name: str
    kind: str
    default: Any
    option: Option
    group: type[OptionGroup]

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages without which the option has no effect; empty: none is needed."""
        own = self.option.stages
        return self.group.belongs_to if own is None else own

    @property
    def fits(self) -> Kind | None:
        """What a value in a settings file must be; None: only its type is checked."""
        if self.option.fits or not self.option.choices:
            return self.option.fits or KINDS_BY_TYPE.get(self.kind.removesuffix(" | None"))
        return Text(tuple(dict.fromkeys(("", *self.option.choices)[self.default != "" :])))


KINDS_BY_TYPE: dict[str, Kind] = {
    "str": Text(),
    "bool": Flag(),
    "int": Number(0, 1e9, whole=True),
    "float": Number(0, 1e9),
}
"""What a value of a settings file must be if its option does not say more."""


def groups_of(settings: type) -> list[type[OptionGroup]]:
    """Groups that a dataclass of settings is made of, in the order of ``--help``."""
    return [
        base for base in settings.__mro__[1:] if is_dataclass(base) and base is not OptionGroup
    ]


def declared(settings: type) -> Iterator[Declared]:
    """Every option of a dataclass of settings, group by group, as they were declared."""
    for group in groups_of(settings):
        for item in fields(group):
            if item.name not in group.__annotations__:
                continue
            default = item.default_factory() if callable(item.default_factory) else item.default
            yield Declared(item.name, str(item.type), default, item.metadata["option"], group)


# -- command line -------------------------------------------------------------------------


def add_group(parser: argparse.ArgumentParser, group: type[OptionGroup], settings: type):
    """Add the options of a group to a parser; what is not given stays out of the namespace.

    Returns
    -------
    The group of the parser, for flags that are no settings.
    """
    section = parser.add_argument_group(group.title)
    for item in declared(settings):
        if item.group is group:
            _add(parser if not item.option.names[0].startswith("-") else section, item)
    return section


def _add(parser, item: Declared) -> None:
    one = item.option
    if not one.names[0].startswith("-"):
        parse = one.parse or (Path if item.kind == "Path" else str)
        more = {"choices": one.choices} if one.choices else {"type": parse}
        parser.add_argument(one.names[0], help=one.help, **more)
        return
    more = {"dest": item.name, "default": argparse.SUPPRESS, "help": one.help}
    if item.kind == "bool":
        more["action"] = argparse.BooleanOptionalAction if item.default else "store_true"
    elif one.action == "count":
        more["action"] = "count"
    else:
        if one.choices:
            more["choices"] = one.choices
        if one.parse or item.kind.startswith("Path"):
            more["type"] = one.parse or Path
        if one.metavar:
            more["metavar"] = one.metavar
        if one.action:
            more["action"] = one.action
        if one.many or (item.kind.startswith("tuple") and not one.action):
            more["nargs"] = "+"
    parser.add_argument(*one.names, **more)


def without_effect(settings: type, given: Collection[str], stages: Collection[str]) -> str:
    """One line for the first given option that belongs to none of the stages, or nothing."""
    for item in declared(settings):
        if item.name in given and item.stages and not set(item.stages) & set(stages):
            return (
                f"{_usual(item)} belongs to --stages {' or '.join(item.stages)}, which was not "
                "asked for."
            )
    return ""


def _usual(item: Declared) -> str:
    """The flag as it is usually written: ``-d`` rather than its long form."""
    return item.option.names[0]


def to_arguments(
    settings: Any,
    *,
    leave_out: Collection[str] = (),
    always: Collection[str] = (),
    words: Mapping[str, list[str]] | None = None,
) -> list[str]:
    """The flags that make the parser give these settings, quoted for a shell, one an entry.

    What a settings file says is among them. Positional arguments are not.

    Parameters
    ----------
    settings
        An instance of a dataclass of settings.
    leave_out : collection of str
        Names of settings that are not wanted.
    always : collection of str
        Names of settings that are given even if they have their default.
    words : mapping of str to list of str, optional
        What follows the flag of a setting, where it cannot be told from its value alone.
    """
    lines = []
    for item in declared(type(settings)):
        value = getattr(settings, item.name)
        if not item.option.names[0].startswith("-") or item.name in leave_out:
            continue
        if item.stages and not set(item.stages) & set(settings.stages):
            continue  # has no effect, and the parser would refuse it
        if value != item.default or item.option.always or item.name in always:
            lines += _lines(item, value, (words or {}).get(item.name))
    return lines


def _lines(item: Declared, value: Any, words: list[str] | None) -> list[str]:
    flag = item.option.flag
    if item.kind == "bool":
        return [flag if value else flag.replace("--", "--no-", 1)]
    if item.option.action == "count":
        return [flag] * value
    if words is None:
        words = _words(item, value)
    if item.option.action == "append":
        return [f"{flag} {shlex.quote(word)}" for word in words]
    return [f"{flag} {shlex.join(words)}"]


def _words(item: Declared, value: Any) -> list[str]:
    if item.option.arguments:
        return item.option.arguments(value)
    if isinstance(value, dict):
        return [f"{key}={path}" for key, path in value.items()]
    return [shortest(one) for one in (value if isinstance(value, tuple) else (value,))]


def shortest(value: object) -> str:
    """A value in the fewest letters that are read as the same.

    >>> shortest(8.0), shortest(0.1 + 0.2), shortest("a")
    ('8', '0.30000000000000004', 'a')
    """
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


# -- settings files -----------------------------------------------------------------------


def to_toml(settings: Any) -> str:
    """Text that `from_toml` turns into equal values."""
    import tomli_w  # late: ``--help`` shall not wait for it

    values: dict[str, Any] = {}
    for item in declared(type(settings)):
        value = getattr(settings, item.name)
        if value is None:  # TOML has no null: what is absent has its default
            continue
        if isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, dict):  # its nulls carry meaning, so it travels as JSON
            value = json.dumps(value)
        values[item.name] = value
    return tomli_w.dumps(values)


def from_toml(settings: type, text: str, *, what: str = "settings") -> dict[str, Any]:
    """Values of a settings file by name, in the types that the dataclass has.

    Raises
    ------
    SettingsError
        If it is no TOML, has a setting that this version does not know, or a value that cannot
        be used; ``what`` names the file in the message.
    """
    try:
        values = parse_toml(text, what)
    except InputError as error:
        raise SettingsError(str(error)) from error
    known = {item.name: item for item in declared(settings)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SettingsError(
            f"{what}: unknown setting {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
        )
    for name, value in values.items():
        item = known[name]
        try:
            values[name] = _typed(name, value, item.kind)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{what}: {name} = {value!r}: {error}.") from error
        if item.fits and (why := item.fits.error_of(values[name])):
            raise SettingsError(f"{what}: {name} {why}.")
    return values


def _typed(name: str, value: Any, kind: str) -> Any:
    """A value of a TOML file as its field wants it."""
    if kind.startswith("Path"):
        return Path(value)
    if kind.startswith("tuple"):
        if isinstance(value, str):
            raise TypeError("a list is expected")
        item_kind = float if "float" in kind else str
        return tuple(item_kind(item) for item in value)
    if kind == "dict":
        return parse_json(value, name) if isinstance(value, str) else dict(value)
    return float(value) if kind.startswith("float") else value


# -- values of flags ----------------------------------------------------------------------

GIB_PER_UNIT = {"T": 1024.0, "G": 1.0, "M": 1 / 1024, "K": 1 / 1024**2}


def label(prefix: str) -> Callable[[str], str]:
    """Parser of a BIDS label, with or without its prefix."""

    def label(text: str) -> str:
        text = text.removeprefix(prefix)
        if not is_label(text):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a BIDS label, which has letters and digits only"
            )
        return text

    return label


def above_zero(what: str, *, below: float) -> Callable[[str], float]:
    """Parser of a number above zero; ``what`` names it in the message."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < below:
            raise argparse.ArgumentTypeError(f"{text!r}: give {what} above 0")
        return value

    return number


def voxel_size_mm(text: str) -> float:
    """Parser of one voxel size."""
    value = above_zero("millimetres", below=100)(text)
    if why := VOXEL_SIZE.error_of(value):
        raise argparse.ArgumentTypeError(f"a voxel {why}")
    return value


def share(text: str) -> float:
    """Parser of a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 to 1")
    return value


def whole(text: str) -> int:
    """Parser of a whole number of at least 0."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """Parser of a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return number


def memory_gb(text: str) -> float:
    """Parser of an amount of memory, in GiB.

    >>> memory_gb("16G"), memory_gb("2048")
    (16.0, 2.0)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([TGMK]?)I?B?", text.strip().upper())
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number and T, G, M or K, e.g. 16G")
    return float(match[1]) * GIB_PER_UNIT[match[2] or "M"]


def in_gib(value: float) -> list[str]:
    """What `memory_gb` reads as the same number."""
    return [f"{shortest(value)}G"]


def folder_by_name(text: str) -> tuple[str, str]:
    """Parser of ``NAME=PATH``; the folder's own name if none is given."""
    name, found, folder = text.partition("=")
    path = Path(folder if found else text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such folder")
    return (name if found else path.resolve().name), str(path.absolute())


class _FilterFile(dict):
    """Content of a filter file that knows its path, for messages."""

    def __init__(self, path: str) -> None:
        super().__init__(read_json(path))
        self.path = path


def filter_file(text: str) -> dict:
    """Parser of a filter file's path; its content."""
    try:
        return _FilterFile(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
