#!/bin/bash
# The beta sweep as one native array: each element trains one trial, with one value of beta, on all its nodes.
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

# -- what is run; sbatch/functions.sh explains these variables ---------------------------------------------------------
functions=/clone/sbatch/functions.sh
pythonpath=/clone
environment=('A=b c')
container=pyxis
srun_args=('--container-image=a b' --mpi=pmix)
sweep='/runs/it'"'"'s $(s)'
trials=(0 1 2)
per_element=1
ranks_per_node=8
python=(bash /clone/sbatch/in_container.sh python)
python_on_node='/env of mine/python'

# -- the same in every script of trials --------------------------------------------------------------------------------
# shellcheck source=sbatch/functions.sh
source "$functions" || exit
export_environment
# setup: lines that ranks need before them, such as `module load ...`
module load cuda
begin
train
# teardown: lines that follow the ranks
date
end "$@"
