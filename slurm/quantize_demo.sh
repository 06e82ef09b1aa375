#!/bin/bash
# The bundled model on two nodes without GPUs: shows on your cluster, in a few minutes, that launching, preemption and
# requeueing work before a large job depends on them. From the root of the checkout:
#
#   sbatch slurm/quantize_demo.sh
#   scontrol requeue JOBID            half-way: the job comes back and goes on

#SBATCH --job-name=roundhouse-demo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=30
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@60

# What runs, from the environment or as it stands here.
: "${ROUNDHOUSE_ROOT:=$SLURM_SUBMIT_DIR}"
: "${ROUNDHOUSE:=$ROUNDHOUSE_ROOT/build/bin/roundhouse}"
: "${CONFIG:=configs/demo.yaml}"
: "${RUN:=runs/demo-slurm}"
: "${MAX_RESTARTS:=100}"

set -euo pipefail
cd "$ROUNDHOUSE_ROOT"
source slurm/supervise.sh

# srun does not take this over from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

supervise "$RUN" srun --mpi=pmix --kill-on-bad-exit=1 --wait=60 \
  "$ROUNDHOUSE" run "$CONFIG" --set "run=$RUN"
