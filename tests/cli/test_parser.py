# SPDX-License-Identifier: Apache-2.0
"""Command line to settings, and what is refused before anything is done."""

import json
import tempfile
from pathlib import Path

import pytest

from brainseg_bids.cli.parser import parse
from brainseg_bids.settings import Settings, SettingsError
from tests.fakes.dataset import write_dataset


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_dataset(tmp_path / "data")


@pytest.fixture
def said(data, tmp_path, capsys):
    """What is said on stderr for arguments that are refused with exit code 2."""

    def refuse(*arguments, output="out", level="participant"):
        with pytest.raises(SystemExit) as caught:
            parse([str(data), str(output), level, *map(str, arguments)])
        assert caught.value.code == 2
        return capsys.readouterr().err

    return refuse


def settings_of(data, *arguments, level="participant"):
    return parse([str(data), "out", level, *map(str, arguments)])


@pytest.mark.parametrize(
    ("spellings", "value", "field", "expected"),
    [
        (["--participant-label", "--participant_label"], "sub-01", "participant_label", ("01",)),
        (["--session-label", "--session-id"], "ses-A", "session_label", ("A",)),
        (["--nprocs", "--nthreads", "--n_cpus", "--n-cpus"], "3", "nprocs", 3),
        (["--mem", "--mem_mb", "--mem-mb"], "4G", "memory_gb", 4.0),
        (["--mem"], "2048", "memory_gb", 2.0),
        (["--omp-nthreads"], "2", "omp_nthreads", 2),
        (["--skip-bids-validation", "--skip_bids_validation"], None, "skip_bids_validation", True),
        (["--boilerplate-only", "--boilerplate_only"], None, "boilerplate_only", True),
        (["--device"], "cuda", "device", "cuda"),
        (["--contrasts"], "UNIT1", "contrasts", ("UNIT1",)),
        (["--stages"], "segment", "stages", ("segment",)),
        (["-v", "--verbose"], None, "verbose", 1),
    ],
)
def test_every_spelling_sets_its_setting(data, spellings, value, field, expected):
    for spelling in spellings:
        arguments = [spelling] if value is None else [spelling, value]
        assert getattr(settings_of(data, *arguments), field) == expected


def test_tools_and_derivatives_are_named(data, said, tmp_path):
    settings = settings_of(
        data, "--stages", "headlabels", "--head-tool", "samseg",
        "--tool", "samseg=apptainer exec 'my image.sif' run_samseg",
        "--tool", "charm=/opt/charm", "-d", "freesurfer=data", tmp_path, "--tool-timeout", "1.5",
    )  # fmt: skip
    assert settings.tools["samseg"] == ["apptainer", "exec", "my image.sif", "run_samseg"]
    assert settings.derivatives == {
        "freesurfer": str(tmp_path / "data"), tmp_path.name: str(tmp_path)
    }  # fmt: skip
    assert settings.tool_timeout_h == 1.5
    assert Settings.from_toml(settings.to_toml()) == settings
    assert "'sam'" in said("--tool", "sam=x")
    assert "give a command" in said("--tool", "samseg=")
    assert "given twice" in said("-d", "a=data", "a=data")
    assert "no such folder" in said("-d", "a=nowhere")
    assert "hours above 0" in said("--tool-timeout", "-1")


def test_flips_are_the_default_and_can_be_denied(data, said, tmp_path):
    assert settings_of(data).test_time_flips is True
    assert settings_of(data, "--test-time-flips").test_time_flips is True
    assert settings_of(data, "--no-test-time-flips").test_time_flips is False
    (tmp_path / "config.toml").write_text("test_time_flips = false\n")
    stored = ("--config-file", tmp_path / "config.toml")
    assert settings_of(data, *stored).test_time_flips is False
    assert settings_of(data, *stored, "--test-time-flips").test_time_flips is True
    heads = ("--stages", "headlabels", "--no-test-time-flips")  # by our own model, too
    assert settings_of(data, *heads).test_time_flips is False
    assert "--stages segment" in said("--stages", "upsample", "--no-test-time-flips")


def test_the_brain_tool_is_the_head_tool_unless_said_otherwise(data):
    assert settings_of(data).brain_tool == "model"
    heads = ("--stages", "headlabels", "--head-tool")
    assert settings_of(data, *heads, "samseg").brain_tool == "samseg"
    both = settings_of(data, *heads, "charm", "--brain-tool", "synthseg")
    assert (both.head_tool, both.brain_tool) == ("charm", "synthseg")


def test_a_flag_of_a_stage_that_is_not_run_is_refused(said):
    assert "--stages headlabels" in said("--head-tool", "samseg")
    assert "--stages upsample" in said("--target-voxel-size", "0.5")
    assert "--stages upsample" in said("--stages", "headlabels", "--keep-thin")


