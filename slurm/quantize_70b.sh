#!/bin/bash
# Quantizes a 65B/70B model on 4 nodes of 8 GPUs. From the root of the checkout:
#
#   MODEL=/models/Llama-2-70b-hf CALIBRATION=/data/c4.jsonl WIKITEXT=/data/wiki.test.raw sbatch slurm/quantize_70b.sh
#   sbatch --nodes=8 --time=4:00:00 slurm/quantize_70b.sh        other nodes, other limits: nothing in the results changes
#
# Preempted, out of time, or a node lost: the job is requeued and goes on where it was. A job that ended for good is
# started again by the same sbatch line. Where jobs may not be requeued, slurm/chain.sh submits several, one after the other.
# What this cluster needs (modules, a container, network settings; source it before sbatch for an account) stands in slurm/site.sh:
# see site.sh.example.

#SBATCH --job-name=roundhouse-70b
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
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
: "${RECIPE:=}"                                     # in place of the config's: {method: gptq, bits: 3, group_size: 128}
: "${SCRATCH:=}"                                    # a local disk for activations that do not fit into memory
# none: every task sees all GPUs of its node, which peer-to-peer copies need, and each takes another one. single:1: Slurm deals them out.
: "${GPU_BIND:=none}"

cd "$ROUNDHOUSE_ROOT" || exit 2
# shellcheck source=/dev/null
if [[ -e slurm/site.sh ]]; then source slurm/site.sh; fi
set -euo pipefail
source slurm/supervise.sh

settings=(--set "run=$RUN")
[[ $MODEL ]] && settings+=(--set "model=$MODEL")
[[ $CALIBRATION ]] && settings+=(--set "calibration.text=$CALIBRATION")
# Where the text of the config's first perplexity lies; how it is read, the config says.
[[ $WIKITEXT ]] && settings+=(--set "evaluate.perplexity.0.text=$WIKITEXT")
[[ $RECIPE ]] && settings+=(--set "recipes=[$RECIPE]" --set "sweep=[]")
[[ $SCRATCH ]] && settings+=(--set "memory.scratch=$SCRATCH")

# shellcheck disable=SC2034  # for supervise.sh
settings_of_job=(ROUNDHOUSE_ROOT ROUNDHOUSE CONFIG RUN MODEL CALIBRATION WIKITEXT RECIPE SCRATCH GPU_BIND)
batch_script=slurm/quantize_70b.sh
srun_options+=("--gpu-bind=$GPU_BIND")
launch "$RUN" "$ROUNDHOUSE" run "$CONFIG" "${settings[@]}"
