# SPDX-License-Identifier: Apache-2.0
"""What keeps content elsewhere is told from content, with a command that fits."""

from __future__ import annotations

import json
import shlex

import pytest

from brainseg_bids.pointers import fetch_all, fetch_command, pointer_kind, why_unfetched

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ANNEXED = "MD5E-s1234--d41d8cd98f00b204e9800998ecf8427e.nii.gz"


@pytest.fixture
def image(tmp_path):
    """Where an image would be, in a repository."""
    (tmp_path / "ds" / ".git").mkdir(parents=True)
    path = tmp_path / "ds" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    return path


def without(*missing):
    return lambda program: None if program in missing else f"/usr/bin/{program}"


def describe(root, doi):
    (root / "dataset_description.json").write_text(json.dumps({"DatasetDOI": doi}))


@pytest.mark.input(
    "files",
    "what git-annex leaves for content that is elsewhere: a text (unlocked) with the key's path",
    "refused before anything runs for it, with the command that fetches it",
    1,
)
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"/annex/objects/{ANNEXED}\n", "git-annex"),
        (f"../../.git/annex/objects/aa/bb/{ANNEXED}/{ANNEXED}", "git-annex"),
        (f".git/annex/objects/aa/bb/{ANNEXED}/{ANNEXED}\n", "git-annex"),
        (LFS, "git-LFS"),
        ("", ""),
        ("a note on /annex/objects/ of ours", ""),
        ("\x1f\x8b compressed", ""),
    ],
)
def test_small_texts_are_told_apart(image, text, kind):
    image.write_text(text)
    assert pointer_kind(image) == kind


@pytest.mark.input(
    "files",
    "what git-annex leaves for content that is elsewhere: a link into `.git/annex`",
    "refused before anything runs for it, with the command that fetches it",
    1,
)
def test_links_that_lead_nowhere_are_told_apart(image):
    image.symlink_to(f"../../.git/annex/objects/aa/bb/{ANNEXED}/{ANNEXED}")
    assert pointer_kind(image) == "git-annex"
    image.unlink()
    image.symlink_to("../elsewhere.nii.gz")
    assert pointer_kind(image) == ""


@pytest.mark.input("files", "a large file that begins like a pointer", "taken for content", 0)
def test_a_large_file_that_begins_like_a_pointer_is_content(image):
    image.write_text(f"/annex/objects/{ANNEXED}\n" + "x" * 40_000)
    assert pointer_kind(image) == ""


@pytest.mark.input(
    "files",
    "an empty file in a dataset of OpenNeuro",
    "refused, with the command that fetches it",
    1,
)
def test_an_empty_file_of_openneuro_can_be_had_again(image):
    image.write_bytes(b"")
    root = image.parents[2]
    describe(root, "10.18112/openneuro.ds005216.v1.1.0")
    assert why_unfetched(image) == (
        f"{image}: the file is empty. Fetch it with: "
        f"brainseg fetch ds005216 {root} --participant-label 01"
    )


def test_the_command_is_for_what_is_installed(image):
    root, path = image.parents[2], image
    assert fetch_command([path], "git-annex", which=without()).startswith(
        f"datalad get -d {root} {root}/sub-01/"
    )
    assert fetch_command([path], "git-annex", which=without("datalad")) == (
        f"git -C {root} annex get {image}"
    )
    describe(root, "doi:10.18112/openneuro.ds005216.v1.1.0")
    nothing = without("datalad", "git-annex")
    assert fetch_command([path], "git-annex", which=nothing) == (
        f"brainseg fetch ds005216 {root} --participant-label 01"
    )


@pytest.mark.input(
    "files",
    "a pointer of git-LFS",
    "refused before anything runs for it, with the command that fetches it",
    1,
)
def test_git_lfs_has_its_own_command(image):
    image.write_text(LFS)
    command = f"git -C {image.parents[2]} lfs pull --include=sub-01/anat/sub-01_T1w.nii.gz"
    assert why_unfetched(image).endswith(f"is not here (git-LFS). Fetch it with: {command}")


def test_one_command_gets_all_of_a_repository(image):
    image.write_text(LFS)
    other = image.with_name("sub-01_T2w.nii.gz")
    other.write_text(f"/annex/objects/{ANNEXED}\n")
    third = image.with_name("sub-01_FLAIR.nii.gz")
    third.write_text(f"/annex/objects/{ANNEXED}\n")
    commands = fetch_all([image, other, third])
    assert len(commands) == 2
    assert shlex.split(commands[1])[-2:] == [str(other), str(third)]


def test_a_space_in_a_path_does_not_split_the_command(tmp_path):
    image = tmp_path / "my data" / "sub-01_T1w.nii.gz"
    (tmp_path / "my data" / ".git").mkdir(parents=True)
    assert shlex.split(fetch_command([image], "git-annex", which=without()))[3] == str(
        image.parent
    )
