# SPDX-License-Identifier: Apache-2.0
"""Write a small BIDS dataset around the MNI152 T1-weighted image that nilearn ships.

``python -m brainseg_bids.cli.demo FOLDER``
"""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib import resources
from pathlib import Path

from brainseg_bids.bids.description import BIDS_VERSION, packaged_readme, write_json
from brainseg_bids.exit_codes import DONE, FAILED
from brainseg_bids.files import write_text

IMAGE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def write_demo(root: Path) -> Path:
    """Write the dataset; files that are there already are written again.

    Parameters
    ----------
    root : Path
        Made if it is not there.

    Returns
    -------
    Path
        The image.
    """
    anat = root / "sub-MNI152" / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    write_json(
        root / "dataset_description.json",
        {
            "Name": "MNI152 as a BIDS dataset",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "raw",
            "License": "See README.md",
            "Authors": [
                "Vladimir Fonov",
                "Alan C. Evans",
                "Kelly Botteron",
                "C. Robert Almli",
                "Robert C. McKinstry",
                "D. Louis Collins",
            ],
            "HowToAcknowledge": "Cite the paper in ReferencesAndLinks.",
            "ReferencesAndLinks": ["https://doi.org/10.1016/j.neuroimage.2010.07.033"],
        },
    )
    write_text(root / "README.md", packaged_readme("demo"))
    image = anat / "sub-MNI152_T1w.nii.gz"
    with resources.as_file(resources.files("nilearn") / IMAGE) as source:
        shutil.copyfile(source, image)
    write_json(
        anat / "sub-MNI152_T1w.json",
        {
            "ConversionSoftware": "none: the file as nilearn ships it",
            "SkullStripped": True,
        },
    )
    return image


def main(argv: list[str] | None = None) -> int:
    """Write the dataset and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the dataset goes")
    folder = parser.parse_args(argv).folder
    try:
        write_demo(folder)
    except OSError as error:
        print(f"brainseg: ERROR: {folder}: cannot be written ({error.strerror}).", file=sys.stderr)
        return FAILED
    print(f"{folder}: BIDS dataset with one T1w image")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
