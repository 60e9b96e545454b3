# SPDX-License-Identifier: Apache-2.0
"""Inside knows nothing of outside: imports point one way only."""

from __future__ import annotations

import ast
from pathlib import Path

import brainseg_bids
from benchmarks.census import circles, import_graph, python_files

PACKAGE = Path(brainseg_bids.__file__).parent
LAYERS = [
    {"exit_codes"},
    {"documents", "lifetime", "machine", "standard_streams", "units"},
    {"files", "console"},
    {"anatomy"},
    {"contrast", "evaluation", "nets"},
    {"synth", "inference"},
    {"training"},
    {"pointers", "offline", "locks"},
    {"headers"},
    {"images"},
    {"transforms"},
    {"bids", "fetch"},
    {"reports"},
    {"options", "resources", "scratch"},
    {"interfaces"},
    {"workers"},
    {"runner"},
    {"programs"},
    {"stages"},
    {"settings"},
    {"hpc"},
    {"cli"},
]
RATIONED = {
    "torch": {"synth", "nets", "inference", "training", "programs", "stages", "cli"},
    "monai": {"nets", "training", "programs"},
    "lightning": {"training"},
    "nibabel": {"headers", "images", "reports", "programs", "cli"},
    "bids": {"bids"},
    "h5py": {"transforms"},
    "nitransforms": {"transforms"},
    "templateflow": {"bids"},
    "nipype": {"interfaces", "workers", "runner", "stages", "cli"},
    "niworkflows": {"bids", "interfaces", "stages", "reports"},
    "numba": {"anatomy", "evaluation"},
    "cc3d": {"anatomy"},
    "requests": {"fetch"},
    "urllib3": {"fetch"},
    "psutil": {"interfaces", "resources", "cli"},
    "ants": {"programs"},
}


def imports(path: Path):
    """Modules that a file imports, wherever; those for annotations alone do not count."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def home_of(path: Path, package: Path = PACKAGE) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def layer_faults(package: Path):
    rank = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    for path in sorted(package.rglob("*.py")):
        home = home_of(path, package)
        for module in imports(path):
            if not module.startswith("brainseg_bids."):
                continue
            away = module.split(".")[1]
            if home in rank and away in rank and away != home and rank[away] >= rank[home]:
                yield f"{path.relative_to(package)} imports {away}"


def test_imports_point_from_the_outside_to_the_inside():
    assert list(layer_faults(PACKAGE)) == []


def test_heavy_libraries_stay_in_their_rooms():
    errors = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for module in imports(path)
        if (library := module.split(".")[0]) in RATIONED and home_of(path) not in RATIONED[library]
    ]
    assert errors == []


def test_every_file_has_its_place_in_the_drawing():
    known = set().union(*LAYERS) | {"__init__", "__main__", "data"}
    assert {home_of(path) for path in PACKAGE.rglob("*.py")} <= known


def test_a_wrong_arrow_would_be_seen(tmp_path):
    folder = tmp_path / "anatomy"
    folder.mkdir()
    (folder / "wrong.py").write_text("from brainseg_bids.cli.run import main\n")
    assert list(layer_faults(tmp_path)) == ["anatomy/wrong.py imports cli"]


def test_no_module_imports_in_a_circle():
    """Imports inside of functions and for types count too."""
    graph = import_graph(python_files(PACKAGE), PACKAGE.parent, top_level=False)
    assert circles(graph) == []
