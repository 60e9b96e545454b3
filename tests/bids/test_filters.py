# SPDX-License-Identifier: Apache-2.0
"""Filter files: those of fMRIPrep and its kin as they are, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import bids
import pytest

from brainseg_bids.bids.filters import make_filters
from brainseg_bids.bids.inputs import find_subjects
from brainseg_bids.documents import InputError
from tests.fakes.dataset import write_dataset

FMRIPREP = {
    "fmap": {"datatype": "fmap"},
    "bold": {"datatype": "func", "suffix": "bold"},
    "sbref": {"datatype": "func", "suffix": "sbref"},
    "flair": {"datatype": "anat", "suffix": "FLAIR"},
    "t2w": {"datatype": "anat", "suffix": "T2w"},
    "t1w": {"datatype": "anat", "suffix": "T1w"},
    "roi": {"datatype": "anat", "suffix": "roi"},
}
"""Queries that fMRIPrep's documentation gives as its own."""

FMRIPREP_EXAMPLE = {
    "t1w": {"datatype": "anat", "session": "B", "acquisition": None, "suffix": "T1w"},
    "bold": {"datatype": "func", "session": "B", "suffix": "bold"},
}
"""What fMRIPrep's documentation gives as an example, for session B."""

BABS = {
    "fmap": {"datatype": "fmap", "session": "A"},
    "bold": {"datatype": "func", "session": "A", "suffix": "bold"},
    "dwi": {"datatype": "dwi", "session": "A", "suffix": "dwi"},
    "asl": {"datatype": "perf", "session": "A", "suffix": "asl"},
    "perf": {"datatype": "perf", "session": "A", "suffix": "asl"},
    "sbref": {"datatype": "func", "session": "A", "suffix": "sbref"},
    "flair": {"datatype": "anat", "session": "A", "suffix": "FLAIR"},
    "t2w": {"datatype": "anat", "session": "A", "suffix": "T2w"},
    "t1w": {"datatype": "anat", "session": "A", "suffix": "T1w"},
    "roi": {"datatype": "anat", "session": "A", "suffix": "roi"},
}
"""What BABS writes for a job of session A: for fMRIPrep ``bold``, for QSIPrep ``dwi``, for ASLPrep
``asl`` or, before, ``perf``."""

NIWORKFLOWS = {
    "t1w": {"datatype": "anat", "suffix": "T1w", "part": ["mag", None]},
    "asl": {"datatype": "perf", "suffix": "asl"},
    "pet": {"suffix": "pet"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(
        tmp_path_factory.mktemp("filters") / "data",
        "sub-01_ses-A_acq-x_run-01_T1w", "sub-01_ses-B_run-02_T1w", "sub-01_ses-B_part-phase_T1w",
        "sub-01_ses-A_T2w", "sub-01_ses-B_FLAIR", "sub-02_T1w",
    )  # fmt: skip


def titles(data, filters, **options):
    found = find_subjects(data, ["01", "02"], filters=filters, **options)
    return [scan.title for subject in found for scan in subject.scans]


FIRST, SECOND, OTHER = (
    "sub-01 ses-A acq-x run-01 T1w",
    "sub-01 ses-B run-02 T1w",
    "sub-02 T1w",
)
EVERYTHING = ["sub-01 ses-A T2w", FIRST, "sub-01 ses-B FLAIR", SECOND, OTHER]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param(
            FMRIPREP,
            EVERYTHING,
            marks=pytest.mark.input(
                "metadata",
                "fMRIPrep's documented filter file, with a suffix under each query",
                "what holds already changes nothing; queries of others are passed over",
                0,
            ),
        ),
        pytest.param(
            BABS,
            ["sub-01 ses-A T2w", FIRST],
            marks=pytest.mark.input(
                "metadata", "the filter file that BABS writes", "its session is taken", 0
            ),
        ),
        (FMRIPREP_EXAMPLE, ["sub-01 ses-A T2w", "sub-01 ses-B FLAIR", SECOND]),
        (NIWORKFLOWS, EVERYTHING),
    ],
    ids=["fmriprep", "babs", "fmriprep-example", "niworkflows"],
)
def test_files_of_other_pipelines_are_taken_as_they_are(data, filters, expected):
    assert titles(data, filters) == expected


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param(
            {"space": None, "desc": None, "res": None},
            [FIRST, SECOND, OTHER],
            marks=pytest.mark.input(
                "metadata",
                'filter with `"space": null` and other nulls for what no image has',
                "they hold already and change nothing",
                0,
            ),
        ),
        pytest.param(
            {"subject": "sub-02"},
            [OTHER],
            marks=pytest.mark.input(
                "metadata", 'filter with `"subject"`, with or without `sub-`', "taken", 0
            ),
        ),
        ({"subject": ["02"]}, [OTHER]),
        ({"session": "ses-B"}, [SECOND]),
        pytest.param(
            {"session": ["A", None]},
            [FIRST, OTHER],
            marks=pytest.mark.input(
                "metadata", "filter with a list that holds null", "that label, or none", 0
            ),
        ),
        ({"acquisition": "*"}, [FIRST]),
        ({"run": 1}, [FIRST]),
        ({"run": ["2", None]}, [SECOND, OTHER]),
        ({"run": "01"}, [FIRST]),
        ({"part": "phase"}, ["sub-01 ses-B part-phase T1w"]),
        ({"datatype": ["anat", "func"], "extension": "nii.gz"}, [FIRST, SECOND, OTHER]),
        ({"datatype": "*", "suffix": ["T1w", "T2w"], "scope": "raw"}, [FIRST, SECOND, OTHER]),
    ],
)
def test_conditions_choose_by_label_number_absence_and_presence(data, conditions, expected):
    assert titles(data, {"t1w": conditions}, usual=["T1w"]) == expected


