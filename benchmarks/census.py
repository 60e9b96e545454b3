# SPDX-License-Identifier: Apache-2.0
"""The code in numbers, as a Markdown table: size, long functions and files, circles, repetition.

Usage::

    python -m benchmarks.census [FOLDER] [--names]

``--names`` also lists the long functions and files, the circles, and who repeats whom.

Lines are lines of files, blank ones and comments included. The *shell* is everything of the
package outside of its core: `CORE`. An *import circle* is a set of modules that import each
other, directly or by others; counted once by the imports that run when a module is imported,
once by all of them, those inside functions and for type checking included. A *duplicate* is a
pair of files, or places of one file, that share a run of at least six lines of code in the same
shape: names, numbers and strings may differ. Imports, docstrings and lone brackets do not count,
nor do runs with fewer than four lines of different shape (lists of fields), nor runs that stand
in more than eight places. Most are declarations (fields of classes, options, traits, constants),
whose shape is alike because they say the same kind of thing; a second count leaves these out, so
that *statements* remain. An assertion *checks prose* if it asks for four or more words of a
message: ``match=`` of `pytest.raises` or `pytest.warns`, or a string of an ``assert`` with
``in`` or ``==``.
"""

from __future__ import annotations

import argparse
import ast
import io
import keyword
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

PACKAGE = "brainseg_bids"
CORE = {"anatomy", "contrast", "synth", "nets", "inference", "evaluation", "training"}
LONGEST_FUNCTION, LONGEST_FILE = 60, 500
RUN_OF_LINES, DIFFERENT_LINES, TOO_COMMON = 6, 4, 8
PROSE_WORDS = 4


def python_files(folder: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in sorted(folder.rglob("*.py"))}


def n_lines(files: dict[Path, str]) -> int:
    return sum(len(text.splitlines()) for text in files.values())


def is_long(text: str) -> bool:
    return len(text.splitlines()) > LONGEST_FILE


def long_functions(files: dict[Path, str]) -> list[str]:
    """Name and length of each function over `LONGEST_FUNCTION` lines, decorators left out."""
    found = []
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    found.append(f"{path.name}:{node.name} ({length})")
    return found


# -- import circles -----------------------------------------------------------------------


def statements(tree: ast.Module, *, top_level: bool) -> Iterator[ast.AST]:
    """All nodes, or those that run when the module is imported."""
    if not top_level:
        yield from ast.walk(tree)
        return
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not is_function and not for_types:
                waiting.append(child)


def import_graph(files: dict[Path, str], root: Path, *, top_level: bool) -> dict[str, set[str]]:
    """The modules that each module imports; packages' ``__init__`` only where they are named."""
    names = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): text
        for path, text in files.items()
    }
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, text in names.items():
        for node in statements(ast.parse(text), top_level=top_level):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted = [part if part in names else node.module for part in parts]
            else:
                continue
            graph[name] |= {module for module in wanted if module in names and module != name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules of which each reaches each other one."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in graph[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    reach = {name: reached(name) for name in graph}
    sets = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }
    return sorted(sorted(names) for names in sets)


# -- duplicates ---------------------------------------------------------------------------


