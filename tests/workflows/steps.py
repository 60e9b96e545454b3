# SPDX-License-Identifier: Apache-2.0
"""Steps for workflows of tests; workers have to be able to import them."""

import os
import signal
import time
from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits


class _StepInputSpec(BaseInterfaceInputSpec):
    value = traits.Int(mandatory=True)
    mark = traits.Str(mandatory=True, desc="file that counts the tries")
    deaths = traits.Int(0, usedefault=True, desc="tries that end in SIGKILL")
    message = traits.Str("", usedefault=True, desc="to fail with")
    sleep_s = traits.Float(0.0, usedefault=True)


class _StepOutputSpec(TraitedSpec):
    value = traits.Int()


class Step(SimpleInterface):
    """Count the tries; die, fail or pass the value on."""

    input_spec = _StepInputSpec
    output_spec = _StepOutputSpec

    def _run_interface(self, runtime):
        mark = Path(self.inputs.mark)
        with mark.open("a") as file:
            file.write("x")
        time.sleep(self.inputs.sleep_s)
        if len(mark.read_text()) <= self.inputs.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.inputs.message:
            raise ValueError(self.inputs.message)
        self._results["value"] = self.inputs.value
        return runtime
