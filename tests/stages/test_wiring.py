# SPDX-License-Identifier: Apache-2.0
"""Every workflow and every variant of a plan: nothing undeclared, unfed or empty."""

import sys
from dataclasses import replace

import pytest
from nipype import IdentityInterface
from nipype.interfaces.base import isdefined
from nipype.pipeline import engine as pe

from brainseg_bids.bids.inputs import find_subjects
from brainseg_bids.bids.names import ContrastNames, Scan
from brainseg_bids.interfaces.labels import Tissue
from brainseg_bids.stages import PARTICIPANT
from brainseg_bids.stages.contrast import ContrastJob
from brainseg_bids.stages.head_tools import ToolChoice
from brainseg_bids.stages.headlabels import plan_headlabels
from brainseg_bids.stages.saving import init_ds_scan_wf
from brainseg_bids.stages.workflow import init_brainseg_wf, init_subject_wf


def wiring_faults(workflow):
    """Yield what Nipype does not report: undeclared relay fields, unfed outputs and inputs."""
    graph = workflow._create_flat_graph()
    fed = {node: set() for node in graph.nodes}
    for source, target, edge in graph.edges(data=True):
        for out_field, in_field in edge["connect"]:
            out_field = out_field[0] if isinstance(out_field, tuple) else out_field
            fed[target].add(in_field)
            for node, field in ((source, out_field), (target, in_field)):
                relay = isinstance(node.interface, IdentityInterface)
                if relay and field not in node.interface._fields:
                    yield f"{node.fullname} declares no field {field!r}"
    for node in graph.nodes:
        relay = isinstance(node.interface, IdentityInterface)
        needed = node.inputs.traits(mandatory=True) if not relay else ()
        if relay and (node.name == "outputnode" or node.fullname.count(".") > 1):
            needed = node.interface._fields
        for field in needed:
            if field not in fed[node] and not isdefined(getattr(node.inputs, field)):
                yield f"{node.fullname}.{field} is never fed"


@pytest.mark.parametrize("probseg", [False, True])
def test_the_whole_workflow_is_sound(plans, how, probseg):
    workflow = init_brainseg_wf(plans(probseg=probseg), how)
    assert list(wiring_faults(workflow)) == []
    names = [node.fullname for node in workflow._create_flat_graph().nodes]
    assert len(names) == len(set(names))
    assert sum(name.endswith(".segment") for name in names) == 3
    assert sum(name.endswith(".ds_probseg") for name in names) == 3 * probseg


@pytest.mark.parametrize("probseg", [False, True])
def test_each_part_is_sound(plans, how, probseg):
    (plan, _) = plans(probseg=probseg)
    for workflow in (
        init_subject_wf(plan, how),
        PARTICIPANT["segment"].workflow(plan.scans[0], how),
    ):
        assert list(wiring_faults(workflow)) == []
    assert list(wiring_faults(init_ds_scan_wf({"labels": "/x.nii.gz"}, {"labels": {}}))) == []


@pytest.mark.parametrize(
    ("head", "brain", "given"),
    [
        ("samseg", "samseg", ()),
        ("charm", "synthseg", ()),
        ("samseg", "model", ()),
        ("charm", "fastsurfer", ("charm",)),
        ("fullhead", "fullhead", ("fullhead",)),
        ("charm", "freesurfer", ("charm", "freesurfer")),
    ],
)
def test_heads_are_wired_for_every_source_of_labels(
    data, model, how, tmp_path, head, brain, given
):
    found = {
        "charm": "m2m_sub-01/segmentation/labeling.nii.gz",
        "freesurfer": "sub-01/mri/aseg.mgz",
        "fullhead": "sub-01.nii.gz",
    }
    for name in given:
        path = tmp_path / name / found[name]
        path.parent.mkdir(parents=True)
        path.write_bytes(b"labels")
    runnable = ("samseg", "charm", "synthseg", "fastsurfer", "model")
    choice = ToolChoice(
        head=head, brain=brain, models=(model,), flips=True, memory_gb=64,
        commands=dict.fromkeys(runnable, (sys.executable,)),
        derivatives={name: tmp_path / name for name in given},
    )  # fmt: skip
    (subject,) = find_subjects(data, ["01"], usual=("T1w",))
    plan = plan_headlabels(subject, bids_dir=data, output_dir=tmp_path / "out", choice=choice)
    assert not plan.errors
    (scan,) = plan.scans
    workflow = PARTICIPANT["headlabels"].workflow(scan, how)
    assert list(wiring_faults(workflow)) == []
    ran = [node for node in workflow._create_flat_graph().nodes if node.name == "run"]
    ours = [node.inputs for node in ran if hasattr(node.inputs, "test_time_flips")]
    assert [(run.model, run.test_time_flips) for run in ours] == [(str(model.path), True)] * (
        "model" in {head, brain}
    )
    assert len(ran) == len({head, brain} - set(given))
    assert all(node.mem_gb > 0 for node in ran)
    reused = replace(
        scan,
        tools={
            role: tool if tool.action == "given" else replace(tool, action="reuse")
            for role, tool in scan.tools.items()
        },
    )
    workflow = PARTICIPANT["headlabels"].workflow(reused, how)
    assert list(wiring_faults(workflow)) == []
    assert "run" not in {node.name for node in workflow._create_flat_graph().nodes}


