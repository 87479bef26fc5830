#!/usr/bin/env bash
# Make the bundled weights: simulate, pretrain, then train every head on the saved (rounded) encoder.
# Usage: tools/train_bundle.sh WORK MINUTES [TILES] [BATCH]
# Every step goes on where it was stopped when the same command is given again.
set -euo pipefail
work=$1 minutes=$2 tiles=${3:-144} batch=${4:-96}
weights=$(cd "$(dirname "$0")/.." && pwd)/rosetta/weights
mkdir -p "$work"

rosetta simulate --tiles 12 --seed 2 -o "$work/validation"
rosetta simulate --tiles "$tiles" --seed 1 -o "$work/tiles"
[ -f "$work/encoder.safetensors" ] || rosetta pretrain --data "$work/tiles" --validation "$work/validation" \
    --max-minutes "$minutes" --batch "$batch" -o "$work/encoder.safetensors"
cp "$work/encoder.safetensors" "$weights/"

# Every head has a sky of its own, so that none learns its errors where another was fitted.
# In this order: photometry measures through the deblender that lies beside its encoder.
for head in aligner deblender photometry; do
    [ -f "$work/$head.safetensors" ] || python "$(dirname "$0")/train_$head.py" \
        "$work/$head.safetensors" "$work/encoder.safetensors"
    cp "$work/$head.safetensors" "$weights/"
done
rosetta info
