# SPDX-License-Identifier: Apache-2.0
"""Everything the app leaves, recorded before a refactoring and compared after it.

Usage::

    python -m benchmarks.golden record FOLDER [--real IMAGE]
    python -m benchmarks.golden compare BEFORE AFTER

``record`` runs this checkout on phantom heads through every stage. ``compare`` names every file
that is in one record only, and every file whose content differs. Left out is what differs
between any two runs: times, dates, memory, identifiers of runs, and the folder. Markup and
figures are reported, but may be changed on purpose; only the other kinds decide the exit code.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import write_label_map
from tests.phantom.head import phantom_head, phantom_image

REPOSITORY = Path(__file__).parents[1]
SUBJECTS = ("01", "02")
LONG_AGO_S = 1_600_000_000
RECIPE = """\
learning_rate = 1e-2
total_steps = 2
warmup_steps = 1
decay_steps = 1
per_label = 16
anywhere = 256
validate_every = 2
validation_pairs = 1
largest_patch_mm = [192, 192, 192]
"""
# -- record -------------------------------------------------------------------------------


def write_inputs(root: Path) -> None:
    """Images of phantom heads, and derivatives of their label maps, all of the same date."""
    for number, subject in enumerate(SUBJECTS):
        labels = phantom_head((46 + 2 * number, 56, 52), 4.0)
        moved = LabelMap(np.roll(labels.voxels, 1, axis=number), labels.grid, labels.table)
        coarse = phantom_head((25, 28, 26), 8.0)
        anat = f"sub-{subject}/anat/sub-{subject}"
        write_map(root / f"truth/{anat}_dseg.nii.gz", labels)
        write_map(root / f"moved/{anat}_dseg.nii.gz", moved)
        write_map(root / f"maps/{anat}_seg-fullhead_dseg.nii.gz", coarse)
        path = root / f"bids/{anat}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        voxels = phantom_image(labels, np.random.default_rng(number))
        nib.save(nib.Nifti1Image(voxels, labels.grid.affine), path)
    tables = {"truth": "dseg", "moved": "dseg", "maps": "seg-fullhead_dseg", "bids": None}
    for folder, name in tables.items():
        kind = "derivative" if name else "raw"
        description = {"Name": "Phantoms", "BIDSVersion": "1.10.1", "DatasetType": kind}
        path = root / folder / "dataset_description.json"
        path.write_text(json.dumps(description | {"License": "CC0"}))
        if name:
            LabelTable.packaged("fullhead").write(root / folder / f"{name}.tsv")
    (root / "tiny.toml").write_text(RECIPE)
    for path in root.rglob("*"):
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))


def write_map(path: Path, labels: LabelMap) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label_map(labels, path)


BUNDLE = "trained/derivatives/model-tiny/bundle"
TRAIN = (
    "maps trained group --stages train --name tiny --recipe tiny.toml --target-voxel-size 8 "
    "--device cpu --memory-budget 4G --precision fp32 --nprocs 1 -w work"
)
RUN = f"bids out {{}} --model {BUNDLE} --device cpu --nprocs 1 --omp-nthreads 1 -w work"
PARTICIPANT, GROUP = RUN.format("participant"), RUN.format("group")
COMMANDS = {
    "help": "--help",
    "plan": f"{TRAIN} --plan-only",
    "train": TRAIN,
    "participant": f"{PARTICIPANT} --stages segment headlabels upsample --participant-label 01 "
    "--probseg --freesurfer-export --target-voxel-size 3",
    "again": f"{PARTICIPANT} --stages segment headlabels upsample --participant-label 01 "
    "--probseg --freesurfer-export --target-voxel-size 3",
    "contrast": f"{PARTICIPANT} --stages contrast -d fullhead=truth --labels fullhead",
    "summary": f"{GROUP} --stages summary",
    "priors": f"{GROUP} --stages priors",
    "synth": f"{GROUP} --stages synth --pairs 1 -d fullhead=maps",
    "evaluate": f"{GROUP} --stages evaluate --reference truth=truth -d moved=moved",
    "methods": f"{PARTICIPANT} --stages segment headlabels upsample --boilerplate-only "
    "--participant-label 01",
    "reports": f"{PARTICIPANT} --reports-only --participant-label 01",
    "slurm": f"{PARTICIPANT} --probseg --slurm",
    "slurm-group": f"{GROUP} --slurm",
    "slurm-train": f"{TRAIN} --slurm",
    "unknown-stage": f"{PARTICIPANT} --stages nonsense",
    "no-such-folder": "nowhere out participant",
}
REAL = "real real-out participant --no-test-time-flips --device cpu --nprocs 2 -w work"


def record(root: Path, real: Path | None) -> None:
    """Run every command in a new folder; keep what each said and its exit code."""
    root.mkdir(parents=True)
    root = root.resolve()
    write_inputs(root)
    commands = dict(COMMANDS)
    if real:
        image = root / "real/sub-real/anat/sub-real_T1w.nii.gz"
        image.parent.mkdir(parents=True)
        shutil.copy(real, image)
        os.utime(image, (LONG_AGO_S, LONG_AGO_S))
        shutil.copy(root / "bids/dataset_description.json", root / "real")
        commands["real"] = REAL
    (root / "said").mkdir()
    for name, arguments in commands.items():
        print(f"{name}: brainseg {arguments}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "brainseg_bids", *arguments.split()],
            cwd=root, capture_output=True, text=True,
            env=os.environ
            | {"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "0", "COLUMNS": "80"}
            | {"OMP_NUM_THREADS": "1", "TEMPLATEFLOW_HOME": str(root / "no-templates")},
        )  # fmt: skip
        said = f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        (root / "said" / f"{name}.txt").write_text(said)
        print(f"  exit code {done.returncode}", flush=True)
    shutil.rmtree(root / "work", ignore_errors=True)
    (root / "folder.txt").write_text(str(root))


# -- what differs between any two runs ----------------------------------------------------

NOBODYS = {"InputState", "ProbabilitiesSHA256", "waiting_frac"}
"""Keys with a time in them, of a file or of gzip."""
VOLATILE = {"seconds", "s", "gib", "memory", "modified", "date", "host", "began", "ended", "cache"}
WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+")
RUN = re.compile(r"\d{8}-\d{6}_[0-9a-f]{8}")
NUMBER = r"\d+(?:[.,]\d+)?"
MASKS = [
    (RUN.pattern, "RUN"),
    (r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?(?:\+\d\d:\d\d|Z)?)?", "DATE"),
    (r"\b\d\d:\d\d(?::\d\d)?\b", "CLOCK"),
    (rf"\b{NUMBER} ?(?:s|ms|min|h|seconds|minutes|hours)\b", "DURATION"),
    (rf"\b{NUMBER} ?(?:GiB|MiB|GB|MB|kB)\b", "MEMORY"),
]
MASKS = [(re.compile(pattern), name) for pattern, name in MASKS]
PROGRESS = re.compile(
    r"\d+ ?%\s*$|nipype|Currently running|^\s+\* |it/s|left$|at work:|than was used|a second"
    r"|waiting for data|% of the time"
)
"""Lines that are there, or say something, as time, speed and memory have it."""


def is_volatile(key: str) -> bool:
    """Whether a word of a key (``PeakMemoryGiB``, ``took_s``) says that no two runs agree."""
    if key.rpartition(".")[2] in NOBODYS:
        return True
    return bool({word.lower() for word in WORDS.findall(key.replace("GiB", "Gib"))} & VOLATILE)


@dataclass(frozen=True)
class Record:
    """The files of a record by name, and their content without what is volatile."""

    root: Path

    @property
    def files(self) -> dict[str, Path]:
        paths = sorted(path for path in self.root.rglob("*") if path.is_file())
        runs = sorted({found for path in paths for found in RUN.findall(str(path))})
        number = {run: f"run-{n}" for n, run in enumerate(runs, 1)}
        named = {
            RUN.sub(
                lambda found: number[found.group()], path.relative_to(self.root).as_posix()
            ): path
            for path in paths
        }
        return {name: path for name, path in named.items() if not re.search(SKIPPED, name)}

    def masked(self, text: str) -> str:
        text = text.replace((self.root / "folder.txt").read_text(), "FOLDER")
        text = text.replace(str(REPOSITORY), "REPOSITORY")
        for pattern, name in MASKS:
            text = pattern.sub(name, text)
        return text

    def leaves(self, value, key: str = "") -> dict[str, str]:
        """Values of nested mappings by their path; volatile ones as their type."""
        if isinstance(value, dict):
            parts = [(f"{key}.{self.masked(k)}" if key else k, v) for k, v in value.items()]
        elif isinstance(value, list):
            parts = [(f"{key}[{i}]", v) for i, v in enumerate(value)]
        elif is_volatile(key):
            return {key: type(value).__name__}
        else:
            return {key: self.masked(value) if isinstance(value, str) else repr(value)}
        return {k: v for part in parts for k, v in self.leaves(part[1], part[0]).items()}


SKIPPED = r"folder\.txt|\.brainseg-cache|training/cache|\.ckpt$|events\.out|/work/|\.pklz$|\.lock$"
EMBEDDED = re.compile(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)")


def pixels(content: bytes) -> str:
    image = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    return f"{image.shape} {hashlib.sha256(image.tobytes()).hexdigest()[:16]}"


def text_lines(record: Record, text: str) -> dict[str, str]:
    """How often each line is there, so that one line more is one difference."""
    lines = [line.rstrip() for line in text.splitlines() if not PROGRESS.search(line)]
    counts = Counter(record.masked(line) for line in lines if line)
    return {line: str(count) for line, count in counts.items()}


def page(record: Record, path: Path) -> dict[str, dict[str, str]]:
    text = path.read_text()
    figures = {f"figure {n}": pixels(base64.b64decode(found)) for n, found in
               enumerate(EMBEDDED.findall(text), 1)}  # fmt: skip
    text = EMBEDDED.sub("EMBEDDED", text)
    bare = re.sub(r"<(style|script)\b.*?</\1>", "", text, flags=re.DOTALL)
    words = html.unescape(re.sub(r"<[^>]+>", "\n", bare)).split("\n")
    words = "\n".join(" ".join(word.split()) for word in words)
    if path.name.startswith("train_"):  # cells with the memory used, GiB
        words = re.sub(r"^0\.\d\d$", "", words, flags=re.MULTILINE)
    return {
        "page text": text_lines(record, words),
        "markup": text_lines(record, text),
        "figures": figures,
    }


def table(record: Record, path: Path) -> dict[str, str]:
    """Columns of a table, cell by cell as written; volatile columns by their length."""
    separator = "," if path.suffix == ".csv" else "\t"
    columns = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    return {
        f"column {name}": str(len(columns)) if is_volatile(name)
        else record.masked("\n".join(columns[name]))
        for name in columns
    }  # fmt: skip


def contents(record: Record, path: Path) -> dict[str, dict[str, str]]:
    """Content of a file by kind: what is compared, piece by piece."""
    raw = path.read_bytes()
    suffix = path.suffix.lower()
    if not raw.strip():
        return {"other": {"content": "empty"}}
    if suffix in (".gz", ".mgz"):
        return {"images": {"bytes": hashlib.sha256(gzip.decompress(raw)).hexdigest()[:16]}}
    if suffix == ".png":
        return {"figures": {"pixels": pixels(raw)}}
    if suffix in (".tsv", ".csv"):
        return {"tables": table(record, path)}
    if suffix == ".json":
        return {"metadata": record.leaves(json.loads(raw))}
    if suffix == ".toml":
        return {"metadata": record.leaves(tomllib.loads(raw.decode()))}
    if suffix == ".html":
        return page(record, path)
    if suffix in (".txt", ".md", ".log", ".bib", ".svg", ".jsonl", "", ".bidsignore"):
        kind = "logs" if suffix == ".log" or "said" in path.parts else "text"
        return {kind: text_lines(record, raw.decode())}
    return {"other": {"bytes": hashlib.sha256(raw).hexdigest()[:16]}}


# -- compare ------------------------------------------------------------------------------


def compare(before: Record, after: Record) -> pd.DataFrame:
    """A row for each piece of a file that differs: kind, file, piece, before, after."""
    old, new = before.files, after.files
    rows = [("files", name, "only before", "", "") for name in sorted(old.keys() - new.keys())]
    rows += [("files", name, "only after", "", "") for name in sorted(new.keys() - old.keys())]
    for name in sorted(old.keys() & new.keys()):
        one, two = contents(before, old[name]), contents(after, new[name])
        for kind in one | two:
            was_all, now_all = one.get(kind, {}), two.get(kind, {})
            for piece in was_all | now_all:
                was, now = was_all.get(piece, "(none)"), now_all.get(piece, "(none)")
                if was != now:
                    rows.append((kind, name, piece, was[:120], now[:120]))
    return pd.DataFrame(rows, columns=["kind", "file", "piece", "before", "after"])


ON_PURPOSE = ("markup", "figures")


def report(differences: pd.DataFrame, n_files: int) -> int:
    """Print the differences; 1 if there are any that nobody wants."""
    for (kind, name), rows in differences.groupby(["kind", "file"]):
        print(f"{kind}: {name}: {len(rows)} differ")
        for row in rows.head(5).itertuples():
            print(f"    {row.piece[:160]}: {row.before!r} -> {row.after!r}")
    wrong = differences[~differences["kind"].isin(ON_PURPOSE)]
    changed = differences["file"].nunique()
    print(f"{n_files} files, {changed} differ, {wrong['file'].nunique()} of them where none may")
    return int(len(wrong) > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--real", type=Path, help="also segment this head")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "record":
        record(chosen.folder, chosen.real)
        return 0
    before, after = Record(chosen.before), Record(chosen.after)
    return report(compare(before, after), len(before.files | after.files))


if __name__ == "__main__":
    sys.exit(main())
