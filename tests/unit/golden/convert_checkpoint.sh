#!/bin/bash
# A Hugging Face Llama -> .nemo, with the proof that it is the same model.
#SBATCH --comment='it'"'"'s $(mine)'
#SBATCH --cpus-per-task=4
#SBATCH --dependency=afterok:3
#SBATCH --job-name=x-convert_checkpoint
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --licenses=nemo:1
#SBATCH --mem=4096M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --time=60
#SBATCH --output='/runs/it'"'"'s/x-%j.out'

module load cuda
set -euo pipefail

export A=''
export B='$(b) '"'"'c'"'"''
mkdir -p '/d/a b'

# srun of Slurm 22.05 and later does not take --cpus-per-task over from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
status=0
srun --unbuffered --kill-on-bad-exit=1 --wait=60 --mpi=pmix python -u /clone/data_prep/prepare_data.py 'it'"'"'s' --out '/d/a b' || status=$?
set +eu
date
exit "$status"
