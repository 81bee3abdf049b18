#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Fails when clang-format would change a tracked C++ or CUDA file; --fix changes them. Usage: scripts/check_format.sh [--fix]
set -euo pipefail
case ${1:-} in
    -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit ;;
    --fix) mode=(-i) ;;
    '') mode=(--dry-run --Werror) ;;
    *) echo "check_format: --fix or nothing expected, found '$1'" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/bin/clang-format ] || { echo "check_format: no .venv/bin/clang-format: run scripts/setup.sh first" >&2; exit 1; }
git ls-files -z '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -0 -r .venv/bin/clang-format "${mode[@]}"
echo "format: fine"
