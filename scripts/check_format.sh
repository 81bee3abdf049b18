#!/usr/bin/env bash
# Fails when clang-format would change a tracked C++ or CUDA file; --fix changes them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mode=(--dry-run --Werror)
[ "${1:-}" = --fix ] && mode=(-i)
git ls-files -z '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -0 -r .venv/bin/clang-format "${mode[@]}"
echo "format: fine"
