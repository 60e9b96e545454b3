# SPDX-License-Identifier: Apache-2.0
"""``--slurm``: scripts that say what the command said, and a real Slurm that runs them."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.cli.parser import parse
from brainseg_bids.cli.run import run
from brainseg_bids.documents import InputError
from brainseg_bids.hpc import slurm as scripts
from brainseg_bids.hpc.profiles import read_profile
from brainseg_bids.runner import check_plugin
from tests.fakes import dataset
from tests.hpc.cluster import running_slurm

ROOT = Path(__file__).parents[2]
FAKE_APP = [sys.executable, str(ROOT / "tests" / "fakes" / "app.py")]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Three participants, a folder with a name that bash would take apart, and a model."""
    monkeypatch.chdir(tmp_path)
    for program in ("APPTAINER", "SINGULARITY"):
        monkeypatch.delenv(f"{program}_CONTAINER", raising=False)
    data = dataset.write_dataset(
        tmp_path / "da ta", "sub-01_ses-A_T1w", "sub-02_ses-A_T1w", "sub-03_ses-A_T1w"
    )
    dataset.write_bundle(tmp_path / "mo'del")
    return data


def settings(study, *arguments, level="participant", slurm=True):
    words = [str(study), "o$ut", level, "--model", str(study.parent / "mo'del")]
    return parse([*words, *(["--slurm"] if slurm else []), *map(str, arguments)])


def profile(study, text=""):
    path = study.parent / "site.toml"
    path.write_text(text)
    return path


def tell(study):
    """A program that writes down how it was called, as a line of a profile."""
    program = study.parent / "tell.py"
    program.write_text(
        "import json, os, sys\n"
        f"with open({str(study.parent / 'told.json')!r}, 'a') as file:\n"
        "    file.write(json.dumps([sys.argv[1:], dict(os.environ)]) + '\\n')\n"
    )
    return f"program = {json.dumps([sys.executable, str(program)])}\n"


def jobs_of(script):
    """The scripts that are handed to sbatch."""
    return re.findall(r"<<'END_OF_JOB'\n(.*?)\nEND_OF_JOB\n", script, flags=re.DOTALL)


def play(study, job, **environment):
    """Run a job's script as Slurm would; what its program was told."""
    environment = os.environ | {"SLURM_JOB_ID": "7"} | environment
    subprocess.run(["bash", "-c", job], check=True, env=environment, cwd="/")
    lines = (study.parent / "told.json").read_text().splitlines()
    return json.loads(lines[-1])


def written(study, *arguments, site="", **choice):
    path = profile(study, tell(study) + site)
    return script_of(settings(study, *arguments, **choice), path)


def script_of(chosen, profile):
    return scripts.make_script(chosen, read_profile(str(profile)))


# -- the command of each job --------------------------------------------------------------


