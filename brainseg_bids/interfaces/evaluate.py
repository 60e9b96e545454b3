# SPDX-License-Identifier: Apache-2.0
"""How far label maps of one image agree with a reference."""

from __future__ import annotations

import contextlib
import json
import time
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
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.bids.description import finite
from brainseg_bids.documents import InputError
from brainseg_bids.evaluation.agreement import compare
from brainseg_bids.evaluation.protocols import comparison
from brainseg_bids.evaluation.ratings import Rating
from brainseg_bids.images import noting, read_again, voxel_hash
from brainseg_bids.interfaces.raters import find_adapter
from brainseg_bids.interfaces.ratings import outside_note, read_rating, read_ratings


class _CompareInputSpec(BaseInterfaceInputSpec):
    reference = traits.Str(mandatory=True, desc="what the reference's adapter is found by")
    labels = File(exists=True, mandatory=True, desc="the reference's map")
    image = File(exists=True, desc="what was labelled, as the reference has it")
    segmented = traits.List(File(exists=True), desc="what was labelled, as the raters say")
    raters = traits.List(traits.Str(), mandatory=True, desc="names, for tables")
    who = traits.List(traits.Str(), mandatory=True, desc="what their adapters are found by")
    maps = traits.List(File(exists=True), mandatory=True, desc="their maps")
    on_other_grid = traits.Enum("resample", "refuse", usedefault=True)
    protocol = traits.Enum("label-restricted", "within-evaluable", usedefault=True)
    definition = traits.Enum("surface", "voxel", usedefault=True)
    tolerances_mm = traits.List(traits.Float(), mandatory=True)
    asked = traits.Dict(desc="all that decides the result, repeated in the metadata")
    # Another version may compare otherwise: nothing is taken from Nipype's cache then.
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _CompareOutputSpec(TraitedSpec):
    facts = File(exists=True, desc="rows of each rater, notes, warnings, errors, hashes: JSON")


class CompareRaters(SimpleInterface):
    """Each rater's map against the reference's; a bad one leaves the others alone."""

    input_spec = _CompareInputSpec
    output_spec = _CompareOutputSpec

    def _run_interface(self, runtime):
        began_s, path = time.monotonic(), Path(runtime.cwd) / "facts.json"
        with noting() as warnings:
            reference, _ = read_rating(self.inputs.labels, find_adapter(self.inputs.reference))
        facts: dict = {"Compared": {}, "Known": {}, "Notes": [], "Faults": {}}
        if not reference.labels.voxels.any():
            facts["Notes"].append(f"{self.inputs.labels}: this reference is empty.")
        given = (self.inputs.raters, self.inputs.who, self.inputs.maps)
        maps = {
            name: (labels, find_adapter(who)) for name, who, labels in zip(*given, strict=True)
        }
        with noting() as about_maps:
            read = read_ratings(maps, reference.labels.grid, self.inputs.on_other_grid)
        facts["Faults"] |= read.errors
        facts["Notes"] += read.notes
        beyond = []
        for name in read.ratings:
            try:
                compared = self._compare(reference, read.ratings, name, facts)
                beyond.append(outside_note(maps[name][0], compared))
            except ValueError as error:
                facts["Faults"][name] = str(error)
        facts["Notes"] = list(dict.fromkeys(facts["Notes"]))
        facts |= {
            "Warnings": list(filter(None, dict.fromkeys(warnings + about_maps + beyond))),
            "Hashes": self._hashes(reference),
            "Asked": dict(self.inputs.asked or {}),
            "Seconds": round(time.monotonic() - began_s, 2),
        }
        path.write_text(json.dumps(finite(facts), allow_nan=False), encoding="utf-8")
        self._results["facts"] = str(path)
        return runtime

    def _compare(
        self, reference: Rating, ratings: dict[str, Rating], name: str, facts: dict
    ) -> LabelMap:
        """Add one rater's rows to the facts; the reference as it was compared."""
        judged = comparison(
            reference,
            ratings[name],
            find_adapter(self.inputs.reference),
            name=name,
            protocol=self.inputs.protocol,
            others=[rating for other, rating in ratings.items() if other != name],
        )
        agreements = compare(
            judged.prediction,
            judged.reference,
            groups=judged.groups,
            within=judged.within,
            tolerances_mm=self.inputs.tolerances_mm,
            definition=self.inputs.definition,
        )
        facts["Notes"] += judged.notes
        facts["Known"][name] = [*(one.name for one in judged.prediction.table), *judged.groups]
        facts["Compared"][name] = [one.row() for one in agreements]
        return judged.reference

    def _hashes(self, reference: Rating) -> list[str]:
        """Of the image and of the reference's labels, as a model may have seen them."""
        hashes = [reference.raw_hash, voxel_hash(reference.labels.voxels, reference.labels.grid)]
        images = [self.inputs.image, *(self.inputs.segmented or ())]
        for image in filter(isdefined, dict.fromkeys(images)):
            with contextlib.suppress(InputError):  # an image is needed for this alone
                hashes.append(voxel_hash(*read_again(image)))
        return hashes
