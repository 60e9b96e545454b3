# SPDX-License-Identifier: Apache-2.0
"""``SaveDerivative``: the only door out of a workflow."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from brainseg_bids.bids.description import write_json
from brainseg_bids.bids.names import sidecar
from brainseg_bids.files import file_state, save_fault, sha256, whole_or_nothing


class SaveError(RuntimeError):
    """An output could not be written; the message is one line for the user."""


class _SaveDerivativeInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True)
    # What an earlier run left there does not count.
    path = traits.Str(mandatory=True, hash_files=False, desc="where it goes, with its final name")
    metadata = traits.Dict(desc="for the JSON beside it; none: no JSON")
    result = File(
        exists=True, desc="JSON object of what the run found, or its key metadata, is added to it"
    )
    own_result = File(exists=True, desc="the same of the step that made the file")
    source = traits.Str(
        hash_files=False, desc="what it was made from; nothing is saved if that has changed since"
    )
    outdated = traits.List(
        traits.Str(), hash_files=False, desc="files of an earlier run that go, with their JSON"
    )
    after = File(hash_files=False, desc="what is saved before it; nothing is done with it")


class _SaveDerivativeOutputSpec(TraitedSpec):
    out_file = File(exists=True)


class SaveDerivative(SimpleInterface):
    """Copy a file to its final name, whole or not at all, with its JSON.

    niworkflows' DerivativesDataSink copies straight to the final name, so a full disk or a kill
    leaves half a file that the next run takes for a result; it also builds names from a pattern
    file that has no ``seg-``. Here names are decided before (`brainseg_bids.bids.names`), and a
    file gets its name only when its last byte is written. The JSON comes last, and that of an
    earlier run goes first: a result without it does not count as done.
    """

    input_spec = _SaveDerivativeInputSpec
    output_spec = _SaveDerivativeOutputSpec
    _always_run = True  # the output may have been removed since

    def _run_interface(self, runtime):
        source, path = Path(self.inputs.in_file), Path(self.inputs.path)
        self._check_source()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_or_nothing(path) as temporary:
                shutil.copyfile(source, temporary)
                self._remove_earlier(path)
            if isinstance(self.inputs.metadata, dict):
                write_json(sidecar(path), self.inputs.metadata | self._result())
        except OSError as error:
            raise SaveError(save_fault(path, error)) from error
        self._results["out_file"] = str(path)
        return runtime

    def _remove_earlier(self, path: Path) -> None:
        """Remove what an earlier run left beside the file that is about to be replaced."""
        for old in map(Path, self.inputs.outdated or ()):
            old.unlink(missing_ok=True)
            sidecar(old).unlink(missing_ok=True)
        if isinstance(self.inputs.metadata, dict):
            sidecar(path).unlink(missing_ok=True)

    def _check_source(self) -> None:
        """Results bear the SHA-256 that the plan knew; they are of the content that was read."""
        said = self.inputs.metadata if isinstance(self.inputs.metadata, dict) else {}
        if not (self.inputs.source and "InputSHA256" in said):
            return
        source = Path(self.inputs.source)
        with contextlib.suppress(OSError):  # gone meanwhile: it has not become another
            if file_state(source) == said.get("InputState", "-"):
                return
            if sha256(source) != said["InputSHA256"]:
                raise SaveError(f"{source}: was changed while it was worked on. Run it again.")

    def _result(self) -> dict:
        result: dict = {}
        for path in (self.inputs.result, self.inputs.own_result):
            if isinstance(path, str):
                found = json.loads(Path(path).read_text(encoding="utf-8"))
                result |= found.get("metadata", found)
        return result
