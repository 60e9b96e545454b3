# SPDX-License-Identifier: Apache-2.0
"""A model card says what is known, says what is not known, and promises nothing."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace

import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.reports.card import (
    MOST_LISTED,
    CardFacts,
    DiceFacts,
    MapFacts,
    SpaceFacts,
    model_card,
)

TABLE = LabelTable.packaged("brainseg")
DICE = {label.name: 0.8 for label in TABLE if label.index} | {"Vein": 0.31, "Artery": math.nan}
FACTS = CardFacts(
    name="t1w-0p8mm",
    version="0.1.0",
    contrasts=("T1w", "UNIT1"),
    voxel_size_mm=0.8,
    table=TABLE,
    architecture="dynunet",
    size="medium",
    n_parameters=3_210_000,
    net={"stem": 2, "features": 24, "options": {"widths": [24, 48]}},
    maps=(
        MapFacts("sub-01_dseg.nii.gz", (1.0, 1.0, 1.0), "a" * 64),
        MapFacts("sub-02_dseg.nii.gz", (0.7, 0.7, 0.7), "b" * 64),
        MapFacts("sub-03_dseg.nii.gz", (1.0, 1.0, 1.0), "c" * 64, held_out=True),
    ),
    spaces=(SpaceFacts("t1w", 0.8, "T1w", 1.0, "d" * 64), SpaceFacts("agnostic", 0.2)),
    steps=2000,
    planned_steps=2000,
    patch_vox=(96, 128, 112),
    pairs_per_step=4,
    precision="bf16-mixed",
    learning_rate=2e-3,
    loss="cross-entropy at chosen voxels",
    hardware="2 CPU cores",
    validation=DiceFacts("4 synthetic pairs", DICE, 0.75),
    duration_s=5400.0,
    command="brainseg maps out group --stages train",
    licence="Apache-2.0",
    data_licence="CC0",
)


def rows(card: str) -> dict[str, list[str]]:
    """Cells of all tables by the first one."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines}


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def test_a_card_has_what_it_takes_to_use_the_model_honestly():
    card = model_card(FACTS)
    for words in (
        "# t1w-0p8mm",
        "42 labels, 31 of them of the brain",
        "3.2 million weights",
        "T1w, UNIT1",
        "--stages segment --model",
        "2 (1 of 0.7 mm, 1 of 1 mm); held out for validation: 1 (1 of 1 mm)",
        "2,000 steps of 4 pairs, from scratch; patch 96x128x112 voxels at 0.8 mm",
        "1.5 h",
        "brainseg maps out group --stages train",
        "Licence of the model: Apache-2.0",
        "brainseg-bids 0.1.0",
        "not be used for diagnosis",
    ):
        assert words in card, words
    found = rows(card)
    assert found["t1w"] == ["0.80", "T1w", "1", f"`{'d' * 12}`"]
    assert found["agnostic"] == ["0.20", "any", "-", "-"]
    assert found["sub-03_dseg.nii.gz"] == ["1 x 1 x 1", "validation", f"`{'c' * 12}`"]


def test_each_structure_has_its_dice_and_weak_ones_are_named_among_the_limits():
    card = model_card(FACTS)
    found = rows(card)
    assert found["4 synthetic pairs"] == ["(1)", "0.750"]
    assert found["Left-Thalamus"] == ["0.800"]
    assert (found["Vein"], found["Artery"]) == (["0.310"], ["n/a"])
    limits = section(card, "What it must not be used for")
    assert "Vein (0.31)" in limits
    assert "not judged: Artery." in limits
    assert "Thalamus" not in limits


def test_a_model_of_few_maps_or_without_any_overlap_is_to_be_looked_at():
    few = section(model_card(FACTS), "What it must not be used for")
    assert "fewer than 5" in few
    many = replace(FACTS, maps=FACTS.maps * 5, validation=DiceFacts("4 pairs", brain=0.001))
    limits = section(model_card(many), "What it must not be used for")
    assert "learned nothing" in limits
    assert "fewer than 5" not in limits