def test_what_is_reused_is_not_wired(plans, how):
    (first, second) = plans()
    finished = type(first)(first.label, (), {})
    workflow = init_brainseg_wf([finished, second], how)
    assert [node.name for node in workflow._graph.nodes] == ["sub_02_wf"]
    assert list(wiring_faults(workflow)) == []


def test_every_output_of_a_plan_is_saved_under_its_name(plans, how):
    (plan,) = plans("01", probseg=True)
    scan = plan.scans[0]
    workflow = PARTICIPANT["segment"].workflow(scan, how)
    saved = {
        node.inputs.path for node in workflow._create_flat_graph().nodes
        if node.name.startswith("ds_")
    }  # fmt: skip
    assert saved == {str(path) for path in scan.outputs.values()}


def test_threads_and_memory_are_set_aside(plans, how):
    found = plans()
    predicted = {str(scan.scan.path): scan.mem_gib for plan in found for scan in plan.scans}
    nodes = init_brainseg_wf(found, how)._create_flat_graph().nodes
    images = {node.inputs.image for node in nodes if node.name == "inputnode" and
              hasattr(node.inputs, "image")}  # fmt: skip
    segmenting = [node for node in nodes if node.name == "segment"]
    assert images >= set(predicted)
    assert sorted(node.mem_gb for node in segmenting) == sorted(predicted.values())
    assert all(node.n_procs == how.threads for node in segmenting)


def test_an_ensemble_and_flips_reach_the_program_and_the_methods_text(plans, how, model):
    further = replace(model, name="further", digest="e" * 64, path=model.path / "a b")
    workflow = init_brainseg_wf(plans("01", ensemble=(further,), flips=True), how)
    assert list(wiring_faults(workflow)) == []
    (first, _) = [n for n in workflow._create_flat_graph().nodes if n.name == "segment"]
    first.inputs.image = str(model.path / "labels.tsv")  # any file
    command = first.interface.cmdline
    assert f"--ensemble '{further.path}'" in command
    assert "--test-time-flips" in command
    assert first.inputs.ensemble_digests == [further.digest]
    text = workflow.visit_desc()
    assert "averaged with those of *further*" in text
    assert "mirror image" in text
    alone = init_brainseg_wf(plans("01"), how)
    (first, _) = [n for n in alone._create_flat_graph().nodes if n.name == "segment"]
    first.inputs.image = str(model.path / "labels.tsv")
    assert "--ensemble" not in first.interface.cmdline
    assert "--test-time-flips" not in first.interface.cmdline
    assert "mirror" not in alone.visit_desc()


def test_the_methods_text_names_model_and_references_once(plans, how, model):
    text = init_brainseg_wf(plans(), how).visit_desc()
    assert text.count("[@billot2023]") == 1
    assert model.digest[:12] in text


def test_the_methods_text_says_which_images_each_of_two_models_got(plans, how, model):
    fine = replace(model, name="fine", voxel_size_mm=4.0)  # as the images
    text = init_brainseg_wf(plans(models=(model, fine)), how).visit_desc()
    assert "with voxels nearest to 4 mm were segmented on their own grids with" in text
    assert "Each structural image was segmented" not in text
    assert "*fine*" in text


def test_planted_faults_are_found():
    workflow = pe.Workflow("w")
    inner = pe.Workflow("inner")
    outputnode = pe.Node(IdentityInterface(fields=["given", "forgotten"]), name="outputnode")
    lonely = pe.Node(Tissue(), name="lonely")
    inner.connect(lonely, "out_file", outputnode, "given")
    workflow.add_nodes([inner])
    errors = "\n".join(wiring_faults(workflow))
    assert "outputnode.forgotten" in errors
    assert "lonely.labels" in errors
    inner.connect(lonely, "out_file", outputnode, "unheard_of")
    assert "'unheard_of'" in "\n".join(wiring_faults(workflow))


@pytest.mark.parametrize("suffix", ["T1w", "UNIT1"])
def test_measuring_is_sound(how, tmp_path, suffix):
    image = tmp_path / f"sub-01_{suffix}.nii.gz"
    labels = tmp_path / "sub-01_seg-fullhead_dseg.nii.gz"
    for path in (image, labels):
        path.touch()
    scan = Scan.from_path(image)
    names = ContrastNames.of(scan, "fullhead")
    outputs = {"statistics": tmp_path / names.statistics, "figure": tmp_path / names.figure}
    facts = {"Input": "bids:raw:x", "LabelsOf": "bids::y"}
    plan = ContrastJob(scan, "run", "new", outputs, facts, labels, "fullhead", {}, 1.0)
    workflow = PARTICIPANT["contrast"].workflow(plan, how)
    assert list(wiring_faults(workflow)) == []
    kind = workflow.get_node("measure").inputs.kind
    assert kind == ("ratio" if suffix == "UNIT1" else "auto")
