#!/usr/bin/env bash
# Make the bundled weights: simulate, pretrain, then train every head on the saved (rounded) encoder.
# Usage: tools/train_bundle.sh WORK MINUTES [TILES] [BATCH]
# Every step goes on where it was stopped when the same command is given again.
set -euo pipefail
work=$1 minutes=$2 tiles=${3:-144} batch=${4:-96}
mkdir -p "$work"

rosetta simulate --tiles 12 --seed 2 -o "$work/validation"
rosetta simulate --tiles "$tiles" --seed 1 -o "$work/tiles"
[ -f "$work/pretrained.safetensors" ] || rosetta pretrain --data "$work/tiles" --validation "$work/validation" \
    --max-minutes "$minutes" --batch "$batch" -o "$work/pretrained.safetensors"
python "$(dirname "$0")/calibrate_all.py" "$work" --encoder "$work/pretrained.safetensors" --install
rosetta info