def test_without_real_images_the_card_says_that_they_were_not_measured():
    words = "on real images was not measured"
    assert words in model_card(FACTS)
    real = DiceFacts("sub-09 T1w, reference manual", {"Left-Thalamus": 0.7})
    card = model_card(replace(FACTS, real=(real, DiceFacts("sub-10 T1w", brain=0.66))))
    assert words not in card
    assert "was not measured" not in card
    found = rows(card)
    assert found["Left-Thalamus"] == ["0.800", "0.700"]
    assert found["Left-Caudate"] == ["0.800", "-"]
    assert found["sub-09 T1w, reference manual"] == ["(2)", "0.700"]
    assert found["sub-10 T1w"] == ["-", "0.660"]


def test_a_model_that_was_stopped_early_and_never_validated_says_so():
    card = model_card(replace(FACTS, steps=120, validation=None, duration_s=None, licence=""))
    assert "120 of 2,000 planned steps" in card
    assert "stopped before the end of its plan" in card
    assert "not validated" in section(card, "What it was measured at")
    assert "time not known" in card
    assert "not stated" in card
    assert "Structure (Dice)" not in card


def test_many_label_maps_are_counted_and_not_listed():
    many = tuple(
        MapFacts(f"sub-{k:03d}.nii.gz", (1, 1, 1), "e" * 64) for k in range(MOST_LISTED + 1)
    )
    card = model_card(replace(FACTS, maps=many))
    assert f"{MOST_LISTED + 1} ({MOST_LISTED + 1} of 1 mm)" in card
    assert "sub-001" not in card


def test_facts_may_come_as_a_mapping_and_an_unknown_key_is_an_error():
    facts = {one.name: getattr(FACTS, one.name) for one in fields(CardFacts)}
    assert model_card(facts) == model_card(FACTS)
    with pytest.raises(TypeError, match="colour"):
        model_card(facts | {"colour": "blue"})


def test_a_structure_that_is_no_label_of_the_model_is_an_error():
    wrong = replace(FACTS, validation=DiceFacts("pairs", {"Left-Thalmus": 0.5}))
    with pytest.raises(ValueError, match="'Left-Thalmus'"):
        model_card(wrong)


def test_every_row_of_a_table_has_as_many_cells_as_its_head():
    odd = replace(FACTS.maps[0], name="a|b\nc.nii.gz")
    card = model_card(replace(FACTS, maps=(odd,), real=(DiceFacts("x|y", {"Vein": 0.1}),)))
    blocks = [block for block in card.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block


def test_no_fact_is_left_out_of_the_card():
    """A field that changes nothing would be a promise to whoever fills it."""
    others = {
        "name": "other",
        "version": "9.9",
        "contrasts": ("FLAIR",),
        "voxel_size_mm": 1.7,
        "table": LabelTable([*(label for label in TABLE if label.index != 509)], name="less"),
        "architecture": "meshnet",
        "n_parameters": 7,
        "maps": FACTS.maps[:1],
        "spaces": FACTS.spaces[:1],
        "steps": 1999,
        "planned_steps": 5000,
        "patch_vox": (8, 8, 8),
        "pairs_per_step": 64,
        "precision": "32-true",
        "learning_rate": 7e-4,
        "loss": "another loss",
        "hardware": "an abacus",
        "validation": None,
        "real": (DiceFacts("sub-77"),),
        "size": "large",
        "net": {},
        "seed": 77,
        "duration_s": 77.0,
        "started_from": "head-t1w",
        "optimizer": "muon",
        "command": "another command",
        "calibration_pairs": 16,
        "licence": "MIT",
        "data_licence": "secret",
        "limits": ("Not for mice.",),
    }
    assert set(others) == {one.name for one in fields(CardFacts)}
    base = replace(FACTS, validation=DiceFacts("4 synthetic pairs", {"Vein": 0.3}, 0.75))
    card = model_card(base)
    for name, value in others.items():
        assert model_card(replace(base, **{name: value})) != card, name
