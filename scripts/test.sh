#!/usr/bin/env bash
# Sets the checkout up and runs all tests: format, layers, C++ and Python. Usage: scripts/test.sh [PRESET]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${1:-cpu}
step() { printf '\n[test] %s (at %s s)\n' "$*" "$SECONDS"; }

step "set-up"
scripts/setup.sh "$preset"
step "the real small model"
.venv/bin/python scripts/fetch_smollm2.py
step "format and layers"
scripts/check_format.sh
.venv/bin/python scripts/check_layers.py
step "C++ tests"
ctest --preset "$preset"
step "Python tests"
PRULONG_BIN="$PWD/build/$preset/bin" PRULONG_OPS_LIBRARY="$PWD/build/$preset/lib/libprulong_ops.so" .venv/bin/python -m pytest -q tests/python
step "all tests passed"
