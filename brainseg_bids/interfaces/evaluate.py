# SPDX-License-Identifier: Apache-2.0
"""How far label maps of one image agree with a reference."""

from __future__ import annotations

import json
import math
import time
import warnings
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from brainseg_bids import __version__
from brainseg_bids.evaluation.agreement import compare
from brainseg_bids.interfaces.raters import comparison, find_adapter, read_rating
from brainseg_bids.volumes import InputError, read_volume, voxel_hash


class _CompareInputSpec(BaseInterfaceInputSpec):
    reference = traits.Str(mandatory=True, desc="what the reference's adapter is found by")
    labels = File(exists=True, mandatory=True, desc="the reference's map")
    image = File(exists=True, desc="what was labelled")
    raters = traits.List(traits.Str(), mandatory=True, desc="names, for tables")
    who = traits.List(traits.Str(), mandatory=True, desc="what their adapters are found by")
    maps = traits.List(File(exists=True), mandatory=True, desc="their maps")
    on_other_grid = traits.Enum("resample", "refuse", usedefault=True)
    protocol = traits.Enum("label-restricted", "within-evaluable", usedefault=True)
    definition = traits.Enum("surface", "voxel", usedefault=True)
    tolerances_mm = traits.List(traits.Float(), mandatory=True)
    asked = traits.Dict(desc="all that decides the result, told again in the facts")
    # Another version may compare otherwise: nothing is taken from Nipype's cache then.
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _CompareOutputSpec(TraitedSpec):
    facts = File(exists=True, desc="rows of each rater, notes, faults, hashes: JSON")


class CompareRaters(SimpleInterface):
    """Each rater's map against the reference's; a bad one leaves the others alone."""

    input_spec = _CompareInputSpec
    output_spec = _CompareOutputSpec

    def _run_interface(self, runtime):
        began_s, path = time.monotonic(), Path(runtime.cwd) / "facts.json"
        adapter = find_adapter(self.inputs.reference)
        reference, _ = read_rating(self.inputs.labels, adapter)
        grid = reference.labels.grid
        ratings, notes, faults = {}, [], {}
        if not reference.labels.voxels.any():
            notes.append(f"{self.inputs.labels}: this reference is empty.")
        for name, who, labels in zip(
            self.inputs.raters, self.inputs.who, self.inputs.maps, strict=True
        ):
            try:
                ratings[name], note = read_rating(
                    labels,
                    find_adapter(who),
                    grid=grid,
                    on_other_grid=self.inputs.on_other_grid,
                )
                notes += [note] if note else []
            except (InputError, ValueError) as error:
                faults[name] = str(error)
        rows: dict[str, list[dict]] = {}
        known: dict[str, list[str]] = {}
        for name, rating in ratings.items():
            others = [other for theirs, other in ratings.items() if theirs != name]
            try:
                judged = comparison(
                    reference,
                    rating,
                    adapter,
                    name=name,
                    protocol=self.inputs.protocol,
                    others=others,
                )
            except (InputError, ValueError) as error:
                faults[name] = str(error)
                continue
            notes += judged.notes
            known[name] = [label.name for label in judged.prediction.table] + list(judged.groups)
            rows[name] = [
                _plain(agreement.row())
                for agreement in compare(
                    judged.prediction,
                    judged.reference,
                    groups=judged.groups,
                    within=judged.within,
                    tolerances_mm=self.inputs.tolerances_mm,
                    definition=self.inputs.definition,
                )
            ]
        facts = {
            "Compared": rows,
            "Known": known,
            "Notes": list(dict.fromkeys(notes)),
            "Faults": faults,
            "Hashes": self._hashes(reference),
            "Asked": dict(self.inputs.asked or {}),
            "Seconds": round(time.monotonic() - began_s, 2),
        }
        path.write_text(json.dumps(facts, allow_nan=False), encoding="utf-8")
        self._results["facts"] = str(path)
        return runtime

    def _hashes(self, reference) -> list[str]:
        """Of the image and of the reference's labels, as a model may have seen them."""
        hashes = [reference.raw_hash, voxel_hash(reference.labels.voxels, reference.labels.grid)]
        if isdefined(self.inputs.image):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    hashes.append(voxel_hash(*read_volume(self.inputs.image)))
            except InputError:
                pass  # the image is needed for this alone
        return hashes


def _plain(row: dict) -> dict:
    """NaN as None: JSON has none."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in row.items()
    }
