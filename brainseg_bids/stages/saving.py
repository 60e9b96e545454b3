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
    with_result: Collection[str] | None = None,
    own_result: Collection[str] = (),
    outdated: Collection[str] = (),
    name: str = "ds_scan_wf",
) -> Workflow:
    """Save the results of one image under their final names.

    The first output is saved first of those that have no JSON to say what they were made of, such
    as figures, and with it those of an earlier run go: none is ever taken for one of results that
    it does not show.

    Parameters
    ----------
    outputs : dict of str to str
        What to save (``labels``, ``tissue``, ...) and where; the first one has a JSON.
    metadata : dict of str to dict
        JSON beside each; what is not named there gets none.
    with_result : collection of str, optional
        Outputs whose JSON also has the metadata of the run's result; all if not given. If empty
        there is no input for them.
    own_result : collection of str
        Outputs whose JSON also has what the step that made them has found.
    outdated : collection of str
        Further files of an earlier run that go when the first output is saved.

    Inputs
    ------
    result
        File (JSON) with the metadata that the run itself adds.
    *outputs*
        One field per output, by the same name.
    """
    workflow = Workflow(name=name)
    result = ["result"] if with_result is None or with_result else []
    fields = [*result, *outputs, *(f"{output}_result" for output in own_result)]
    inputnode = pe.Node(IdentityInterface(fields=fields), name="inputnode")
    first = None
    for output, path in outputs.items():
        save = pe.Node(
            SaveDerivative(path=path), name=f"ds_{output}", mem_gb=0.2, run_without_submitting=True
        )
        workflow.connect(inputnode, output, save, "in_file")
        if first is None:
            first = save
            without_json = (path for name, path in outputs.items() if name not in metadata)
            save.inputs.outdated = [*outdated, *without_json]
        if output not in metadata:
            workflow.connect(first, "out_file", save, "after")
        else:
            save.inputs.metadata = metadata[output]
            if with_result is None or output in with_result:
                workflow.connect(inputnode, "result", save, "result")
            if output in own_result:
                workflow.connect(inputnode, f"{output}_result", save, "own_result")
    return workflow