RICH = [
    [],
    ["--session-label", "A", "B", "--probseg", "-vv", "--debug", "--mem", "12.5G",
     "--no-test-time-flips"],
    ["--nprocs", "6", "--omp-nthreads", "3", "--contrasts", "T1w", "T2w", "--write-graph"],
    ["--stages", "segment", "headlabels", "--brain-tool", "samseg", "--tool-timeout", "2.5",
     "--tool", "samseg=apptainer exec 'my image.sif' run_samseg"],
    ["--stages", "headlabels", "--head-tool", "samseg", "--brain-tool", "model"],
    ["--stages", "headlabels", "upsample", "--target-voxel-size", "0.4", "0.4", "0.8",
     "--keep-thin", "--smoothing", "0.1"],
    ["--stages", "contrast", "--labels", "fullhead", "-d", "fullhead=."],
    ["--bids-database-dir", "d b", "--stop-on-first-crash", "--resource-monitor", "--offline"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", RICH, ids=lambda words: " ".join(words)[:30])
def test_each_job_gets_every_flag_of_the_command(study, arguments):
    (array, *_) = jobs_of(written(study, *arguments))
    argv, _ = play(study, array, SLURM_ARRAY_TASK_ID="1")
    expected = settings(study, *arguments, slurm=False)
    usual = {} if "--nprocs" in arguments else {"nprocs": 8, "omp_nthreads": 8}
    got = parse(argv)
    expected = replace(
        expected,
        participant_label=("02",),
        work_dir=expected.work_dir / "sub-02",
        memory_gb=expected.memory_gb or got.memory_gb,
        **usual,
    )
    assert got == expected


def test_a_filter_file_is_kept_as_it_was_when_the_jobs_were_made(study):
    filters = study.parent / "filters.json"
    filters.write_text('{"t1w": {"run": null, "acquisition": "a b"}}')
    (array, *_) = jobs_of(written(study, "--bids-filter-file", filters))
    filters.write_text("{}")
    argv, _ = play(study, array, SLURM_ARRAY_TASK_ID="0")
    assert parse(argv).bids_filters == {"t1w": {"run": None, "acquisition": "a b"}}


def test_what_a_settings_file_says_is_repeated(study):
    (study.parent / "earlier.toml").write_text("probseg = true\nnprocs = 3\nomp_nthreads = 3\n")
    (array, *_) = jobs_of(written(study, "--config-file", study.parent / "earlier.toml"))
    argv, _ = play(study, array, SLURM_ARRAY_TASK_ID="0")
    assert parse(argv).probseg
    assert "#SBATCH --cpus-per-task=3" in array


def test_the_group_job_sums_up_whoever_was_asked_for(study):
    script = written(study, "--participant-label", "01", "03", "--session-label", "A")
    array, group = jobs_of(script)
    assert "#SBATCH --array=0-1\n" in array
    argv, _ = play(study, group)
    got = parse(argv)
    assert (got.analysis_level, got.stages) == ("group", ("summary",))
    assert (got.participant_label, got.session_label) == (("01", "03"), ("A",))
    assert 'sbatch --dependency="afterany$jobs"' in script


def test_measuring_alone_leaves_nothing_to_sum_up(study):
    assert len(jobs_of(written(study, "--stages", "contrast"))) == 1


def test_more_participants_than_an_array_holds_become_several(study, monkeypatch):
    monkeypatch.setattr(scripts, "LARGEST_ARRAY", 2)
    first, second, _ = jobs_of(written(study))
    assert "--array=0-1\n" in first
    assert "--array=0-0\n" in second
    assert play(study, second, SLURM_ARRAY_TASK_ID="0")[0][4] == "03"


# -- resources ----------------------------------------------------------------------------


def asked(job, option):
    return re.findall(rf"#SBATCH --{option}=(.*)", job)[0]


def test_memory_follows_the_largest_image_and_the_network(study, monkeypatch):
    monkeypatch.setattr("brainseg_bids.stages.models._check_network", lambda bundle: None)
    unknown = jobs_of(written(study))[0]  # a bundle that does not say what network it holds
    assert asked(unknown, "mem") == "6144M"
    assert "--mem 5632M" in unknown  # the app plans with less than the job has
    manifest = study.parent / "mo'del" / "bundle.json"
    net = {"architecture": "dynunet", "stem": 2, "features": 24, "options": {"widths": [24]}}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"net": net}))
    small = jobs_of(written(study))[0]
    assert asked(small, "mem") == "3072M"  # 1.3 GiB were measured in all at 256 cubed, with flips
    anat = study / "sub-03" / "ses-A" / "anat"
    with (anat / "sub-03_ses-A_T2w.nii").open("wb") as file:  # 640 cubed, all holes
        header = nib.Nifti1Header()
        header.set_data_shape((640,) * 3)
        header.set_sform(np.diag([0.4, 0.4, 0.4, 1]), code=1)
        header.set_zooms((0.4,) * 3)
        header.write_to(file)
        file.truncate(352 + 4 * 640**3)
    assert int(asked(jobs_of(written(study))[0], "mem")[:-1]) >= 6144


def test_the_users_memory_and_cpus_win_over_the_profile(study):
    site = "[participant]\ncpus = 4\nmem = '30G'\nat_once = 5\n"
    by_site = jobs_of(written(study, site=site))[0]
    assert (asked(by_site, "cpus-per-task"), asked(by_site, "mem")) == ("4", "30G")
    assert asked(by_site, "array") == "0-2%5"
    by_user = jobs_of(written(study, "--nprocs", "2", "--mem", "5G", site=site))[0]
    assert (asked(by_user, "cpus-per-task"), asked(by_user, "mem")) == ("2", "5120M")


