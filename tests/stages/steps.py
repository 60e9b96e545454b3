# SPDX-License-Identifier: Apache-2.0
"""Steps for workflows of tests; workers have to be able to import them."""

import os
import signal
import time
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)


class _StepInputSpec(BaseInterfaceInputSpec):
    value = traits.Int(mandatory=True)
    image = traits.Str(desc="what is said to be worked on")
    mark = traits.Str(mandatory=True, hash_files=False, desc="file that counts the tries")
    deaths = traits.Int(0, usedefault=True, desc="tries that end in SIGKILL")
    message = traits.Str("", usedefault=True, desc="to fail with")
    sleep_s = traits.Float(0.0, usedefault=True)
    passes = traits.Str("", usedefault=True, desc="file that it hands on")
    in_the_way = traits.Str("", usedefault=True, desc="folder made where Nipype writes a file")


class _StepOutputSpec(TraitedSpec):
    value = traits.Int()
    passes = traits.Str()


class _ReadInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True)


class _ReadOutputSpec(TraitedSpec):
    content = traits.Str()


class Read(SimpleInterface):
    """Pass a file's content on."""

    input_spec = _ReadInputSpec
    output_spec = _ReadOutputSpec

    def _run_interface(self, runtime):
        self._results["content"] = Path(self.inputs.image).read_text()
        return runtime


class Step(SimpleInterface):
    """Count the tries; die, fail or pass the value on."""

    input_spec = _StepInputSpec
    output_spec = _StepOutputSpec

    def _run_interface(self, runtime):
        mark = Path(self.inputs.mark)
        with mark.open("a") as file:
            file.write("x")
        time.sleep(self.inputs.sleep_s)
        if self.inputs.in_the_way:
            (Path(runtime.cwd) / self.inputs.in_the_way).mkdir()
        if len(mark.read_text()) <= self.inputs.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.inputs.message:
            raise ValueError(self.inputs.message)
        self._results["value"] = self.inputs.value
        self._results["passes"] = self.inputs.passes
        return runtime