def test_a_licence_file_that_is_not_there_is_126(data, capsys):
    with pytest.raises(SystemExit) as ended:
        settings_of(data, "--fs-license-file", "none.txt")
    assert ended.value.code == 126
    assert "none.txt:" in capsys.readouterr().err


def test_what_other_apps_accept_is_accepted(data):
    settings = settings_of(data, "--notrack", "--md-only-boilerplate")
    assert settings == settings_of(data)


def test_folders_become_absolute_and_are_made(data, tmp_path):
    settings = settings_of(data)
    assert settings.output_dir == tmp_path / "out"
    assert settings.work_dir == tmp_path / "work"
    assert settings.output_dir.is_dir()


def test_settings_survive_toml(data, tmp_path):
    filters = tmp_path / "filters.json"
    filters.write_text(json.dumps({"t1w": {"run": None, "acquisition": "*", "session": ["A"]}}))
    settings = settings_of(
        data, "--bids-filter-file", filters, "--mem", "3G", "--participant-label", "01", "02"
    )
    assert settings.bids_filters["t1w"]["run"] is None
    assert Settings.from_toml(settings.to_toml()) == settings


def test_a_config_file_gives_defaults_and_the_command_line_wins(data, tmp_path):
    stored = settings_of(data, "--nprocs", "7", "--probseg", "--participant-label", "01")
    path = tmp_path / "settings.toml"
    path.write_text(stored.to_toml())
    settings = settings_of(data, "--config-file", path, "--participant-label", "02")
    assert settings.nprocs == 7
    assert settings.probseg
    assert settings.participant_label == ("02",)


@pytest.mark.parametrize(
    ("text", "named"),
    [("x =", "not valid TOML"), ("wrong = 1", "wrong"), ('nprocs = "x"', "nprocs")],
)
def test_a_config_file_that_cannot_be_used_is_refused(said, tmp_path, text, named):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    assert named in said("--config-file", path)
    with pytest.raises(SettingsError, match=named):
        Settings.from_toml(text)


def test_stages_belong_to_their_level(data, said):
    assert settings_of(data).stages == ("segment",)
    assert settings_of(data, level="group").stages == ("summary",)
    assert "group level" in said("--stages", "summary")
    assert "participant level" in said("--stages", "segment", level="group")
    assert settings_of(data, "--stages", "headlabels").stages == ("headlabels",)
    assert settings_of(data, "--stages", "upsample").target_voxel_size_mm == ()
    assert "no such stage" in said("--stages", "dream")
    assert "no such stage" in said("--stages", "dream", level="group")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--device", "tpu"], "tpu"), (["--nprocs", "0"], "--nprocs"), (["--mem", "lots"], "lots"),
        (["--participant-label", "a_b"], "a_b"),
        (["--bids-filter-file", "none.json"], "none.json"),
        (["--use-plugin", "none.yml"], "none.yml"), (["--config-file", "none.toml"], "none.toml"),
    ],
)  # fmt: skip
def test_an_argument_that_means_nothing_is_refused_by_name(said, arguments, named):
    assert named in said(*arguments)


def test_output_inside_the_input_is_refused_but_for_derivatives(data, said):
    assert "input dataset" in said(output=data)
    assert "inside the input" in said(output=data / "sub-01" / "out")
    assert "folder per derivative" in said(output=data / "derivatives")
    inside = data / "derivatives" / "brainseg"
    assert parse([str(data), str(inside), "participant"]).output_dir == inside


def test_a_link_to_the_input_is_seen_through(data, said, tmp_path):
    (tmp_path / "link").symlink_to(data)
    assert "input dataset" in said(output=tmp_path / "link")


def test_a_scratch_folder_inside_the_input_or_at_the_output_is_refused(data, said, tmp_path):
    assert "-w" in said("-w", data / "work")
    assert "-w" in said("-w", tmp_path / "out")
    assert "brackets" in said("-w", tmp_path / "work[1]")


def test_folders_that_are_not_there_or_cannot_be_written_are_refused(said, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in said(output=tmp_path / "file" / "out")
    assert "with -w" in said("-w", tmp_path / "file" / "work")
    with pytest.raises(SystemExit):
        parse(["nowhere", str(tmp_path / "out"), "participant"])
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.input(
    "runs",
    "no folder for temporary files: `TMPDIR`, `/tmp` and the others cannot be written",
    "refused before anything runs; remedy: `TMPDIR`",
    2,
)
def test_without_a_folder_for_temporary_files_nothing_runs(data, said, tmp_path, monkeypatch):
    gone = str(tmp_path / "gone")
    monkeypatch.setenv("TMPDIR", gone)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [gone])
    text = said()
    assert gone in text
    assert "Set TMPDIR" in text


