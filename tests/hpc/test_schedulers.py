# SPDX-License-Identifier: Apache-2.0
"""Several participants a job; PBS, LSF and Grid Engine by stand-ins of what submits there.

The stand-ins follow the manuals: they take a script from their input, print a number in the
system's own way, and run each task of an array with the variable that the system sets.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from brainseg_bids import __version__
from brainseg_bids.cli.parser import parse
from brainseg_bids.documents import InputError
from brainseg_bids.hpc import slurm as scripts
from brainseg_bids.hpc.profiles import read_profile
from tests.fakes import dataset

SUBMITS = """\
import os, re, subprocess, sys
from pathlib import Path
here = Path({here!r})
script = sys.stdin.read()
number = 100 + len(list(here.glob("job_*")))
(here / f"job_{{number}}").write_text(" ".join(sys.argv[1:]) + "\\n" + script)
prefix, pattern, variable, shown = {dialect!r}
lines = "\\n".join(line for line in script.splitlines() if line.startswith(prefix))
found = re.search(pattern, lines)
tasks = range(int(found[1]), int(found[2]) + 1) if found else [None]
print(shown.format(number))
for task in tasks:
    more = {{}} if task is None else {{variable: str(task)}}
    subprocess.run(["bash"], input=script, text=True, env=os.environ | more, check=True, cwd="/")
"""

DIALECTS = {
    "pbs": ("#PBS", r"-J (\d+)-(\d+)", "PBS_ARRAY_INDEX", "{}[].head"),
    "lsf": ("#BSUB", r"\[(\d+)-(\d+)\]", "LSB_JOBINDEX", "Job <{}> is submitted to queue <n>."),
    "sge": ("#$", r"-t (\d+)-(\d+)", "SGE_TASK_ID", "{}.1-2:1"),
}
WAITS = {
    "pbs": "-W depend=afterany:100[].head",
    "lsf": "-w ended(100)",
    "sge": "-hold_jid 100",
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = dataset.write_dataset(tmp_path / "da ta", *(f"sub-0{n}_T1w" for n in (1, 2, 3)))
    dataset.write_bundle(tmp_path / "model")
    return data


def script_of(study, *arguments, site=""):
    words = [str(study), "o$ut", "participant", "--model", str(study.parent / "model"), "--slurm"]
    tell = study.parent / "tell.py"
    tell.write_text(
        "import json, sys\n"
        f"with open({str(study.parent / 'told')!r}, 'a') as file:\n"
        "    file.write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )
    path = study.parent / "site.toml"
    path.write_text(f"program = {json.dumps([sys.executable, str(tell)])}\n{site}")
    return scripts.make_script(parse([*words, *arguments]), read_profile(str(path)))


def told(study):
    lines = (study.parent / "told").read_text().splitlines()
    return [parse(json.loads(line)) for line in lines]


def play(study, name, script):
    """Submit a script to a stand-in; the jobs that it was given."""
    folder = study.parent / "bin"
    folder.mkdir()
    program = folder / ("bsub" if name == "lsf" else "qsub")
    program.write_text(
        f"#!{sys.executable}\n" + SUBMITS.format(here=str(folder), dialect=DIALECTS[name])
    )
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash"], input=script, text=True, env=environment, check=True)
    return [path.read_text() for path in sorted(folder.glob("job_*"))]


@pytest.mark.parametrize("name", DIALECTS)
def test_others_run_every_participant_once_and_sum_up_after_them(study, name):
    site = f"scheduler = '{name}'\n[participant]\nat_once = 4\ntime = '1-02:00:00'\nmem = '3G'\n"
    script = script_of(study, "--participants-per-job", "2", site=site)
    array, group = play(study, name, script)
    *participants, last = told(study)
    assert [one.participant_label for one in participants] == [("01", "02"), ("03",)]
    assert [one.analysis_level for one in (*participants, last)] == ["participant"] * 2 + ["group"]
    assert group.splitlines()[0].replace("-terse ", "") == WAITS[name]
    assert re.search("26:00", array)
    assert re.search("3072M|mem=3072mb|384M", array)
    tasks = study.parent / "o$ut" / "logs" / name
    assert [path.read_text() for path in tasks.glob("tasks_*.txt")] == ["01 02\n03\n"]


def test_pbs_reads_a_path_with_spaces_as_one(study, monkeypatch):
    here = study.parent / "my results"
    here.mkdir()
    monkeypatch.chdir(here)
    script = script_of(study, site="scheduler = 'pbs'\n")
    lines = [line for line in script.splitlines() if line.startswith("#PBS -o")]
    logs = {tuple(shlex.split(line.removeprefix("#"))[2:]) for line in lines}
    assert logs == {(f"{here}/o$ut/logs/pbs/",)}


def test_an_array_of_one_is_none_for_pbs(study):
    script = script_of(study, "--participant-label", "02", site="scheduler = 'pbs'\n")
    assert " -J " not in script
    play(study, "pbs", script)
    assert told(study)[0].participant_label == ("02",)


@pytest.mark.parametrize(
    ("site", "named"),
    [
        ("scheduler = 'lsf'\nqos = 'long'\n", "qos"),
        ("pe = 'smp'\n", "pe"),
        ("scheduler = 'torque'\n", "torque"),
    ],
)
def test_a_key_that_a_system_has_no_word_for_is_refused(study, site, named):
    with pytest.raises(InputError, match=named):
        script_of(study, site=site)


def test_training_is_submitted_to_slurm_alone(study):
    path = study.parent / "site.toml"
    path.write_text("scheduler = 'pbs'\n")
    chosen = parse([str(study), "out", "group", "--stages", "train", "--slurm"])
    with pytest.raises(InputError, match="training"):
        scripts.make_script(chosen, read_profile(str(path)))


def test_slurms_tasks_hold_several_participants_each(study):
    script = script_of(study, "--participants-per-job", "2")
    (job,) = re.findall(r"<<'END_OF_JOB'\n(.*?participants.*?)\nEND_OF_JOB\n", script, re.DOTALL)
    assert "#SBATCH --array=0-1\n" in job
    for task in "01":
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": task}
        subprocess.run(["bash", "-c", job], check=True, env=environment)
    assert [one.participant_label for one in told(study)] == [("01", "02"), ("03",)]
    assert [one.work_dir.name for one in told(study)] == ["sub-01", "sub-03"]


def test_the_example_for_babs_has_flags_that_there_are(study):
    """BABS itself is not a dependency; its job script has these flags, each with its value."""
    path = Path(__file__).parents[2] / "docs" / "how-to" / "babs.yaml"
    config = yaml.safe_load(path.read_text())
    flags = config["bids_app_args"]
    selection = flags.pop("$SUBJECT_SELECTION_FLAG")
    words = [word for flag, value in flags.items() for word in (flag, value) if word]
    words = [word.replace("$BABS_TMPDIR", str(study.parent / "scratch")) for word in words]
    got = parse([str(study), "out", "participant", *words, selection, "sub-01"])
    assert got.participant_label == ("01",)
    assert got.nprocs == int(config["cluster_resources"]["number_of_cpus"])
    assert got.memory_gb < float(config["cluster_resources"]["hard_memory_limit"].rstrip("G"))
    assert config["zip_foldernames"]["brainseg"] == __version__.replace(".", "-")
