#!/bin/bash
# One DPO run. Nodes: 2; ranks a node: 8. Prepares its data where they are missing.
#SBATCH --array=0-0%1

module load cuda
set -euo pipefail

first=${LAUNCHER_CHAIN:-$SLURM_ARRAY_JOB_ID} # the job that this one continues, if it does
cd '/a b'
export PYTHONPATH=/clone"${PYTHONPATH:+:$PYTHONPATH}"
export A=''
export B='$(b) '"'"'c'"'"''
export SWEEP='/runs/$x'"/dpo-${first%_*}"
here='/env of mine/python'
trial="$SWEEP/0"
attempt="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
log="${trial//%/%%}/log" # in the name of an output file a % has a meaning for Slurm

element="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # $SLURM_JOB_ID of an array's last element would name all of them
ends=$(SLURM_TIME_FORMAT=%s squeue -h -j "$element" -o %e) || true # seconds since 1970
[[ ! $ends =~ ^[0-9]+$ ]] || export TRIAL_ENDS_AT=$((ends - 10)) # at the limit itself nobody could requeue this job
trap : TERM USR2 # warnings are for the ranks; this script outlives them

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

# Takes the trial over from the start before, wherever that was; fails where it was started too often. This runs on the
# node itself, where Slurm's commands are, even if ranks run in a container; without a Python (3.9) there, it is left out.
for here in "$here" python3 none; do "$here" -c 'import launcher.job.begin_end' 2>/dev/null && break; done
[ "$here" = none ] || "$here" -m launcher.job.begin_end begin "$trial"

# Ranks that have not left by then are made to.
left=$((${TRIAL_ENDS_AT:-0} - $(printf '%(%s)T' -1))) early=()
[ "$left" -le 0 ] || early=(timeout --signal=TERM "$left")

# The first rank that fails ends the others, which would wait for it in a collective until the time limit.
status=0
"${early[@]}" srun --unbuffered --kill-on-bad-exit=1 --wait=60 \
    --output="$log/${attempt}_%t_log.out" --error="$log/${attempt}_%t_log.out" \
    '--y=z z' \
    python -u -m launcher.job.rank "$trial" || status=$?
set +eu
date
# Done, or goes on: this job is requeued, or continued by another one; or gives up, with an exit code and a line why.
[ "$here" = none ] || exec "$here" -m launcher.job.begin_end end "$trial" "$status" "$0" "$@"
[ ! -e "$trial/log/${attempt}_stopped.json" ] || scontrol requeue "$element"
exit "$status"