def test_default_resources_fit_the_machine(data):
    settings = settings_of(data)
    assert 1 <= settings.omp_nthreads <= min(settings.nprocs, 8)
    assert isinstance(settings.work_dir, Path)


def test_a_group_run_needs_no_scratch_folder(tmp_path):
    data, blocked = tmp_path / "data", tmp_path / "blocked"
    data.mkdir()
    blocked.write_text("a file, so no folder can be made there")
    settings = parse([str(data), str(tmp_path / "out"), "group", "-w", str(blocked / "work")])
    assert settings.stages == ("summary",)
    with pytest.raises(SystemExit) as ended:
        parse([str(data), str(tmp_path / "out"), "participant", "-w", str(blocked / "work")])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("flag", "stage"),
    [("--kappa", "synth"), ("--pairs", "synth"), ("--nsd-tolerance", "evaluate")],
)
def test_a_flag_without_its_stage_is_refused(said, flag, stage):
    assert f"{flag} belongs to --stages {stage}" in said(flag, "1", level="group")


@pytest.mark.parametrize(
    "minutes",
    [
        pytest.param(
            "0",
            marks=pytest.mark.input(
                "training", "`--minutes` of 0, below 0, NaN or beyond a year", "refused", 2
            ),
        ),
        "-1", "nan", "inf", "1e9", "soon",
    ],
)  # fmt: skip
def test_a_run_by_time_has_minutes(said, minutes):
    message = said("--stages", "train", f"--minutes={minutes}", level="group")
    assert f"--minutes: '{minutes}': give" in message


@pytest.mark.parametrize("kappa", ["-0.1", "1.1", "half"])
def test_the_dial_goes_from_0_to_1(said, kappa):
    assert "0 to 1" in said("--stages", "synth", f"--kappa={kappa}", level="group")


def test_what_is_wrong_is_one_line(said):
    message = said("--stages", "synth", "--kappa=2", level="group")
    assert message.startswith("brainseg: error: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param(
            '{"t1w": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "filter.json: ",
            marks=pytest.mark.input(
                "metadata",
                "filter file with thousands of levels, NaN, 5,000 digits, or half of a character",
                "refused in one line with file and key",
                2,
            ),
        ),
        ('{"t1w": {"run": NaN}}', "filter.json: t1w.run is NaN"),
        ('{"t1w": {"run": ' + "1" * 5000 + "}}", "filter.json: t1w.run"),
        (r'{"t1w": {"session": "\ud800"}}', "filter.json: t1w.session"),
        pytest.param(
            '{"t1w": {"session": "A", "session": "B"}}',
            "filter.json: t1w.session is given twice",
            marks=pytest.mark.input(
                "metadata", "filter file with a key twice", "refused with file and key", 2
            ),
        ),
        ("[1]", "filter.json: this is a list"),
        ('{"t1w": {"session": {"A": 1}}}', "filter.json: t1w: session is an object"),
        ('{"t1w": {"suffix": "FLAIR"}}', "filter.json: t1w: "),
    ],
)
def test_a_filter_file_that_cannot_be_used_is_one_line_with_file_and_key(
    said, tmp_path, text, named
):
    path = tmp_path / "filter.json"
    path.write_text(text)
    line = said("--bids-filter-file", path)
    assert named in line
    assert "Traceback" not in line


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param(
            "kappa = nan",
            "kappa is nan",
            marks=pytest.mark.input(
                "metadata",
                "settings file with NaN, other types, or numbers out of range",
                "refused with file and key",
                2,
            ),
        ),
        ("kappa = 2", "kappa is 2.0: give a number from 0 to 1"),
        ("nprocs = -1", "nprocs is -1"),
        ("nprocs = 12345678901234567890", "nprocs is beyond"),
        ("model = 5", "model is 5: give a text"),
        ('device = "tpu"', "device is 'tpu'"),
        ("target_voxel_size_mm = [0.001]", "target_voxel_size_mm"),
        ("memory_gb = 0", "memory_gb is 0.0"),
        ("participant_label = " + "[" * 5000, "config.toml: "),
        ("bids_filters = '{\"t1w\": [NaN]}'", "t1w[1] is NaN"),
    ],
)
def test_a_settings_file_whose_values_cannot_be_is_refused_by_key(said, tmp_path, text, named):
    path = tmp_path / "config.toml"
    path.write_text(text)
    line = said("--config-file", path)
    assert named in line
    assert "config.toml" in line


@pytest.mark.input("geometry", "`--target-voxel-size 0.001`", "refused before memory is taken", 2)
def test_voxels_that_fit_into_no_memory_are_refused(said):
    assert "0.1 to 10" in said("--stages", "upsample", "--target-voxel-size", "0.001")
