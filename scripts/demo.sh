#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The main job on a real pretrained model, on two CPU cores: measure SmolLM2-135M-Instruct's recall, learn head masks,
# export them, and compare them with full attention, random masks and no global heads at all.
# Usage: scripts/demo.sh [SEED]      Results go to demo/; a second call goes on from what is there.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seed=${1:-1}
[[ $seed =~ ^[0-9]{1,9}$ ]] || { echo "demo: SEED: a number of at most 9 digits expected, found '$seed'" >&2; exit 2; }
step() { printf '\n[demo] %s\n' "$*"; }
bin=build/cpu/bin
python=.venv/bin/python

step "1/7 set-up"
scripts/setup.sh cpu prulong-train prulong-export prulong-eval
$python scripts/fetch_smollm2.py
SECONDS=0

step "2/7 tokenise prose, names and codes"
$python scripts/prepare_data.py recall --tokenizer models/SmolLM2-135M-Instruct --out demo/kit --overwrite

step "3/7 recall of the model as it is, at 1,024 tokens"
$bin/prulong-eval configs/demo_eval.yaml 'methods=[{type: full}]' out=demo/full.json

step "4/7 learn which KV heads need the whole context (at $SECONDS s)"
$bin/prulong-train configs/demo.yaml train.seed="$seed" data.train.0.seed="$seed" run.dir="demo/run-$seed"

step "5/7 export the mask (at $SECONDS s)"
$bin/prulong-export "demo/run-$seed" --sparsity 0.7 --out demo/masks

step "6/7 compare on prose, names and codes that training never saw (at $SECONDS s)"
$bin/prulong-eval configs/demo_eval.yaml

step "7/7 draw the picture (at $SECONDS s)"
$python scripts/plot_demo.py demo/masks/pattern.json demo/results.json demo/demo.png

cat <<MSG

[demo] done in $SECONDS s after set-up. Where everything is:
  demo/demo.png          the mask by layer and head, and accuracy against KV entries kept
  demo/masks             pattern.json (for prulong, from C++ and Python) and masks.tsv (for DuoAttention's and PruLong's tools)
  demo/results.json      the table above as data
  demo/run-$seed            the training run: config.yaml, metrics.jsonl, log.txt, checkpoints
MSG
