# SPDX-License-Identifier: Apache-2.0
"""What the census counts."""

from benchmarks.census import circles, duplicates, import_graph, prose_checks

LOOP = """\
def total(rows):
    most = 0
    for row in rows:
        if row > most:
            most = row
    return most + 1
"""


def test_modules_that_import_each_other_are_a_circle(tmp_path):
    deferred = "def f():\n    from package.one import g\n"
    files = {
        tmp_path / "package/one.py": "from package import two\n",
        tmp_path / "package/two.py": deferred,
        tmp_path / "package/three.py": "import package.one\n",
    }
    both = [["package.one", "package.two"]]
    assert circles(import_graph(files, tmp_path, top_level=False)) == both
    assert circles(import_graph(files, tmp_path, top_level=True)) == []


def test_the_same_code_with_other_names_is_a_duplicate(tmp_path):
    renamed = LOOP.replace("rows", "lines").replace("most", "best").replace("0", "7")
    assert duplicates({tmp_path / "a.py": LOOP, tmp_path / "b.py": renamed}) == ["a.py ~ b.py"]
    longer = renamed.replace("best + 1", "best + 1 - 1")
    assert duplicates({tmp_path / "a.py": LOOP, tmp_path / "b.py": longer}) == []


def test_declarations_can_be_left_out(tmp_path):
    fields = "\n".join(
        f"    field_{k}: {'list' if k % 2 else 'list[int]'} = {k}" for k in range(6)
    )
    one = f"@dataclass\nclass One:\n{fields}\n"
    files = {tmp_path / "a.py": one, tmp_path / "b.py": one.replace("One", "Two")}
    assert duplicates(files) == ["a.py ~ b.py"]
    assert duplicates(files, declarations=False) == []
    assert duplicates({path: text + LOOP for path, text in files.items()}, declarations=False) == [
        "a.py ~ b.py"
    ]


def test_only_sentences_are_prose(tmp_path):
    prose = 'def test():\n    assert "there is no such file" in said\n'
    name = 'def test():\n    assert "sub-01_T1w.nii.gz" in said\n'
    assert prose_checks({tmp_path / "a.py": prose, tmp_path / "b.py": name}) == 1
