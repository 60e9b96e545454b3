#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What both recipes do, so that they cannot differ:   sh docker/install.sh torch|app
#
#   torch  makes a virtual environment and installs PyTorch for VARIANT: most of the image, changes least
#   app    installs the app, its model and the templates, and tries whether they start
#
# Settings, all by variables:
#   VARIANT      cpu, cuda or rocm
#   TORCH_INDEX  another PyTorch index than the variant's, e.g. for an older driver
#   EXTRAS       optional parts of the app, comma-separated, e.g. fetch,nnunet
#   TEMPLATES    TemplateFlow images to fetch, e.g. "MNI152NLin2009cAsym:1 MNI152NLin2009cAsym:2"; empty: none
#   PREFIX       where all of it goes
set -eu

VARIANT=${VARIANT:-cpu}
PREFIX=${PREFIX:-/opt/brainseg}
source_dir=$(cd "$(dirname "$0")/.." && pwd)

case $VARIANT in
    cpu) index=https://download.pytorch.org/whl/cpu ;;
    cuda) index="" ;; # PyPI's own build is the CUDA one
    rocm) index=https://download.pytorch.org/whl/rocm7.2 ;;
    *)
        echo "VARIANT is $VARIANT. Choose cpu, cuda or rocm." >&2
        exit 2
        ;;
esac
index=${TORCH_INDEX:-$index}

pip_install() {
    "$PREFIX/bin/python" -m pip install --no-cache-dir --disable-pip-version-check \
        --root-user-action=ignore --constraint "$source_dir/constraints.txt" "$@"
}

install_torch() {
    python3 -m venv "$PREFIX"
    # Beside PyPI, not instead of it: a build for an accelerator, 2.13.0+cpu, is newer than 2.13.0.
    pip_install ${index:+--extra-index-url "$index"} torch
    # An index that does not answer is only a warning of pip's, which then takes PyPI's build.
    "$PREFIX/bin/python" - "$VARIANT" <<'CHECK'
import sys, torch

built = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
if built != sys.argv[1]:
    sys.exit(f"torch {torch.__version__} is built for {built}, not {sys.argv[1]}.")
CHECK
}

install_app() {
    pip_install "$source_dir${EXTRAS:+[$EXTRAS]}"
    # Without its dependencies: see "nnunet" in pyproject.toml.
    pip_install --no-deps dynamic-network-architectures
    # shellcheck disable=SC2086  # one word per template
    "$PREFIX/bin/python" "$source_dir/docker/templates.py" "$PREFIX/templateflow" ${TEMPLATES:-}
    "$PREFIX/bin/python" -m pip uninstall --quiet --yes --root-user-action=ignore pip
    chmod -R a+rX "$PREFIX"
    "$PREFIX/bin/brainseg" --version
    # For /version, where BIDS Apps tell theirs.
    "$PREFIX/bin/python" -c 'import brainseg_bids; print(brainseg_bids.__version__)' > "$PREFIX/version"
}

case ${1:-} in
    torch) install_torch ;;
    app) install_app ;;
    *)
        echo "usage: sh $0 torch|app" >&2
        exit 2
        ;;
esac
