#!/bin/bash
# One DPO run. Nodes: 2; ranks a node: 8. Prepares its data where they are missing.
#SBATCH --array=0-0%1

module load cuda
set -euo pipefail

cd '/a b'
export PYTHONPATH=/clone"${PYTHONPATH:+:$PYTHONPATH}"
export A=''
export B='$(b) '"'"'c'"'"''
export SWEEP='/runs/$x'"/dpo-$SLURM_ARRAY_JOB_ID"
trial="$SWEEP/0"
attempt="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
log="${trial//%/%%}/log" # in the name of an output file a % has a meaning for Slurm

# srun of Slurm 22.05 and later does not take --cpus-per-task over from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# The data, by one process.
if [ ! -e '/d/a b' ]; then
    mkdir -p /d
    srun --nodes=1 --ntasks=1 --ntasks-per-node=1 \
        '--x=y z' \
        python -u prepare.py 'a b'
fi

# The trial's folder. Hydra reads its name from the environment, so that any name is taken as it is.
if [ ! -e "$SWEEP/sweep.json" ]; then
    # shellcheck disable=SC2016
    python /clone/launcher/main.py model=tiny 'experiment.name='"'"'it'"'"'' hydra/launcher=preference_write 'hydra.sweep.dir=${oc.env:SWEEP}'
fi
mkdir -p "$trial/log"

# The first rank that fails ends the others, which would wait for it in a collective until the time limit.
status=0
srun --unbuffered --kill-on-bad-exit=1 --wait=60 \
    --output="$log/${attempt}_%t_log.out" --error="$log/${attempt}_%t_log.out" \
    '--y=z z' \
    python -u -m launcher.submit.slurm_rank "$trial" || status=$?
set +eu
date
exit "$status"
