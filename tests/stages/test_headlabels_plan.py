# SPDX-License-Identifier: Apache-2.0
"""Which tool is run on which head, what is taken from elsewhere, and what is refused."""

import hashlib
import json
import sys
from dataclasses import replace

import pytest

from brainseg_bids.bids.inputs import find_subjects
from brainseg_bids.bids.names import sidecar
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_grid
from brainseg_bids.interfaces.tools._failures import ToolError
from brainseg_bids.resources import Footprint
from brainseg_bids.stages.head_tools import GIVEN, ToolChoice, tool_metadata
from brainseg_bids.stages.headlabels import describe_tools, head_metadata, plan_headlabels
from brainseg_bids.stages.jobs import REUSE, RUN
from brainseg_bids.stages.segment import SEGMENT_GIB, predicted_gib
from tests.fakes import dataset


@pytest.fixture
def choose(model):
    """A `ToolChoice`; every tool's program is there unless ``commands`` says otherwise."""

    def choice(head="samseg", brain="samseg", *, commands=None, derivatives=(), memory_gb=64.0):
        everything = dict.fromkeys(("samseg", "charm", "synthseg", "model"), (sys.executable,))
        return ToolChoice(
            head=head,
            brain=brain,
            models=(model,),
            commands=everything if commands is None else commands,
            derivatives=dict(derivatives),
            memory_gb=memory_gb,
        )

    return choice


@pytest.fixture
def planned(data, tmp_path, choose):
    """Plan of sub-01, whose one T1w is labelled."""

    def plan(*args, **kwargs):
        (subject,) = find_subjects(data, ["01"], usual=("T1w",))
        return plan_headlabels(
            subject, bids_dir=data, output_dir=tmp_path / "out", choice=choose(*args, **kwargs)
        )

    return plan


def leave_results(plan, output_dir):
    """Files as a run leaves them; what is in the images does not matter to a plan."""
    for scan in plan.scans:
        merged = head_metadata(scan, output_dir=output_dir)
        for role, tool in scan.tools.items():
            if tool.action == RUN:
                told = {f"{role.capitalize()}SHA256": hashlib.sha256(b"result").hexdigest()}
                merged = {name: said | told for name, said in merged.items()}
        described = [(scan.outputs, merged)]
        described += [
            (tool.outputs, tool_metadata(tool))
            for tool in scan.tools.values()
            if tool.action != GIVEN
        ]
        for outputs, said in described:
            for name, path in outputs.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"result")
                if name in said:
                    sidecar(path).write_text(json.dumps(said[name]))


def actions(plan):
    (scan,) = plan.scans
    return scan.action, {role: tool.action for role, tool in scan.tools.items()}


def test_only_t1w_heads_are_taken_unless_the_user_asks_for_more(planned):
    assert [scan.scan.suffix for scan in planned().scans] == ["T1w"]


def test_one_tool_for_head_and_brain_is_run_once(planned):
    assert actions(planned("samseg", "samseg")) == (RUN, {"head": RUN})


def test_two_tools_are_both_run_and_finished_results_are_reused(planned, tmp_path):
    plan = planned("charm", "synthseg")
    assert actions(plan) == (RUN, {"head": RUN, "brain": RUN})
    leave_results(plan, tmp_path / "out")
    assert actions(planned("charm", "synthseg")) == (REUSE, {"head": REUSE, "brain": REUSE})


def test_another_brain_tool_reuses_the_head_tools_labels_and_merges_again(planned, tmp_path):
    leave_results(planned("samseg", "samseg"), tmp_path / "out")
    plan = planned("samseg", "model")
    assert actions(plan) == (RUN, {"head": REUSE, "brain": RUN})
    lines = describe_tools([plan])
    assert "labels are reused" in lines[0]
    assert "no results yet" in lines[1]
    leave_results(plan, tmp_path / "out")
    assert actions(planned("samseg", "model")) == (REUSE, {"head": REUSE, "brain": REUSE})
    assert actions(planned("samseg", "samseg")) == (RUN, {"head": REUSE})


def test_a_merge_is_made_again_when_a_tools_map_was_made_again_since(planned, tmp_path):
    leave_results(planned(), tmp_path / "out")
    assert actions(planned()) == (REUSE, {"head": REUSE})
    (scan,) = planned().scans
    scan.tools["head"].outputs["labels"].write_bytes(b"another result")
    assert actions(planned()) == (RUN, {"head": REUSE})


def test_a_merge_of_a_given_map_is_not_one_of_the_tools_own(planned, tmp_path):
    leave_results(planned("charm", "charm"), tmp_path / "out")
    found = tmp_path / "m2m" / "m2m_sub-01" / "segmentation" / "labeling.nii.gz"
    dataset.write_image(found)
    given = planned("charm", "charm", derivatives={"charm": tmp_path / "m2m"})
    assert actions(given) == (RUN, {"head": GIVEN})
    leave_results(given, tmp_path / "out")
    assert actions(planned("charm", "charm")) == (RUN, {"head": REUSE})


def test_a_newer_version_of_this_app_merges_again_but_runs_no_external_tool(
    planned, tmp_path, monkeypatch
):
    leave_results(planned(), tmp_path / "out")
    monkeypatch.setattr("brainseg_bids.stages.headlabels.__version__", "99")
    monkeypatch.setattr("brainseg_bids.stages.head_tools.__version__", "99")
    assert actions(planned()) == (RUN, {"head": REUSE})


