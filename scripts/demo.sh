#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The main job on a real pretrained model, on two CPU cores: measure SmolLM2-135M-Instruct's recall, learn head masks,
# export them, compare them with full attention, random masks and no global heads at all, and generate with both.
# Usage: scripts/demo.sh [SEED]      Results go to demo/; a second call goes on from what is there.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seed=${1:-1}
[[ $seed =~ ^[0-9]{1,9}$ ]] || { echo "demo: SEED: a number of at most 9 digits expected, found '$seed'" >&2; exit 2; }
step() { printf '\n[demo] %s\n' "$*"; }
bin=build/cpu/bin
python=.venv/bin/python

step "1/8 set-up"
scripts/setup.sh cpu prulong-train prulong-export prulong-eval prulong_python
$python scripts/fetch_smollm2.py
SECONDS=0

step "2/8 tokenise prose, names and codes"
$python scripts/prepare_data.py recall --tokenizer models/SmolLM2-135M-Instruct --out demo/kit --overwrite

step "3/8 recall of the model as it is, at 1,024 tokens"
$bin/prulong-eval configs/demo_eval.yaml 'methods=[{type: full}]' out=demo/full.json

step "4/8 learn which KV heads need the whole context (at $SECONDS s)"
$bin/prulong-train configs/demo.yaml train.seed="$seed" data.train.0.seed="$seed" run.dir="demo/run-$seed"

step "5/8 export the mask (at $SECONDS s)"
$bin/prulong-export "demo/run-$seed" --sparsity 0.7 --out demo/masks

step "6/8 compare on prose, names and codes that training never saw (at $SECONDS s)"
$bin/prulong-eval configs/demo_eval.yaml

step "7/8 generate: the same prompts with full attention and with the learned mask (at $SECONDS s)"
$python scripts/demo_generate.py models/SmolLM2-135M-Instruct demo/masks demo/generation.json

step "8/8 draw the picture (at $SECONDS s)"
$python scripts/plot_demo.py demo/masks/pattern.json demo/results.json demo/demo.png --generation demo/generation.json

cat <<MSG

[demo] done in $SECONDS s after set-up. Where everything is:
  demo/demo.png          the mask by layer and head, accuracy against KV entries kept, and measured KV memory
  demo/masks             pattern.json (for prulong, from C++ and Python) and masks.tsv (for DuoAttention's and PruLong's tools)
  demo/results.json      the table above as data
  demo/generation.json   answers, speed and measured KV memory of both
  demo/run-$seed            the training run: config.yaml, metrics.jsonl, log.txt, checkpoints
MSG
