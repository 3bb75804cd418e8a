#!/usr/bin/env bash
# SLURM, several nodes with GPUs, a process for each GPU:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh \
#       --config=configs/imagenet_vit_b16.py --workdir=/shared/runs/imagenet
#
# Submit it in the repository's root, which has the .venv; the workdir must be on a file
# system that all nodes share. A failed run starts again on the same nodes, see run.sh. Two
# minutes before the time is up SIGTERM has it save; submitting the same again goes on.
#SBATCH --job-name=advadapters
#SBATCH --output=%x-%j.log
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

# SLURM runs a copy of this file, so paths go from the folder of the submission.
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="$PWD/.venv/bin:$PATH"

exec bash launch/run.sh srun --kill-on-bad-exit=1 advadapters train "$@"
