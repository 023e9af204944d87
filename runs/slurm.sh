#!/usr/bin/env bash
#SBATCH --job-name=nanochat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
#SBATCH --output=nanochat-%j.log
# The same under Slurm, which starts one torchrun on every machine of the job:
#   NANOCHAT_BASE_DIR=/shared/nanochat sbatch --nodes=4 runs/slurm.sh --depth=26 --device_batch_size=16
# A minute before the time is up every rank gets SIGTERM, saves at its next step and ends (torchrun leaves it 50 seconds
# for that); the same sbatch again goes on from there. A job that Slurm puts back into the queue goes on by itself.
set -euo pipefail
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-50}"
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"

HOSTS="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
HEAD="${HOSTS%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))" # the first of them
export HEAD NODES="$SLURM_NNODES" GPUS="${SLURM_GPUS_ON_NODE:-gpu}" RUN_ID="$SLURM_JOB_ID"
exec srun --kill-on-bad-exit=1 bash runs/multinode.sh "$@"
