#!/bin/bash
# Compares the trials of a sweep that has ended: python -m launcher report.
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

# -- what is run; sbatch/functions.sh explains these variables ---------------------------------------------------------
functions=/clone/sbatch/functions.sh
pythonpath=/clone
environment=(A= 'B=$(b) '"'"'c'"'"'')
container=''
srun_args=()
command=(python -u -m launcher report '/runs/it'"'"'s')

# -- the same in every script of one process ---------------------------------------------------------------------------
# shellcheck source=sbatch/functions.sh
source "$functions" || exit
export_environment
# setup: lines that the command needs before it, such as `module load ...`
module load cuda
run_command
# teardown: lines that follow the command
date
exit "$status"
