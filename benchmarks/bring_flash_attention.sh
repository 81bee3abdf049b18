#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Brings FlashAttention 4, a peer of bench_attention.py, to a machine without a network (x86-64, Python 3.12, CUDA 13).
# Usage: benchmarks/bring_flash_attention.sh fetch FOLDER           on a machine with a network: FOLDER/1, FOLDER/2, ...
#        benchmarks/bring_flash_attention.sh install FOLDER TARGET  on the other: from those to TARGET; prints PYTHONPATH
#   PIECE    the largest piece, in MiB (default: 50), for transfers with a limit
#   PYTHON   the Python that has pip (default: python3)
# TARGET is a folder of its own: nothing that is installed changes. FOLDER/1 and FOLDER/2 may travel one after the other.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit ;; esac
usage() { echo "bring_flash_attention: expected fetch FOLDER or install FOLDER TARGET; see --help" >&2; exit 2; }
python=${PYTHON:-python3}
wheels=(flash-attn-4==4.0.0b36 nvidia-cutlass-dsl==4.8.1 nvidia-cutlass-dsl-libs-base==4.8.1
    nvidia-cutlass-dsl-libs-core==4.8.1 nvidia-cutlass-dsl-libs-cu13==4.8.1 apache-tvm-ffi==0.1.15.post2 torch-c-dlpack-ext==0.1.5 quack-kernels==0.6.5)
new_folder() { [ ! -e "$1" ] || { echo "bring_flash_attention: $1: exists; name a new folder" >&2; exit 2; }; }

case ${1:-} in
    fetch)
        [ $# -eq 2 ] || usage
        new_folder "$2"
        platforms=()
        for glibc in 17 24 27 28 34 35; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
        "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
            --implementation cp "${platforms[@]}" -d "$work/wheels" "${wheels[@]}"
        tar -C "$work/wheels" -cf - . | split -b "${PIECE:-50}M" -d -a 2 - "$work/piece."
        number=0
        for piece in "$work"/piece.*; do
            number=$((number + 1))
            mkdir -p "$2/$number"
            mv "$piece" "$2/$number/piece"
        done
        du -sh "$2"/*
        ;;
    install)
        [ $# -eq 3 ] || usage
        new_folder "$3"
        pieces=()
        while [ -f "$2/$((${#pieces[@]} + 1))/piece" ]; do pieces+=("$2/$((${#pieces[@]} + 1))/piece"); done
        [ ${#pieces[@]} -gt 0 ] || { echo "bring_flash_attention: $2/1/piece: no such file; fetch makes it" >&2; exit 2; }
        mkdir -p "$3/wheels"
        cat "${pieces[@]}" | tar -C "$3/wheels" -xf -
        "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$3" "$3"/wheels/*.whl >&2
        rm -r "$3/wheels"
        target=$(cd "$3" && pwd)
        echo "$target:$target/nvidia_cutlass_dsl/dsl_packages"
        ;;
    *) usage ;;
esac
