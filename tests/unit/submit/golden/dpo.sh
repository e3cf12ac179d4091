#!/bin/bash
# One DPO trial. Makes its data first where they are missing; the base model's .nemo has to exist.
#SBATCH --array=0-0%1
#SBATCH --comment='it'"'"'s $(mine)'
#SBATCH --cpus-per-task=4
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --job-name=dpo
#SBATCH --licenses=nemo:1
#SBATCH --mem=512000M
#SBATCH --nodelist='n[1-2]'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60
#SBATCH --output=%x-%A_%a.out

# -- what is run; sbatch/functions.sh explains these variables ---------------------------------------------------------
cd '/a b' || exit
first=${LAUNCHER_CHAIN:-$SLURM_ARRAY_JOB_ID}
functions=/clone/sbatch/functions.sh
pythonpath=/clone
environment=(A= 'B=$(b) '"'"'c'"'"'')
container=''
srun_args=(--mpi=pmix)
sweep='/runs/$x'"/dpo-${first%_*}"
trials=(0)
per_element=1
ranks_per_node=8
python=(python)
python_on_node='/env of mine/python'
data_proof='/d/a b/dataset.json'
makes='/d/a b'
prepare_data=(--mpi=pmix python -u /clone/data_prep/prepare_data.py 'it'"'"'s' --out '/d/a b')
write_sweep=(python /clone/launcher/main.py model=tiny 'experiment.name='"'"'it'"'"'' hydra/launcher=preference_write 'hydra.sweep.dir=${oc.env:SWEEP}')

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
