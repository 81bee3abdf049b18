#!/bin/bash
# SPDX-License-Identifier: MIT
# Trains on whole machines of a Slurm cluster, from the checkout: sbatch configs/slurm.sh CONFIG.yaml [key.path=value ...]
# The checkout, the model and the data must lie where every machine sees them, the run's folder where the first does. The
# same command goes on from the newest checkpoint, also with another number of machines.
#SBATCH --job-name=prulong
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun .venv/bin/python -m torch.distributed.run --no-python \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$first:${PRULONG_PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" \
    --max-restarts 3 \
    build/cpu/bin/prulong-train "$@"
