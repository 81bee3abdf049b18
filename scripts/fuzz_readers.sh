#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# A long run of what scripts/test.sh does briefly: every reader on damaged inputs, under sanitizers, with a new seed each
# round. Usage: scripts/fuzz_readers.sh [MINUTES] [PRESET]      MINUTES: default 30
set -euo pipefail
case ${1:-} in -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
minutes=${1:-30}
[[ $minutes =~ ^[0-9]{1,5}$ ]] || { echo "fuzz_readers: MINUTES: a number expected, found '$minutes'" >&2; exit 2; }
preset=${2:-cpu}

scripts/setup.sh "$preset" fuzz_readers
end=$((SECONDS + 60 * minutes))
for ((seed = RANDOM; SECONDS < end; seed++)); do
    echo "[fuzz] seed $seed, $(((end - SECONDS + 59) / 60)) min left"
    "build/$preset/bin/fuzz_readers" 5000 "$seed"
done
echo "[fuzz] nothing found"
