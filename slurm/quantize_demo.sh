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

cd "$ROUNDHOUSE_ROOT" || exit 2
# shellcheck source=/dev/null
if [[ -e slurm/site.sh ]]; then source slurm/site.sh; fi
set -euo pipefail
source slurm/supervise.sh

# shellcheck disable=SC2034  # for supervise.sh
settings_of_job=(ROUNDHOUSE_ROOT ROUNDHOUSE CONFIG RUN)
batch_script=slurm/quantize_demo.sh
launch "$RUN" "$ROUNDHOUSE" run "$CONFIG" --set "run=$RUN"