def test_a_profile_says_where_and_how(study):
    site = """
        prologue = ["export FROM_PROLOGUE=$NAMED"]
        scratch = "$FAST/x"
        partition = "one"
        options = ["--mail-type=END"]
        [environment]
        NAMED = 'a "b" $SLURM_JOB_ID'
        [participant]
        partition = "two"
        gpus = 1
        gres = "gpu:a100:{gpus}"
        time = "1-02:00:00"
        options = ["--exclusive"]
    """
    fast = study.parent / "fast"
    array, group = jobs_of(written(study, site=site))
    assert asked(array, "partition") == "two"
    assert asked(group, "partition") == "one"
    for line in ("--gres=gpu:a100:1", "--time=1-02:00:00", "--mail-type=END", "--exclusive"):
        assert f"#SBATCH {line}\n" in array
    argv, environment = play(study, array, SLURM_ARRAY_TASK_ID="2", FAST=str(fast))
    assert environment["NAMED"] == environment["FROM_PROLOGUE"] == 'a "b" 7'
    assert parse(argv).work_dir == fast / "x" / "sub-03"


@pytest.mark.parametrize("program", ["apptainer", "singularity"])
def test_a_container_sees_its_folders_and_its_environment(study, monkeypatch, program):
    monkeypatch.setenv("IMAGES", "/sw")
    site = f"""
        program = ["{program}", "run", "--cleanenv", "-B", "{{folders}}", "$IMAGES/brainseg.sif"]
        environment.MIOPEN_FIND_MODE = "FAST"
    """
    path = profile(study, site)
    script = script_of(settings(study), path)
    fake = study.parent / "bin" / program
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$@" > {study.parent}/said\nenv >> {study.parent}/said'
    )
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "8"}
    environment["SLURM_ARRAY_JOB_ID"] = "7"
    subprocess.run(["bash", "-c", jobs_of(script)[0]], check=True, env=environment)
    said = (study.parent / "said").read_text().splitlines()
    bound = said[said.index("-B") + 1].split(",")
    assert {str(study), str(study.parent / "o$ut"), str(study.parent / "mo'del")} < set(bound)
    assert said[said.index("-B") + 2] == "/sw/brainseg.sif"
    # SingularityCE knows variables by its own name only.
    names = ("MIOPEN_FIND_MODE=FAST", "SLURM_ARRAY_JOB_ID=7", "SLURM_ARRAY_TASK_ID=0")
    assert {f"{program.upper()}ENV_{name}" for name in names} < set(said)


@pytest.mark.parametrize("site", ["", "scheduler = 'pbs'\n"])
def test_a_container_of_the_group_level_sees_ratings_and_its_scratch_folder(study, site):
    ratings, fast = study.parent / "rat ings", study.parent / "fast"
    ratings.mkdir()
    site += tell(study).replace("program = [", 'program = ["env", "SEEN={folders}", ')
    words = [str(study), "out", "group", "--slurm", "--ratings", str(ratings)]
    (job,) = jobs_of(script_of(parse(words), profile(study, f'{site}scratch = "$FAST/x"\n')))
    _, environment = play(study, job, FAST=str(fast))
    assert {str(ratings), str(fast / "x")} < set(environment["SEEN"].split(","))
    assert (fast / "x").is_dir()


@pytest.mark.parametrize(
    ("told", "program"),
    [(("APPTAINER", "SINGULARITY"), "apptainer"), (("SINGULARITY",), "singularity")],
)
def test_inside_a_container_the_jobs_run_the_same_image(study, monkeypatch, told, program):
    for name in told:
        monkeypatch.setenv(f"{name}_CONTAINER", "/sw/our image.sif")
    script = script_of(settings(study), "default")
    assert f"exec {program} run --cleanenv -B" in script
    assert "'/sw/our image.sif'" in script


@pytest.mark.parametrize("name", ["a,b", "a:b"])
def test_a_folder_that_a_container_cannot_be_told_is_refused(study, name):
    site = 'program = ["apptainer", "run", "-B", "{folders}", "brainseg.sif"]'
    chosen = replace(settings(study), output_dir=study.parent / name)
    with pytest.raises(InputError, match=f"{name}: commas"):
        script_of(chosen, profile(study, site))


