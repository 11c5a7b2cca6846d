#!/usr/bin/env bash
# One training, or the writing of one cache, as a Slurm job. Before its time is up it saves, stops and queues itself again, until
# the work is done; whatever starts it again, it goes on where it was. From the root of the clone, with the environment active:
#
#   sbatch --gpus-per-node=1 --time=4:00:00 tools/slurm/job.sh train/distill.py CONFIG run=NAME [KEY=VALUE ...]
#   sbatch --array=0-4 ... tools/slurm/job.sh train/distill.py CONFIG run=dive-s{task} seed={task} cache.paths=[caches]
#
# In the arguments {task} is the number of an array's job. Several GPUs or nodes (--gpus-per-node=4 --nodes=2) are processes of one
# training: one for each GPU, or, PROCESSES=N in front of sbatch, N on each node.
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}

[[ -n ${SLURM_JOB_ID:-} ]] || fail "no job of Slurm; type: sbatch [OPTIONS] tools/slurm/job.sh train/distill.py CONFIG run=NAME"
arguments=("${@//\{task\}/${SLURM_ARRAY_TASK_ID:-}}")
folder= # of the run; none for a cache, which is never half-written
for one in "${arguments[@]}"; do
    case $one in
    run=/* | run=./* | run=../* | run=runs/*) folder=${one#run=} ;;
    run=\~/*) folder=$HOME${one#run=\~} ;;
    run=*) folder=runs/${one#run=} ;;
    esac
done
[[ -n $folder || ${arguments[0]-} == */cache_logits.py ]] || fail "give run=NAME: the job looks there for what has become of it"

processes=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
all=$((SLURM_JOB_NUM_NODES * processes))
command=(python "${arguments[@]}")
if ((all > 1)); then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # Each node has a rank, which only the launcher on it can know; the port differs from that of other jobs on the node.
    launcher='exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"'
    command=(bash -c "$launcher" launcher --multi_gpu --num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$all"
        --main_process_ip "$first" --main_process_port $((20000 + SLURM_JOB_ID % 20000)) "${arguments[@]}")
fi

# Slurm's signal goes to this script alone. A launcher would die of it before its processes have saved, so a training is asked by
# the file that it looks for.
asked=
ask() {
    asked=1
    echo "job $SLURM_JOB_ID: its time is almost up"
    if [[ -z $folder ]]; then
        scancel --signal=TERM "$SLURM_JOB_ID.0"
    elif [[ -d $folder ]]; then
        touch "$folder/stop"
    fi
}
trap ask USR1

srun --kill-on-bad-exit=1 "${command[@]}" &
step=$!
while :; do
    wait "$step"
    code=$?
    kill -0 "$step" 2>/dev/null || break # else a signal interrupted the wait
done
# The step may have ended while the signal was answered: its own code is still known, unless the wait above has had it.
wait "$step" 2>/dev/null
last=$?
((last == 127)) || code=$last
# A training that was killed, or had just ended, has left the file, which would stop the next one.
[[ -z $asked || -z $folder ]] || rm -f "$folder/stop"

unfinished() {
    if [[ -z $folder ]]; then
        ((code != 0))
    else
        python -c 'import json, sys; sys.exit(json.load(open(sys.argv[1]))["status"] != "stopped")' "$folder/run.json"
    fi
}
if [[ -n $asked ]] && unfinished; then
    echo "job $SLURM_JOB_ID: saved, it queues again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
