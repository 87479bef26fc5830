#!/usr/bin/env bash
# Pretrain the encoder on one GPU in under ten minutes, tests and simulation of the training sky included.
# Usage: tools/gpu_run.sh OUT
#
# OUT receives report.txt, the logs, and the encoder in parts of at most 14 MB (join them with cat; check encoder.sha256).
# Settings, with their values for one H200 with 16 cores:
#   LIMIT=575 (s, for everything)  TILES=144  VALIDATION=12  PROCESSES=15  BATCH=384  DEVICE=cuda  PYTHON=python3
# A rehearsal on a CPU: LIMIT=240 TILES=2 VALIDATION=1 PROCESSES=1 BATCH=12 DEVICE=cpu tools/gpu_run.sh rehearsal
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
limit=${LIMIT:-575} tiles=${TILES:-144} validation=${VALIDATION:-12} processes=${PROCESSES:-15} batch=${BATCH:-384}
device=${DEVICE:-cuda} python=${PYTHON:-python3} work=$(mktemp -d)
reserve=$((limit / 6)) # s after the training: novelty, held-out retrieval, export
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
say() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$out/report.txt"; }

if [ -d build/wheels ]; then
    "$python" -m pip install --quiet --no-index --no-deps --disable-pip-version-check --target "$work/site" build/wheels/*.whl
    export PYTHONPATH=$PWD:$work/site
fi
"$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")' \
    >> "$out/report.txt"
say "packages are there"

simulate() { # the training sky, on the CPU, beside the tests
    nice "$python" -m rosetta.cli simulate --tiles "$validation" --seed 2 --processes "$processes" -o "$work/validation"
    nice "$python" -m rosetta.cli simulate --tiles "$tiles" --seed 1 --processes "$processes" -o "$work/tiles"
}
simulate > "$out/simulate.log" 2>&1 &
simulation=$!

# Not the project's own settings: they ask for plugins that may be missing.
if "$python" -m pytest -q -c /dev/null --rootdir . --import-mode importlib -p no:cacheprovider tests/test_cuda.py \
    > "$out/tests.log" 2>&1; then say "tests: $(tail -1 "$out/tests.log")"; else say "TESTS FAILED: $(tail -1 "$out/tests.log")"; fi

wait "$simulation" || { say "simulation failed: $(tail -1 "$out/simulate.log")"; exit 1; }
say "$tiles tiles and $validation for validation"

unset OMP_NUM_THREADS
if timeout $((limit / 8)) "$python" benchmarks/training.py "$work/tiles" 3 > "$out/rate.log" 2>&1; then
    say "rate:"; tail -12 "$out/rate.log" | tee -a "$out/report.txt"
else say "rate was not measured: $(tail -1 "$out/rate.log")"; fi

seconds=$((limit - reserve - SECONDS))
[ "$seconds" -ge 20 ] || { say "no time left to train"; exit 1; }
say "training for $seconds s, batch $batch"
"$python" -m rosetta.cli pretrain --data "$work/tiles" --validation "$work/validation" --batch "$batch" \
    --max-minutes "$("$python" -c "print($seconds / 60)")" --device "$device" -o "$work/encoder.safetensors" \
    > "$out/pretrain.log" 2>&1 || { say "training failed: $(tail -1 "$out/pretrain.log")"; exit 1; }
grep -a '^step' "$out/pretrain.log" | tail -1 | tee -a "$out/report.txt"
grep -a '^Held out' "$out/pretrain.log" | tee -a "$out/report.txt"
say "trained and measured"

(cd "$work" && sha256sum encoder.safetensors > "$out/encoder.sha256")
split -b 14M "$work/encoder.safetensors" "$out/encoder.safetensors.part-"
rm -rf "$work"
say "done"
