# SPDX-License-Identifier: Apache-2.0
"""The command line as a Boutiques descriptor, for platforms that make forms and jobs of one.

``python -m brainseg_bids.cli.descriptor > brainseg.json``

It is made from the declarations that the parser is made from. ``bosh`` is Boutiques' own program:
``bosh validate brainseg.json``.
"""

from __future__ import annotations

import argparse
import json
import sys

from brainseg_bids import __version__
from brainseg_bids.exit_codes import DONE, MEANINGS
from brainseg_bids.options import Declared, declared
from brainseg_bids.settings import Settings

POSITIONAL = ("bids_dir", "output_dir", "analysis_level")


def descriptor() -> dict[str, object]:
    """Content of the descriptor, schema 0.5."""
    items = list(declared(Settings))
    return {
        "schema-version": "0.5",
        "name": "brainseg-bids",
        "tool-version": __version__,
        "description": "Whole-head segmentation of structural MR images, as a BIDS App.",
        "command-line": " ".join(["brainseg", *(_value_key(item) for item in items)]),
        "tags": {"domain": ["neuroimaging"], "bids-app": ["true"]},
        "inputs": [_input(item) for item in items],
        "groups": _groups(items),
        "output-files": [
            {
                "id": "derivative",
                "name": "BIDS derivative",
                "description": "Labels, volumes, pages, logs.",
                "path-template": "[OUTPUT_DIR]",
            }
        ],
        "error-codes": [
            {"code": code, "description": words}
            for code, words in MEANINGS.items()
            if code != DONE
        ],
    }


def _is_on(item: Declared) -> bool:
    """Whether it is a flag that is on unless it is turned off: it is given to turn it off."""
    return item.kind == "bool" and bool(item.default)


def _id(item: Declared) -> str:
    return f"no_{item.name}" if _is_on(item) else item.name


def _value_key(item: Declared) -> str:
    return f"[{_id(item).upper()}]"


def _groups(items: list[Declared]) -> list[dict[str, object]]:
    """The groups of ``--help``."""
    groups = dict.fromkeys(item.group for item in items)
    return [
        {
            "id": group.__name__,
            "name": group.title,
            "members": [_id(item) for item in items if item.group is group],
        }
        for group in groups
    ]


def _input(item: Declared) -> dict[str, object]:
    """One argument, as the command line takes it."""
    option = item.option
    one: dict[str, object] = {
        "id": _id(item),
        "name": _id(item).replace("_", " "),
        "value-key": _value_key(item),
        "description": ("Do not: " if _is_on(item) else "") + option.help,
        "optional": item.name not in POSITIONAL,
        **_type(item),
    }
    if option.names[0].startswith("-"):
        flag = option.flag.replace("--", "--no-", 1) if _is_on(item) else option.flag
        one["command-line-flag"] = flag
    if option.choices:
        one["value-choices"] = list(option.choices)
    return one


def _type(item: Declared) -> dict[str, object]:
    kind, option = item.kind.removesuffix(" | None"), item.option
    if kind == "bool" or option.action == "count":
        return {"type": "Flag"}
    if item.name == "bids_dir":
        return {"type": "File"}
    # Each of these may be given again with another value, which Boutiques cannot say.
    is_list = option.many or (kind.startswith("tuple") and not option.action)
    more = {"list": True} if is_list else {}
    if kind == "int":
        return {"type": "Number", "integer": True, **more}
    if (kind == "float" or "float" in kind) and not option.arguments:
        return {"type": "Number", **more}
    return {"type": "String", **more}


def main(argv: list[str] | None = None) -> int:
    """Print the descriptor."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    json.dump(descriptor(), sys.stdout, indent=2, ensure_ascii=False)
    print()
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
