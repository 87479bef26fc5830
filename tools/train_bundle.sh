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

train() { # head, tiles, seed: a sky of its own, so that no head learns its errors where another was fitted
    rosetta simulate --tiles "$2" --seed "$3" -o "$work/$1"
    [ -f "$work/$1.safetensors" ] || rosetta train-head "$1" --data "$work/$1" \
        --encoder "$work/encoder.safetensors" --seed "$3" -o "$work/$1.safetensors"
    cp "$work/$1.safetensors" "$weights/"
}
[ -f "$work/aligner.safetensors" ] || python "$(dirname "$0")/train_aligner.py" \
    "$work/aligner.safetensors" "$work/encoder.safetensors"
cp "$work/aligner.safetensors" "$weights/"
# In this order: photometry measures through the deblender that lies beside its encoder.
train deblender 28 5
train photometry 18 6
rosetta info
