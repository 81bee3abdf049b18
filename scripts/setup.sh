#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Prepares a checkout: system packages, Python environment, CUDA compiler, build. Idempotent; cheap when nothing changed.
# Usage: scripts/setup.sh [PRESET] [TARGET...]      PRESET: cpu (default), cpu-asan or cuda
set -euo pipefail
case ${1:-} in -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${1:-cpu}
[ $# -gt 0 ] && shift
case $preset in
    cpu | cpu-asan | cuda) ;;
    *) echo "setup: PRESET: cpu, cpu-asan or cuda expected, found '$preset'" >&2; exit 2 ;;
esac
log=build/$preset.log
mkdir -p build

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

# --- 1. System packages ------------------------------------------------------------------------------------------------
packages=(g++ cmake ninja-build ccache git python3 python3-dev python3-venv lld
          catch2 libboost-context-dev libcxxopts-dev libspdlog-dev libssl-dev libxxhash-dev libyaml-cpp-dev libzstd-dev
          nlohmann-json3-dev)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    say "system packages: installing ${missing[*]}"
    sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "system packages are missing (${missing[*]}): run as root, or install sudo"
        sudo=(sudo)
    fi
    "${sudo[@]}" apt-get -qq update
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
else
    say "system packages: present"
fi

# --- 2. Python environment ---------------------------------------------------------------------------------------------
stamp=.venv/.prulong-requirements
if ! cmp -s requirements.txt "$stamp"; then
    say "Python environment: installing requirements.txt into .venv (about 5 GB, some minutes)"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$stamp"
else
    say "Python environment: present"
fi

# --- 3. CUDA compiler: the machine's nvcc 13, else the one from pip -----------------------------------------------------
nvcc=$(command -v nvcc || true)
if [ -n "$nvcc" ] && "$nvcc" --version | grep -q 'release 13\.'; then
    say "CUDA compiler: $("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/nvcc \1/p') of this machine"
    cuda_root=$(cd "$(dirname "$(readlink -f "$nvcc")")/.." && pwd)
else
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    cuda_root=$site/nvidia/cu13
    if [ ! -x "$cuda_root/bin/nvcc" ]; then
        say "CUDA compiler: installing nvcc 13.0 from pip"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-cccl==13.0.*'
    else
        say "CUDA compiler: nvcc from pip, present"
    fi
    # The wheels lack the names that CMake and the linker look for: lib64, and libX.so beside each libX.so.N.
    [ -e "$cuda_root/lib64" ] || ln -s lib "$cuda_root/lib64"
    for library in "$cuda_root"/lib/*.so.*; do
        plain=${library%%.so.*}.so
        [ -e "$plain" ] || ln -s "$(basename "$library")" "$plain"
    done
fi
export CUDA_HOME=$cuda_root PATH=$cuda_root/bin:$PATH

# --- 4. Build ----------------------------------------------------------------------------------------------------------
if [ ! -f "build/$preset/build.ninja" ] || [ "$(cat "build/$preset/.cuda-root" 2>/dev/null)" != "$cuda_root" ]; then
    say "configure: preset $preset"
    rm -f "build/$preset/CMakeCache.txt"
    cmake --preset "$preset" -DCUDAToolkit_ROOT="$cuda_root" -DCUDA_TOOLKIT_ROOT_DIR="$cuda_root" >"$log" 2>&1 ||
        { tail -n 30 "$log" >&2; fail "configuring failed: see $log"; }
    echo "$cuda_root" >"build/$preset/.cuda-root"
fi
say "build: preset $preset"
cmake --build --preset "$preset" ${*:+--target "$@"} >"$log" 2>&1 || {
    shown=$(grep -m 10 -E 'error|FAILED' -A 6 "$log") || shown=$(tail -n 5 "$log")
    printf '%s\n' "$shown" >&2
    fail "building failed: see $log"
}
say "ready"
