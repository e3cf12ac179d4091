# shellcheck shell=bash disable=SC2154 # the script that sources this file assigns the variables in lower case
#
# Functions that the scripts in sbatch/ share. A script first assigns what is run; then it calls these functions.
#
# Every script assigns
#     pythonpath       what Python imports the package `launcher` from; empty where Python finds it by itself
#     environment      variables for the job, each NAME=VALUE
#     container        runtime of the container that the work runs in; empty without one
#     srun_args        more options of srun
# A script of one process assigns
#     makes            folder to be made first, if any
#     command          the process
# A script of trials assigns
#     sweep            folder of the sweep
#     trials           numbers of the trials, in the order of the array's elements
#     per_element      trials that one element trains side by side on its node
#     ranks_per_node   ranks of one trial on a node
#     python           words that run Python for a rank, inside the container if there is one
#     python_on_node   Python on the node itself, where Slurm's commands are
# and, where the job itself makes what it needs (sbatch by hand)
#     prepare_data     command that makes the training data, run if the file $data_proof is missing
#     write_sweep      command that writes the sweep's folder, run if the folder is missing

early=() # what stands before srun to end it before the time limit
status=0 # exit code of the work
trap : TERM USR2 # warnings are for the ranks; this script outlives them

# -- one process -------------------------------------------------------------------------------------------------------

run_command() {
    [ -z "${makes:-}" ] || mkdir -p "$makes" || exit
    srun_step "${srun_args[@]}" "${command[@]}"
    status=$?
}

# -- trials ------------------------------------------------------------------------------------------------------------

# Makes what is missing and takes this element's trials over from the start before, wherever that ran. Ends the script
# where a trial was started too often.
begin() {
    absolute sweep python python_on_node
    start="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
    element="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # an array's last element has the whole array's job id
    local ends # in seconds since 1970; squeue prints a line with the cluster's name first where SLURM_CLUSTERS is set
    ends=$(SLURM_TIME_FORMAT=%s squeue -h -j "$element" -o %e | tail -n 1)
    if [[ $ends =~ ^[0-9]+$ ]]; then
        # at the limit itself nobody could requeue this job
        export TRIAL_ENDS_AT=$((ends - 10)) IN_CONTAINER_TRIAL_ENDS_AT=$((ends - 10))
    fi
    if [ -n "${data_proof:-}" ] && [ ! -e "$data_proof" ]; then
        [ -z "${makes:-}" ] || mkdir -p "$makes" || exit
        srun_step --nodes=1 --ntasks=1 --ntasks-per-node=1 "${prepare_data[@]}" || exit
    fi
    # Hydra reads the folder's name from the environment, so that any name is taken as it is.
    [ -e "$sweep/sweep.json" ] || SWEEP="$sweep" "${write_sweep[@]}" || exit
    [ -z "${write_sweep:-}" ] || use_kept_code
    find_python_on_node
    begin_trials
}

# A script that writes the sweep itself begins with the clone's code. From here on it runs the copy in the sweep's folder,
# so that a requeue runs the same code, whatever has happened to the clone.
use_kept_code() {
    local code="$sweep/code/0"
    [ -d "$code" ] || return 0 # the sweep was written by an earlier version
    # shellcheck source=/dev/null # another copy of this file
    source "$code/functions.sh" || exit
    [[ $code != *:* ]] || code=code/0 # relative to the working directory: a colon ends a path in PYTHONPATH
    pythonpath="$code/launcher.zip:$pythonpath"
    export_environment
}

begin_trials() {
    local number trial code beside=()
    [ "$per_element" -eq 1 ] || beside=(beside)
    mine=() started=() # this element's trials, and those of them to be trained
    for number in "${trials[@]:SLURM_ARRAY_TASK_ID*per_element:per_element}"; do
        trial="$sweep/$number"
        mine+=("$trial")
        mkdir -p "$trial/log"
        [ "$python_on_node" = none ] || on_node -m launcher.job.begin_end begin "$trial" "${beside[@]}"
        code=$?
        if [ "$code" -eq 0 ]; then
            started+=("$trial")
        elif [ "$per_element" -eq 1 ] || [ "$code" -eq 75 ]; then # 75: the whole job is back in the queue
            exit "$code"
        fi
    done
}

# Trains the trials that were begun. Ranks that have not left 10 s before the time limit are ended.
train() {
    local trial left
    left=$((${TRIAL_ENDS_AT:-0} - $(printf '%(%s)T' -1)))
    [ "$left" -le 0 ] || early=(timeout --signal=TERM "$left")
    if [ "$per_element" -eq 1 ]; then
        train_trial "${started[0]}"
        status=$?
        return
    fi
    for trial in "${started[@]}"; do
        train_beside "$trial" &
    done
    until wait; do :; done # a warning to this script ends a wait
}

