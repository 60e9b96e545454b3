#!/usr/bin/env bash
# Continue the training of the packaged model: make the label maps, train for some minutes, bundle, score on held-out label maps, log a line.
set -euo pipefail

usage() {
  cat <<'END'
usage: continue.sh --work FOLDER [options] [-- FLAGS OF brainseg]

  --work FOLDER            scratch: label maps, runs, bundles (about 3 GB)
  --labels FOLDER          SynthSeg's training_seg_01 to 16; default: synthseg_training_labels in $BRAINSEG_SHARED_DATA
  --minutes N              how long to train; default: 600
  --start-from MODEL       default: the last bundle of the log that is in the scratch folder, else head-1mm
  --name NAME              name of the run; an interrupted run is resumed by its name; default: t1w and the time
  --recipe FILE            default: t1w_muon.toml
  --voxel-size MM          of the pairs; default: 1.0
  --maps-voxel-size MM     voxel size of the label maps; default: 0.7
  --level-pairs N          pairs for the calibration of volumes; default: 16
  --confidence-pairs N     pairs per held-out map and recipe for the calibration of confidence; default: 2
  --score-pairs N          pairs per held-out map and recipe space for the scores; default: 1
  --log FILE               default: log.tsv beside this script
  --train-only             end with the bundle; for a machine that is lent for a short time, see pack.sh
  --score-only             score and log the bundle of --name, which was trained elsewhere
  --dry-run                print the commands, do nothing

The run has the lowest priority. Flags after -- go to `brainseg … --stages train`, e.g. -- --devices 2.
END
}

# shellcheck source=benchmarks/released/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
work='' labels='' minutes=600 start='' name='' recipe=$here/t1w_muon.toml voxel=1.0 maps_voxel=0.7
level=16 confidence=2 pairs=1 log=$here/log.tsv dry='' train=yes score=yes
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes && shift && continue ;;
    --train-only) score='' && shift && continue ;;
    --score-only) train='' && shift && continue ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    --*) [ $# -gt 1 ] || fail "$1: needs a value" ;;
    *) fail "$1: flags of brainseg come after --" ;;
  esac
  case $1 in
    --work) work=$2 ;;
    --labels) labels=$2 ;;
    --minutes) minutes=$2 ;;
    --start-from) start=$2 ;;
    --name) name=$2 ;;
    --recipe) recipe=$2 ;;
    --voxel-size) voxel=$2 ;;
    --maps-voxel-size) maps_voxel=$2 ;;
    --level-pairs) level=$2 ;;
    --confidence-pairs) confidence=$2 ;;
    --score-pairs) pairs=$2 ;;
    --log) log=$2 ;;
    *) usage >&2 && fail "$1: no such flag" ;;
  esac
  shift 2
done
[ -n "$work" ] || fail "say where the scratch folder is: --work FOLDER"
[ -n "$train$score" ] || fail "--train-only and --score-only exclude each other"
[ -n "$train" ] || [ -n "$name" ] || fail "say which bundle is scored: --name NAME"
maps=$work/maps-$maps_voxel
if [ -n "$score" ] || [ ! -d "$maps" ]; then
  labels=${labels:-${BRAINSEG_SHARED_DATA:+$BRAINSEG_SHARED_DATA/synthseg_training_labels}}
  [ -n "$labels" ] || fail "say where SynthSeg's training maps are: --labels FOLDER, or BRAINSEG_SHARED_DATA"
  for n in $(seq -w 1 16); do
    [ -f "$labels/training_seg_$n.nii.gz" ] || fail "$labels/training_seg_$n.nii.gz: there is no such file"
  done
fi
[ -f "$recipe" ] || fail "$recipe: there is no such file"
[ -n "$dry" ] || mkdir -p "$work"
name=${name:-t1w-$(date -u +%Y%m%d-%H%M%S)}
export OMP_WAIT_POLICY=PASSIVE
export BRAINSEG_PARENT=$$ # when this script is killed, the run saves and ends

run() {
  printf '+%s\n' "$(printf ' %q' "$@")" >&2
  [ -n "$dry" ] || nice -n 19 "$@"
}

brainseg() {
  run "$python" -m brainseg_bids "$@"
}

