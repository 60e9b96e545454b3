# SPDX-License-Identifier: Apache-2.0
"""External tools that label heads: one file each, found by the file's name.

A file here defines ``TOOL`` (what is known of the tool) and its typed Nipype interface; its
codes stand in ``data/crosswalks/NAME_to_fullhead.tsv``. That is all it takes to add one. Files
that begin with an underscore, and ``base``, are no tools.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brainseg_bids.interfaces.tools.base import Tool


def tool_names() -> tuple[str, ...]:
    """Names of all tools. Imports none of them: the command line's parser asks this.

    >>> "samseg" in tool_names(), "base" in tool_names()
    (True, False)
    """
    files = Path(__file__).parent.glob("[a-z]*.py")
    return tuple(sorted(path.stem for path in files if path.stem != "base"))


def find_tool(name: str) -> Tool:
    """What is known of a tool.

    Raises
    ------
    ValueError
        If there is no tool of that name; the message lists those there are.

    Examples
    --------
    >>> find_tool("samseg").licence
    'MIT'
    """
    if name not in tool_names():
        raise ValueError(f"no tool {name!r}; known: {', '.join(tool_names())}")
    return importlib.import_module(f"{__name__}.{name}").TOOL
