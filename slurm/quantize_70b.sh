#!/bin/bash
# Quantizes a 65B/70B model on 4 nodes of 8 GPUs. From the root of the checkout:
#
#   MODEL=/models/Llama-2-70b-hf CALIBRATION=/data/c4.jsonl sbatch slurm/quantize_70b.sh
#   sbatch --nodes=8 --time=4:00:00 slurm/quantize_70b.sh        other nodes, other limits: nothing in the results changes
#
# Preempted, out of time, or a node lost: the job is requeued and goes on where it was. A job that ended for good is
# started again by the same sbatch line.

#SBATCH --job-name=roundhouse-70b
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@300

# What runs, from the environment or as it stands here.
: "${ROUNDHOUSE_ROOT:=$SLURM_SUBMIT_DIR}"      # the checkout; on a file system that all nodes see
: "${ROUNDHOUSE:=$ROUNDHOUSE_ROOT/build/bin/roundhouse}"
: "${CONFIG:=configs/llama-2-70b.yaml}"
: "${RUN:=runs/llama-2-70b}"
: "${MODEL:=}" "${CALIBRATION:=}" "${WIKITEXT:=}"   # empty: what the config says
: "${SCRATCH:=}"                                    # a local disk for activations that do not fit into memory
: "${MAX_RESTARTS:=100}"

set -euo pipefail
cd "$ROUNDHOUSE_ROOT"
source slurm/supervise.sh

settings=(--set "run=$RUN")
[[ $MODEL ]] && settings+=(--set "model=$MODEL")
[[ $CALIBRATION ]] && settings+=(--set "calibration.text=$CALIBRATION")
# Where the text of the config's first perplexity lies; how it is read, the config says.
[[ $WIKITEXT ]] && settings+=(--set "evaluate.perplexity.0.text=$WIKITEXT")
[[ $SCRATCH ]] && settings+=(--set "memory.scratch=$SCRATCH")

# srun does not take this over from sbatch.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# --gpu-bind=none: every task sees all GPUs of its node, which peer-to-peer copies need; each takes another one.
supervise "$RUN" srun --mpi=pmix --kill-on-bad-exit=1 --wait=60 --gpu-bind=none \
  "$ROUNDHOUSE" run "$CONFIG" "${settings[@]}"
