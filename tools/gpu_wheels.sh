#!/usr/bin/env bash
# Collect the wheels that tools/gpu_run.sh needs on a machine with torch, numpy, scipy and pytest but no network.
# Usage: tools/gpu_wheels.sh [PYTHON_VERSION]        (default 3.12; writes build/wheels)
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:-3.12} wheels=$PWD/build/wheels
rm -rf "$wheels" && mkdir -p "$wheels"
pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
    --dest "$wheels" astropy pyerfa astropy-iers-data PyYAML photutils regions safetensors galsim LSSTDESC.Coord speclite packaging
# Symbols for debuggers and the packages' own tests are four fifths of the bytes.
for wheel in "$wheels"/*.whl; do
    unpacked=$(mktemp -d)
    python -m zipfile -e "$wheel" "$unpacked"
    find "$unpacked" -name '*.so*' -exec strip --strip-all {} +
    find "$unpacked" -type d -path '*/tests/data' -prune -exec rm -r {} +
    rm "$wheel"
    (cd "$unpacked" && python -m zipfile -c "$wheel" ./*)
    rm -r "$unpacked"
done
du -sh "$wheels"
