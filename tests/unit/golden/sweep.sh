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

# The trials in the order of the array's elements; each is a folder of its number in the sweep's folder.
sweep='/runs/it'"'"'s $(s)'
trials=(0 1 2)
here='/env of mine/python'
export PYTHONPATH=/clone"${PYTHONPATH:+:$PYTHONPATH}"
export A='b c'
attempt="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
element="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # $SLURM_JOB_ID of an array's last element would name all of them
ends=$(SLURM_TIME_FORMAT=%s squeue -h -j "$element" -o %e) # seconds since 1970
[[ ! $ends =~ ^[0-9]+$ ]] || export TRIAL_ENDS_AT=$((ends - 10)) # at the limit itself nobody could requeue this job
trap : TERM USR2 # warnings are for the ranks; this script outlives them

# srun of Slurm 22.05 and later does not take --cpus-per-task over from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# Takes the trial over from the start before, wherever that was; fails where it was started too often. This runs on the
# node itself, where Slurm's commands are, even if ranks run in a container; without a Python (3.9) there, it is left out.
for here in "$here" python3 none; do "$here" -c 'import launcher.job.begin_end' 2>/dev/null && break; done
trial="$sweep/${trials[SLURM_ARRAY_TASK_ID]}"
mkdir -p "$trial/log"
[ "$here" = none ] || "$here" -m launcher.job.begin_end begin "$trial" || exit
module load cuda

# Ranks that have not left by then are made to.
left=$((${TRIAL_ENDS_AT:-0} - $(printf '%(%s)T' -1))) early=()
[ "$left" -le 0 ] || early=(timeout --signal=TERM "$left")

# The first rank that fails ends the others, which would wait for it in a collective until the time limit.
log="${trial//%/%%}/log" # in the name of an output file a % has a meaning for Slurm
"${early[@]}" srun --unbuffered --kill-on-bad-exit=1 --wait=60 \
    --output="$log/${attempt}_%t_log.out" --error="$log/${attempt}_%t_log.out" \
    '--container-image=a b' \
    --mpi=pmix \
    python -u -m launcher.job.rank "$trial"
status=$?
date
# Done, or goes on: this job is requeued, or continued by another one; or gives up, with an exit code and a line why.
[ "$here" = none ] || exec "$here" -m launcher.job.begin_end end "$trial" "$status" "$0" "$@"
[ ! -e "$trial/log/${attempt}_stopped.json" ] || scontrol requeue "$element"
exit "$status"
