#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Whether the Hopper kernels are right on this machine's GPU, in a few minutes: build for sm_90a, the device layer against the
# plain mathematics, the operators against theirs, compute-sanitizer on small shapes, one input over and over.
# Usage: scripts/gpu_check.sh [PART...]      PART: build conformance operators memcheck racecheck repeat (default: all)
#   PYTHON   the Python that has torch (default: .venv/bin/python, else python3); nothing is installed
#   OUT      folder for logs and check.json (default: build/gpu-check)
#   REPEAT   how often `repeat` runs one input (default: 1000)
# One line per check; a part that fails does not stop the others. Exit status 1 if any check failed.
set -uo pipefail
case ${1:-} in -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
parts=("$@")
command="scripts/gpu_check.sh${*:+ $*}"
[ $# -gt 0 ] || parts=(build conformance operators memcheck racecheck repeat)
python=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || command -v python3)}
out=${OUT:-build/gpu-check}
results=()
export PYTHON=$python PYTHONUNBUFFERED=1 PRULONG_OPS_LIBRARY=$PWD/build/cuda/lib/libprulong_ops.so PRULONG_BIN=$PWD/build/cuda/bin

# check NAME LIMIT_S COMMAND...: runs the command, its output in a log of its own; prints one line, and the log's end if it failed.
check() {
    local name=$1 limit=$2 start=$SECONDS status verdict=PASS last
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    [ $status -eq 0 ] || verdict=FAIL
    last=$(tail -n 1 "$out/$name.log" | tr -d '"\\' | tr -c '[:print:]' ' ' | cut -c 1-200)
    printf '[check] %s %s (%s s, status %s): %s\n' $verdict "$name" $((SECONDS - start)) $status "$last"
    [ $status -eq 0 ] || tail -n 40 "$out/$name.log"
    results+=("$(printf '{"check": "%s", "verdict": "%s", "seconds": %s, "status": %s, "last_line": "%s"}' \
        "$name" $verdict $((SECONDS - start)) $status "$last")")
    return $status
}
pytest=("$python" -m pytest -q -p no:cacheprovider)
# Without PyTorch's own allocator every tensor is an allocation that the sanitizer sees.
sanitizer=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9)

part_build() { check build 480 scripts/gpu_slice.sh build; }
# A process for each case: after an illegal instruction a process gets nothing more from its GPU.
part_conformance() {
    local program=build/cuda/bin/gpu_conformance cases=() name
    mapfile -t cases < <("$program" --list-tests | sed -n 's/^  \([^ ].*\)$/\1/p')
    [ ${#cases[@]} -gt 0 ] || check conformance 10 "$program" --list-tests || return
    for name in "${cases[@]}"; do check "conformance_${name// /_}" 30 "$program" "$name"; done
}
part_operators() {
    check hopper 300 "${pytest[@]}" tests/python/test_hopper.py
    check operators 180 "${pytest[@]}" tests/python/test_ops.py -k cuda
}
small=("${pytest[@]}" tests/python/test_hopper.py -k small)
part_memcheck() { check memcheck 150 "${sanitizer[@]}" --tool memcheck "${small[@]}"; }
# The kernels' own programs, built so that racecheck sees who gives a stage back (csrc/hopper/ring.h).
racecheck_build() {
    local nvcc pass kernels=csrc/hopper
    nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
    for pass in forward backward decode; do
        "$nvcc" -std=c++17 -O3 -t 0 -lineinfo -DPRULONG_RACECHECK -gencode=arch=compute_90a,code=sm_90a -I. -o "build/racecheck_$pass" \
            benchmarks/kernels/bench_$pass.cu $kernels/$pass/*.cu $kernels/{combine,schedule,tensor_map}.cu \
            $kernels/schedule.cpp || return
    done
}
part_racecheck() {
    mkdir -p build
    check racecheck_build 200 bash -c "$(declare -f racecheck_build); racecheck_build" || return
    check racecheck_forward 150 compute-sanitizer --error-exitcode 9 --tool racecheck build/racecheck_forward check
    check racecheck_backward 150 compute-sanitizer --error-exitcode 9 --tool racecheck build/racecheck_backward check
    check racecheck_decode 150 compute-sanitizer --error-exitcode 9 --tool racecheck build/racecheck_decode check
}
part_repeat() { check repeat 120 env PRULONG_REPEAT="${REPEAT:-1000}" "${pytest[@]}" tests/python/test_hopper.py -k repeated; }

for part in "${parts[@]}"; do
    case $part in
        build | conformance | operators | memcheck | racecheck | repeat) ;;
        *) echo "gpu_check: no part \"$part\"; there are build, conformance, operators, memcheck, racecheck and repeat" >&2; exit 2 ;;
    esac
done
mkdir -p "$out"
for part in "${parts[@]}"; do "part_$part"; done
failures=$(printf '%s\n' "${results[@]}" | grep -c '"verdict": "FAIL"')
{
    printf '{"command": "%s", "torch": "%s",\n' "$command" "$("$python" -c 'import torch; print(torch.__version__)' 2>/dev/null)"
    printf ' "gpu": "%s",\n' "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)"
    printf ' "commit": "%s",\n' "${PRULONG_COMMIT:-$(git rev-parse HEAD 2>/dev/null)}"
    printf ' "seconds": %s, "failures": %s,\n "checks": [\n  ' $SECONDS "$failures"
    joined=$(printf ',\n  %s' "${results[@]}")
    printf '%s' "${joined:4}"
    printf ']}\n'
} >"$out/check.json"
printf '[check] done after %s s, %s failures; %s\n' $SECONDS "$failures" "$out/check.json"
exit $((failures > 0))
