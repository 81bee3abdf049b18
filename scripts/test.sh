#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Sets the checkout up and runs all tests: format, layers, C++ and Python.
# Usage: scripts/test.sh [PRESET]      PRESET: cpu (default), cpu-asan (C++ tests alone) or cuda
set -euo pipefail
case ${1:-} in -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit ;; esac
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
if [ "$preset" = cpu-asan ]; then  # a plain Python loads no sanitized library
    step "all C++ tests passed"
    exit
fi
step "Python tests"
PRULONG_BIN="$PWD/build/$preset/bin" PRULONG_OPS_LIBRARY="$PWD/build/$preset/lib/libprulong_ops.so" .venv/bin/python -m pytest -q tests/python
step "all tests passed"
