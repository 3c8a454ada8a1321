#!/usr/bin/env bash
# One node's part of a training that torchrun starts: srun --ntasks-per-node=1 recipes/slurm/torchrun.sh PROGRAM ARGUMENT…
# (recipes/lib.sh calls it). EMOHUBERT_TASKS is the number of processes on all nodes.
set -euo pipefail
trap '' USR1 # it is meant for the processes of the training, which listen to it
nodes=${SLURM_STEP_NUM_NODES:-1}
first=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
address=$first # where its name does not resolve, the address that Slurm has
getent hosts "$first" >/dev/null || address=$(scontrol --oneliner show node "$first" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')
port=$((20000 + (SLURM_JOB_ID * 7 + SLURM_STEP_ID) % 20000))
exec "${PYTHON:?}" -m torch.distributed.run --nnodes="$nodes" --nproc-per-node=$((EMOHUBERT_TASKS / nodes)) --node-rank="$SLURM_NODEID" \
    --master-addr="$address" --master-port="$port" --no-python "$@"