def test_null_for_any_entity_that_pybids_knows_changes_nothing_where_it_is_absent(data):
    config = Path(bids.__file__).parent / "layout" / "config" / "bids.json"
    known = {entity["name"] for entity in json.loads(config.read_text())["entities"]}
    here = {"subject", "session", "acquisition", "run", "datatype", "suffix", "extension"}
    nulls = dict.fromkeys(known - here)
    assert {"space", "fmap", "scans"} <= nulls.keys()
    assert titles(data, {"t1w": nulls}, usual=["T1w"]) == [FIRST, SECOND, OTHER]


def test_a_session_of_the_command_line_and_one_of_the_file_both_hold(data):
    filters = {"t1w": {"session": ["A", "B"]}}
    assert titles(data, filters, usual=["T1w"], sessions=["B"]) == [SECOND]


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        pytest.param(
            {"t1w": {"suffix": "FLAIR"}},
            "t1w.*suffix T1w.*--contrasts",
            marks=pytest.mark.input(
                "metadata", "filter whose suffix contradicts its query", "refused by name", 2
            ),
        ),
        ({"t1w": {"suffix": None}}, "suffix T1w"),
        ({"t1w": {"datatype": None}}, "datatype"),
        ({"t1w": {"scope": "derivatives"}}, "scope"),
        pytest.param(
            {"t1w": {"session": {"A": 1}}},
            "t1w: session is an object",
            marks=pytest.mark.input(
                "metadata",
                "filter whose value is an object, true or a broken number",
                "refused by query and entity",
                2,
            ),
        ),
        ({"t1w": {"run": True}}, "t1w: run is True"),
        ({"t1w": {"run": [1, [2]]}}, r"run is \[2\]"),
        ({"t1w": {"run": 1.5}}, "run is 1.5"),
        ({"t1w": {"session": []}}, "empty list"),
        ({"t1w": ["A"]}, "t1w: give an object"),
        ({"t1w": None}, "t1w: give an object"),
        pytest.param(
            {"tlw": {"session": "A"}},
            "'tlw'.*t1w",
            marks=pytest.mark.input(
                "metadata", "filter with a query's name misspelt", "refused: did you mean t1w?", 2
            ),
        ),
        ({"t1w": {"acquisition_time": 1}}, "acquisition_time"),
    ],
)
def test_what_means_nothing_or_contradicts_itself_is_refused_by_name(filters, named):
    with pytest.raises(InputError, match=named):
        make_filters(filters, ("T1w", "T2w", "FLAIR"))


@pytest.mark.input(
    "metadata", "filter that no image fits", "refused: says what is asked for and what there is", 2
)
def test_a_filter_that_nothing_fits_says_what_there_is(data):
    filters = {"t1w": {"session": "C", "acquisition": None}}
    with pytest.raises(InputError, match=r"no T1w image.*none, A") as told:
        titles(data, filters, usual=["T1w"])
    assert "acq-" not in str(told.value)  # of that there would be some
    filters = {"t1w": {"session": "B", "acquisition": "x"}}
    with pytest.raises(InputError, match=r"no T1w image.*ses-.*acq-"):
        titles(data, filters, usual=["T1w"])


def test_a_query_that_nothing_fits_is_a_warning_where_others_have_images(data, caplog):
    filters = {"t2w": {"session": "B"}}
    assert titles(data, filters, usual=["T1w", "T2w"]) == [FIRST, SECOND, OTHER]
    assert "no T2w image fits: ses- is to be B, and there is A" in caplog.text


@pytest.mark.input(
    "metadata", "filter with queries of other apps (`bold`, `fmap`, `perf`)", "passed over", 0
)
def test_queries_of_others_are_one_debug_line_and_strange_ones_a_warning(data, caplog):
    caplog.set_level(logging.DEBUG, logger="brainseg")
    titles(data, {"bold": {"task": "x"}, "perf": 3, "anatomy": {"session": "A"}})
    records = [r for r in caplog.records if "--bids-filter-file" in r.getMessage()]
    assert [record.levelname for record in records] == ["DEBUG", "WARNING"]
    assert "bold, perf" in records[0].getMessage()
    assert "anatomy" in records[1].getMessage()