@pytest.mark.parametrize("name", ["default", "a100", "mi300a"])
@pytest.mark.parametrize("level", [["participant"], ["group", "--stages", "train"]])
def test_packaged_profiles_make_scripts_that_bash_can_read(study, name, level):
    chosen = settings(study, *level[1:], level=level[0])
    script = script_of(replace(chosen, slurm_profile=name), name)
    for text in (script, *jobs_of(script)):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("partiton = 'x'", "unknown key 'partiton'"),
        ("[participant]\nmemory = '3G'", "participant.: unknown key 'memory'"),
        ("[participant]\ngpus = '1'", "give a whole number"),
        ("[train]\ngpus = true", "give a whole number"),
        ("prologue = 'module load x'", "prologue is .module load x.: give a list"),
        ('prologue = ["a\\nb"]', "line break"),
        ("[group]\ntime = 'soon'", "give e.g. 04:00:00"),
        ("environment = {A = 1}", "environment has A"),
        ("environment = {'A-B' = 'x'}", "not a name of a variable"),
        ("participant = 3", "participant is 3"),
        ("[participant]\nmem = 'lots'", "lots"),
        ("no toml", "not valid TOML"),
    ],
)
def test_a_profile_that_means_nothing_is_refused_by_name(study, text, named):
    path = profile(study, text)
    with pytest.raises(InputError, match=named):
        script_of(settings(study), path)


# -- training -----------------------------------------------------------------------------


def train_job(study, *arguments, site="[train]\ngpus = 2\ncpus = 3\n"):
    script = written(study, "--stages", "train", *arguments, level="group", site=site)
    (job,) = jobs_of(script)
    return job


def test_training_asks_for_nodes_and_a_task_per_accelerator(study):
    job = train_job(study, "--nodes", "2", "--steps", "70", "--name", "mp2rage")
    assert asked(job, "nodes") == "2"
    assert asked(job, "ntasks-per-node") == asked(job, "gpus-per-node") == "2"
    assert asked(job, "cpus-per-task") == "3"
    assert asked(job, "signal") == "B:USR1@300"
    assert "#SBATCH --requeue\n" in job
    command = job.split("--wait=1800 ")[1].split(" &\n")[0]
    got = parse(shlex.split(command.replace("\\\n", " "))[2:])
    assert (got.devices, got.nodes, got.steps, got.model_name) == (2, 2, 70, "mp2rage")


def test_training_on_the_cpu_asks_for_no_accelerator(study):
    assert "gpus" not in train_job(study, "--device", "cpu", "--devices", "2").split("srun")[0]


def play_training(study, job, srun, *, after_s=None, sent=signal.SIGUSR1, restarts="0"):
    """Run the script with stand-ins for srun and scontrol; exit code and what they were told."""
    folder = study.parent / "bin"
    folder.mkdir(exist_ok=True)
    said = study.parent / "said"
    said.write_text("")
    for name, body in (
        ("srun", srun),
        ("scontrol", f'echo "scontrol $@" >> {said}'),
        ("sleep", "true"),
    ):
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": restarts,
        "SAID": str(said),
    }
    process = subprocess.Popen(["bash", "-c", job], env=environment)
    if after_s is not None:
        while "ready" not in said.read_text():
            time.sleep(0.05)
        process.send_signal(sent)
    return process.wait(timeout=20), said.read_text()


WORKING = (
    "trap 'echo told >> $SAID; exit 75' USR1\ntrap 'exit 130' TERM\necho ready >> $SAID\n"
    "while :; do /bin/sleep 0.05; done"
)


def test_the_signal_reaches_the_training_and_the_job_goes_back_into_the_queue(study):
    code, said = play_training(study, train_job(study), WORKING, after_s=0)
    assert said.splitlines() == ["ready", "told", "scontrol requeue 7"]
    assert code == 75


def test_a_cancelled_training_is_not_put_back(study):
    code, said = play_training(study, train_job(study), WORKING, after_s=0, sent=signal.SIGTERM)
    assert (code, "requeue" in said) == (130, False)


@pytest.mark.parametrize(("ends", "restarts"), [(0, "0"), (1, "0"), (75, "0")])
def test_a_training_that_has_ended_or_failed_is_not_put_back(study, ends, restarts):
    code, said = play_training(study, train_job(study), f"exit {ends}", restarts=restarts)
    assert (code, said) == (ends, "")


def test_a_training_that_was_put_back_too_often_is_left(study):
    code, said = play_training(study, train_job(study), WORKING, after_s=0, restarts="100")
    assert (code, said.splitlines()) == (75, ["ready", "told"])


# -- handing it over ----------------------------------------------------------------------


def test_printing_prints_the_script_alone(study, capsys):
    assert run(settings(study)) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n")


