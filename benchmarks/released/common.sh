# Sourced by the scripts of this folder: error lines, the repository, its Python.
# shellcheck shell=bash
fail() {
  printf '%s: ERROR: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python
python=${PYTHON:-$python}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