def test_another_model_is_another_tool(planned, tmp_path, model, choose, data):
    leave_results(planned("model", "model"), tmp_path / "out")
    (subject,) = find_subjects(data, ["01"], usual=("T1w",))
    choice = replace(choose("model", "model"), models=(replace(model, digest="f" * 64),))
    plan = plan_headlabels(subject, bids_dir=data, output_dir=tmp_path / "out", choice=choice)
    assert actions(plan) == (RUN, {"head": RUN})


def test_the_model_nearest_to_the_voxels_labels_with_or_without_flips(
    planned, tmp_path, model, choose, data
):
    """As `--stages segment` does: one app, one answer."""
    (subject,) = find_subjects(data, ["01"], usual=("T1w",))
    size_mm = max(read_grid(subject.scans[0].path).voxel_size_mm)
    far = replace(model, name="far", digest="a" * 64, voxel_size_mm=3 * size_mm)
    near = replace(model, name="near", digest="b" * 64, voxel_size_mm=1.1 * size_mm)
    choice = replace(choose("model", "model"), models=(far, near), flips=True)

    def plan(choice):
        return plan_headlabels(subject, bids_dir=data, output_dir=tmp_path / "out", choice=choice)

    (scan,) = plan(choice).scans
    assert (scan.tools["head"].model, scan.tools["head"].flips) == (near, True)
    leave_results(plan(choice), tmp_path / "out")
    assert actions(plan(choice)) == (REUSE, {"head": REUSE})
    assert actions(plan(replace(choice, flips=False))) == (RUN, {"head": RUN})
    assert actions(plan(replace(choice, models=(far,)))) == (RUN, {"head": RUN})


def test_memory_set_aside_for_the_model_is_what_segmentation_sets_aside(
    tmp_path, model, choose, data
):
    (subject,) = find_subjects(data, ["01"], usual=("T1w",))
    known = replace(model, footprint=Footprint("dynunet", 43, 2, 24, 24, 1.0, (96, 128, 112)))
    for flips in (False, True):
        choice = replace(choose("model", "model"), models=(known,), flips=flips)
        (scan,) = plan_headlabels(
            subject, bids_dir=data, output_dir=tmp_path / "out", choice=choice
        ).scans
        (image,) = subject.scans
        expected = predicted_gib(image, (known,), flips)
        assert scan.tools["head"].mem_gb == expected
        assert 0 < expected < SEGMENT_GIB


def test_an_image_that_changed_is_labelled_again(planned, tmp_path, data):
    leave_results(planned(), tmp_path / "out")
    dataset.write_image(data / "sub-01" / "anat" / "sub-01_T1w.nii.gz", seed=99)
    assert actions(planned()) == (RUN, {"head": RUN})


def test_results_the_user_has_are_taken_and_a_changed_one_is_merged_again(planned, tmp_path):
    found = tmp_path / "m2m" / "m2m_sub-01" / "segmentation" / "labeling.nii.gz"
    dataset.write_image(found)
    given = {"charm": tmp_path / "m2m"}
    plan = planned("charm", "charm", derivatives=given)
    assert actions(plan) == (RUN, {"head": GIVEN})
    (scan,) = plan.scans
    assert scan.tools["head"].outputs == {"labels": found}
    said = head_metadata(scan, output_dir=tmp_path / "out")["labels"]
    assert "bids:charm:m2m_sub-01/segmentation/labeling.nii.gz" in said["Sources"]
    leave_results(plan, tmp_path / "out")
    assert actions(planned("charm", "charm", derivatives=given)) == (REUSE, {"head": GIVEN})
    dataset.write_image(found, seed=5)
    assert actions(planned("charm", "charm", derivatives=given)) == (RUN, {"head": GIVEN})


def test_where_the_user_has_no_result_the_tool_is_run(planned, tmp_path):
    (tmp_path / "m2m").mkdir()
    plan = planned("charm", "charm", derivatives={"charm": tmp_path / "m2m"})
    assert actions(plan) == (RUN, {"head": RUN})


def test_a_tool_that_is_never_run_needs_its_results_for_each_head(planned, tmp_path):
    (tmp_path / "fs").mkdir()
    plan = planned("samseg", "freesurfer", derivatives={"freesurfer": tmp_path / "fs"})
    assert not plan.scans
    assert "of freesurfer" in plan.errors["sub-01 T1w head labels"]
    assert str(tmp_path / "fs") in plan.errors["sub-01 T1w head labels"]


@pytest.mark.parametrize(
    ("head", "brain", "given", "words"),
    [
        ("synthseg", "model", {}, "synthseg does not label the head"),
        ("samseg", "freesurfer", {}, "-d freesurfer=FOLDER"),
        ("samseg", "model", {"charm": "."}, "neither the head tool"),
    ],
)
def test_a_choice_that_can_never_work_is_refused(choose, head, brain, given, words):
    with pytest.raises(InputError, match=words):
        choose(head, brain, derivatives=given).check()


def test_every_pair_of_tools_for_head_and_brain_is_a_choice(choose):
    for head in ("charm", "samseg", "model"):
        for brain in ("charm", "synthseg", "samseg", "fastsurfer", "gouhfi", "model"):
            choose(head, brain).check()


def test_a_missing_program_ends_it_with_127_and_how_to_get_it(planned, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match="SimNIBS") as caught:
        planned("charm", "charm", commands={})
    assert caught.value.exit_code == 127


def test_an_image_too_large_for_the_memory_is_refused_with_the_figure(planned):
    plan = planned(memory_gb=2.0)
    assert not plan.scans
    reason = plan.errors["sub-01 T1w head labels"]
    assert "samseg needs about" in reason
    assert "2 GB" in reason


def test_the_plan_knows_how_much_memory_each_tool_takes(planned):
    (scan,) = planned().scans
    assert scan.tools["head"].mem_gb > 4