train_trial() { # TRIAL [SRUN OPTION...]
    # Python 3.10 imports from the working directory: therefore it is the sweep's folder, where nobody else can write.
    # The log's name is relative to it, since Slurm gives %, brackets and line breaks in an absolute name a meaning.
    local log="${1##*/}/log/${start}_%t_log.out"
    srun_step "${srun_args[@]}" --chdir="$sweep" --output="$log" --error="$log" "${@:2}" \
        "${python[@]}" -u -m launcher.train.slurm_rank "$1"
}

# A trial beside others is a job step with GPUs and cores of its own (the first step would be given all of them, and the
# others would wait); the job's memory is shared. What srun prints goes to a file of the trial.
train_beside() { # TRIAL
    trap : TERM USR2
    local cores=$((SLURM_CPUS_ON_NODE / (per_element * ranks_per_node)))
    [ "$cores" -le 2 ] || cores=$((cores / 2 * 2)) # whole cores, where Slurm counts two threads of each
    local own=(--exact --mem=0 --nodes=1 --ntasks="$ranks_per_node" --cpus-per-task="$cores")
    if [ -n "${SLURM_GPUS_PER_NODE:-}" ]; then # 8, or with a type: a100:8
        local gpus=${SLURM_GPUS_PER_NODE##*:}
        own+=(--gpus-per-node="${SLURM_GPUS_PER_NODE%"$gpus"}$((gpus / per_element))")
    fi
    train_trial "$1" "${own[@]}" 2>>"$1/log/${start}_srun.out"
    on_node -m launcher.job.begin_end end "$1" "$?"
}

# Ends the script. Trials that are not done continue: Slurm requeues this job, or a new job is submitted after it. A
# trial that has failed too often gives up, with an exit code and a line that says why. Arguments: those of the script.
end() {
    if [ "$per_element" -gt 1 ]; then
        on_node -m launcher.job.begin_end again "${mine[@]}" -- "$0" "$@"
        exit
    fi
    if [ "$python_on_node" != none ]; then
        on_node -m launcher.job.begin_end end "${started[0]}" "$status" "$0" "$@"
        exit
    fi
    [ ! -e "${started[0]}/log/${start}_stopped.json" ] || scontrol requeue "$element"
    exit "$status"
}

# -- both --------------------------------------------------------------------------------------------------------------

export_environment() {
    local name
    # shellcheck disable=SC2086 # names of variables; those of a session that this job was submitted from break srun
    unset ${!SRUN_*} ${!PMI_*} ${!PMI2_*} PMIX_RANK PMIX_NAMESPACE
    unset SLURM_EXPORT_ENV # sbatch --export=NONE sets it, and srun would then export nothing
    # srun of Slurm 22.05 and later does not take --cpus-per-task over from sbatch.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
    export PYTHONSAFEPATH=1 # Python 3.11 and later: do not import from the working directory
    [ "${#environment[@]}" -eq 0 ] || export "${environment[@]}"
    if [ -z "$container" ]; then
        [ -z "$pythonpath" ] || export PYTHONPATH="$pythonpath${PYTHONPATH:+:$PYTHONPATH}"
        return
    fi
    # The image may set variables of these names: in_container.sh sets them anew, inside.
    for name in "${environment[@]}" PYTHONSAFEPATH=1; do
        export "IN_CONTAINER_$name"
    done
    export LAUNCHER_PYTHONPATH="$pythonpath"
}

# Makes the paths in these variables absolute. A name without a slash is one that PATH has.
absolute() { # VARIABLE...
    local name
    for name; do
        case ${!name} in
            /*) ;;
            */*) printf -v "$name" %s "$PWD/${!name}" ;;
        esac
    done
}

# One job step. The first rank that fails ends the others, which would wait for it in a collective until the time limit.
srun_step() { # [SRUN OPTION...] COMMAND...
    local clean=() # Apptainer would set this machine's PYTHONPATH inside the container
    [ -z "$container" ] || clean=(env -u PYTHONPATH -u PYTHONHOME)
    "${early[@]}" "${clean[@]}" srun --unbuffered --kill-on-bad-exit=1 --wait=60 "$@"
}

# Without a Python (3.9 or later) on the node, nothing limits the starts of a trial, and a warned trial is requeued.
find_python_on_node() {
    local candidate
    for candidate in "$python_on_node" python3; do
        python_on_node=$candidate
        on_node -c 'import launcher.job.begin_end' 2>/dev/null && return
    done
    python_on_node=none
    [ "$per_element" -gt 1 ] || return 0
    echo "error: a node's trials need a Python (3.9) on the node itself: or set cluster.trials_per_node=1" >&2
    exit 2
}

# Python on the node, with the sweep's folder as its working directory (see train_trial).
on_node() { # ARGUMENT OF PYTHON...
    (cd "$sweep" && PYTHONPATH="$pythonpath" exec "$python_on_node" "$@")
}
