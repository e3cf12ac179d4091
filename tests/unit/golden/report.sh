#!/bin/bash
# Compares the trials of a sweep, once all are done.
#SBATCH --comment='it'"'"'s $(mine)'
#SBATCH --cpus-per-task=4
#SBATCH --dependency=afterok:7
#SBATCH --job-name=r
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --licenses=nemo:1
#SBATCH --mem=2048M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --time=60
#SBATCH --output='/runs/it'"'"'s/x-%j.out'

module load cuda
set -euo pipefail

export PYTHONPATH=/clone"${PYTHONPATH:+:$PYTHONPATH}"

# srun of Slurm 22.05 and later does not take --cpus-per-task over from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
status=0
srun --unbuffered --kill-on-bad-exit=1 --wait=60 python -u -m launcher report '/runs/it'"'"'s' || status=$?
set +eu
date
exit "$status"
