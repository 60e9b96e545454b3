#!/usr/bin/env bash
# Pack all that a machine without internet needs to continue the training: code, label maps, last bundle, wheels.
set -euo pipefail

usage() {
  cat <<'END'
usage: pack.sh --work FOLDER --out FILE.tar.xz [options] [PACKAGE …]

  --work FOLDER     scratch folder of continue.sh, with its label maps
  --out FILE        archive for the other machine; must be new
  --start-from DIR  bundle to start from; default: the last of the log in the scratch folder, else head-1mm
  --log FILE        default: log.tsv beside this script
  --python VERSION  of the other machine, for the wheels; default: 3.12
  PACKAGE …         downloaded as wheels, exactly these (pip download --no-deps)

There, unpack it; `bash carried/train.sh --minutes N [-- FLAGS OF brainseg]` trains and leaves carried/scratch/lent.tar. Back here, unpack that in
the scratch folder (tar -xf lent.tar -C SCRATCH) and run continue.sh --work SCRATCH --name lent --score-only.
END
}

# shellcheck source=benchmarks/released/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
work='' out='' start='' log=$here/log.tsv version=3.12
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage && exit 0 ;;
    --*) [ $# -gt 1 ] || fail "$1: needs a value" ;;
    *) break ;;
  esac
  case $1 in
    --work) work=$2 ;;
    --out) out=$2 ;;
    --start-from) start=$2 ;;
    --log) log=$2 ;;
    --python) version=$2 ;;
    *) usage >&2 && fail "$1: no such flag" ;;
  esac
  shift 2
done
[ -n "$work" ] || fail "say where the scratch folder of continue.sh is: --work FOLDER"
[ -n "$out" ] || fail "say what to write: --out FILE.tar.xz"
[ ! -e "$out" ] || fail "$out: is there already; name a new file"
[ -d "$(dirname "$out")" ] || fail "$(dirname "$out"): there is no such folder"
[ -d "$work/maps-0.7" ] || fail "$work/maps-0.7: there are no label maps; run continue.sh --work $work once (--minutes 5 is enough)"
start=${start:-$("$python" -m benchmarks.released_log start --log "$log" --bundles "$work/bundles")}

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
carried=$temporary/carried
mkdir -p "$carried/code" "$carried/scratch/bundles" "$carried/wheels"
code=(brainseg_bids benchmarks pyproject.toml)
[ -z "$(git -C "$root" status --porcelain -- "${code[@]}")" ] ||
  printf '%s: WARNING: %s has changes that are not committed; they are left out\n' "${0##*/}" "$root" >&2
git -C "$root" archive HEAD "${code[@]}" | tar -x -C "$carried/code"
# The cache beside the maps is large and is made anew there. Maps without gzip are a third in the archive.
tar -c -C "$work" --exclude=.brainseg-cache maps-0.7 | tar -x -C "$carried/scratch"
find "$carried/scratch/maps-0.7" -name '*.nii.gz' -exec gunzip {} +
if [ -d "$start" ]; then
  cp -rL "$start" "$carried/scratch/bundles/"
  start=scratch/bundles/$(basename "$start")
fi
for model in "$carried"/code/brainseg_bids/data/models/*/; do
  [ "$(basename "$model")" = "$start" ] || rm -r "$model"
done
if [ $# -gt 0 ]; then
  platforms=()
  for name in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${name}_x86_64")
  done
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" --dest "$carried/wheels" "$@"
fi
cat > "$carried/train.sh" <<END
#!/usr/bin/env bash
# Continue the training here: train.sh --minutes N [-- FLAGS OF brainseg]. Leaves scratch/lent.tar.
set -euo pipefail
cd "\$(dirname "\${BASH_SOURCE[0]}")"
export PYTHON=\${PYTHON:-python3}
if compgen -G 'wheels/*.whl' > /dev/null; then
  "\$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target site wheels/*.whl
  export PYTHONPATH="\$PWD/site\${PYTHONPATH:+:\$PYTHONPATH}"
fi
exec bash code/benchmarks/released/continue.sh --work "\$PWD/scratch" --name lent --train-only --start-from "$start" "\$@"
END
tar -c -C "$temporary" carried | xz -2 > "$out.part"
mv "$out.part" "$out"
du -h "$out" >&2
