# SPDX-License-Identifier: Apache-2.0
"""``brainseg doctor`` says what can be seen, and touches nothing."""

from __future__ import annotations

import shutil
import sys

import pytest

from brainseg_bids.cli import doctor
from brainseg_bids.interfaces.tools import tool_names
from brainseg_bids.nets import bundle as bundles
from brainseg_bids.nets.bundle import DEFAULT_MODEL, ModelBundle, find_bundle
from tests.fakes.tools import fake_command, install, on_path


def said(capsys, *argv: str) -> tuple[int, list[str], str]:
    """Exit code, lines on stdout, stderr."""
    code = doctor.main(list(argv))
    shown = capsys.readouterr()
    return code, shown.out.splitlines(), shown.err


def about(lines: list[str], name: str) -> tuple[list[str], str]:
    """The words of a tool's line, and the line below it."""
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == [name])
    return lines[at].split(), lines[at + 1].strip()


def test_every_tool_is_there_with_its_licence(capsys):
    code, lines, _ = said(capsys)
    assert code == 0
    for name in tool_names():
        words, _ = about(lines, name)
        assert len(words) > 2
    assert "MIT" in about(lines, "samseg")[0]


def test_a_tool_on_path_is_found_and_one_that_is_not_comes_with_a_remedy(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    on_path(monkeypatch, install(tmp_path / "bin", "charm"))
    _, lines, _ = said(capsys)
    words, below = about(lines, "charm")
    assert words[1] == "found"
    assert below == str(tmp_path / "bin" / "charm")
    words, below = about(lines, "samseg")
    assert words[1:3] == ["not", "found"]
    assert "make tools-samseg" in below


def test_versions_are_read_from_files_beside_a_tool(capsys, tmp_path, monkeypatch):
    on_path(monkeypatch, install(tmp_path / "env" / "bin", "samseg"))
    (tmp_path / "env/lib/python3.11/site-packages/samseg-0.4a0.dist-info").mkdir(parents=True)
    on_path(monkeypatch, install(tmp_path / "freesurfer" / "bin", "synthseg"))
    (tmp_path / "freesurfer" / "build-stamp.txt").write_text("freesurfer-linux-7.4.1\n")
    on_path(monkeypatch, install(tmp_path / "FastSurfer", "fastsurfer"))
    (tmp_path / "FastSurfer" / "BUILD.info").write_text("2.4.2+abc\n[branch]\n")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    _, lines, _ = said(capsys)
    assert about(lines, "samseg")[0][1:3] == ["found", "0.4a0"]
    assert about(lines, "synthseg")[0][1:3] == ["found", "freesurfer-linux-7.4.1"]
    assert about(lines, "fastsurfer")[0][1:3] == ["found", "2.4.2+abc"]


def test_a_given_command_is_looked_at(capsys):
    code, lines, _ = said(capsys, "--tool", f"gouhfi={fake_command('gouhfi')}")
    assert code == 0
    assert about(lines, "gouhfi")[1] == fake_command("gouhfi")


def test_a_given_command_without_a_program_is_a_fault(capsys):
    code, _, stderr = said(capsys, "--tool", "charm=no-such-program exec x.sif charm")
    assert code == 1
    assert "'no-such-program'" in stderr


@pytest.mark.parametrize("given", ["charm", "nope=x", "charm=", "charm='unclosed"])
def test_what_is_no_command_is_refused(given):
    with pytest.raises(SystemExit) as caught:
        doctor.main(["--tool", given])
    assert caught.value.code == 2


def test_the_packaged_model_is_told_by_its_digest(capsys):
    _, lines, _ = said(capsys)
    digest = ModelBundle.read(find_bundle(DEFAULT_MODEL)).digest
    words, _ = about(lines, DEFAULT_MODEL)
    assert words[1:3] == ["digest", digest[:12]]
    assert lines[-1] == "The packaged models can run here."


def test_a_damaged_model_is_an_error(capsys, tmp_path, monkeypatch):
    folder = shutil.copytree(find_bundle(DEFAULT_MODEL), tmp_path / DEFAULT_MODEL)
    (folder / "labels.tsv").write_text("index\tname\n0\tBackground\n")
    monkeypatch.setattr(bundles, "packaged_models", lambda: {DEFAULT_MODEL: folder})
    code, _, stderr = said(capsys)
    assert code == 1
    assert "labels.tsv" in stderr


def test_a_missing_model_or_package_is_an_error(capsys, monkeypatch):
    monkeypatch.setattr(bundles, "packaged_models", dict)
    monkeypatch.setattr(doctor, "NEEDED", ("numpy", "no_such_package"))
    code, _, stderr = said(capsys)
    assert code == 1
    assert f"model {DEFAULT_MODEL} is not in this installation" in stderr
    assert "pip install no_such_package" in stderr


@pytest.mark.parametrize("name", ["license.txt", ".license"])
def test_freesurfers_key_is_found_where_freesurfer_looks(tmp_path, name):
    (tmp_path / name).write_text("key")
    assert doctor.licence_state({"FREESURFER_HOME": str(tmp_path)}) == str(tmp_path / name)
    assert doctor.licence_state({"FS_LICENSE": str(tmp_path / name)}).endswith(name)
    assert "none seen" in doctor.licence_state({"FREESURFER_HOME": "/nowhere"})


def test_ants_templates_and_programs_that_fetch_are_listed(capsys, tmp_path, monkeypatch):
    image = tmp_path / "home" / "tpl-Made" / "tpl-Made_res-01_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"x")
    empty = tmp_path / "home" / "tpl-Known" / "tpl-Known_res-01_T1w.nii.gz"
    empty.parent.mkdir()
    empty.touch()
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    code, lines, _ = said(capsys)
    assert code == 0
    assert about(lines, "templates")[0] == ["templates", "Made", "in", str(tmp_path / "home")]
    for name in ("git", "git-annex", "datalad"):
        assert about(lines, name)[0] == [name, "not", "found"]
    program = tmp_path / "git-annex"
    program.write_text("")
    program.chmod(0o755)
    assert about(said(capsys)[1], "git-annex")[0][1] == str(program)


def test_a_command_for_ants_is_looked_at(capsys, tmp_path):
    python = f"{sys.executable} -m brainseg_bids.programs.register"
    code, lines, _ = said(capsys, "--tool", f"ants={python}")
    assert code == 0
    assert python in " ".join(about(lines, "ANTs")[0])
    code, _, error = said(capsys, "--tool", f"ants={tmp_path}/nothing")
    assert code == 1
    assert f"{tmp_path}/nothing" in error
