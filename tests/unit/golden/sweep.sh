#!/bin/bash
# One array. Trials: 3; nodes of each: 2; ranks a node: 8.
#SBATCH --array=0-2%3
#SBATCH --comment='it'"'"'s $(mine)'
#SBATCH --cpus-per-task=4
#SBATCH --dependency=afterok:41:42
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --job-name=dpo-1
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --licenses=nemo:1
#SBATCH --mem=512000M
#SBATCH --nodelist='n[1-2]'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/runs/it'"'"'s $(s)/slurm/%A_%a.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# Each array element is one trial, a folder of its number in the sweep's folder.
sweep='/runs/it'"'"'s $(s)'
trials=(0 1 2)
export PYTHONPATH=/clone"${PYTHONPATH:+:$PYTHONPATH}"
export A='b c'
trial="$sweep/${trials[SLURM_ARRAY_TASK_ID]}"
attempt="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
log="${trial//%/%%}/log" # in the name of an output file a % has a meaning for Slurm

# srun of Slurm 22.05 and later does not take --cpus-per-task over from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
mkdir -p "$trial/log"
module load cuda

# The first rank that fails ends the others, which would wait for it in a collective until the time limit.
srun --unbuffered --kill-on-bad-exit=1 --wait=60 \
    --output="$log/${attempt}_%t_log.out" --error="$log/${attempt}_%t_log.out" \
    '--container-image=a b' \
    --mpi=pmix \
    python -u -m launcher.submit.slurm_rank "$trial"
status=$?
date
exit "$status"