def docstring_lines(tree: ast.Module) -> set[int]:
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def declaration_lines(tree: ast.Module) -> set[int]:
    """Lines of constants of a module, and of classes all but their methods."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found |= set(range(first, node.body[0].lineno))
        if isinstance(node, ast.ClassDef | ast.Module):
            for one in node.body:
                if isinstance(one, ast.Assign | ast.AnnAssign):
                    found |= set(range(one.lineno, (one.end_lineno or one.lineno) + 1))
    return found


def shapes(text: str, *, declarations: bool = True) -> list[str]:
    """The lines that count, with a letter for each name, number and string."""
    tree = ast.parse(text)
    left_out = docstring_lines(tree) | {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    if not declarations:
        left_out |= declaration_lines(tree)
    lines: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            lines[token.start[0]].append(token.string if keyword.iskeyword(token.string) else "n")
        elif token.type in (tokenize.NUMBER, tokenize.STRING):
            lines[token.start[0]].append("v")
        elif token.type == tokenize.OP:
            lines[token.start[0]].append(token.string)
    counted = (" ".join(lines[line]) for line in sorted(lines) if line not in left_out)
    return [shape for shape in counted if any(letter.isalpha() for letter in shape)]


def duplicates(files: dict[Path, str], *, declarations: bool = True) -> list[str]:
    """Pairs of files, or places of one file, that share a run of `RUN_OF_LINES` lines."""
    places: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for path, text in files.items():
        lines = shapes(text, declarations=declarations)
        for start in range(len(lines) - RUN_OF_LINES + 1):
            run = tuple(lines[start : start + RUN_OF_LINES])
            if len(set(run)) >= DIFFERENT_LINES:
                places[run].append((path, start))
    pairs = set()
    for found in places.values():
        if len(found) <= TOO_COMMON:
            for (one, at), (two, other) in combinations(found, 2):
                if one != two or abs(at - other) >= RUN_OF_LINES:
                    pairs.add((one, two))
    return sorted(f"{one.name} ~ {two.name}" for one, two in pairs)


# -- prose --------------------------------------------------------------------------------


def asks_for_prose(node: ast.AST) -> bool:
    words = (
        len(part.value.split())
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )
    return max(words, default=0) >= PROSE_WORDS


def prose_checks(files: dict[Path, str]) -> int:
    n = 0
    for text in files.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.keyword) and node.arg == "match":
                n += asks_for_prose(node.value)
            elif isinstance(node, ast.Assert):
                comparisons = [c for c in ast.walk(node.test) if isinstance(c, ast.Compare)]
                n += any(
                    isinstance(sign, ast.In | ast.Eq) and asks_for_prose(c)
                    for c in comparisons
                    for sign in c.ops
                )
    return n


def n_assertions(files: dict[Path, str]) -> int:
    """Assertions, and blocks that want an exception or a warning."""
    return sum(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Attribute) and node.attr in ("raises", "warns"))
        for text in files.values()
        for node in ast.walk(ast.parse(text))
    )


def census(root: Path) -> list[tuple[str, str, list[str]]]:
    """Rows of the table: what is counted, the number, and what was found."""
    package, tests = python_files(root / PACKAGE), python_files(root / "tests")
    inside = {
        path: text
        for path, text in package.items()
        if path.relative_to(root / PACKAGE).parts[0] in CORE
    }
    lines = n_lines(package)
    rows = [
        ("lines of the package", f"{lines:,}", []),
        ("share of the shell", f"{1 - n_lines(inside) / lines:.0%}", []),
        ("lines of the tests", f"{n_lines(tests):,}", []),
        ("assertions", f"{n_assertions(tests):,}", []),
        ("assertions that check prose", str(prose_checks(tests)), []),
    ]
    long_files = [path.name for path, text in package.items() if is_long(text)]
    at_import, at_all = (
        [" ".join(names) for names in circles(import_graph(package, root, top_level=only))]
        for only in (True, False)
    )
    listed = {
        f"functions over {LONGEST_FUNCTION} lines": long_functions(package),
        f"files over {LONGEST_FILE} lines": long_files,
        "import circles, at import": at_import,
        "import circles, all imports": at_all,
        f"duplicates of {RUN_OF_LINES} lines or more, package": duplicates(package),
        "of these in statements": duplicates(package, declarations=False),
        f"duplicates of {RUN_OF_LINES} lines or more, tests": duplicates(tests),
    }
    return rows + [(what, str(len(found)), found) for what, found in listed.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[1])
    parser.add_argument("--names", action="store_true", help="also list what was found")
    chosen = parser.parse_args()
    rows = census(chosen.folder)
    print("| | |\n| --- | ---: |")
    for what, number, _ in rows:
        print(f"| {what} | {number} |")
    for what, _, found in rows if chosen.names else []:
        print("\n".join([f"\n{what}:", *found]))


if __name__ == "__main__":
    main()