def with_sbatch(study, monkeypatch, body):
    folder = study.parent / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(f"#!/bin/bash\ncat > /dev/null\n{body}\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_submitting_tells_the_numbers_of_the_jobs(study, monkeypatch, capfd):
    body = 'case "$*" in --parsable) echo "42;far";; *) echo "Submitted batch job 43 $*";; esac'
    with_sbatch(study, monkeypatch, body)
    assert run(settings(study, "--submit")) == 0
    said = capfd.readouterr().out.splitlines()
    assert said == ["brainseg: job 42", "Submitted batch job 43 --dependency=afterany:42"]
    assert (study.parent / "o$ut" / "logs" / "slurm").is_dir()


def test_what_slurm_refuses_is_a_failure(study, monkeypatch, capfd):
    with_sbatch(study, monkeypatch, "echo 'invalid partition' >&2; exit 1")
    assert run(settings(study, "--submit")) == 1
    said = capfd.readouterr().err
    assert "invalid partition" in said
    assert "Slurm refused it" in said


def test_without_sbatch_nothing_is_submitted(study, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(study))
    assert run(settings(study, "--submit")) == 127
    (line,) = capsys.readouterr().err.splitlines()
    assert "no program sbatch" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--participant-label", "09"], "no participant 09"),
        (["--model", "nowhere"], "nowhere"),
        (["--slurm-profile", "nowhere"], "default, mi300a"),
    ],
)
def test_what_no_job_could_do_is_said_before_any_is_made(study, capsys, arguments, named):
    assert run(settings(study, *arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


@pytest.mark.parametrize("flags", [["--submit"], ["--slurm-profile", "a100"]])
def test_flags_of_slurm_alone_are_refused_without_it(study, flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        settings(study, *flags, slurm=False)
    assert f"{flags[0]} needs --slurm" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SLURMGraph", "PBSGraph", "SGEGraph", "CondorDAGMan"])
def test_plugins_that_return_before_their_jobs_have_ended_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} .*--slurm"):
        check_plugin({"plugin": name})


def test_a_plugin_that_there_is_not_or_that_cannot_submit_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for plugin, named in (("Slurm", "no plugin 'Slurm'"), ("SLURM", "needs the program sbatch")):
        with pytest.raises(ValueError, match=named):
            check_plugin({"plugin": plugin})


# -- a real Slurm -------------------------------------------------------------------------

really = [
    pytest.mark.external,
    pytest.mark.skipif(
        not os.environ.get("BRAINSEG_EXTERNAL"), reason="set BRAINSEG_EXTERNAL=1 to start Slurm"
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with running_slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(slurm, study, *arguments, site=""):
    text = f"program = {json.dumps(FAKE_APP)}\nenvironment.PYTHONPATH = '{ROOT}'\n{site}"
    path = profile(study, text)
    words = [str(study), str(study.parent / "o$ut"), "participant", "--slurm", "--submit"]
    words += ["--model", str(study.parent / "mo'del"), "--nprocs", "1", "--mem", "3G"]
    words += ["--slurm-profile", str(path), *arguments]
    return subprocess.run(
        [sys.executable, "-m", "brainseg_bids", *words], capture_output=True, text=True,
        env=slurm.environment | {"PYTHONPATH": str(ROOT)}, cwd=study.parent, timeout=60,
    )  # fmt: skip


def test_slurm_runs_three_participants_one_broken_and_sums_up_the_others(slurm, study):
    image = study / "sub-02" / "ses-A" / "anat" / "sub-02_ses-A_T1w.nii.gz"
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    done = submit(slurm, study)
    assert done.returncode == 0, done.stderr
    array, group = re.findall(r"job (\d+)", done.stdout)
    jobs = slurm.wait(600)
    ends = [jobs[f"{array}_{task}"]["ExitCode"] for task in range(3)] + [jobs[group]["ExitCode"]]
    output = study.parent / "o$ut"
    logs = {p.name: p.read_text() for p in (output / "logs" / "slurm").glob("*.log")}
    assert ends == ["0:0", "1:0", "0:0", "0:0"], logs
    assert set(logs) == {f"{array}_{task}.log" for task in range(3)} | {f"group_{group}.log"}
    assert "T1w: failed" in logs[f"{array}_1.log"]
    pages = {page.name for page in output.glob("*.html")}
    assert pages == {"sub-01.html", "sub-02.html", "sub-03.html", "group.html"}
    rows = (output / "group_seg-brainseg_desc-volumes_morph.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows[1:]] == ["sub-01", "sub-03"]
    dataset.assert_valid_bids(output)


def test_slurm_is_given_again_what_failed_and_nothing_else(slurm, study):
    image = study / "sub-02" / "ses-A" / "anat" / "sub-02_ses-A_T1w.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    assert submit(slurm, study, "--participants-per-job", "2").returncode == 0
    slurm.wait(600)
    command = [sys.executable, "-m", "brainseg_bids", "status", "o$ut", "--json"]
    where = {"env": slurm.environment | {"PYTHONPATH": str(ROOT)}, "cwd": study.parent}
    seen = subprocess.run(command, capture_output=True, text=True, **where)
    assert seen.returncode == 1
    states = {one["participant"]: one["state"] for one in json.loads(seen.stdout)}
    assert states == {"sub-01": "done", "sub-02": "failed", "sub-03": "done"}
    image.write_bytes(whole)
    again = submit(slurm, study, "--participants-per-job", "2", "--resubmit-failed")
    number = re.findall(r"brainseg: job (\d+)", again.stdout)[0]
    assert (study.parent / f"o$ut/logs/slurm/tasks_{number}.txt").read_text() == "02\n"
    slurm.wait(600)
    seen = subprocess.run(command, capture_output=True, text=True, **where)
    assert seen.returncode == 0
    assert {one["state"] for one in json.loads(seen.stdout)} == {"done"}


def test_nipypes_own_plugin_runs_its_steps_as_jobs(slurm, study):
    plugin = study.parent / "plugin.yml"
    plugin.write_text("plugin: SLURM\nplugin_args: {sbatch_args: '--time=5', max_jobs: 2}\n")
    words = [str(study), "out", "participant", "--model", str(study.parent / "mo'del")]
    words += ["--participant-label", "01", "--use-plugin", str(plugin)]
    before = len(slurm.jobs())
    done = subprocess.run(
        [*FAKE_APP, *words], capture_output=True, text=True,
        env=slurm.environment | {"PYTHONPATH": str(ROOT)}, cwd=study.parent, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert len(slurm.jobs()) - before >= 5
    assert (study.parent / "out" / "sub-01.html").is_file()


def test_slurm_stops_a_training_in_time_and_starts_it_again(slurm, study):
    seen = study.parent / "seen"
    program = study.parent / "train.py"
    program.write_text(
        "import os, signal, sys, time\n"
        f"seen = open({str(seen)!r}, 'a')\n"
        "def stop(*_):\n    print('saved', file=seen, flush=True); sys.exit(75)\n"
        "signal.signal(signal.SIGUSR1, stop)\n"
        "print('begun', file=seen, flush=True)\n"
        "if os.environ.get('SLURM_RESTART_COUNT'): sys.exit(0)\n"
        "time.sleep(100)\n"
    )
    site = f"program = {json.dumps([sys.executable, str(program)])}\n[train]\ncpus = 1\n"
    chosen = settings(study, "--stages", "train", level="group")
    script = script_of(chosen, profile(study, site))
    done = subprocess.run(
        ["bash"], input=script, capture_output=True, text=True, env=slurm.environment
    )
    (job,) = re.findall(r"job (\d+)", done.stdout)
    end = time.monotonic() + 30
    while not seen.exists() or "begun" not in seen.read_text():
        assert time.monotonic() < end, slurm.jobs()[job]
        time.sleep(0.2)
    time.sleep(0.5)
    slurm.ask("scancel", "--batch", "--signal=USR1", job)  # what --signal=B: does in time
    jobs = slurm.wait(180)
    assert seen.read_text().splitlines() == ["begun", "saved", "begun"]
    assert (jobs[job]["ExitCode"], jobs[job]["Restarts"]) == ("0:0", "1")


for _test in (
    test_slurm_runs_three_participants_one_broken_and_sums_up_the_others,
    test_slurm_is_given_again_what_failed_and_nothing_else,
    test_nipypes_own_plugin_runs_its_steps_as_jobs,
    test_slurm_stops_a_training_in_time_and_starts_it_again,
):
    _test.pytestmark = really


@pytest.mark.input(
    "names",
    "`--slurm` with a participant called `sub-CON-01`",
    "not in the script, and reported",
    1,
)
def test_a_label_that_is_none_is_in_no_script_and_told(study, capsys):
    (study / "sub-CON-01" / "anat").mkdir(parents=True)
    try:
        assert run(settings(study)) == 1
        said = capsys.readouterr()
        assert "CON-01" not in said.out
        assert said.out.startswith("#!/bin/bash\n")
        (line,) = said.err.splitlines()
        assert "'CON-01'" in line
    finally:
        (study / "sub-CON-01" / "anat").rmdir()
        (study / "sub-CON-01").rmdir()
