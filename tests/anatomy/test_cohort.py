# SPDX-License-Identifier: Apache-2.0
"""Heads side by side: absent labels are counted, missing ones named, nothing is refused."""

from __future__ import annotations

import csv
from importlib import resources

import numpy as np
import pytest

from brainseg_bids.anatomy import cohort as cohort_module
from brainseg_bids.anatomy.cohort import FEWEST, OUTLIER_Z, Cohort, robust_z, structures
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.images import read_label_map

TABLE = LabelTable.packaged("fullhead")
CHARM, SAMSEG = {515: 5e5, 516: 2e5, 507: 1e6, 506: 1e4, 24: 3e5}, {165: 6e5, 258: 1.3e6, 259: 1e4}


def head(seed: int = 0, *, without: tuple[int, ...] = (), **changed: float) -> dict[int, float]:
    """Volumes of all core labels as one tool with CHARM's codes would give them."""
    rng = np.random.default_rng(seed)
    rows = cohort_module._rows()
    volumes = {code: 1000.0 for code, row in rows.items() if row["kind"] == "core"}
    for code in (165, 258, 259, 520, 257):
        del volumes[code]
    volumes = {code: v * rng.uniform(0.97, 1.03) for code, v in (volumes | CHARM).items()}
    volumes |= {int(code.lstrip("_")): volume for code, volume in changed.items()}
    return {code: volume for code, volume in volumes.items() if code not in without}


def line(cohort: Cohort, name: str):
    (found,) = [line for line in cohort.presence if line.structure.name == name]
    return found


def test_a_label_that_some_heads_lack_is_counted_and_does_not_stop_the_cohort():
    # Seed defect S5: label 72 is in 9 of SynthSeg's 20 maps, and a strict comparison of label
    # sets gave up on all of them.
    heads = {f"sub-{k:02d}": head(k, **({"_72": 20.0} if k < 9 else {})) for k in range(20)}
    cohort = Cohort.of(heads, TABLE)
    fifth = line(cohort, "5th-Ventricle")
    assert len(fifth.has) == 9
    assert len(fifth.lacks) == 11
    assert not fifth.structure.core
    assert cohort.missing == {}
    assert cohort.unusable == {}


def test_a_missing_core_label_is_named_for_the_head_that_lacks_it():
    heads = {"sub-a": head(1), "sub-b": head(2, without=(16, 10)), "sub-c": head(3, _16=0.0)}
    cohort = Cohort.of(heads, TABLE)
    assert cohort.missing == {"sub-b": ("Left-Thalamus", "Brain-Stem"), "sub-c": ("Brain-Stem",)}
    assert line(cohort, "Brain-Stem").lacks == ("sub-b", "sub-c")


@pytest.mark.parametrize("codes", [{165: 6e5}, {515: 5e5}, {516: 1e5}, {515: 5e5, 516: 1e5}])
def test_any_code_for_bone_is_bone(codes):
    only = head(without=(515, 516)) | codes
    assert Cohort.of({"sub-a": only}, TABLE).missing == {}


def test_heads_of_two_tools_share_structures_and_keep_their_codes_apart():
    samseg = head(2, without=(515, 516, 507, 506)) | SAMSEG
    cohort = Cohort.of({"sub-a": head(1), "sub-b": samseg}, TABLE)
    assert cohort.missing == {}
    assert line(cohort, "Bone").has == ("sub-a", "sub-b")
    assert line(cohort, "Bone").by_code == {165: 1, 515: 1, 516: 1}
    assert line(cohort, "Eyes").by_code == {259: 1, 506: 1}


def test_no_bone_at_all_is_missing_once():
    cohort = Cohort.of({"sub-a": head(without=(515, 516))}, TABLE)
    assert cohort.missing == {"sub-a": ("Bone",)}


def test_a_head_without_choroid_plexus_or_vessels_lacks_nothing():
    cohort = Cohort.of({"sub-a": head()}, TABLE)
    assert cohort.missing == {}
    left = line(cohort, "Left choroid plexus")
    assert left.structure.codes == (31, 136, 137)
    assert left.lacks == ("sub-a",)


def test_a_volume_far_from_the_others_is_named_with_its_median():
    heads = {f"sub-{k}": head(k) for k in range(12)}
    heads["sub-far"] = head(99, _16=9000.0, _72=30.0)
    cohort = Cohort.of(heads, TABLE)
    first = cohort.outliers[0]
    assert (first.subject, first.code, first.name) == ("sub-far", 16, "Brain-Stem")
    assert first.volume_mm3 == 9000
    assert first.median_mm3 == pytest.approx(np.median([v[16] for v in heads.values()]))
    assert first.z == cohort.z["sub-far"][16] > OUTLIER_Z
    # One head with a label is no cohort to compare with.
    assert 72 not in cohort.z["sub-far"]


