# SPDX-License-Identifier: Apache-2.0
"""Every way out of a workflow: files are written nowhere else."""

from __future__ import annotations

from collections.abc import Collection

from nipype import IdentityInterface
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.interfaces.sinks import SaveDerivative


def init_ds_scan_wf(
    outputs: dict[str, str],
    metadata: dict[str, dict],
    *,
    facts: str = "report",
    told: Collection[str] | None = None,
    outdated: Collection[str] = (),
    name: str = "ds_scan_wf",
) -> Workflow:
    """Save the results of one image under their final names.

    Parameters
    ----------
    outputs : dict of str to str
        What to save (``labels``, ``tissue``, ...) and where.
    metadata : dict of str to dict
        JSON beside each; what is not named there gets none.
    facts : {"report", "facts"}
        Which input of `SaveDerivative` takes what the run itself has to tell.
    told : collection of str, optional
        Outputs whose JSON is told that; all if not given. If empty there is no such input.
    outdated : collection of str
        Files of an earlier run that go when the labels are saved.

    Inputs
    ------
    report or facts
        What is added to the JSON.
    *outputs*
        One field per output, by the same name.
    """
    workflow = Workflow(name=name)
    heard = [facts] if told is None or told else []
    inputnode = pe.Node(IdentityInterface(fields=[*heard, *outputs]), name="inputnode")
    for output, path in outputs.items():
        save = pe.Node(
            SaveDerivative(path=path), name=f"ds_{output}", mem_gb=0.2, run_without_submitting=True
        )
        workflow.connect(inputnode, output, save, "in_file")
        if output == "labels":
            save.inputs.outdated = list(outdated)
        if output in metadata:
            save.inputs.metadata = metadata[output]
            if told is None or output in told:
                workflow.connect(inputnode, facts, save, facts)
    return workflow
