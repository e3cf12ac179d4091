#!/bin/bash
# Preference pairs -> the JSONL files that NeMo-Aligner's DPO reads. One process, no GPU.
#SBATCH --comment='it'"'"'s $(mine)'
#SBATCH --cpus-per-task=4
#SBATCH --dependency=afterok:3
#SBATCH --job-name=x-prepare_data
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

# -- what is run; sbatch/functions.sh explains these variables ---------------------------------------------------------
functions=/clone/sbatch/functions.sh
pythonpath=/clone
environment=(A= 'B=$(b) '"'"'c'"'"'')
container=''
srun_args=(--mpi=pmix)
makes='/d/a b'
command=(python -u /clone/data_prep/prepare_data.py 'it'"'"'s' --out '/d/a b')

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