def test_z_is_that_of_the_heads_that_have_the_label():
    heads = {f"sub-{k}": head(k, _85=100.0 + k) for k in range(6)}
    heads |= {f"sub-none{k}": head(k) for k in range(6)}
    z = Cohort.of(heads, TABLE).z
    wanted = robust_z(np.arange(6))
    assert [z[f"sub-{k}"][85] for k in range(6)] == pytest.approx(wanted.tolist())
    assert 85 not in z["sub-none0"]


def test_few_heads_have_no_outliers():
    heads = {f"sub-{k}": head(k) for k in range(FEWEST - 2)} | {"sub-far": head(_16=9e5)}
    cohort = Cohort.of(heads, TABLE)
    assert cohort.outliers == ()
    assert not any(cohort.z.values())


def test_a_strange_head_is_named_and_the_others_are_still_compared():
    odd = {2: 5.0, 999: 40.0, 24: float("nan"), 16: -3.0, "x": 1.0, 7: None, None: 2.0}
    heads = {f"sub-{k}": head(k) for k in range(6)} | {"sub-odd": odd, "sub-empty": {}}
    cohort = Cohort.of(heads, TABLE)
    notes = " ".join(cohort.unusable["sub-odd"])
    for words in ("999", "label 24", "label 16", "'x'", "None"):
        assert words in notes
    assert list(cohort.unusable) == ["sub-odd"]
    assert set(cohort.missing) == {"sub-odd", "sub-empty"}
    assert ("sub-odd", 2) in [(found.subject, found.code) for found in cohort.outliers]
    assert cohort.volumes_mm3["sub-odd"] == {2: 5.0}
    assert len(line(cohort, "Brain-Stem").has) == 6


def test_no_heads_are_a_cohort_too():
    cohort = Cohort.of({}, TABLE)
    assert (cohort.subjects, cohort.missing, cohort.outliers) == ((), {}, ())


def test_rows_as_read_from_a_table_file_give_the_same():
    volumes = {"sub-a": head(1), "sub-b": head(2)}
    rows = {
        who: [{"index": str(code), "volume_mm3": repr(v)} for code, v in found.items()]
        for who, found in volumes.items()
    }
    assert Cohort.from_rows(rows, TABLE).presence == Cohort.of(volumes, TABLE).presence


def test_every_label_but_background_is_judged_once():
    codes = [code for structure in structures(TABLE) for code in structure.codes]
    assert len(codes) == len(set(codes))
    assert set(TABLE.codes.tolist()) - set(codes) == {0, 517}
    assert all(structure.reason for structure in structures(TABLE))


def test_sides_are_judged_alike():
    kinds = cohort_module._rows()
    for label in TABLE:
        assert kinds[label.index]["kind"] == kinds[label.mirror]["kind"], label.name


def test_labels_that_reference_maps_lack_are_optional():
    core = {code for structure in structures(TABLE) if structure.core for code in structure.codes}
    optional = {72, 80, 77, 85, 25, 57, 530, 514, 502, 78, 79, 30, 62, 31, 63, 29, 61, 136, 164}
    assert not core & optional
    assert {2, 3, 16, 24, 41, 42, 49, 165, 258, 259, 506, 507, 515} <= core


def test_the_table_of_segmentations_can_be_judged_as_well():
    table = LabelTable.packaged("brainseg")
    assert {s.name for s in structures(table)} >= {"Bone", "Eyes", "Brain-Stem"}


def test_a_label_that_no_line_judges_is_an_error_that_names_the_file():
    table = LabelTable([Label(0, "Background"), Label(9000, "New-Thing")], name="new")
    with pytest.raises(ValueError, match=r"presence\.tsv .*New-Thing"):
        structures(table)


def test_the_presence_table_is_sorted_and_has_no_empty_cells():
    path = resources.files("brainseg_bids") / "data" / "labels" / "presence.tsv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [int(row["code"]) for row in rows] == TABLE.codes.tolist()
    assert all(all(row.values()) for row in rows)


def test_robust_z_survives_equal_values():
    assert robust_z(np.array([3.0, 3, 3])).tolist() == [0, 0, 0]
    z = robust_z(np.array([0.0] * 9 + [10]))
    assert np.isfinite(z).all()
    assert z[-1] > OUTLIER_Z


@pytest.mark.shared_data
@pytest.mark.slow
def test_the_synthseg_maps_lack_no_core_structure(shared_data):
    paths = sorted((shared_data / "synthseg_training_labels").glob("*.nii.gz"))
    volumes = {path.name[:15]: read_label_map(path, TABLE).volumes_mm3() for path in paths}
    cohort = Cohort.of(volumes, TABLE)
    assert len(cohort.subjects) == 16
    assert cohort.missing == {}
    assert cohort.unusable == {}
    assert len(line(cohort, "5th-Ventricle").has) == 8  # of these 16
    assert line(cohort, "Bone").by_code == {165: 0, 515: 16, 516: 16}
    # Two heads with ten times the lesions of the others stand out; nobody's white matter does.
    assert {"Left-Lesion"} <= {found.name for found in cohort.outliers}
    assert not any(found.code in (2, 41) for found in cohort.outliers)