# 1. Label maps as a derivative, then finer; a folder with the finer ones alone, there when it is whole.
if [ -n "$train" ] && [ ! -d "$maps" ]; then
  coarse=$work/maps fine=$work/upsampled-$maps_voxel
  for folder in "$coarse" "$fine"; do
    run mkdir -p "$folder"
    run cp "$root/brainseg_bids/data/labels/fullhead.tsv" "$folder/seg-fullhead_dseg.tsv"
    for n in $(seq -w 1 16); do
      run mkdir -p "$folder/sub-$n/anat"
      run cp "$labels/training_seg_$n.nii.gz" "$folder/sub-$n/anat/sub-${n}_seg-fullhead_dseg.nii.gz"
    done
  done
  [ -n "$dry" ] || cat > "$coarse/dataset_description.json" <<'END'
{"Name": "SynthSeg training label maps", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "License": "Apache-2.0", "GeneratedBy": [{"Name": "SynthSeg"}]}
END
  brainseg "$coarse" "$fine" participant --stages upsample --target-voxel-size "$maps_voxel" -w "$work/nipype"
  run rm -rf "$maps.part"
  for n in $(seq -w 1 16); do
    run mkdir -p "$maps.part/sub-$n/anat"
    [ -n "$dry" ] || cp "$fine/sub-$n/anat/"*_res-*_dseg.* "$maps.part/sub-$n/anat/"
  done
  run cp "$fine/seg-fullhead_dseg.tsv" "$fine/dataset_description.json" "$maps.part"
  run mv "$maps.part" "$maps"
fi

bundles=$work/bundles out=$work/out
training=$out/derivatives/model-$name/training
began=$work/runs/$name.start earlier=$work/runs/$name.before used=$work/runs/$name.used

# 2. Train, or continue a run of that name.
train() {
  local from=() code=0 before=0
  if [ -f "$training/last.ckpt" ]; then
    before=$("$python" -m benchmarks.released_log steps --run "$training")
    [ ! -f "$began" ] || start=$(cat "$began")
    [ -n "$start" ] ||
      fail "$training: is continued, but nothing says from which model it began: add --start-from MODEL, for the log"
  else
    start=${start:-$("$python" -m benchmarks.released_log start --log "$log" --bundles "$bundles")}
    from=(--start-from "$start")
  fi
  if [ -z "$dry" ]; then
    mkdir -p "$work/runs"
    printf '%s\n' "$start" > "$began"
    printf '%s\n' "$before" > "$earlier"
  else
    used=/dev/null
  fi
  TIMEFORMAT='%R %U %S'
  { time brainseg "$maps" "$out" group --stages train --target-voxel-size "$voxel" --name "$name" "${from[@]}" \
    --recipe "$recipe" --minutes "$minutes" --validation-label 15 16 "$@" 2>&3 || code=$?; } 3>&2 2> "$used"
  [ "$code" = 0 ] || exit "$code"
  # 3. Bundle with calibrated volumes.
  run mkdir -p "$bundles"
  run "$python" -m brainseg_bids.programs.bundle --run "$training" --out "$bundles/$name" --level-volumes "$level"
}

score() {
  local seconds line digest
  # 4. Calibrate the confidence of structures on label maps 15 and 16, then score on other pairs of them.
  run "$python" -m brainseg_bids.programs.confidence --model "$bundles/$name" --spaces t1w "$here/t1w_sharp.toml" \
    --label-maps "$labels/training_seg_15.nii.gz" "$labels/training_seg_16.nii.gz" --pairs "$confidence"
  run "$python" -m benchmarks.released_model --work "$work/scores" --models "$bundles/$name" --parts heldout \
    --labels "$labels" --spaces t1w "$here/t1w_sharp.toml" --pairs "$pairs" --tsv "$work/scores/$name.tsv"
  # 5. Log, and put the bundle, called by its digest, where the next run finds it.
  if [ -z "$dry" ]; then
    read -r -a seconds < "$used" || true
    start=${start:-$(cat "$began")} before=$(cat "$earlier")
    # A run from elsewhere began from a bundle that has another path here.
    [ -d "$start" ] || [ "$start" = "${start##*/}" ] || start=$bundles/${start##*/}
  fi
  line=$(run "$python" -m benchmarks.released_log add --log "$log" --run "$training" --bundle "$bundles/$name" --start "$start" \
    --steps-before "${before:-0}" --used "${seconds[@]:-0}" --recipe "$recipe" --scores "$work/scores/$name.tsv")
  [ -z "$dry" ] || return 0
  printf '%s\n' "$line"
  digest=$(cut -f 4 <<< "$line")
  rm -rf "$bundles/${digest:?}" # the same bundle, of a run that was scored before
  mv "$bundles/$name" "$bundles/$digest"
}

[ -z "$train" ] || train "$@"
if [ -n "$score" ]; then
  score
else
  # What --score-only needs on another machine.
  run tar -cf "$work/$name.tar" -C "$work" "bundles/$name" "runs/$name.start" "runs/$name.before" "runs/$name.used" \
    "out/derivatives/model-$name/training/memory.json"
fi
