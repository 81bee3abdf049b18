#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Everything that needs a Hopper GPU, in a few minutes: build, all tests with the CUDA cases, memcheck, the training step of an
# 8B model beside the published method, and masks for SmolLM2 trained at 4,096 tokens.
# Usage: scripts/gpu_slice.sh [PART...]      PART: build tests memcheck train recall (default: all, in this order)
#   PYTHON   the Python that has torch and transformers (default: .venv/bin/python, else python3); nothing is installed
#   OUT      folder for results and logs (default: build/gpu-slice)
# One line per check; a part that fails does not stop the others. Exit status 1 if any check failed.
set -uo pipefail
case ${1:-} in -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
parts=("$@")
[ $# -gt 0 ] || parts=(build tests memcheck train recall)
for part in "${parts[@]}"; do
    case $part in
        build | tests | memcheck | train | recall) ;;
        *) echo "gpu_slice: no part \"$part\"; there are build, tests, memcheck, train and recall" >&2; exit 2 ;;
    esac
done
python=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || command -v python3)}
work=build/gpu-slice
out=${OUT:-$work}
bin=build/cuda/bin
cores=$(nproc)
failures=0
export PYTHONUNBUFFERED=1 PRULONG_BIN=$PWD/$bin PRULONG_OPS_LIBRARY=$PWD/build/cuda/lib/libprulong_ops.so

# check NAME LIMIT_S COMMAND...: runs the command, its output in a log of its own; prints PASS or FAIL with the log's end.
check() {
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    if [ $status -eq 0 ]; then
        printf '[slice] PASS %s (%s s): %s\n' "$name" $((SECONDS - start)) "$(tail -n 1 "$out/$name.log")"
    else
        printf '[slice] FAIL %s (%s s, status %s)\n' "$name" $((SECONDS - start)) "$status"
        grep -nE 'error|Error|FAILED|FAIL|Invalid|assert' "$out/$name.log" | head -n 40
        tail -n 30 "$out/$name.log"
    fi
    return $status
}
count_failures() { for job in "$@"; do wait "$job" || failures=$((failures + 1)); done; }

part_build() {
    local nvcc root
    nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
    root=$(dirname "$(dirname "$nvcc")")
    check configure 120 cmake --preset cuda -DPRULONG_PYTHON="$python" -DPRULONG_WERROR=OFF -DPRULONG_EMULATION=OFF \
        -DCMAKE_CUDA_COMPILER="$nvcc" -DCUDAToolkit_ROOT="$root" -DCUDA_TOOLKIT_ROOT_DIR="$root" &&
        check compile 400 cmake --build build/cuda || failures=$((failures + 1))
}

# Programs choose the GPU where there is one, so the tests of CPU behaviour run with it hidden.
part_tests() {
    local jobs=() program
    for program in $bin/test_*; do
        check "cpp_${program##*/test_}" 240 env OMP_NUM_THREADS=2 "$program" & jobs+=($!)
    done
    check python_ops 280 env OMP_NUM_THREADS=2 "$python" -m pytest -q -n 4 tests/python/test_ops.py tests/python/test_cuda.py &
    jobs+=($!)
    check python_rest 280 env OMP_NUM_THREADS=2 CUDA_VISIBLE_DEVICES= "$python" -m pytest -q -n $((cores > 6 ? cores - 6 : 1)) \
        tests/python --ignore tests/python/test_ops.py --ignore tests/python/test_cuda.py & jobs+=($!)
    count_failures "${jobs[@]}"
}

# Without PyTorch's own allocator every tensor is an allocation that memcheck sees.
part_memcheck() {
    check memcheck 150 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
        $bin/test_csrc '[cuda]' || failures=$((failures + 1))
}

# What a benchmark prints is worth seeing as it comes.
benchmark() {
    local name=$1 limit=$2
    shift 2
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    [ "${PIPESTATUS[0]}" -eq 0 ] && printf '[slice] PASS %s\n' "$name" && return
    printf '[slice] FAIL %s\n' "$name"
    failures=$((failures + 1))
}
# At 65,536 tokens beside the faster peer alone: the slower one takes a minute and a half.
part_train() {
    local train=("$python" benchmarks/bench_train.py --bin $bin)
    benchmark train 240 "${train[@]}" --lengths 32768 --gates "log_alpha 3" "70 % local" --out $work/train.json
    benchmark train_long 200 "${train[@]}" --lengths 65536 --gates "log_alpha 3" --peers cudnn --out $work/train_long.json
}
part_recall() { benchmark recall 120 "$python" benchmarks/bench_recall.py --steps 100 --bin $bin --out $work/recall.json; }

mkdir -p "$work" "$out"
for part in "${parts[@]}"; do
    printf '[slice] %s (at %s s)\n' "$part" $SECONDS
    "part_$part"
done
[ "$out" = "$work" ] || cp $work/*.json "$out"/ 2>/dev/null
printf '[slice] done after %s s, %s failures\n' $SECONDS $failures
exit $((failures > 0))
